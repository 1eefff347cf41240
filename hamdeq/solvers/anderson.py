"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.solvers.base import Method
from hamdeq.solvers.safeguard import Accelerated, Guarded

__all__ = ["Anderson"]


@dataclass(frozen=True, kw_only=True)
class Anderson(Accelerated):
    """Anderson acceleration with a window of past steps.

    With residuals r = f(x) − x and the differences Δr₁, …, Δr_m and Δf₁, …, Δf_m of the last
    steps, the next state is ``f(x) − Σ γ_j Δf_j`` where γ minimises ‖r − Σ γ_j Δr_j‖. A sample
    that goes astray takes plain steps for a while (:class:`Accelerated`).

    Args:
        memory: differences kept, m ≥ 1; the memory used is 2m states a sample.
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.

    Source: Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations" (2011), in the form
    with differences (their equation 2.2).
    """

    def start(self, x0: Tensor) -> Method:
        return _Window(x0, self)


class _Window(Guarded):
    """A ring of the last m differences, and their Gram matrix, of which a step adds one row."""

    def __init__(self, x0: Tensor, solver: Accelerated) -> None:
        super().__init__(x0, solver)
        (batch, n), memory = x0.shape, solver.memory
        self.dr = x0.new_zeros(batch, memory, n)
        self.df = x0.new_zeros(batch, memory, n)
        # The small systems are solved in float64: their condition is that of Δr squared.
        self.gram = x0.new_zeros(batch, memory, memory, dtype=torch.float64)
        self.count = 0
        self.fx = self.r = x0

    def extrapolate(self, x: Tensor, fx: Tensor, r: Tensor) -> Tensor:
        self._remember(fx, r)
        used = min(self.count - 1, self.dr.shape[1])
        if not used:
            return fx
        return fx - (self._coefficients(r, used)[:, :, None] * self.df[:, :used]).sum(1)

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
        # and only then regularised, by what rounding leaves undetermined. A difference of zero is
        # left out by a scale of zero; the ridge keeps its row regular.
        gram = self.gram[:, :used, :used]
        square = gram.diagonal(dim1=1, dim2=2)
        use = square > 0
        scale = torch.where(use, square.rsqrt(), 0.0)
        unit = gram * (scale[:, :, None] * scale[:, None])
        unit.diagonal(dim1=1, dim2=2).add_(torch.where(use, 10 * torch.finfo(r.dtype).eps, 1.0))
        goal = (self.dr[:, :used] * r[:, None]).sum(-1).double() * scale
        factor, failed = torch.linalg.cholesky_ex(unit)
        gamma = torch.cholesky_solve(goal[:, :, None], factor)[:, :, 0] * scale
        return torch.where((failed == 0)[:, None], gamma, 0.0).to(r.dtype)
