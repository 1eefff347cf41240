"""The sizes of a Hopfield layer, and its projections into the association space and out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq._checks import integer, wrong
from hamdeq.lagrangians import Separation

__all__ = ["HopfieldCore", "Patterns", "Sizes", "read_only"]

T = TypeVar("T")


def read_only(get: Callable[[Any], Any], doc: str) -> Any:
    """A property in one line; its type is that of the annotation beside it."""
    return property(get, doc=doc)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the patterns and of the association space, with their defaults, checked once.

    Args:
        state: size of a state pattern; None where nothing is projected.
        stored: size of a stored pattern, default ``state``.
        projection: size of a pattern projection, default ``state``.
        hidden: d, size of a head's association space, default ``state // heads``.
        pattern: p, size of what a head reads out, default ``hidden``.
        output: size of the result, default ``state``.
        heads: the number of heads H.
        state_static, stored_static, projection_static: whether these patterns enter every head
            without a projection.
        connected: whether pattern projections go through the stored patterns' projection first.
        out_projection: whether the heads' results are projected to ``output``.

    Attributes:
        joint: whether one matrix holds the projections of all three.

    Raises:
        ValueError: sizes that are not positive integers, do not divide or do not fit together.
    """

    state: int | None
    stored: int | None = None
    projection: int | None = None
    hidden: int | None = None
    pattern: int | None = None
    output: int | None = None
    heads: int = 1
    state_static: bool = False
    stored_static: bool = False
    projection_static: bool = False
    connected: bool = False
    out_projection: bool = True
    joint: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, argument in _ARGUMENTS.items():
            value = getattr(self, name)
            if value is not None or name == "heads":
                object.__setattr__(self, name, integer(argument, value))
        same = {self.state, self.stored or self.state, self.projection or self.state}
        joint = len(same) == 1 and self.pattern is None and not self.connected
        object.__setattr__(self, "joint", joint)
        if self.bare:
            return
        if self.state is None:
            raise wrong(
                "input_size",
                "the size of the state patterns",
                None,
                "None is for layers without a projection: all patterns static, "
                "disable_out_projection=True",
            )
        if self.hidden is None and self.state % self.heads:
            raise wrong(
                "num_heads",
                f"a divisor of input_size = {self.state}",
                self.heads,
                "change it, or give hidden_size, the size of each head",
            )
        self._default("stored", self.state)
        self._default("projection", self.state)
        self._default("hidden", self.state // self.heads)
        # Pattern projections that go through no projection are read out in their own size.
        read = self.pattern or (self.projection if self.untouched else self.hidden)
        self._default("pattern", self.hidden)
        if self.out_projection:
            self._default("output", self.state)
        else:
            object.__setattr__(self, "output", self.heads * (read or 0))
        if self.connected and not self.stored_static and self.stored != self.projection:
            raise wrong(
                "pattern_projection_as_connected",
                "stored patterns and pattern projections of one size",
                f"{self.stored} and {self.projection}",
            )
        if self.connected and self.projection_static and self.pattern != self.hidden:
            raise wrong(
                "pattern_size",
                "hidden_size, as static connected projections have only the stored patterns' "
                "projection",
                f"{self.pattern} and hidden_size {self.hidden}",
            )

    @property
    def bare(self) -> bool:
        """True where nothing is projected: the sizes are those of the data."""
        static = self.state_static and self.stored_static and self.projection_static
        return static and not self.out_projection and not self.connected

    @property
    def untouched(self) -> bool:
        """True where pattern projections are read out without any projection."""
        through = self.connected and not self.stored_static
        return self.projection_static and not through

    @property
    def inputs(self) -> tuple[int | None, int | None, int | None]:
        """The sizes of stored patterns, state patterns and projections; None where any will do."""
        if self.state_static and self.stored_static:
            stored = state = None
        else:
            stored = self.hidden if self.stored_static else self.stored
            state = self.hidden if self.state_static else self.state
        projection = self.projection
        if self.untouched:
            projection = self.pattern if self.out_projection else None
        return stored, state, projection

    @property
    def own_space(self) -> int:
        """H · d."""
        return self.heads * (self.hidden or 0)

    @property
    def own_pattern(self) -> int:
        """H · p."""
        return self.heads * (self.pattern or 0)

    def _default(self, name: str, value: int | None) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)


_ARGUMENTS = {
    "state": "input_size",
    "stored": "stored_pattern_size",
    "projection": "pattern_projection_size",
    "hidden": "hidden_size",
    "pattern": "pattern_size",
    "output": "output_size",
    "heads": "num_heads",
}


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
        memories: Lagrangian of the memory layer, at this β.
        beta: inverse temperature β, for all heads or for each.
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
        memories: Separation,
        *,
        beta: float | list[float],
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
        self.memories: Separation = memories
        self.dropout = dropout
        self._beta = self._initial_beta = beta
        self._zero_pattern = zero_pattern
        self._normalize = normalize
        self._eps = eps
        space, read = sizes.own_space, sizes.own_pattern
        if bias_pattern and not (space and read):
            raise wrong(
                "concat_bias_pattern",
                "the sizes of the patterns that it is appended to",
                f"hidden_size {sizes.hidden} and pattern_size {sizes.pattern}",
                "give both",
            )
        if affine and not space:
            raise wrong(
                "normalize_hopfield_space_affine",
                "the size of the association space",
                None,
                "give hidden_size",
            )
        static = (sizes.state_static, sizes.stored_static, sizes.projection_static)
        # Rows of each projection; none of what is not projected.
        self.rows: list[int] = [
            0 if s else n for s, n in zip(static, (space, space, read), strict=True)
        ]
        through = sizes.connected and not sizes.stored_static
        widths = (sizes.state, sizes.stored, space if through else sizes.projection)

        def parameter(name: str, wanted: bool, *shape: int | None) -> None:
            value = (
                nn.Parameter(torch.empty(*(n or 0 for n in shape), **factory)) if wanted else None
            )
            self.register_parameter(name, value)

        projects = any(self.rows)
        parameter("in_proj_weight", sizes.joint and projects, sum(self.rows), sizes.state)
        for name, n, width in zip("qkv", self.rows, widths, strict=True):
            parameter(f"{name}_proj_weight", n > 0 and not sizes.joint, n, width)
        # As in hflayers there is room for the values' bias even where they are not projected.
        parameter("in_proj_bias", bias and projects, self.rows[0] + self.rows[1] + read)
        parameter("p_norm_weight", affine, sizes.hidden)
        parameter("p_norm_bias", affine, sizes.hidden)
        parameter("bias_k", bias_pattern, 1, 1, space)
        parameter("bias_v", bias_pattern, 1, 1, read)
        self.out_proj: nn.Linear | None = None
        if sizes.out_projection:
            self.out_proj = nn.Linear(read, sizes.output or 0, bias=bias, **factory)
        self.reset_parameters()

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
        """Set β, for all heads or for each, in place: a compiled graph stays valid."""
        memories = self.memories
        if not isinstance(memories.beta, Tensor):
            # A number is a constant of a graph, a tensor is not.
            like = next(self.parameters(), torch.empty(()))
            ones = torch.ones(self.sizes.heads, 1, 1, dtype=like.dtype, device=like.device)
            self.memories = memories = memories.at(ones)
        # As exact as the numbers given, whatever the default dtype and device.
        values = torch.as_tensor(beta, dtype=torch.float64, device="cpu")
        with torch.no_grad():
            for name, tensor in (*memories.named_parameters(), *memories.named_buffers()):
                given = values.log() if name == "log_beta" else values
                tensor.copy_(given.expand(self.sizes.heads).reshape_as(tensor))
        self._beta = beta

    def reset_beta(self) -> None:
        """Set β to the value of the constructor, where it is more than a number."""
        if isinstance(self.memories.beta, Tensor):
            self.set_beta(self._initial_beta)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # As in hflayers a β that is not trained is in no file, unless it was set since.
        if not self.memories.learnable and self._beta != self._initial_beta:
            destination[prefix + "beta"] = self.memories.beta.flatten().clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        learnable = self.memories.learnable
        beta = state_dict.pop(prefix + "beta", None)
        if beta is not None and learnable:
            log = beta.log().reshape(self.sizes.heads, 1, 1)
            state_dict.setdefault(prefix + "memories.log_beta", log)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if learnable or (beta is None and not isinstance(self.memories.beta, Tensor)):
            return
        given = self._beta if beta is None else beta.tolist()
        if isinstance(self.memories.beta, Tensor) and self.memories.beta.is_meta:
            # A layer that was built on the meta device has no β either.
            like = next((x for key, x in state_dict.items() if key.startswith(prefix)), beta)
            if like is None or like.is_meta:
                return
            self.memories.to_empty(device=like.device)
        self.set_beta(given)

    @property
    def extra(self) -> int:
        """Number of patterns that are appended to the stored ones."""
        return (self.bias_k is not None) + self._zero_pattern

    def forward(
        self,
        state: Tensor,
        stored: Tensor,
        projection: Tensor,
        *,
        samples: int,
        associate: Callable[[Patterns, float | Tensor], T],
    ) -> T:
        """Apply a function to the patterns in the association space and β.

        Every pass of the layer goes through here, so that hooks see it and derived weights, such as
        those of weight norm, are up to date.

        Args:
            state, stored, projection: the patterns after their layer norms, as of :meth:`project`.
            samples: N; state patterns that all samples share have one.
            associate: the function.
        """
        q, k, v = self.project(state, stored, projection)
        # Here, lest a compiler makes graphs of their own for them where a solver breaks the graph.
        return associate(Patterns(q.expand(samples, -1, -1, -1), k, v), self.memories.beta)

    def project(self, state: Tensor, stored: Tensor, projection: Tensor) -> Patterns:
        """Project state patterns R, stored patterns Y and pattern projections Z.

        Shape:
            R ``(N, L, ·)``, Y and Z ``(N, S, ·)``; N may be 1 for what all samples share.
        """
        apart = [n > 0 for n in self.rows]  # whether each head has patterns of its own
        apart[2] = apart[2] or (self.sizes.connected and apart[1])
        q, k, v = (
            self._heads(x) if own else x[:, None].expand(-1, self.sizes.heads, -1, -1)
            for own, x in zip(apart, self._projected(state, stored, projection), strict=True)
        )
        if self._normalize:
            shape, scale, shift = k.shape[-1:], self.p_norm_weight, self.p_norm_bias
            q = F.layer_norm(q, shape, scale, shift, self._eps)
            k = F.layer_norm(k, shape, scale, shift, self._eps)
        return Patterns(q, *self._appended(k, v))

    def read_out(self, result: Tensor) -> Tensor:
        """The heads' results side by side, projected: ``(N, H, L, p) -> (N, L, output)``."""
        result = result.transpose(1, 2).flatten(2)
        return result if self.out_proj is None else self.out_proj(result)

    def _projected(
        self, state: Tensor, stored: Tensor, projection: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The products with the weights; what is not projected, as it is."""
        joint, bias = self.in_proj_weight, self.in_proj_bias
        if joint is not None and all(self.rows) and stored is projection:
            if state is stored:
                return F.linear(state, joint, bias).split(self.rows, -1)  # pyright: ignore[reportReturnType]
            n = self.rows[0]
            first, rest = (None, None) if bias is None else (bias[:n], bias[n:])
            q = F.linear(state, joint[:n], first)
            k, v = F.linear(stored, joint[n:], rest).split(self.rows[1:], -1)
            return q, k, v
        sizes = [*self.rows[:2], self.sizes.own_pattern]
        biases = [None] * 3 if bias is None else bias.split(sizes)
        if joint is None:
            weights = [getattr(self, f"{name}_proj_weight") for name in "qkv"]
        else:
            parts = joint.split(self.rows)
            weights = [part if n else None for n, part in zip(self.rows, parts, strict=True)]

        def product(place: int, x: Tensor) -> Tensor:
            weight = weights[place]
            return x if weight is None else F.linear(x, weight, biases[place])

        q, k = product(0, state), product(1, stored)
        if self.sizes.connected and self.rows[1]:
            projection = k if stored is projection else product(1, projection)
        return q, k, product(2, projection)

    def _heads(self, x: Tensor) -> Tensor:
        """``(N, S, H · d) -> (N, H, S, d)``."""
        return x.unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2)

    def _appended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """K and V with the trained pattern and the zeros, if any."""
        ks, vs = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            ks.append(self._heads(self.bias_k).expand(k.shape[0], -1, -1, -1).to(k.dtype))
            vs.append(self._heads(self.bias_v).expand(v.shape[0], -1, -1, -1).to(v.dtype))
        if self._zero_pattern:
            ks.append(k.new_zeros(*k.shape[:2], 1, k.shape[3]))
            vs.append(v.new_zeros(*v.shape[:2], 1, v.shape[3]))
        return (k, v) if len(ks) == 1 else (torch.cat(ks, 2), torch.cat(vs, 2))

    # The names of hflayers and of torch.nn.MultiheadAttention. Sizes are None where nothing is
    # projected.
    embed_dim: int | None = read_only(
        lambda core: core._own(core.sizes.state), "Size of a state pattern."
    )
    kdim: int | None = read_only(
        lambda core: core._own(core.sizes.stored), "Size of a stored pattern."
    )
    vdim: int | None = read_only(
        lambda core: core._own(core.sizes.projection), "Size of a pattern projection."
    )
    head_dim: int | None = read_only(
        lambda core: core._own(core.sizes.hidden), "Size d of each head's association space."
    )
    virtual_hopfield_dim: int | None = read_only(
        lambda core: core._own(core.sizes.own_space), "H · d."
    )
    virtual_pattern_dim: int | None = read_only(
        lambda core: core._own(core.sizes.own_pattern), "H · p."
    )
    num_heads: int = read_only(lambda core: core.sizes.heads, "Heads H.")
    pattern_dim: int | None = read_only(lambda core: core.sizes.pattern, "Size p of a value.")
    out_dim: int | None = read_only(lambda core: core.sizes.output, "Size of the output.")
    query_as_static: bool = read_only(
        lambda core: core.sizes.state_static, "Whether Q is the state patterns themselves."
    )
    key_as_static: bool = read_only(
        lambda core: core.sizes.stored_static, "Whether K is the stored patterns themselves."
    )
    value_as_static: bool = read_only(
        lambda core: core.sizes.projection_static, "Whether Z is not multiplied by W_V."
    )
    value_as_connected: bool = read_only(
        lambda core: core.sizes.connected, "Whether Z is multiplied by W_K first."
    )
    disable_out_projection: bool = read_only(
        lambda core: not core.sizes.out_projection, "Whether the heads' results are the output."
    )
    static_execution: bool = read_only(
        lambda core: core.sizes.bare, "Whether nothing is projected."
    )
    normalize_pattern: bool = read_only(
        lambda core: core._normalize, "Whether Q and K go through a layer norm."
    )
    add_zero_attn: bool = read_only(
        lambda core: core._zero_pattern, "Whether zeros are appended to K and V."
    )

    def _own(self, size: int | None) -> int | None:
        return None if self.sizes.bare else size
