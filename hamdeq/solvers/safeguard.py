"""The safeguard that accelerated solvers share: never lose what a plain step would keep."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.solvers.base import Method, Solver, Step

__all__ = ["Accelerated", "Guarded"]


@dataclass(frozen=True, kw_only=True)
class Accelerated(Solver):
    """A solver that extrapolates from a limited memory of past steps.

    A sample whose relative residual grows beyond ``growth`` times its best, or whose next state
    would not be finite, goes back to its best state, takes a plain step from there and forgets its
    past: acceleration can slow a sample, but not break it.

    Args:
        memory: past steps kept, ≥ 1.
        growth: how far a sample's relative residual may rise above its best, > 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
    """

    memory: int = 5
    growth: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"memory: expected an integer ≥ 1, got {self.memory!r}")
        if not self.growth > 1:
            raise ValueError(f"growth: expected a number > 1, got {self.growth!r}")


class Guarded(Method):
    """A method under that safeguard."""

    def __init__(self, x0: Tensor, growth: float) -> None:
        self.growth = growth
        self.best_fx = x0
        self.plain = torch.ones(len(x0), dtype=torch.bool, device=x0.device)

    @abstractmethod
    def extrapolate(self, x: Tensor, fx: Tensor, r: Tensor) -> Tensor:
        """The accelerated next state."""

    @abstractmethod
    def forget(self, samples: Tensor) -> None:
        """Drop the past of the marked samples ``(batch,)``."""

    def propose(self, step: Step) -> Tensor:
        self.best_fx = torch.where(step.better[:, None], step.fx, self.best_fx)
        x = self.extrapolate(step.x, step.fx, step.r)
        # Written so that a NaN counts as astray. What a plain step leads to is accepted, however
        # far it is: sent back to the same state again, a sample would go in circles.
        close = (step.residual <= self.growth * step.lowest) | self.plain
        astray = ~(close & x.isfinite().all(1))
        self.plain = astray
        self.forget(astray)
        return torch.where(astray[:, None], self.best_fx, x)
