"""Options that all solvers share, and a solver's interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hamdeq._checks import integer, number
from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.run import Run
from hamdeq.solvers.solution import Solution
from hamdeq.solvers.state import SolverState, full_precision

__all__ = ["Solver", "Stopping"]


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a solve ends.

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations at most, ≥ 0.
        fallback_steps: evaluations that samples get after these, by a method that converges
            wherever it can: :class:`~hamdeq.TrustRegion` of an energy model, and
            :class:`~hamdeq.GMRES` of the linear system of a gradient; 0 for none.
    """

    tol: float = 1e-4
    max_steps: int = 100
    fallback_steps: int = 500

    def __post_init__(self) -> None:
        number("tol", self.tol, above=0, remedy="it is a relative residual, such as 1e-4")
        # Frozen, but a NumPy integer is kept as an int.
        for name in ("max_steps", "fallback_steps"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=0))


@dataclass(frozen=True, kw_only=True)
class Solver(Stopping, ABC):
    """A fixed-point solver with its options.

    Every sample stops by itself, when its relative residual ‖f(x) − x‖/‖f(x)‖ falls below
    ``tol`` (Euclidean norms over all of the sample's numbers), when it moves to a number that is
    not finite, or after ``max_steps`` evaluations of f. The loop ends with the last sample; no
    sample changes the result of another (but for the last digits, where a product of matrices
    rounds differently in a batch of another size). An energy model is evaluated for fewer samples
    as more of them have stopped, and in full precision under autocast.

    Args:
        tol: relative residual to reach, > 0.
        max_steps: evaluations of f at most, ≥ 0.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.
        trace: whether ``Solution.trace`` is kept, a number for each sample and evaluation.
    """

    trace: bool = True
    # Whether the compiler can make one graph of its steps.
    traceable: ClassVar[bool] = False

    @abstractmethod
    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        """A fresh memory for one solve from x0 ``(batch, n)``."""

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Solve x = f(x) from x0.

        Args:
            f: the map, ``(batch, n) -> (batch, n)``, sample by sample. Of a
                :class:`~hamdeq.solvers.energy_map.EnergyMap` the solver also knows the energy.
            x0: the initial states.
        """
        # Of a memory also f: half precision would lift the noise of its energy above its descent.
        if isinstance(f, EnergyMap) and torch.is_autocast_enabled(x0.device.type):
            with full_precision(x0):
                return self.solve(f, x0)
        return Run(self, f, x0).finish(f)
