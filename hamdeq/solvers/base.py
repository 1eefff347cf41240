"""What all solvers share: the loop, and the stopping rule of each sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hamdeq._checks import integer, number
from hamdeq.solvers.energy_map import EnergyInfo, EnergyMap
from hamdeq.solvers.solution import Solution, Status

__all__ = [
    "SampleLog",
    "SampleState",
    "Solver",
    "SolverState",
    "Step",
    "Stopping",
    "all_without_sync",
    "forget_casts",
    "full_precision",
    "norm",
    "relative_residual",
    "where_sample",
]


@dataclass(frozen=True)
class Step:
    """One evaluation of f, for all samples that are left.

    Attributes:
        f: the map.
        x: where it was evaluated: ``(batch, n)``.
        fx: f(x).
        r: f(x) − x.
        residual: ‖r‖/‖f(x)‖: ``(batch,)``.
        info: of a map with an energy, what is known of it at x.
    """

    f: Callable[[Tensor], Tensor]
    x: Tensor
    fx: Tensor
    r: Tensor
    residual: Tensor
    info: EnergyInfo | None


class SampleState:
    """Tensors with the batch first, of which samples can be dropped."""

    def select(self, rows: Tensor) -> None:
        """Keep some samples, given by index, in every attribute that is a tensor or memory."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, SampleState):
                value.select(rows)


class SolverState(SampleState, ABC):
    """The memory of one running solve: proposes the next state from the last evaluation.

    Tensors among its attributes must have the batch first: of a memory (an energy model) samples
    that have stopped are dropped from them. Override :meth:`select` for anything else.
    """

    def accepts(self, step: Step) -> Tensor | None:
        """Which samples go on from here, and may end here: ``(batch,)``; None for all."""
        return None

    @abstractmethod
    def next(self, step: Step) -> Tensor:
        """The next state: ``(batch, n)``."""


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a solve ends.

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations at most, ≥ 0.
        fallback_steps: evaluations that samples get after these, by a method that converges
            wherever it can: :class:`~hamdeq.TrustRegion` of an energy model, and
            :class:`~hamdeq.GMRES` of the linear system of a gradient; 0 for none.
    """

    tol: float = 1e-4
    max_steps: int = 100
    fallback_steps: int = 500

    def __post_init__(self) -> None:
        number("tol", self.tol, above=0, remedy="it is a relative residual, such as 1e-4")
        # Frozen, but a NumPy integer is kept as an int.
        for name in ("max_steps", "fallback_steps"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=0))


@dataclass(frozen=True, kw_only=True)
class Solver(Stopping, ABC):
    """A fixed-point solver with its options.

    Every sample stops by itself, when its relative residual ‖f(x) − x‖/‖f(x)‖ falls below
    ``tol`` (Euclidean norms over all of the sample's numbers), when it moves to a number that is
    not finite, or after ``max_steps`` evaluations of f. The loop ends with the last sample; no
    sample changes the result of another (but for the last digits, where a product of matrices
    rounds differently in a batch of another size). An energy model is evaluated for fewer samples
    as more of them have stopped, and in full precision under autocast.

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations of f at most, ≥ 0.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.
        trace: whether ``Solution.trace`` is kept, a number for each sample and evaluation.
    """

    trace: bool = True

    @abstractmethod
    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        """A fresh memory for one solve from x0 ``(batch, n)``."""

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Solve x = f(x) from x0.

        Args:
            f: the map, ``(batch, n) -> (batch, n)``, sample by sample. Of a
                :class:`~hamdeq.solvers.energy_map.EnergyMap` the solver also knows the energy.
            x0: the initial states.
        """
        # Of a memory also f: half precision would lift the noise of its energy above its descent.
        if isinstance(f, EnergyMap) and torch.is_autocast_enabled(x0.device.type):
            with full_precision(x0):
                return self.solve(f, x0)
        method, run = self.start(f, x0), SampleLog(x0, traced=self.trace)
        x = x0
        for count in range(1, self.max_steps + 1):
            fx, info = f.step(x) if isinstance(f, EnergyMap) else (f(x), None)
            r = fx - x
            size = norm(r)
            step = Step(f, x, fx, r, relative_residual(size, fx), info)
            left = run.record(x, step.residual, size, self.tol, accepted=method.accepts(step))
            if count == self.max_steps or not left:
                break
            with full_precision(x):
                x = method.next(step)
            if left < len(x):
                # Half a batch costs less than a whole one from here on, whatever its width.
                if isinstance(f, EnergyMap) and 2 * left <= len(x):
                    rows = run.running.nonzero()[:, 0]
                    x, f = x[rows], f.select(rows)
                    method.select(rows)
                    run.drop(rows)
                else:
                    x = torch.where(run.running[:, None], x, run.best)
        solution = run.solution(self.tol)
        if solution.value.data_ptr() == x0.data_ptr():  # what the caller may write to
            solution = replace(solution, value=solution.value.clone())
        return solution


class SampleLog(SampleState):
    """What is known of each sample, and which of them are still running."""

    def __init__(self, x0: Tensor, *, traced: bool = True) -> None:
        self.best: Tensor = x0
        self.lowest: Tensor = x0.new_full((len(x0),), math.inf)
        self.steps: Tensor = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self.running: Tensor = torch.ones_like(self.steps, dtype=torch.bool)
        self.diverged: Tensor = torch.zeros_like(self.running)
        self.rows: Tensor = torch.arange(len(x0), device=x0.device)
        self.left: int = len(x0)
        # Of the whole batch, as of the last time that samples were dropped.
        self.whole: dict[str, Tensor] | None = None
        self.count: int = 0
        self.trace: list[Tensor] | None = [] if traced else None

    def record(
        self,
        x: Tensor,
        residual: Tensor,
        size: Tensor,
        tol: float,
        *,
        accepted: Tensor | None = None,
    ) -> int:
        """Take in an evaluation, with ‖f(x) − x‖ as size; return how many samples are left."""
        # A NaN is not below anything: the best finite state is kept without a test for it.
        better = residual < self.lowest
        # Asked of r: the ratio may overflow where f(x) is zero, and all is well.
        sound = size.isfinite()
        if accepted is not None:
            better, sound = better & accepted, sound | ~accepted
        # Samples that have stopped are evaluated at their best state, and change nothing.
        all_running = self.left == len(self.lowest)
        self.best = where_sample(better if all_running else better | ~self.running, x, self.best)
        self.lowest = where_sample(better, residual, self.lowest)
        self.count += 1
        if self.trace is not None:
            kept = residual if all_running else torch.where(self.running, residual, self.lowest)
            self.trace.append(self._of_all(kept))
        running = self.running & sound & (self.lowest >= tol)
        left = int(running.sum())
        if left < self.left:
            stopped = self.running & ~running
            self.steps = torch.where(stopped, self.count, self.steps)
            self.diverged = self.diverged | (stopped & ~sound)
            self.running = running
            self.left = left
        return left

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
            n_evals=self.count,
            trace=torch.stack(self.trace) if self.trace else lowest.new_empty(0, len(lowest)),
        )

    def _merged(self) -> dict[str, Tensor]:
        present = {name: getattr(self, name) for name in ("best", "lowest", "steps", "diverged")}
        present["steps"] = torch.where(self.running, self.count, self.steps)
        if self.whole is None:
            return present
        return {name: x.index_copy(0, self.rows, present[name]) for name, x in self.whole.items()}

    def _of_all(self, residual: Tensor) -> Tensor:
        """The residuals of the whole batch, of which some samples may have been dropped."""
        if self.whole is None:
            return residual
        return self.whole["lowest"].index_copy(0, self.rows, residual)


def where_sample(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` in the marked samples, ``other`` in the rest."""
    if all_without_sync(mask):
        return one
    return torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast: what solvers do with states is not for half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def forget_casts(x: Tensor) -> None:
    """Let autocast cast weights anew where a graph is wanted after a solve without one.

    Casts are cached, and PyTorch 2.10 takes those that were made without a graph.
    """
    if torch.is_autocast_enabled(x.device.type):
        torch.clear_autocast_cache()


def all_without_sync(mask: Tensor) -> bool:
    """Whether all are marked, as far as one can tell without waiting for a device."""
    return mask.device.type == "cpu" and bool(mask.all())


def relative_residual(size: Tensor, fx: Tensor) -> Tensor:
    """size/‖f(x)‖ a sample, size being ‖f(x) − x‖; it is 0 where both are 0."""
    scale = norm(fx)
    # Divided by the smallest positive number, a residual that is not zero stays large; divided by
    # a norm that has overflowed, it would vanish.
    ratio = size / scale.clamp_min(torch.finfo(fx.dtype).tiny)
    return torch.where(scale.isinf(), scale, ratio)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm a sample: ``(batch, n) -> (batch,)``."""
    return torch.linalg.vector_norm(x, dim=-1)
