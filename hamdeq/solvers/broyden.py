"""Broyden's method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import integer
from hamdeq.solvers.safeguard import Extrapolation, Safeguarded
from hamdeq.solvers.state import Step, dot, dots, less, norm

__all__ = ["Broyden"]


@dataclass(frozen=True, kw_only=True)
class Broyden(Safeguarded):
    """Broyden's ("good") method with a limited history.

    Newton's method on r(x) = f(x) − x with an approximate inverse Jacobian ``−B``, first ``B = I``
    (a plain step), then improved after each step s with residual change y by the rank one that
    makes ``B y = −s``. After ``history`` improvements it starts again from the identity. The
    safeguard is that of :class:`~hamdeq.solvers.safeguard.Safeguarded`.

    Args:
        history: improvements kept, ≥ 1; the memory used is 2·history states a sample.
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.

    Source: Broyden, "A class of methods for solving nonlinear simultaneous equations" (1965),
    method 1, inverse form by Sherman & Morrison.
    """

    traceable = True

    history: int = 20
    # Its residual rises further than Anderson's on the way, and comes down again by itself.
    growth: float = 100.0
    patience: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        history = integer("history", self.history, expected="an integer ≥ 1")
        object.__setattr__(self, "history", history)

    def extrapolation(self, x0: Tensor) -> Extrapolation:
        return _RankOnes(x0, self.history)


class _RankOnes(Extrapolation):
    """B = I + Σ_j u_j v_jᵀ."""

    def __init__(self, x0: Tensor, history: int) -> None:
        self.history = history
        # Most solves end long before the history is full: it grows as it is needed.
        self.u = x0.new_empty(len(x0), min(5, history), x0.shape[1])
        self.v = torch.empty_like(self.u)
        self.count = 0
        self.x: Tensor | None = None
        self.r = x0

    def __call__(self, step: Step) -> Tensor | None:
        past, self.x = self.x, step.x
        if past is not None:
            self._improve(step.x - past, self.r - step.r)
        self.r = step.r
        return None if past is None else step.x + self._apply(self.u, self.v, step.r)

    def _apply(self, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """B r (or Bᵀ r with u and v exchanged)."""
        u, v = u[:, : self.count], v[:, : self.count]
        return less(r, -dots(v, r), u)

    def _improve(self, s: Tensor, minus_y: Tensor) -> None:
        if self.count == self.history:
            self.count = 0
        elif self.count == self.u.shape[1]:
            more = torch.empty_like(self.u[:, : self.history - self.count])
            self.u, self.v = torch.cat([self.u, more], 1), torch.cat([self.v, more], 1)
        image = self._apply(self.u, self.v, minus_y)
        v = self._apply(self.v, self.u, s)
        slope = dot(s, image)[:, None]
        # Where s and B y are orthogonal to rounding the improvement is undefined: leave it out.
        small = slope.abs() <= torch.finfo(s.dtype).eps * (norm(s) * norm(image))[:, None]
        self.u[:, self.count] = torch.where(small, 0.0, (s - image) / slope)
        self.v[:, self.count] = v
        self.count += 1
