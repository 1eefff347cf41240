"""Interaction functions F: how sharply a dense associative memory tells its memories apart.

The energy is ``E(ξ) = −Σ_μ F(ζ_μ·ξ)``. The steeper F, the less a memory has to say about states
that are not like it, and the more memories find room. F is the Lagrangian of the memory layer that
has been eliminated, one neuron for each ζ_μ (:mod:`hamdeq.elimination`), which must be convex.

Source: Krotov & Hopfield, "Dense Associative Memory for Pattern Recognition" (NIPS 2016), section
2; McAlister et al., "Improved Robustness and Hyperparameter Selection in the Dense Associative
Memory" (2024), equations 5 to 7 and 12; Demircigil et al. (2017) for the exponential.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import whole

__all__ = [
    "Exponential",
    "Interaction",
    "LeakyRectifiedPolynomial",
    "Polynomial",
    "RectifiedPolynomial",
    "power_of_two",
]


# The power of ½ that is still far from the smallest number of float64.
_STEEPEST = 500


class Interaction(ABC):
    """A function F of one similarity, applied elementwise."""

    @abstractmethod
    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """F(x) and F′(x), which share their power."""

    def __call__(self, x: Tensor) -> Tensor:
        """F(x)."""
        return self.both(x)[0]

    def derivative(self, x: Tensor) -> Tensor:
        """F′(x)."""
        return self.both(x)[1]

    @property
    def degree(self) -> int | None:
        """k where F(αx) = αᵏ F(x) for every α > 0; None where there is no such k."""
        return None

    @property
    def steepness(self) -> int:
        """The power of T by which the original formulation divides F, n, or 1 where F has none."""
        return 1

    @property
    def is_convex(self) -> bool:
        """Whether F is the Lagrangian of a layer of neurons."""
        return True

    @property
    def parts(self) -> tuple[tuple[float, Interaction], ...]:
        """F as a weighted sum, of itself alone or of functions that each have a degree."""
        return ((1.0, self),)

    def gauge(self, own: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        """Arguments at which differences of F have the same sign, and do not over- or underflow.

        Args:
            own: similarities ``(…, K, 1)`` of a state.
            flipped: those with one neuron turned over, ``(…, K, n)``.
        """
        return own, flipped


@dataclass(frozen=True)
class _Power(Interaction):
    """What the functions with a vertex n share."""

    n: int = 2

    def __post_init__(self) -> None:
        n = whole(self.n)
        if n is None or not 1 <= n <= _STEEPEST:
            raise ValueError(
                f"n: expected a positive integer up to {_STEEPEST}, the interaction vertex, got "
                f"{self.n!r}; 2 is the classical network, more are steeper"
            )
        object.__setattr__(self, "n", n)

    @property
    def steepness(self) -> int:
        return self.n


class _Homogeneous(_Power):
    """F(αx) = αⁿ F(x): the sign of a difference does not depend on the scale of similarities."""

    @property
    def degree(self) -> int:
        return self.n

    def gauge(self, own: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        scale = power_of_two(own, flipped)
        return own * scale, flipped * scale


@dataclass(frozen=True)
class Polynomial(_Homogeneous):
    """F(x) = xⁿ.

    Of even n it is blind to the sign of a memory: −ζ is recalled as well as ζ. Of odd n it is not
    convex.

    Args:
        n: interaction vertex, a positive integer.
    """

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = _power(x, self.n - 1)
        return x * p, self.n * p

    @property
    def is_convex(self) -> bool:
        return self.n == 1 or self.n % 2 == 0


@dataclass(frozen=True)
class RectifiedPolynomial(_Homogeneous):
    """F(x) = max(x, 0)ⁿ.

    Args:
        n: interaction vertex, a positive integer.
    """

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _rectified(x, self.n)


@dataclass(frozen=True)
class _Below(_Homogeneous):
    """F(x) = max(−x, 0): what leaks, but for its slope."""

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(-x), -(x < 0).to(x.dtype)


@dataclass(frozen=True)
class LeakyRectifiedPolynomial(_Power):
    """F(x) = xⁿ where x ≥ 0, −εx below.

    It is not homogeneous: where the scale sits changes what it does.

    Args:
        n: interaction vertex, a positive integer.
        eps: ε, the slope below zero, ≥ 0.
    """

    eps: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(
                f"eps: expected a finite slope ε ≥ 0, such as 1e-2, got {self.eps!r}; with 0 it is "
                "RectifiedPolynomial"
            )

    @property
    def parts(self) -> tuple[tuple[float, Interaction], ...]:
        power = (1.0, RectifiedPolynomial(self.n))
        return (power, (float(self.eps), _Below(1))) if self.eps else (power,)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f, slope = _rectified(x, self.n)
        below = x < 0
        return torch.where(below, -self.eps * x, f), torch.where(below, -self.eps, slope)


@dataclass(frozen=True)
class Exponential(Interaction):
    """F(x) = exp(x): capacity exponential in the number of neurons (Demircigil et al. 2017).

    It is not homogeneous: ``exp(αx)`` is ``exp(x)ᵅ``, another function, with another temperature.
    A scale inside F is a parameter of the memory, and can change the sign of an update.
    """

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.exp(x)
        return y, y

    def gauge(self, own: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        # A common summand inside is a common positive factor outside.
        largest = torch.maximum(own.amax(-1), flipped.amax(-1)).amax(-1)[..., None, None]
        return own - largest, flipped - largest


def power_of_two(own: Tensor, flipped: Tensor) -> Tensor:
    """The factor that brings each state's largest similarity to [½, 1): ``(…, 1, 1)``.

    By a power of two nothing is rounded: integers, and ties among them, stay exact.
    """
    largest = torch.maximum(own.abs().amax(-1), flipped.abs().amax(-1)).amax(-1)
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)
    return torch.where(largest > 0, scale, 1.0)[..., None, None]


def _rectified(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """max(x, 0)ⁿ and its derivative, 0 at 0."""
    up = torch.relu(x)
    # The power of zero that is one has no place here: below zero F is flat.
    p = _power(up, n - 1) if n > 1 else (x > 0).to(x.dtype)
    return up * p, n * p


def _power(x: Tensor, k: int) -> Tensor:
    """xᵏ by repeated squaring: exact for small integers."""
    if k == 0:
        return torch.ones_like(x)
    result = None
    while True:
        if k & 1:
            result = x if result is None else result * x
        k >>= 1
        if not k:
            return result  # type: ignore[return-value]
        x = x * x
