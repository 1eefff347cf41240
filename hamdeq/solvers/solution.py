"""The result of a solve, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import nan
from typing import Any

import torch
from torch import Tensor

from hamdeq._containers import Container

__all__ = ["Solution", "Status"]


class Status(IntEnum):
    """How the solve of one sample ended; :attr:`message` says what to do about it."""

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    INVALID = 3
    CYCLE = 4
    OVERFLOW = 5
    FALLBACK = 6

    @property
    def message(self) -> str:
        """What happened, the remedy, and where there is more about it."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the relative residual fell below tol",
    Status.MAX_STEPS: (
        "the relative residual stayed above tol for max_steps steps; use splitting='even-odd' or "
        "Broyden(), damp the steps (Picard(damping=0.5)), allow more (max_steps; for an energy "
        "fallback_steps), accept a larger "
        "tol, or scale the weights down; in float32 a tol below 1e-6 may be out of reach"
        " (docs/convergence.md)"
    ),
    Status.FALLBACK: (
        "the relative residual stayed above tol for max_steps steps, and the fallback "
        "(TrustRegion, of a linear system GMRES) then brought it below; if that takes too long, "
        "use a solver that needs fewer steps (docs/solvers.md)"
    ),
    Status.DIVERGED: (
        "a layer became infinite or not a number; the best finite state was kept, if all layers "
        "had one; damp the steps (Picard(damping=0.5)), scale the weights or the inputs down, or "
        "use bounded activations (docs/convergence.md)"
    ),
    Status.INVALID: (
        "the given state holds an infinity or a NaN; its result is NaN and its gradient zero; "
        "clean the data (torch.isfinite finds it; docs/convergence.md)"
    ),
    Status.CYCLE: (
        "the state came back to an earlier one, as neurons that are updated at once may; use "
        "updates=Asynchronous(), which always comes to rest (docs/convergence.md)"
    ),
    Status.OVERFLOW: (
        "the interaction function overflows at such similarities, and the state before was kept; "
        "use scaling=Normalised(), or float64 (docs/convergence.md)"
    ),
}


@dataclass(kw_only=True, repr=False, eq=False)
class Solution(Container, aside=("n_evals", "adjoint")):
    """The result of a fixed-point solve, sample by sample.

    A container of tensors like a dict: it may be what a module returns to
    :class:`~torch.nn.parallel.DistributedDataParallel` or Lightning, what a function under
    :mod:`torch.func` returns, and be copied, pickled and saved.

    Attributes:
        value: the state, in the form that the initial state had. Where a sample did not
            converge, its best finite state; of a :class:`~hamdeq.DEQ` NaN where there is none.
        residual: relative residual ‖f(x) − x‖/‖f(x)‖ of exactly that state: ``(batch,)``.
        steps: evaluations of f until the sample stopped: ``(batch,)``.
        converged: whether the residual is below tol: ``(batch,)``.
        status: a :class:`Status` a sample: ``(batch,)``. Of samples that have converged it is
            ``CONVERGED``, or ``FALLBACK`` where that took the solver's second budget.
        n_evals: evaluations of f for the batch as a whole.
        trace: relative residual in every evaluation, after the sample stopped that of its value:
            ``(n_evals, batch)``; ``(0, batch)`` of a solver with ``trace=False``.
        adjoint: solutions of the gradient's linear system, one for each backward pass that has
            run through ``value``; empty before.
    """

    value: Any
    residual: Tensor
    steps: Tensor
    converged: Tensor
    status: Tensor
    n_evals: int
    trace: Tensor
    adjoint: list[Solution] = field(default_factory=list)

    def among(self, rows: Tensor, status: Tensor) -> Solution:
        """This solve as one of a larger batch, of which the other samples were left out.

        Args:
            rows: the samples' places in that batch, by index: ``(n,)``.
            status: how the others ended, a status for each sample of that batch: ``(batch,)``.

        Returns:
            A Solution of that batch, with the value of this one.
        """
        batch = len(status)
        unknown = self.residual.new_full((batch,), nan)
        failed = torch.zeros_like(status, dtype=torch.bool)
        return replace(
            self,
            residual=unknown.index_copy(0, rows, self.residual),
            steps=torch.zeros_like(status).index_copy(0, rows, self.steps),
            converged=failed.index_copy(0, rows, self.converged),
            status=status.index_copy(0, rows, self.status),
            trace=unknown.repeat(len(self.trace), 1).index_copy(1, rows, self.trace),
        )

    def __repr__(self) -> str:
        total = self.steps.numel()
        if total == 0:
            return "Solution(empty batch)"
        value = self.value
        names = f"value: {{{', '.join(value)}}}, " if isinstance(value, dict) else ""
        return (
            f"Solution({names}converged: {int(self.converged.sum())}/{total}{self._failures()}, "
            f"steps: mean {self.steps.double().mean():.1f}, worst {int(self.steps.max())}, "
            f"residual: worst {self.residual.max():.1e}, n_evals: {self.n_evals})"
        )

    def _failures(self) -> str:
        """How the other samples ended, with their number."""
        ended = self.status[~self.converged].tolist()
        counts = [f"{ended.count(status)} {status.name}" for status in Status if status in ended]
        return f" ({', '.join(counts)})" if counts else ""
