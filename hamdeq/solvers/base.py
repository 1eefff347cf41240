"""What all solvers share: the loop, the stopping rule of each sample, and the result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Method", "Solution", "Solver", "Status", "Step"]


class Status(IntEnum):
    """How the solve of one sample ended; :attr:`message` says what to do about it."""

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    INVALID = 3

    @property
    def message(self) -> str:
        """What happened, and the remedy."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the relative residual fell below tol",
    Status.MAX_STEPS: (
        "the relative residual stayed above tol for max_steps steps; use splitting='even-odd', "
        "damp the steps (Picard(damping=0.5)), allow more (max_steps), accept a larger tol, or "
        "scale the weights down; in float32 a tol below 1e-6 may be out of reach"
    ),
    Status.DIVERGED: (
        "the state became infinite or not a number, and the best finite state was kept; damp the "
        "steps (Picard(damping=0.5)), scale the weights down, or use bounded activations"
    ),
    Status.INVALID: (
        "the given state holds an infinity or a NaN; its result is NaN and its gradient zero; "
        "clean the data (torch.isfinite finds it)"
    ),
}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Solution:
    """The result of a fixed-point solve, sample by sample.

    Attributes:
        value: the state, in the form that the initial state had. Where a sample did not
            converge, its best finite state.
        residual: relative residual ‖f(x) − x‖/‖f(x)‖ of exactly that state: ``(batch,)``.
        steps: evaluations of f until the sample stopped: ``(batch,)``.
        converged: whether the residual is below tol: ``(batch,)``.
        status: a :class:`Status` a sample: ``(batch,)``.
        n_evals: evaluations of f for the batch as a whole.
        trace: relative residuals in every evaluation, also after the sample stopped:
            ``(n_evals, batch)``.
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

    def __repr__(self) -> str:
        total = len(self.steps)
        if total == 0:
            return "Solution(empty batch)"
        value = self.value
        names = f"value: {{{', '.join(value)}}}, " if isinstance(value, dict) else ""
        return (
            f"Solution({names}converged: {int(self.converged.sum())}/{total}, "
            f"steps: mean {self.steps.double().mean():.1f}, worst {int(self.steps.max())}, "
            f"residual: worst {self.residual.max():.1e}, n_evals: {self.n_evals})"
        )


class Step(NamedTuple):
    """One evaluation of f, for all samples.

    Attributes:
        x: where f was evaluated: ``(batch, n)``.
        fx: f(x).
        r: f(x) − x.
        residual: ‖r‖/‖f(x)‖: ``(batch,)``.
        better: whether this residual is the lowest so far, in samples still running: ``(batch,)``.
    """

    x: Tensor
    fx: Tensor
    r: Tensor
    residual: Tensor
    better: Tensor


class Method(ABC):
    """The memory of one running solve: proposes the next state from the last evaluation."""

    @abstractmethod
    def propose(self, step: Step) -> Tensor:
        """The next state: ``(batch, n)``."""


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A fixed-point solver with its options.

    Every sample stops by itself, when its relative residual ‖f(x) − x‖/‖f(x)‖ falls below
    ``tol`` (Euclidean norms over all of the sample's numbers), when it meets a number that is not
    finite, or after ``max_steps`` evaluations of f. The loop ends with the last sample; no sample
    changes the result of another (but for the last digits, where a product of matrices rounds
    differently in a batch of another size).

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations of f at most, ≥ 0.
    """

    tol: float = 1e-4
    max_steps: int = 100

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tol) and self.tol > 0):
            raise ValueError(
                f"tol: expected a finite relative residual > 0, such as 1e-4, got {self.tol!r}"
            )
        if not isinstance(self.max_steps, int) or self.max_steps < 0:
            raise ValueError(f"max_steps: expected an integer ≥ 0, got {self.max_steps!r}")

    @abstractmethod
    def start(self, x0: Tensor) -> Method:
        """A fresh memory for one solve from x0 ``(batch, n)``."""

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Solve x = f(x) from x0.

        Args:
            f: the map, ``(batch, n) -> (batch, n)``, sample by sample.
            x0: the initial states.
        """
        method = self.start(x0)
        x = best = x0
        lowest = x0.new_full((len(x0),), math.inf)
        steps = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        active = torch.ones_like(steps, dtype=torch.bool)
        diverged = torch.zeros_like(active)
        trace: list[Tensor] = []
        for count in range(1, self.max_steps + 1):
            fx = f(x)
            r = fx - x
            size = norm(r)
            residual = relative_residual(size, fx)
            trace.append(residual)
            # A NaN is not below anything: the best finite state is kept without a test for it.
            better = active & (residual < lowest)
            best = torch.where(better[:, None], x, best)
            lowest = torch.where(better, residual, lowest)
            steps += active
            # Asked of r: the ratio may overflow where f(x) is zero, and all is well.
            lost = active & ~size.isfinite()
            diverged |= lost
            active = active & (residual >= self.tol) & ~lost
            if count == self.max_steps or not active.any():
                break
            x = method.propose(Step(x, fx, r, residual, better))
        converged = lowest < self.tol
        status = torch.where(converged, Status.CONVERGED.value, Status.MAX_STEPS.value)
        return Solution(
            value=best,
            residual=lowest,
            steps=steps,
            converged=converged,
            status=torch.where(diverged, Status.DIVERGED.value, status),
            n_evals=len(trace),
            trace=torch.stack(trace) if trace else x0.new_empty(0, len(x0)),
        )


def relative_residual(size: Tensor, fx: Tensor) -> Tensor:
    """size/‖f(x)‖ a sample, size being ‖f(x) − x‖; it is 0 where both are 0."""
    # Divided by the smallest positive number, a residual that is not zero stays large.
    return size / norm(fx).clamp_min(torch.finfo(fx.dtype).tiny)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm a sample: ``(batch, n) -> (batch,)``."""
    return torch.linalg.vector_norm(x, dim=-1)
