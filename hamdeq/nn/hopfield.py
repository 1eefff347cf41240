"""Hopfield: the association of two sets of patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq._checks import instance, integer, number
from hamdeq._recorded import Recorded
from hamdeq.elimination.attention import Retrieval, times
from hamdeq.energy.ham import HAM
from hamdeq.implicit import Adjoint, Implicit
from hamdeq.lagrangians import Separation
from hamdeq.nn.building import (
    initial_beta,
    input_norms,
    memory_layer,
    memory_of_attention,
    settling_solver,
)
from hamdeq.nn.inputs import (
    Input,
    combined_mask,
    elementwise,
    groups,
    is_batched,
    of_the_first,
    patterns_of,
    without_padding,
)
from hamdeq.nn.projections import HopfieldCore, Patterns, Sizes, read_only
from hamdeq.nn.settling import settle
from hamdeq.solvers import Failures, OnFailure, Solution, Solver

__all__ = ["Associated", "Hopfield"]

T = TypeVar("T")


class Associated(NamedTuple):
    """Results of one pass of a Hopfield layer.

    Attributes:
        output: of the layer.
        weights: of the read-out, ``(N, H, L, S)``.
    """

    output: Tensor
    weights: Tensor


def _weights(memory: Retrieval, x: Tensor, _: Tensor) -> Tensor:
    return memory.weights(x)


def _size(name: str, doc: str) -> Any:
    return read_only(lambda layer: getattr(layer.association_core.sizes, name), doc)


def _norm(name: str, *, affine: bool = False) -> Any:
    def get(layer: Any) -> bool:
        norm = getattr(layer, f"norm_{name}")
        return norm is not None and (norm.elementwise_affine or not affine)

    return read_only(get, "As of the constructor.")


class Hopfield(Recorded, nn.Module):
    """Associates state patterns with stored patterns, and reads out their projections.

    With R the state patterns, Y the stored patterns and Z the pattern projections of the input,
    each after its layer norm, and per head Q = R W_Q, K = Y W_K, V = Z W_V:

        Q <- softmax(β Q Kᵀ) K    ``update_steps_max`` times, and then
        output = softmax(β Q Kᵀ) V W_O, the heads side by side.

    Each update is one even-odd step of the memory :meth:`as_ham`, so that its energy never rises.
    Without updates and norms it is :class:`torch.nn.MultiheadAttention`.

    Args:
        input_size: size of a state pattern, and by default of the other two.
        hidden_size: d, size of each head's association space; default ``input_size // num_heads``.
        output_size: size of the output; default ``input_size``.
        pattern_size: p, size of what each head reads out; default ``hidden_size``.
        num_heads: the number of heads H.
        scaling: inverse temperature β > 0, or one for each head ``(H,)``; default 1/√d, and 1 if
            nothing is projected. As an ``nn.Parameter`` it gives the initial values of a trained β.
        update_steps_max: updates of the state patterns, or one number for each head. None, or a
            negative number: until each state pattern has converged.
        update_steps_eps: then the relative residual ‖f(q) − q‖/‖f(q)‖ that each is to reach.
        normalize_stored_pattern, normalize_state_pattern, normalize_pattern_projection: whether
            these inputs go through a layer norm; ``…_affine`` its scale and shift, ``…_eps`` its ε.
        normalize_hopfield_space: whether Q and K do, in each head, with one scale and shift.
        stored_pattern_as_static, state_pattern_as_static, pattern_projection_as_static: whether
            these inputs enter every head as they are, without a projection.
        pattern_projection_as_connected: whether Z W_K W_V is read out in place of Z W_V.
        stored_pattern_size, pattern_projection_size: sizes of these; default ``input_size``.
        batch_first: whether inputs are ``(N, S, size)``, or ``(S, N, size)``.
        association_activation: an elementwise function of the output, or its name in torch.
        dropout: probability that an association is left out of the read-out, in training.
        input_bias: whether projections add a bias, the output's too.
        concat_bias_pattern: whether a trained pattern is added to K and V of every sample.
        add_zero_association: whether a pattern of zeros is: to retrieve nothing by.
        disable_out_projection: whether W_O is left out, and the output of size H · p.
        scaling_as_trainable: whether β is trained, one for each head, as its logarithm.
        lagrangian: of the memory layer, at β = 1: :class:`~hamdeq.Softmax` by default,
            :class:`~hamdeq.Sparsemax` or :class:`~hamdeq.Entmax` to retrieve sparsely.
        solver: for convergence; default ``Picard(tol=update_steps_eps)``, its ``max_steps`` the
            cap on updates. It brings its own ``tol``.
        adjoint: gradient method for convergence; default :class:`~hamdeq.Implicit`, whose memory
            does not grow with the updates.
        on_failure: for state patterns that do not converge: ``"warn"`` (once), ``"raise"`` or
            ``"ignore"``.
        device, dtype: of the parameters.

    Shape:
        - state patterns ``(N, L, input_size)``, stored patterns ``(N, S, stored_pattern_size)``,
          pattern projections ``(N, S, pattern_projection_size)``; without N, all three.
        - output ``(N, L, output_size)``, without N if the input is.
        - stored_pattern_padding_mask ``(N, S)``, association_mask ``(L, S)`` or ``(N·H, L, S)``.

    Raises:
        ValueError: sizes that do not fit, an unknown activation, β not finite and > 0.
        TypeError: an argument of another kind.

    Source: Ramsauer et al., "Hopfield Networks is All You Need" (ICLR 2021), equations 3 and 10;
    arguments, masks and names of parameters as in its software, hflayers 1.0.2.
    """

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        output_size: int | None = None,
        pattern_size: int | None = None,
        num_heads: int = 1,
        scaling: float | Tensor | None = None,
        update_steps_max: int | Sequence[int] | Tensor | None = 0,
        update_steps_eps: float | Tensor = 1e-4,
        normalize_stored_pattern: bool = True,
        normalize_stored_pattern_affine: bool = True,
        normalize_stored_pattern_eps: float = 1e-5,
        normalize_state_pattern: bool = True,
        normalize_state_pattern_affine: bool = True,
        normalize_state_pattern_eps: float = 1e-5,
        normalize_pattern_projection: bool = True,
        normalize_pattern_projection_affine: bool = True,
        normalize_pattern_projection_eps: float = 1e-5,
        normalize_hopfield_space: bool = False,
        normalize_hopfield_space_affine: bool = False,
        normalize_hopfield_space_eps: float = 1e-5,
        stored_pattern_as_static: bool = False,
        state_pattern_as_static: bool = False,
        pattern_projection_as_static: bool = False,
        pattern_projection_as_connected: bool = False,
        stored_pattern_size: int | None = None,
        pattern_projection_size: int | None = None,
        batch_first: bool = True,
        association_activation: str | Callable[[Tensor], Tensor] | None = None,
        dropout: float = 0.0,
        input_bias: bool = True,
        concat_bias_pattern: bool = False,
        add_zero_association: bool = False,
        disable_out_projection: bool = False,
        *,
        scaling_as_trainable: bool = False,
        lagrangian: Separation | None = None,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "warn",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = Sizes(
            state=input_size,
            stored=stored_pattern_size,
            projection=pattern_projection_size,
            hidden=hidden_size,
            pattern=pattern_size,
            output=output_size,
            heads=num_heads,
            state_static=state_pattern_as_static,
            stored_static=stored_pattern_as_static,
            projection_static=pattern_projection_as_static,
            connected=pattern_projection_as_connected,
            out_projection=not disable_out_projection,
        )
        self._batch_first = batch_first
        self._steps_max = update_steps_max
        self._groups = groups(update_steps_max, sizes.heads)
        self.solver: Solver = settling_solver(solver, update_steps_eps, sizes.heads)
        adjoint = Implicit() if adjoint is None else adjoint
        self.adjoint: Adjoint = instance("adjoint", adjoint, Adjoint, "a hamdeq.Adjoint")
        self.failures: Failures = Failures(on_failure, once=True)
        self.association_activation: Callable[[Tensor], Tensor] | None = None
        if association_activation is not None:
            activation = elementwise("association_activation", association_activation)
            self.association_activation = activation

        factory = {"device": device, "dtype": dtype}
        beta = initial_beta(scaling, sizes)
        learnable = scaling_as_trainable or getattr(scaling, "requires_grad", False)
        self.association_core: HopfieldCore = HopfieldCore(
            sizes,
            memory_layer(lagrangian, beta, sizes.heads, learnable, factory),
            beta=beta,
            dropout=number("dropout", dropout, least=0, most=1, remedy="give a probability"),
            bias=input_bias,
            bias_pattern=concat_bias_pattern,
            zero_pattern=add_zero_association,
            normalize=normalize_hopfield_space,
            affine=normalize_hopfield_space and normalize_hopfield_space_affine,
            eps=normalize_hopfield_space_eps,
            factory=factory,
        )

        stored, state, projection = input_norms(
            sizes,
            (
                normalize_stored_pattern,
                normalize_stored_pattern_affine,
                normalize_stored_pattern_eps,
            ),
            (
                normalize_state_pattern,
                normalize_state_pattern_affine,
                normalize_state_pattern_eps,
            ),
            (
                normalize_pattern_projection,
                normalize_pattern_projection_affine,
                normalize_pattern_projection_eps,
            ),
            factory,
        )
        self.norm_stored_pattern: nn.LayerNorm | None = stored
        self.norm_state_pattern: nn.LayerNorm | None = state
        self.norm_pattern_projection: nn.LayerNorm | None = projection
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew: weights from N(0, 0.02²), β as given."""
        self.association_core.reset_parameters()
        self.association_core.reset_beta()
        norms = (self.norm_stored_pattern, self.norm_state_pattern, self.norm_pattern_projection)
        for norm in norms:
            if norm is not None:
                norm.reset_parameters()

    def forward(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """Associate, and read out.

        Args:
            input: ``(stored patterns, state patterns, pattern projections)``, or one tensor that
                is all three.
            stored_pattern_padding_mask: ``(N, S)``, True for stored patterns to leave out,
                whatever they hold; a mask of floating point is added to β Q Kᵀ.
            association_mask: ``(L, S)`` or ``(N·H, L, S)``, the same for each state pattern.

        Returns:
            ``(N, L, output_size)``. Where every stored pattern is left out, or there is none, the
            heads retrieve zeros, with zero gradient, and the output is the bias of the projection.

        Raises:
            ValueError: patterns or masks of a wrong shape.
            TypeError: masks that are neither boolean nor of floating point.
        """
        core = self.association_core
        dropout = core.dropout if self.training else 0.0

        def read(memory: Retrieval, patterns: Patterns) -> Tensor:
            return core.read_out(
                self._retrieved(memory, patterns, lambda own, x, v: own.read(x, v, dropout=dropout))
            )

        masks = stored_pattern_padding_mask, association_mask
        return self._finished(self._associate(input, *masks, read))

    def associate(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Associated:
        """Output and weights of one pass, both with their gradients.

        Args:
            input, stored_pattern_padding_mask, association_mask: as of :meth:`forward`.

        Returns:
            the output as of :meth:`forward`, and the weights by which it was read out, as of
            :meth:`get_association_matrix`, before dropout.
        """
        core = self.association_core
        dropout = core.dropout if self.training else 0.0

        def both(memory: Retrieval, patterns: Patterns) -> Associated:
            weights = self._retrieved(memory, patterns, _weights)
            kept = F.dropout(weights, dropout).to(patterns.values.dtype)
            return Associated(core.read_out(times(kept, patterns.values)), weights)

        masks = stored_pattern_padding_mask, association_mask
        output, weights = self._associate(input, *masks, both)
        return Associated(self._finished(output), weights)

    @torch.no_grad()
    def get_association_matrix(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """The weights of the read-out, without gradient or dropout: ``(N, H, L, S)``.

        Patterns that the layer appends follow at the end of S.
        """
        masks = stored_pattern_padding_mask, association_mask
        return self._associate(
            input, *masks, lambda memory, own: self._retrieved(memory, own, _weights)
        )

    @torch.no_grad()
    def get_projected_pattern_matrix(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """The values V that each head reads out of, without gradient: ``(N, H, S, p)``."""
        masks = stored_pattern_padding_mask, association_mask
        return self._associate(input, *masks, lambda _, patterns: _of_each(patterns).values)

    def project(self, input: Input) -> Patterns:
        """The patterns in the association space: Q ``(N, H, L, d)``, K and V ``(N, H, S, ·)``.

        Patterns that the layer appends follow at the end of S.
        """
        return self._associate(input, None, None, lambda _, patterns: _of_each(patterns))

    def energy(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        steps: int = 0,
    ) -> Tensor:
        """½‖q‖² − L(Kq) of each state pattern after some updates, which lower it: ``(N, H, L)``.

        With softmax, L(Kq) = (1/β) ln Σ exp(β Kq).
        """
        steps = integer("steps", steps, least=0)

        def lowered(memory: Retrieval, patterns: Patterns) -> Tensor:
            x = patterns.state
            for _ in range(steps):
                x = memory.update(x)
            return memory.energy(x).to(x.dtype)

        return self._associate(input, stored_pattern_padding_mask, association_mask, lowered)

    def settle(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Solution:
        """Update the state patterns until they converge, whatever ``update_steps_max``.

        Returns:
            a Solution whose ``value`` is the state patterns ``(N, H, L, d)``, and whose ``steps``,
            ``residual``, ``converged`` and ``status`` are ``(N, H, L)``: each state pattern of
            each head is judged by itself. Without N if the input is.
        """

        masks = stored_pattern_padding_mask, association_mask
        return self._associate(
            input, *masks, lambda memory, own: self._settled(memory, own.state, self.solver)
        )

    def as_ham(self, stored: int, states: int = 1) -> HAM:
        """The memory whose even-odd update is this layer's update.

        Layers ``state`` ``(H, states, d)`` and ``stored`` ``(H, stored, d)``, both linear, and
        ``memories`` ``(H, states, stored)``, which holds this layer's β. With ``stored`` clamped to
        that of :meth:`project` and the memories eliminated, ``state`` is updated to
        softmax(β Q Kᵀ) K.

        Args:
            stored: S, stored patterns, with those that the layer appends.
            states: L, state patterns.
        """
        core = self.association_core
        return memory_of_attention(core.sizes, core.memories, stored, states)

    def _associate(
        self,
        input: Input,
        padding: Tensor | None,
        association: Tensor | None,
        f: Callable[[Retrieval, Patterns], T],
    ) -> T:
        """f of the stored patterns as a memory and of all patterns; without N if the input is."""
        core = self.association_core
        like = next(core.parameters(), None)
        stored, state, projection, batch = patterns_of(input, core.sizes, self._batch_first, like)
        if isinstance(padding, Tensor) and not is_batched(input):
            padding = padding[None]
        shape = (batch, core.sizes.heads, state.shape[1], stored.shape[1])
        mask = combined_mask(padding, association, shape, core.extra)
        if padding is not None:
            stored, projection, state = without_padding(padding, stored, projection, state)
        if self.norm_state_pattern is not None:
            state = self.norm_state_pattern(state)
        if self.norm_stored_pattern is not None:
            stored = self.norm_stored_pattern(stored)
        if self.norm_pattern_projection is not None:
            projection = self.norm_pattern_projection(projection)

        def associate(patterns: Patterns, beta: float | Tensor) -> T:
            return f(Retrieval(patterns.stored, core.memories, beta, mask), patterns)

        result = core(state, stored, projection, samples=batch, associate=associate)
        return result if is_batched(input) else of_the_first(result)

    def _finished(self, output: Tensor) -> Tensor:
        """The output of the heads as that of the layer."""
        if self.association_activation is not None:
            output = self.association_activation(output)
        return output if self._batch_first or output.dim() == 2 else output.transpose(0, 1)

    def _retrieved(
        self,
        memory: Retrieval,
        patterns: Patterns,
        read: Callable[[Retrieval, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """``read(memory, x, values)`` with the updated state patterns x: ``(N, H, L, ·)``."""
        if len(self._groups) == 1:
            x = self._updated(memory, patterns.state, self._groups[0][1])
            return read(memory, x, patterns.values)
        results, order = [], []
        for heads, steps in self._groups:
            chosen = [*heads]
            part = Patterns(*(x[:, chosen] for x in patterns))
            beta = memory.beta[chosen] if isinstance(memory.beta, Tensor) else memory.beta
            mask = memory.mask and memory.mask.heads(chosen)
            own = Retrieval(part.stored, memory.lagrangian, beta, mask)
            x = self._updated(own, part.state, steps)
            results.append(read(own, x, part.values))
            order += chosen
        return torch.cat(results, 1)[:, sorted(range(len(order)), key=order.__getitem__)]

    def _updated(self, memory: Retrieval, x: Tensor, steps: int | None) -> Tensor:
        if steps is None:
            # The residuals of every update would grow with their number, and nobody sees them.
            return self._settled(memory, x, replace(self.solver, trace=False)).value
        for _ in range(steps):
            x = memory.update(x)
        return x

    def _settled(self, memory: Retrieval, x: Tensor, solver: Solver) -> Solution:
        return settle(memory, x, solver=solver, adjoint=self.adjoint, failures=self.failures)

    def extra_repr(self) -> str:
        sizes = self.association_core.sizes
        text = f"{sizes.state}, hidden_size={sizes.hidden}, num_heads={sizes.heads}"
        return f"{text}, update_steps_max={self._steps_max}"

    @property
    def scaling(self) -> float | Tensor:
        """β, one number or one for each head ``(H,)``; it can be set, for instance by a schedule.

        A β that is trained goes on from there. One that is not is in the state dict from then on,
        as ``association_core.beta``, and a layer that loads it has it.
        """
        return self.association_core.beta

    @scaling.setter
    def scaling(self, beta: float | Tensor) -> None:
        core = self.association_core
        core.set_beta(initial_beta(beta, core.sizes))

    @property
    def dropout(self) -> float:
        """Probability that an association is left out of the read-out, in training."""
        return self.association_core.dropout

    @dropout.setter
    def dropout(self, probability: float) -> None:
        self.association_core.dropout = probability

    input_size: int | None = _size("state", "Size of a state pattern.")
    hidden_size: int | None = _size("hidden", "Size d of a head, or None for that of the data.")
    pattern_size: int | None = _size("pattern", "Size p of a value, or None for that of the data.")
    output_size: int | None = _size("output", "Size of the output, or None for that of the data.")
    state_pattern_dim: int | None = _size("state", "Size of a state pattern.")
    stored_pattern_dim: int | None = _size("stored", "Size of a stored pattern.")
    pattern_projection_dim: int | None = _size("projection", "Size of a pattern projection.")
    num_heads: int = _size("heads", "Heads H.")
    stored_pattern_as_static: bool = _size("stored_static", "As of the constructor.")
    state_pattern_as_static: bool = _size("state_static", "As of the constructor.")
    pattern_projection_as_static: bool = _size("projection_static", "As of the constructor.")
    batch_first: bool = read_only(lambda layer: layer._batch_first, "As of the constructor.")
    update_steps_max: int | Sequence[int] | Tensor | None = read_only(
        lambda layer: layer._steps_max, "As of the constructor."
    )
    update_steps_eps: float = read_only(
        lambda layer: layer.solver.tol, "The relative residual at convergence, as of the solver."
    )
    normalize_stored_pattern: bool = _norm("stored_pattern")
    normalize_state_pattern: bool = _norm("state_pattern")
    normalize_pattern_projection: bool = _norm("pattern_projection")
    normalize_stored_pattern_affine: bool = _norm("stored_pattern", affine=True)
    normalize_state_pattern_affine: bool = _norm("state_pattern", affine=True)
    normalize_pattern_projection_affine: bool = _norm("pattern_projection", affine=True)
    normalize_hopfield_space: bool = read_only(
        lambda layer: layer.association_core.normalize_pattern, "Whether Q and K are normalised."
    )
    normalize_hopfield_space_affine: bool = read_only(
        lambda layer: layer.association_core.p_norm_weight is not None,
        "Whether that has scale and shift.",
    )


def _of_each(patterns: Patterns) -> Patterns:
    """The patterns of every sample, also those that all share."""
    return Patterns(*(x.expand(len(patterns.state), -1, -1, -1) for x in patterns))
