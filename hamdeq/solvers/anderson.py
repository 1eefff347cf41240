"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import integer, number
from hamdeq.solvers.safeguard import Extrapolation, Safeguarded
from hamdeq.solvers.state import Step, dots, less, norm

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

    traceable = True

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
        self.n = n
        # Δr and Δf side by side. What is not used yet is zero, and has no share.
        self.past = x0.new_zeros(batch, history, 2 * n)
        # The small systems are solved in float64: their condition is that of Δr squared.
        self.gram = x0.new_zeros(batch, history, history, dtype=torch.float64)
        # Rounding leaves no less than this undetermined.
        self.ridge = max(solver.ridge, 10 * torch.finfo(x0.dtype).eps)
        diagonal = self.ridge * torch.eye(history, dtype=torch.float64, device=x0.device)
        self.diagonal = diagonal.expand(batch, -1, -1)
        self.count = 0
        self.last = x0

    def __call__(self, step: Step) -> Tensor | None:
        now = torch.cat([step.r, step.fx], 1)
        if self.count:
            self._remember(now - self.last)
        self.last = now
        self.count += 1
        used = min(self.count - 1, self.past.shape[1])
        if not used:
            return None
        past = self.past[:, :used]
        goal = dots(past[..., : self.n], step.r)
        if used == 1:
            gamma = goal / (1 + self.ridge)
        else:
            gram = self.gram[:, :used, :used] + self.diagonal[:, :used, :used]
            gamma = _solved(gram, goal.double()).to(goal.dtype)
        return less(step.fx, gamma, past[..., self.n :])

    def _remember(self, change: Tensor) -> None:
        slot = (self.count - 1) % self.past.shape[1]
        # A difference of zero stays zero; its row is kept regular by the ridge.
        size = norm(change[:, : self.n])[:, None].clamp_min(torch.finfo(change.dtype).tiny)
        self.past[:, slot] = change / size
        row = dots(self.past[..., : self.n], self.past[:, slot, : self.n])
        self.gram[:, slot] = row
        self.gram[:, :, slot] = row


def _solved(matrix: Tensor, goal: Tensor) -> Tensor:
    """The solution of a small positive definite system a sample, zero where it is not definite."""
    if not torch.compiler.is_compiling():
        factor, failed = torch.linalg.cholesky_ex(matrix)
        solved = torch.cholesky_solve(goal[..., None], factor)[..., 0]
        return solved * (failed == 0)[:, None]
    # Elimination number by number, which the compiler makes one loop of.
    n = goal.shape[1]
    rows = [[matrix[:, i, j] for j in range(n)] for i in range(n)]
    x = [goal[:, i] for i in range(n)]
    definite = torch.ones_like(x[0], dtype=torch.bool)
    for k in range(n):
        definite = definite & (rows[k][k] > 0)
        for i in range(k + 1, n):
            share = rows[i][k] / rows[k][k]
            x[i] = x[i] - share * x[k]
            rows[i] = [a - share * b for a, b in zip(rows[i], rows[k], strict=True)]
    for k in reversed(range(n)):
        x[k] = (x[k] - sum(rows[k][j] * x[j] for j in range(k + 1, n))) / rows[k][k]
    return torch.where(definite[:, None], torch.stack(x, 1), 0.0)
