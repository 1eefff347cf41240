"""Picard iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hamdeq._checks import number
from hamdeq.solvers.base import Solver
from hamdeq.solvers.state import SolverState, Step

__all__ = ["Picard"]


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Fixed-point iteration x <- x + h (f(x) − x).

    On an update of a memory this is forward Euler with time step h. On a two-coloured memory
    (``splitting="even-odd"``) with h = 1 every step minimises the energy over one half and then
    over the other, so that the energy never rises.

    Args:
        damping: step h, 0 < h ≤ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.
    """

    traceable = True

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("damping", self.damping, above=0, most=1)

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        return _Damped(self.damping)


class _Damped(SolverState):
    def __init__(self, damping: float) -> None:
        self.damping = damping

    def next(self, step: Step) -> Tensor:
        return step.fx if self.damping == 1 else step.x + self.damping * step.r
