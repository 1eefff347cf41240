"""The safeguard that accelerated solvers share: never lose what a plain step would keep."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.solvers.base import Method, Solver, Step

__all__ = ["Accelerated", "Guarded"]


@dataclass(frozen=True, kw_only=True)
class Accelerated(Solver):
    """A solver that extrapolates from a limited memory of past steps.

    A sample gets a strike when its relative residual grows beyond ``growth`` times the lowest since
    its last strike, when that lowest has not improved for ``patience`` steps, or when its next
    state would not be finite. It then takes plain steps from where it is, two after the first
    strike, twice as many after each further one: where plain iteration settles from any state, as
    with even-odd splitting, acceleration can delay a sample but not keep it from settling.

    Args:
        memory: past steps kept, ≥ 1.
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
    """

    memory: int = 5
    growth: float = 4.0
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("memory", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer ≥ 1, got {value!r}")
        if not self.growth > 1:
            raise ValueError(f"growth: expected a number > 1, got {self.growth!r}")


class Guarded(Method):
    """A method under that safeguard."""

    def __init__(self, x0: Tensor, solver: Accelerated) -> None:
        self.growth, self.patience = solver.growth, solver.patience
        self.best_fx = x0
        self.reference = x0.new_full((len(x0),), math.inf)
        self.stale = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self.strikes = torch.zeros_like(self.stale)
        self.rest = torch.zeros_like(self.stale)

    @abstractmethod
    def extrapolate(self, x: Tensor, fx: Tensor, r: Tensor) -> Tensor:
        """The accelerated next state."""

    def propose(self, step: Step) -> Tensor:
        self.best_fx = torch.where(step.better[:, None], step.fx, self.best_fx)
        x = self.extrapolate(step.x, step.fx, step.r)
        plain = self._judge(step.residual, x)
        x = torch.where(plain[:, None], step.fx, x)
        return torch.where(x.isfinite().all(1)[:, None], x, self.best_fx)

    def _judge(self, residual: Tensor, x: Tensor) -> Tensor:
        """Which samples take a plain step now: ``(batch,)``."""
        resting = self.rest > 0
        self.stale = torch.where(residual < self.reference, 0, self.stale + 1)
        # What plain steps lead to, however far it is, is where acceleration starts anew.
        self.reference = torch.where(resting, residual, torch.minimum(self.reference, residual))
        # Written so that a NaN counts against the sample.
        fine = (residual <= self.growth * self.reference) & x.isfinite().all(1)
        strike = ~(resting | (fine & (self.stale <= self.patience)))
        self.strikes += strike
        self.rest = torch.where(strike, 2**self.strikes, self.rest - 1).clamp_min(0)
        self.stale = torch.where(strike | resting, 0, self.stale)
        return strike | resting
