"""One solve from its start to its end, step by step or several steps at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.solution import Solution
from hamdeq.solvers.state import SampleLog, SolverState, Step, full_precision

if TYPE_CHECKING:
    from hamdeq.solvers.base import Solver

__all__ = ["Run"]


class Run:
    """A solve that is under way.

    Args:
        solver: how to solve.
        f: the map.
        x0: the initial states, ``(batch, n)``.
    """

    def __init__(self, solver: Solver, f: Callable[[Tensor], Tensor], x0: Tensor) -> None:
        self.solver: Solver = solver
        self.x: Tensor = x0
        self.method: SolverState = solver.start(f, x0)
        self.log: SampleLog = SampleLog(x0, traced=solver.trace)
        # Evaluations of single samples that had stopped.
        self._idle: int = 0

    def advance(self, f: Callable[[Tensor], Tensor], steps: int) -> None:
        """Take steps without a look at any number, so that they make one graph.

        Samples that have stopped are kept by masks.
        """
        for _ in range(steps):
            step = _evaluated(f, self.x)
            accepted = self.method.accepts(step)
            self.log.record(self.x, step.residual, step.size, self.solver.tol, accepted=accepted)
            ahead = self.method.next(step)
            self.x = torch.where(self.log.running[:, None], ahead, self.log.best)

    def look(self) -> int:
        """Return the number of samples that are left after :meth:`advance`."""
        self.log.left = int(torch.count_nonzero(self.log.running))
        return self.log.left

    def resume(self, f: Callable[[Tensor], Tensor]) -> Solution:
        """:meth:`finish` what :meth:`advance` has begun."""
        if 0 < self.log.left < len(self.x):
            f = self._compact(f)
        return self.finish(f)

    def finish(self, f: Callable[[Tensor], Tensor]) -> Solution:
        """Take steps until all samples have stopped."""
        method, log, solver = self.method, self.log, self.solver
        x0 = self.x
        while log.left and log.count < solver.max_steps:
            step = _evaluated(f, self.x)
            accepted = method.accepts(step)
            log.record(self.x, step.residual, step.size, solver.tol, accepted=accepted)
            if log.count == solver.max_steps or not log.left:
                break
            with full_precision(self.x):
                self.x = method.next(step)
            if log.left < len(self.x):
                f = self._compact(f)
        solution = log.solution(solver.tol)
        if solution.value.data_ptr() == x0.data_ptr():  # what the caller may write to
            solution = replace(solution, value=solution.value.clone())
        return solution

    def _compact(self, f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Go on with fewer samples, where that is worth it; those that have stopped stay put."""
        log = self.log
        self._idle += len(self.x) - log.left
        # To drop samples takes as long as an evaluation or two of all. Once as much has been spent
        # on samples that had stopped, it is worth it: never twice as long as with foresight.
        if not isinstance(f, EnergyMap) or self._idle < len(self.x):
            self.x = torch.where(log.running[:, None], self.x, log.best)
            return f
        rows = log.running.nonzero()[:, 0]
        self.method.select(rows)
        log.drop(rows)
        self.x = self.x[rows]
        self._idle = 0
        return f.select(rows)


def _evaluated(f: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    return Step(f, x, *f.step(x)) if isinstance(f, EnergyMap) else Step(f, x, f(x))
