"""The papers' count of iterations: by the difference of successive outputs of the map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hamdeq._checks import instance
from hamdeq.solvers.base import Solver
from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.picard import Picard
from hamdeq.solvers.solution import Solution, Status
from hamdeq.solvers.state import SolverState, Step, full_precision, norm, relative_residual

__all__ = ["SuccessiveOutputs", "paper_iterations"]


@dataclass(frozen=True, kw_only=True)
class SuccessiveOutputs(Solver):
    """A solver's own steps, with the papers' rule of when a sample has converged.

    The solver evaluates the map at x₀, x₁, x₂, …, whatever way it finds these. A sample has
    converged at the first pair of successive outputs of which

        ‖f(xₖ₊₁) − f(xₖ)‖ < tol ‖f(xₖ₊₁)‖,

    and the published number of iterations is the index k of that pair, counted from 0:
    :func:`paper_iterations` of the Solution. Of plain iteration, where f(xₖ) is xₖ₊₁, the
    difference is the residual of xₖ₊₁, and `steps` are those of :class:`~hamdeq.Picard` itself, two
    more than k. An accelerated solver moves between the two outputs by more than its map does.

    In the Solution ``residual`` and ``trace`` are the differences ‖f(xₖ₊₁) − f(xₖ)‖/‖f(xₖ₊₁)‖, of
    the first evaluation infinity; ``value`` is the later output of the pair, and ``steps`` are the
    evaluations up to it. States that a safeguard has turned down are outputs as well.

    Args:
        solver: whose steps are taken; its own ``tol`` and ``max_steps`` do not matter.
        tol: relative difference to reach; published counts are of 1e-4.
        max_steps: evaluations of f at most.

    Raises:
        TypeError: in a solve, a solver that takes no single steps, such as torchdeq's.

    Source: Goemaere et al., "Accelerating Hierarchical Associative Memory: A Deep Equilibrium
    Approach" (2023), table 1 and its code.

    Example:
        >>> x0 = torch.ones(1, 1)
        >>> Picard().solve(torch.cos, x0).steps.item()
        24
        >>> paper_iterations(SuccessiveOutputs().solve(torch.cos, x0)).item()
        22
    """

    solver: Solver = field(default_factory=Picard)
    fallback_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        instance("solver", self.solver, Solver)

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        return self.solver.start(f, x0)

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Take steps until every sample has converged by the rule above."""
        with full_precision(x0):
            return self._solve(f, x0)

    def _solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        method, x, value = self.start(f, x0), x0, x0.clone()
        steps = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        running = torch.ones_like(steps, dtype=torch.bool)
        residual = x0.new_full((len(x0),), math.inf)
        trace: list[Tensor] = []
        last: Tensor | None = None
        # All samples go on to the end: how many there are then changes no digit of any.
        while len(trace) < self.max_steps:
            step = Step(f, x, *f.step(x)) if isinstance(f, EnergyMap) else Step(f, x, f(x))
            method.accepts(step)
            if last is not None:
                difference = relative_residual(norm(step.fx - last), step.fx)
                residual = torch.where(running, difference, residual)
            last = step.fx
            steps = steps + running
            value = torch.where(running[:, None], last, value)
            running = running & ~(residual < self.tol)
            trace.append(residual)
            if len(trace) == self.max_steps or not bool(running.any()):
                break
            x = method.next(step)
        converged = residual < self.tol
        status = torch.where(value.isfinite().all(1), Status.MAX_STEPS, Status.DIVERGED)
        return Solution(
            value=torch.where(value.isfinite(), value, x0),
            residual=residual,
            steps=steps,
            converged=converged,
            status=torch.where(converged, int(Status.CONVERGED), status),
            n_evals=len(trace),
            trace=torch.stack(trace) if trace else residual.new_empty(0, len(x0)),
        )


def paper_iterations(solution: Solution) -> Tensor:
    """The papers' number of iterations, of a Solution of :class:`SuccessiveOutputs`: ``(batch,)``.

    It is the index of the first pair of successive outputs that differ by less than the tolerance,
    counted from 0: two less than the evaluations of f up to the end of that pair. Where there is
    none, it is the number of all pairs.
    """
    return (solution.steps - torch.where(solution.converged, 2, 1)).clamp_min(0)
