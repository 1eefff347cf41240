"""The projections of a Hopfield layer: into the heads' association space, and out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq.lagrangians import Separation
from hamdeq.nn.building import memory_layer
from hamdeq.nn.getters import CoreGetters
from hamdeq.nn.sizes import Sizes

__all__ = ["HopfieldCore", "Patterns"]

T = TypeVar("T")


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


class HopfieldCore(CoreGetters, nn.Module):
    """The parameters of a Hopfield layer, under the names they have in hflayers.

    Q = R W_Q, K = Y W_K and V = Z W_V, or V = Z W_K W_V where values are connected; with
    ``normalize``, layer norm of Q and K in each head.

    Args:
        sizes: of everything.
        lagrangian: of the memory layer, at β = 1.
        beta: inverse temperature β, for all heads or for each.
        learnable: whether β is trained.
        dropout: probability that an association is left out of the read-out.
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
        lagrangian: Separation | None,
        *,
        beta: float | list[float],
        learnable: bool,
        dropout: float,
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
        self.memories: Separation = memory_layer(lagrangian, beta, sizes.heads, learnable, factory)
        self.dropout = dropout
        self._beta = self._initial_beta = beta
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

    @property
    def beta(self) -> float | Tensor:
        """β, one number or one for each head ``(H,)``."""
        if isinstance(self._beta, float) and not self.memories.learnable:
            return self._beta
        return self.memories.beta.flatten().clone()

    def set_beta(self, beta: float | list[float]) -> None:
        """Set β, for all heads or for each, in place: a graph that was compiled holds."""
        memories = self.memories
        if not isinstance(memories.beta, Tensor):
            # A number is a constant of a graph, a tensor is not.
            like = next(self.parameters(), torch.empty(()))
            values = torch.empty(self.sizes.heads, 1, 1, dtype=like.dtype, device=like.device)
            self.memories = memories = memories.at(torch.ones_like(values))
        # As exact as the numbers given, whatever the default dtype and device.
        values = torch.as_tensor(beta, dtype=torch.float64, device="cpu")
        with torch.no_grad():
            for name, held in (*memories.named_parameters(), *memories.named_buffers()):
                given = values.log() if name == "log_beta" else values
                held.copy_(given.expand(self.sizes.heads).reshape_as(held))
        self._beta = beta

    def reset_beta(self) -> None:
        """Set β as it was given, where it is more than a number."""
        if isinstance(self.memories.beta, Tensor):
            self.set_beta(self._initial_beta)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # As in hflayers a β that is not trained is in no file, unless it is not the one that the
        # layer was built with.
        if not self.memories.learnable and self._beta != self._initial_beta:
            destination[prefix + _BETA] = self.memories.beta.flatten().clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        name, learnable = prefix + _BETA, self.memories.learnable
        beta = state_dict.pop(name, None)
        if beta is not None and learnable:
            log = beta.log().reshape(self.sizes.heads, 1, 1)
            state_dict.setdefault(prefix + "memories.log_beta", log)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if learnable or (beta is None and not isinstance(self.memories.beta, Tensor)):
            return
        given = self._beta if beta is None else beta.tolist()
        if isinstance(self.memories.beta, Tensor) and self.memories.beta.is_meta:
            # A layer that was built on the meta device has no β either.
            some = next((x for key, x in state_dict.items() if key.startswith(prefix)), beta)
            if some is None or some.is_meta:
                return
            self.memories.to_empty(device=some.device)
        self.set_beta(given)

    @property
    def extra(self) -> int:
        """How many patterns are appended to the stored ones."""
        return (self.bias_k is not None) + self.zero_pattern

    def forward(
        self,
        state: Tensor,
        stored: Tensor,
        projection: Tensor,
        *,
        samples: int,
        associate: Callable[[Patterns, float | Tensor], T],
    ) -> T:
        """Output or weights, from the patterns in the association space.

        All of the layer goes through here, so that hooks see it and what they derive, such as a
        weight of its norm and direction, is up to date.

        Args:
            state, stored, projection: the patterns after their layer norms, as of :meth:`project`.
            samples: N, of which those that share their state patterns have one.
            associate: what to make of the patterns and of β.
        """
        q, k, v = self.project(state, stored, projection)
        # Here, lest a compiler makes graphs of their own for them where a solver breaks the graph.
        return associate(Patterns(q.expand(samples, -1, -1, -1), k, v), self.memories.beta)

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


# In a state dict, one β for each head.
_BETA = "beta"
