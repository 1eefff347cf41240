"""How a dense associative memory learns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hamdeq._checks import integer

__all__ = ["Learning"]


@dataclass(frozen=True)
class Learning:
    """EnergyMap of (ξ − C)^2m, a memory's step divided by its gradient's largest entry.

        V <- momentum · V + ∇_ζ ℓ,    ζ_μ <- clamp(ζ_μ − rate · decay^epoch · V_μ / max|V_μ|)

    Args:
        rate: of the first epoch: how far the entry with the largest gradient moves.
        decay: factor of the rate, each epoch.
        momentum: 0 for none, less than 1.
        exponent: m, a positive integer; the larger, the more large errors count.
        temperatures: T of the first epoch and of the last, linear in between; None for that of the
            memory's scaling.

    Source: Krotov & Hopfield (NIPS 2016), appendix A, with the values of McAlister et al. (2024).
    """

    rate: float = 0.1
    decay: float = 0.999
    momentum: float = 0.0
    exponent: int = 1
    temperatures: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate: expected a finite number > 0, got {self.rate!r}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay: expected 0 < decay ≤ 1, got {self.decay!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected 0 ≤ momentum < 1, got {self.momentum!r}")
        m = integer("exponent", self.exponent, expected="a positive integer m")
        object.__setattr__(self, "exponent", m)
        given = self.temperatures
        if given is not None and not (isinstance(given, tuple | list) and len(given) == 2):
            raise ValueError(f"temperatures: expected the first and the last, got {given!r}")
        for t in given or ():
            if not (math.isfinite(t) and t > 0):
                raise ValueError(f"temperatures: expected finite numbers > 0, got {t!r}")

    def temperature(self, epoch: int, epochs: int) -> float | None:
        """T of an epoch, counted from 0; None for that of the memory's scaling."""
        if self.temperatures is None:
            return None
        first, last = self.temperatures
        return first + (last - first) * (epoch / (epochs - 1) if epochs > 1 else 0.0)
