"""The projections of a Hopfield layer: into the heads' association space, and out of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq.lagrangians import Separation
from hamdeq.nn.sizes import Sizes

__all__ = ["HopfieldCore", "Patterns"]


class Patterns(NamedTuple):
    """Patterns in the association space of each head.

    Attributes:
        state: Q, ``(N, H, L, d)``.
        stored: K, ``(N, H, S, d)``.
        values: V, what is read out, ``(N, H, S, p)``.
    """

    state: Tensor
    stored: Tensor
    values: Tensor


class HopfieldCore(nn.Module):
    """The parameters of a Hopfield layer, under the names they have in hflayers.

    Q = R W_Q, K = Y W_K and V = Z W_V, or V = Z W_K W_V where values are connected; with
    ``normalize``, layer norm of Q and K in each head.

    Args:
        sizes: of everything.
        memories: Lagrangian of the memory layer, which holds β.
        bias: whether projections add a bias.
        bias_pattern: whether a trained pattern is appended to K and V.
        zero_pattern: whether zeros are appended to K and V: a pattern to retrieve nothing by.
        normalize, affine, eps: layer norm in the association space.
        factory: device and dtype.
    """

    in_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    p_norm_weight: nn.Parameter | None
    p_norm_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        sizes: Sizes,
        memories: Separation,
        *,
        bias: bool,
        bias_pattern: bool,
        zero_pattern: bool,
        normalize: bool,
        affine: bool,
        eps: float,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.memories = memories
        self.zero_pattern = zero_pattern
        self.normalize = normalize
        self.eps = eps
        space, read = sizes.own_space, sizes.own_pattern
        if bias_pattern and not (space and read):
            raise ValueError(
                "concat_bias_pattern: expected the sizes of the patterns that it is added to, got "
                f"hidden_size {sizes.hidden} and pattern_size {sizes.pattern}; give both"
            )
        if affine and not space:
            raise ValueError(
                "normalize_hopfield_space_affine: expected the size of the association space, got "
                "None; give hidden_size"
            )
        static = (sizes.state_static, sizes.stored_static, sizes.projection_static)
        # Rows of each projection; none of what is not projected.
        self.rows: list[int] = [
            0 if s else n for s, n in zip(static, (space, space, read), strict=True)
        ]

        def parameter(name: str, wanted: bool, *shape: int | None) -> None:
            value = (
                nn.Parameter(torch.empty(*(n or 0 for n in shape), **factory)) if wanted else None
            )
            self.register_parameter(name, value)

        moves = any(self.rows)
        parameter("in_proj_weight", sizes.joint and moves, sum(self.rows), sizes.state)
        for name, n, width in zip("qkv", self.rows, self._widths(), strict=True):
            parameter(f"{name}_proj_weight", n > 0 and not sizes.joint, n, width)
        # As in hflayers there is room for the values' bias even where they are not projected.
        parameter("in_proj_bias", bias and moves, self.rows[0] + self.rows[1] + read)
        parameter("p_norm_weight", affine, sizes.hidden)
        parameter("p_norm_bias", affine, sizes.hidden)
        parameter("bias_k", bias_pattern, 1, 1, space)
        parameter("bias_v", bias_pattern, 1, 1, read)
        self.out_proj: nn.Linear | None = None
        if sizes.out_projection:
            self.out_proj = nn.Linear(read, sizes.output or 0, bias=bias, **factory)
        self.reset_parameters()

    def _widths(self) -> tuple[int | None, int | None, int | None]:
        """Size of what each projection takes in."""
        sizes = self.sizes
        through = sizes.connected and not sizes.stored_static
        return sizes.state, sizes.stored, sizes.own_space if through else sizes.projection

    def reset_parameters(self) -> None:
        """Weights and patterns from N(0, 0.02²), as in hflayers; biases 0, scales 1."""
        for name, value in self.named_parameters():
            last = name.rpartition(".")[2]
            if last == "p_norm_weight":
                nn.init.ones_(value)
            elif last in ("in_proj_bias", "bias", "p_norm_bias"):
                nn.init.zeros_(value)
            elif last != "log_beta":
                nn.init.normal_(value, std=0.02)

    def reset_beta(self, beta: float | list[float]) -> None:
        """Set β, for all heads or for each, where it is more than a number."""
        # As exact as the numbers given, whatever the default dtype and device.
        values = torch.as_tensor(beta, dtype=torch.float64, device="cpu")
        memories = self.memories
        with torch.no_grad():
            for name, held in (*memories.named_parameters(), *memories.named_buffers()):
                given = values.log() if name == "log_beta" else values
                held.copy_(given.expand(self.sizes.heads).reshape_as(held))

    def restore_beta(self, beta: float | list[float], device: torch.device | None) -> None:
        """Set a β that is not trained; one on the meta device goes to the device given."""
        if self.memories.learnable or not isinstance(self.memories.beta, Tensor):
            return
        if self.memories.beta.is_meta and device is not None:
            self.memories.to_empty(device=device)
        if not self.memories.beta.is_meta:
            self.reset_beta(beta)

    @property
    def extra(self) -> int:
        """How many patterns are appended to the stored ones."""
        return (self.bias_k is not None) + self.zero_pattern

    def project(self, state: Tensor, stored: Tensor, projection: Tensor) -> Patterns:
        """State patterns R, stored patterns Y and pattern projections Z in the association space.

        Shape:
            R ``(N, L, ·)``, Y and Z ``(N, S, ·)``; N may be 1 for what all samples share.
        """
        projected = self._projected(state, stored, projection)
        q, k, v = (
            self._heads(x) if apart else self._static(x)
            for apart, x in zip(self._apart(), projected, strict=True)
        )
        if self.normalize:
            shape, scale, shift = k.shape[-1:], self.p_norm_weight, self.p_norm_bias
            q = F.layer_norm(q, shape, scale, shift, self.eps)
            k = F.layer_norm(k, shape, scale, shift, self.eps)
        return Patterns(q, *self._appended(k, v))

    def read_out(self, found: Tensor) -> Tensor:
        """The heads' results side by side, projected: ``(N, H, L, p) -> (N, L, output)``."""
        found = found.transpose(1, 2).flatten(2)
        return found if self.out_proj is None else self.out_proj(found)

    def _projected(
        self, state: Tensor, stored: Tensor, projection: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The products with the weights; what is not projected, as it is."""
        if self.in_proj_weight is not None and all(self.rows) and stored is projection:
            if state is stored:
                joint = F.linear(state, self.in_proj_weight, self.in_proj_bias)
                return joint.split(self.rows, -1)  # pyright: ignore[reportReturnType]
            n, bias = self.rows[0], self.in_proj_bias
            first, rest = (None, None) if bias is None else (bias[:n], bias[n:])
            q = F.linear(state, self.in_proj_weight[:n], first)
            k, v = F.linear(stored, self.in_proj_weight[n:], rest).split(self.rows[1:], -1)
            return q, k, v
        weights, biases = self._weights(), self._biases()

        def product(place: int, x: Tensor) -> Tensor:
            weight = weights[place]
            return x if weight is None else F.linear(x, weight, biases[place])

        q, k = product(0, state), product(1, stored)
        if self.sizes.connected and self.rows[1]:
            projection = k if stored is projection else product(1, projection)
        return q, k, product(2, projection)

    def _apart(self) -> tuple[bool, bool, bool]:
        """Whether each head has patterns of its own."""
        q, k, v = (n > 0 for n in self.rows)
        return q, k, v or (self.sizes.connected and k)

    def _weights(self) -> list[Tensor | None]:
        if self.in_proj_weight is None:
            return [getattr(self, f"{name}_proj_weight") for name in "qkv"]
        parts = self.in_proj_weight.split(self.rows)
        return [part if n else None for n, part in zip(self.rows, parts, strict=True)]

    def _biases(self) -> list[Tensor | None]:
        if self.in_proj_bias is None:
            return [None, None, None]
        return [*self.in_proj_bias.split([*self.rows[:2], self.sizes.own_pattern])]

    def _heads(self, x: Tensor) -> Tensor:
        """``(N, S, H · d) -> (N, H, S, d)``."""
        return x.unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2)

    def _static(self, x: Tensor) -> Tensor:
        """The same pattern for every head: ``(N, S, d) -> (N, H, S, d)``."""
        return x[:, None].expand(-1, self.sizes.heads, -1, -1)

    def _appended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ks, vs = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            ks.append(self._heads(self.bias_k).expand(k.shape[0], -1, -1, -1).to(k.dtype))
            vs.append(self._heads(self.bias_v).expand(v.shape[0], -1, -1, -1).to(v.dtype))
        if self.zero_pattern:
            ks.append(k.new_zeros(*k.shape[:2], 1, k.shape[3]))
            vs.append(v.new_zeros(*v.shape[:2], 1, v.shape[3]))
        return (k, v) if len(ks) == 1 else (torch.cat(ks, 2), torch.cat(vs, 2))
