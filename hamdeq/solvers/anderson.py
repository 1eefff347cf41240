"""Anderson acceleration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.solvers.base import Step
from hamdeq.solvers.safeguard import Accelerated, Extrapolation, at_least_one

__all__ = ["Anderson"]


@dataclass(frozen=True, kw_only=True)
class Anderson(Accelerated):
    """Anderson acceleration with a window of past steps.

    With residuals r = f(x) − x and the differences Δr₁, …, Δr_m and Δf₁, …, Δf_m of the last
    steps, the next state is ``f(x) − Σ γ_j Δf_j`` where γ minimises
    ``‖r − Σ γ_j Δr_j‖² + ridge Σ γ_j² ‖Δr_j‖²``. The safeguard is that of :class:`Accelerated`.

    Args:
        memory: differences kept, m ≥ 1; the memory used is 2m states a sample.
        ridge: how much the coefficients are held back, ≥ 0, whatever the size of the residuals.
            A large one keeps the extrapolation near the plain step, a small one is faster where
            f is linear.
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.

    Source: Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations" (2011), in the form
    with differences (their equation 2.2).
    """

    memory: int = 5
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("memory", self.memory)
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge: expected a finite number ≥ 0, got {self.ridge!r}")

    def extrapolation(self, x0: Tensor) -> Extrapolation:
        return _Window(x0, self)


class _Window(Extrapolation):
    """A ring of the last m differences, and their Gram matrix, of which a step adds one row."""

    def __init__(self, x0: Tensor, solver: Anderson) -> None:
        (batch, n), memory = x0.shape, solver.memory
        self.dr = x0.new_zeros(batch, memory, n)
        self.df = x0.new_zeros(batch, memory, n)
        # The small systems are solved in float64: their condition is that of Δr squared.
        self.gram = x0.new_zeros(batch, memory, memory, dtype=torch.float64)
        # Rounding leaves less than this undetermined.
        self.ridge = max(solver.ridge, 10 * torch.finfo(x0.dtype).eps)
        self.count = 0
        self.fx = self.r = x0

    def __call__(self, step: Step) -> Tensor:
        fx, r = step.fx, step.r
        self._remember(fx, r)
        used = min(self.count - 1, self.dr.shape[1])
        if not used:
            return fx
        gamma = self._coefficients(r, used)[:, None]
        return torch.baddbmm(fx[:, None], gamma, self.df[:, :used], alpha=-1)[:, 0]

    def _remember(self, fx: Tensor, r: Tensor) -> None:
        if self.count:
            slot = (self.count - 1) % self.dr.shape[1]
            torch.sub(r, self.r, out=self.dr[:, slot])
            torch.sub(fx, self.fx, out=self.df[:, slot])
            row = (self.dr * self.dr[:, slot, None]).sum(-1).double()
            self.gram[:, slot] = row
            self.gram[:, :, slot] = row
        self.count += 1
        self.fx, self.r = fx, r

    def _coefficients(self, r: Tensor, used: int) -> Tensor:
        """γ of the least squares problem: ``(batch, used)``."""
        # Late differences are many orders smaller than early ones: each is scaled to unit length
        # and only then regularised. A difference of zero is left out by a scale of zero; the
        # ridge keeps its row regular.
        gram = self.gram[:, :used, :used]
        square = gram.diagonal(dim1=1, dim2=2)
        scale = torch.where(square > 0, square.rsqrt(), 0.0)
        unit = gram * (scale[:, :, None] * scale[:, None])
        unit.diagonal(dim1=1, dim2=2).add_(self.ridge)
        goal = (self.dr[:, :used] * r[:, None]).sum(-1).double() * scale
        factor, failed = torch.linalg.cholesky_ex(unit)
        gamma = torch.cholesky_solve(goal[:, :, None], factor)[:, :, 0] * scale
        return torch.where((failed == 0)[:, None], gamma, 0.0).to(r.dtype)
