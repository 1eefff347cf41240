"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import integer, number
from hamdeq.solvers.base import Step, norm
from hamdeq.solvers.safeguard import Extrapolation, Safeguarded

__all__ = ["Anderson"]


@dataclass(frozen=True, kw_only=True)
class Anderson(Safeguarded):
    """Anderson acceleration with a window of past steps.

    With residuals r = f(x) − x and the differences Δr₁, …, Δr_m and Δf₁, …, Δf_m of the last
    steps, the next state is ``f(x) − Σ γ_j Δf_j`` where γ minimises
    ``‖r − Σ γ_j Δr_j‖² + ridge Σ γ_j² ‖Δr_j‖²``. The safeguard is that of
    :class:`~hamdeq.solvers.safeguard.Safeguarded`.

    Args:
        history: differences kept, m ≥ 1; the memory used is 2m states a sample.
        ridge: how much the coefficients are held back, ≥ 0, whatever the size of the residuals.
            A large one keeps the extrapolation near the plain step, a small one is faster where
            f is linear.
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.

    Source: Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations" (2011), in the form
    with differences (their equation 2.2).
    """

    history: int = 5
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        history = integer("history", self.history, expected="an integer ≥ 1")
        object.__setattr__(self, "history", history)
        number("ridge", self.ridge, least=0)

    def extrapolation(self, x0: Tensor) -> Extrapolation:
        return _Window(x0, self)


class _Window(Extrapolation):
    """A ring of the last m differences, and their Gram matrix, of which a step adds one row.

    Late differences are many orders smaller than early ones: each pair is scaled to Δr of length
    one, so that the ridge means the same for all.
    """

    def __init__(self, x0: Tensor, solver: Anderson) -> None:
        (batch, n), history = x0.shape, solver.history
        self.dr = x0.new_zeros(batch, history, n)
        self.df = x0.new_zeros(batch, history, n)
        # The small systems are solved in float64: their condition is that of Δr squared.
        self.gram = x0.new_zeros(batch, history, history, dtype=torch.float64)
        # Rounding leaves no less than this undetermined.
        self.diagonal = 1 + max(solver.ridge, 10 * torch.finfo(x0.dtype).eps)
        self.count = 0
        self.fx = self.r = x0

    def __call__(self, step: Step) -> Tensor | None:
        fx, r = step.fx, step.r
        self._remember(fx, r)
        used = min(self.count - 1, self.dr.shape[1])
        if not used:
            return None
        factor, failed = torch.linalg.cholesky_ex(self.gram[:, :used, :used])
        goal = (self.dr[:, :used] * r[:, None]).sum(-1, keepdim=True).double()
        gamma = torch.cholesky_solve(goal, factor).to(r.dtype).mT
        gamma = torch.where((failed == 0)[:, None, None], gamma, 0.0)
        return torch.baddbmm(fx[:, None], gamma, self.df[:, :used], alpha=-1)[:, 0]

    def _remember(self, fx: Tensor, r: Tensor) -> None:
        if self.count:
            slot = (self.count - 1) % self.dr.shape[1]
            change = r - self.r
            # A difference of zero stays zero; its row is kept regular by the diagonal.
            size = norm(change)[:, None].clamp_min(torch.finfo(r.dtype).tiny)
            torch.div(change, size, out=self.dr[:, slot])
            torch.div(fx - self.fx, size, out=self.df[:, slot])
            row = (self.dr * self.dr[:, slot, None]).sum(-1)
            self.gram[:, slot] = row
            self.gram[:, :, slot] = row
            self.gram[:, slot, slot] = self.diagonal
        self.count += 1
        self.fx, self.r = fx, r
