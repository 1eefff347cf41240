"""Where the scale of a dense associative memory sits: inside the interaction function or outside.

A neuron's prediction is ``C = tanh(outer · Σ_μ [F(inner · ON) − F(inner · OFF)])``.

Source: McAlister et al., "Improved Robustness and Hyperparameter Selection in the Dense Associative
Memory" (2024), equations 8 (original) and 14 (normalised).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

from hamdeq.memories.interactions import Interaction

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Factors", "Normalised", "Original", "Scaling"]


class Factors(NamedTuple):
    """Factors of similarities inside F, and of differences of F outside; numbers or tensors."""

    inner: float
    outer: float


@dataclass(frozen=True)
class Scaling(ABC):
    """The temperature of a memory, and where it acts.

    Args:
        temperature: T > 0. The lower, the steeper the predictions.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        t = self.temperature
        if not (isinstance(t, Real) and math.isfinite(t) and t > 0):
            raise ValueError(f"temperature: expected a finite number > 0, got {t!r}")

    @abstractmethod
    def factors(self, size: int, interaction: Interaction) -> Factors:
        """The two factors, of a memory with ``size`` neurons."""

    def at(self, temperature: float) -> Self:
        """The same at another temperature."""
        return replace(self, temperature=temperature)

    @property
    def is_gauged(self) -> bool:
        """Whether updates may be computed at any scale that leaves their signs."""
        return True


@dataclass(frozen=True)
class Normalised(Scaling):
    """Inside F, and per neuron: ``C = tanh Σ_μ [F(ON/(N T)) − F(OFF/(N T))]``.

    Similarities lie in ±1/T, whatever N and n, and updates are exact in float32 up to n = 120.
    """

    def factors(self, size: int, interaction: Interaction) -> Factors:
        return Factors(1.0 / (size * self.temperature), 1.0)


@dataclass(frozen=True)
class Original(Scaling):
    """Outside F: ``C = tanh(T⁻ⁿ Σ_μ [F(ON) − F(OFF)])``, as Krotov & Hopfield wrote it.

    F is taken of similarities up to N, and overflows: of N = 10⁴ at n = 10 in float32, at n = 78 in
    float64. That is reported, never returned as a number.
    """

    def factors(self, size: int, interaction: Interaction) -> Factors:
        n = interaction.steepness
        # In logarithms, since T⁻ⁿ may be neither 0 nor ∞.
        if abs(n * math.log10(self.temperature)) > 300:
            raise OverflowError(
                f"temperature: T⁻ⁿ is out of range at T = {self.temperature:g} and n = {n}; use "
                "Normalised()"
            )
        return Factors(1.0, self.temperature**-n)

    @property
    def is_gauged(self) -> bool:
        return False
