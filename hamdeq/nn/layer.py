"""The computation of a Hopfield layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq._checks import integer
from hamdeq._recorded import Recorded
from hamdeq.elimination.attention import Retrieval, times
from hamdeq.elimination.cover import Cover
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Neurons
from hamdeq.implicit import Adjoint
from hamdeq.lagrangians import Identity
from hamdeq.nn.core import HopfieldCore, Patterns
from hamdeq.nn.inputs import Input, batched, check_dtype, check_patterns, is_batched
from hamdeq.nn.masks import combined_mask, without_padding
from hamdeq.nn.settling import settle
from hamdeq.nn.steps import Group
from hamdeq.solvers import Failures, Solution, Solver
from hamdeq.synapses import Association

__all__ = ["Associated", "Associating"]

T = TypeVar("T")
Beta = float | Tensor


class Associated(NamedTuple):
    """Results of one pass of a Hopfield layer.

    Attributes:
        output: of the layer.
        weights: of the read-out, ``(N, H, L, S)``.
    """

    output: Tensor
    weights: Tensor


class Associating(Recorded, nn.Module):
    """Projection into the heads' association space, updates there, and the read-out.

    Attributes:
        association_core: the projections, and the Lagrangian of the memory layer.
        solver, adjoint, failures: of state patterns that settle.
    """

    association_core: HopfieldCore
    norm_stored_pattern: nn.LayerNorm | None
    norm_state_pattern: nn.LayerNorm | None
    norm_pattern_projection: nn.LayerNorm | None
    association_activation: Callable[[Tensor], Tensor] | None
    _batch_first: bool
    solver: Solver
    adjoint: Adjoint
    failures: Failures
    _groups: list[Group]

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

        def read(memory: Retrieval, x: Tensor, values: Tensor) -> Tensor:
            return memory.read(x, values, dropout=dropout)

        def output(patterns: Patterns, beta: Beta, mask: Cover | None) -> Tensor:
            return core.read_out(self._retrieved(patterns, beta, mask, read))

        masks = stored_pattern_padding_mask, association_mask
        return self._shaped(self._associate(input, *masks, output), input)

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

        def both(patterns: Patterns, beta: Beta, mask: Cover | None) -> tuple[Tensor, Tensor]:
            weights = self._retrieved(patterns, beta, mask, lambda memory, x, _: memory.weights(x))
            kept = F.dropout(weights, dropout).to(patterns.values.dtype)
            return core.read_out(times(kept, patterns.values)), weights

        masks = stored_pattern_padding_mask, association_mask
        output, weights = self._associate(input, *masks, both)
        return Associated(self._shaped(output, input), weights if is_batched(input) else weights[0])

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

        def read(patterns: Patterns, beta: Beta, mask: Cover | None) -> Tensor:
            return self._retrieved(patterns, beta, mask, lambda memory, x, _: memory.weights(x))

        weights = self._associate(input, stored_pattern_padding_mask, association_mask, read)
        return weights if is_batched(input) else weights[0]

    @torch.no_grad()
    def get_projected_pattern_matrix(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """What each head reads out of, V, without gradient: ``(N, H, S, p)``."""
        masks = stored_pattern_padding_mask, association_mask
        patterns = self._associate(input, *masks, lambda patterns, *_: patterns)
        values = patterns.values.expand(len(patterns.state), -1, -1, -1)
        return values if is_batched(input) else values[0]

    def project(self, input: Input) -> Patterns:
        """The patterns in the association space: Q ``(N, H, L, d)``, K and V ``(N, H, S, ·)``.

        Patterns that the layer appends follow at the end of S.
        """
        patterns = self._associate(input, None, None, lambda patterns, *_: patterns)
        patterns = Patterns(*(x.expand(len(patterns.state), -1, -1, -1) for x in patterns))
        return patterns if is_batched(input) else Patterns(*(x[0] for x in patterns))

    def energy(
        self,
        input: Input,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        steps: int = 0,
    ) -> Tensor:
        """½‖q‖² − L(Kq) of each state pattern after some updates, which let it fall: ``(N, H, L)``.

        With softmax, L(Kq) = (1/β) ln Σ exp(β Kq).
        """
        steps = integer("steps", steps, least=0)

        def fallen(patterns: Patterns, beta: Beta, mask: Cover | None) -> Tensor:
            memory, x = self._memory(patterns, beta, mask), patterns.state
            for _ in range(steps):
                x = memory.update(x)
            return memory.energy(x).to(x.dtype)

        energy = self._associate(input, stored_pattern_padding_mask, association_mask, fallen)
        return energy if is_batched(input) else energy[0]

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

        def settled(patterns: Patterns, beta: Beta, mask: Cover | None) -> Solution:
            return self._settled(self._memory(patterns, beta, mask), patterns.state, self.solver)

        solution = self._associate(input, stored_pattern_padding_mask, association_mask, settled)
        return solution if is_batched(input) else _of_the_first(solution)

    def as_ham(self, stored: int, states: int = 1) -> HAM:
        """The memory whose even-odd update is this layer's update.

        Layers ``state`` ``(H, states, d)`` and ``stored`` ``(H, stored, d)``, both linear, the
        latter to be clamped, and ``memories`` ``(H, states, stored)``, which holds this layer's β;
        their states are those of :meth:`project`:

            ham = layer.as_ham(stored=S, states=L)
            patterns = layer.project(input)
            reduced = eliminate(clamp(ham, {"stored": patterns.stored}), ["memories"])
            reduced.update({"state": patterns.state})  # softmax(β Q Kᵀ) K

        Args:
            stored: S, stored patterns, with those that the layer appends.
            states: L, state patterns.
        """
        core = self.association_core
        heads, size = core.sizes.heads, core.sizes.hidden
        if size is None:
            raise ValueError(
                "as_ham: expected the size of the association space, got None; give hidden_size"
            )
        return HAM(
            {
                "state": Neurons((heads, states, size), Identity()),
                "stored": Neurons((heads, stored, size), Identity()),
                "memories": Neurons((heads, states, stored), core.memories),
            },
            [(("state", "stored", "memories"), Association(heads, states, stored, size))],
        )

    def _associate(
        self,
        input: Input,
        padding: Tensor | None,
        association: Tensor | None,
        f: Callable[[Patterns, Beta, Cover | None], T],
    ) -> T:
        """f of the patterns in the association space, of β, and of what leaves patterns out."""
        core = self.association_core
        stored, state, projection = batched(input, batch_first=self._batch_first)
        batch = check_patterns(core.sizes, stored, state, projection)
        check_dtype(state, next(core.parameters(), None))
        if isinstance(padding, Tensor) and not is_batched(input):
            padding = padding[None]
        mask = combined_mask(
            padding,
            association,
            batch=batch,
            heads=core.sizes.heads,
            states=state.shape[1],
            stored=stored.shape[1],
            extra=core.extra,
        )
        if padding is not None:
            stored, projection, state = without_padding(padding, stored, projection, state)

        def associate(patterns: Patterns, beta: Beta) -> T:
            return f(patterns, beta, mask)

        normalised = self._normalised(state, stored, projection)
        return core(*normalised, samples=batch, associate=associate)

    def _shaped(self, output: Tensor, input: Input) -> Tensor:
        """The output of the heads ``(N, L, output)`` as that of the layer."""
        if self.association_activation is not None:
            output = self.association_activation(output)
        if not is_batched(input):
            return output[0]
        return output if self._batch_first else output.transpose(0, 1)

    def _normalised(
        self, state: Tensor, stored: Tensor, projection: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def through(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
            return x if norm is None else norm(x)

        return (
            through(self.norm_state_pattern, state),
            through(self.norm_stored_pattern, stored),
            through(self.norm_pattern_projection, projection),
        )

    @property
    def dropout(self) -> float:
        """Probability that an association is left out of the read-out, in training."""
        return self.association_core.dropout

    @dropout.setter
    def dropout(self, probability: float) -> None:
        self.association_core.dropout = probability

    def _memory(self, patterns: Patterns, beta: Beta, mask: Cover | None) -> Retrieval:
        return Retrieval(patterns.stored, self.association_core.memories, beta, mask)

    def _retrieved(
        self,
        patterns: Patterns,
        beta: Beta,
        mask: Cover | None,
        read: Callable[[Retrieval, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """What is read with the updated state patterns: ``(N, H, L, ·)``."""
        if len(self._groups) == 1:
            memory = self._memory(patterns, beta, mask)
            return read(memory, self._updated(memory, patterns.state, 0), patterns.values)
        results, order = [], []
        for place, (heads, _) in enumerate(self._groups):
            chosen = [*heads]
            part = Patterns(*(x[:, chosen] for x in patterns))
            own = beta[chosen] if isinstance(beta, Tensor) else beta
            memory = self._memory(part, own, mask and mask.heads(chosen))
            results.append(read(memory, self._updated(memory, part.state, place), part.values))
            order += chosen
        return torch.cat(results, 1)[:, sorted(range(len(order)), key=order.__getitem__)]

    def _updated(self, memory: Retrieval, x: Tensor, group: int) -> Tensor:
        steps = self._groups[group][1]
        if steps is None:
            # The residuals of every update would grow with their number, and nobody sees them.
            return self._settled(memory, x, replace(self.solver, trace=False)).value
        for _ in range(steps):
            x = memory.update(x)
        return x

    def _settled(self, memory: Retrieval, x: Tensor, solver: Solver) -> Solution:
        return settle(memory, x, solver=solver, adjoint=self.adjoint, failures=self.failures)


def _of_the_first(solution: Solution) -> Solution:
    """The solution of the only sample, without a batch axis."""
    names = ("value", "residual", "steps", "converged", "status")
    first = {name: getattr(solution, name)[0] for name in names}
    return replace(solution, **first, trace=solution.trace[:, 0])
