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

from hamdeq.descent import Descent, Energetic

__all__ = ["Memory", "Method", "Run", "Solution", "Solver", "Status", "Step", "Stopping"]


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
        trace: relative residual in every evaluation, after the sample stopped that of its value:
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
    """One evaluation of f, for all samples that are left.

    Attributes:
        f: the map.
        x: where it was evaluated: ``(batch, n)``.
        fx: f(x).
        r: f(x) − x.
        residual: ‖r‖/‖f(x)‖: ``(batch,)``.
        energetic: of a map with an energy, what is known of it at x.
    """

    f: Callable[[Tensor], Tensor]
    x: Tensor
    fx: Tensor
    r: Tensor
    residual: Tensor
    energetic: Energetic | None


class Memory:
    """Tensors with the batch first, of which samples can be dropped."""

    def select(self, rows: Tensor) -> None:
        """Keep some samples, given by index, in every attribute that is a tensor or memory."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, Memory):
                value.select(rows)


class Method(Memory, ABC):
    """The memory of one running solve: proposes the next state from the last evaluation."""

    def accepts(self, step: Step) -> Tensor | None:
        """Which samples go on from here, and may end here: ``(batch,)``; None for all."""
        return None

    @abstractmethod
    def propose(self, step: Step) -> Tensor:
        """The next state: ``(batch, n)``."""


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a solve ends.

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations at most, ≥ 0.
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


@dataclass(frozen=True, kw_only=True)
class Solver(Stopping, ABC):
    """A fixed-point solver with its options.

    Every sample stops by itself, when its relative residual ‖f(x) − x‖/‖f(x)‖ falls below
    ``tol`` (Euclidean norms over all of the sample's numbers), when it meets a number that is not
    finite, or after ``max_steps`` evaluations of f. The loop ends with the last sample; no sample
    changes the result of another (but for the last digits, where a product of matrices rounds
    differently in a batch of another size). An energy model is evaluated for fewer samples as
    more of them have stopped.

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations of f at most, ≥ 0.
    """

    @abstractmethod
    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Method:
        """A fresh memory for one solve from x0 ``(batch, n)``."""

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Solve x = f(x) from x0.

        Args:
            f: the map, ``(batch, n) -> (batch, n)``, sample by sample. Of a
                :class:`~hamdeq.descent.Descent` the solver also knows the energy.
            x0: the initial states.
        """
        method, run = self.start(f, x0), Run(x0)
        x = x0
        for count in range(1, self.max_steps + 1):
            fx, energetic = f.step(x) if isinstance(f, Descent) else (f(x), None)
            r = fx - x
            size = norm(r)
            step = Step(f, x, fx, r, relative_residual(size, fx), energetic)
            left = run.record(step, method.accepts(step), size, self.tol)
            if count == self.max_steps or not left:
                break
            x = method.propose(step)
            if left < len(x):
                # Half a batch costs less than a whole one from here on, whatever its width.
                if isinstance(f, Descent) and 2 * left <= len(x):
                    rows = run.running.nonzero()[:, 0]
                    x, f = x[rows], f.select(rows)
                    method.select(rows)
                    run.drop(rows)
                else:
                    x = torch.where(run.running[:, None], x, run.best)
        return run.solution(self.tol)


class Run(Memory):
    """What is known of each sample, and which of them are still running."""

    def __init__(self, x0: Tensor) -> None:
        self.best = x0
        self.lowest = x0.new_full((len(x0),), math.inf)
        self.steps = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self.running = torch.ones_like(self.steps, dtype=torch.bool)
        self.diverged = torch.zeros_like(self.running)
        self.rows = torch.arange(len(x0), device=x0.device)
        self.left = len(x0)
        # Of the whole batch, as of the last time that samples were dropped.
        self.whole: dict[str, Tensor] | None = None
        self.trace: list[Tensor] = []

    def record(self, step: Step, accepted: Tensor | None, size: Tensor, tol: float) -> int:
        """Take in an evaluation; return how many samples are left."""
        # A NaN is not below anything: the best finite state is kept without a test for it.
        better = step.residual < self.lowest
        # Asked of r: the ratio may overflow where f(x) is zero, and all is well.
        sound = size.isfinite()
        if accepted is not None:
            better, sound = better & accepted, sound | ~accepted
        # Samples that have stopped are evaluated at their best state, and change nothing.
        all_running = self.left == len(self.lowest)
        self.best = choose(better if all_running else better | ~self.running, step.x, self.best)
        self.lowest = torch.where(better, step.residual, self.lowest)
        self._trace(step.residual if all_running else self._of_running(step.residual))
        running = self.running & sound & (self.lowest >= tol)
        left = int(running.sum())
        if left < self.left:
            stopped = self.running & ~running
            self.steps = torch.where(stopped, len(self.trace), self.steps)
            self.diverged = self.diverged | (stopped & ~sound)
            self.running, self.left = running, left
        return left

    def _of_running(self, residual: Tensor) -> Tensor:
        return torch.where(self.running, residual, self.lowest)

    def drop(self, rows: Tensor) -> None:
        """Go on with some of the samples, given by index."""
        self.whole = self._merged()
        self.select(rows)

    def solution(self, tol: float) -> Solution:
        merged = self._merged()
        lowest = merged["lowest"]
        converged = lowest < tol
        status = torch.where(converged, Status.CONVERGED.value, Status.MAX_STEPS.value)
        return Solution(
            value=merged["best"],
            residual=lowest,
            steps=merged["steps"],
            converged=converged,
            status=torch.where(merged["diverged"], Status.DIVERGED.value, status),
            n_evals=len(self.trace),
            trace=torch.stack(self.trace) if self.trace else lowest.new_empty(0, len(lowest)),
        )

    def _merged(self) -> dict[str, Tensor]:
        present = {name: getattr(self, name) for name in ("best", "lowest", "steps", "diverged")}
        present["steps"] = torch.where(self.running, len(self.trace), self.steps)
        if self.whole is None:
            return present
        return {name: x.index_copy(0, self.rows, present[name]) for name, x in self.whole.items()}

    def _trace(self, residual: Tensor) -> None:
        if self.whole is not None:
            residual = self.whole["lowest"].index_copy(0, self.rows, residual)
        self.trace.append(residual)


def choose(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` in the marked samples, ``other`` in the rest."""
    if surely_all(mask):
        return one
    return torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def surely_all(mask: Tensor) -> bool:
    """Whether all are marked, as far as one can tell without waiting for a device."""
    return mask.device.type == "cpu" and bool(mask.all())


def relative_residual(size: Tensor, fx: Tensor) -> Tensor:
    """size/‖f(x)‖ a sample, size being ‖f(x) − x‖; it is 0 where both are 0."""
    # Divided by the smallest positive number, a residual that is not zero stays large.
    return size / norm(fx).clamp_min(torch.finfo(fx.dtype).tiny)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm a sample: ``(batch, n) -> (batch,)``."""
    return torch.linalg.vector_norm(x, dim=-1)
