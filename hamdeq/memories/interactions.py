"""Interaction functions F, where their scale sits, and F as the Lagrangian of a memory layer.

The energy is ``E(ξ) = −Σ_μ F(ζ_μ·ξ)``. The steeper F, the less a memory contributes at states that
are not like it, and the more memories find room. Where F is convex it is the Lagrangian of a layer
with a neuron for each ζ_μ, and E is what remains of a HAM when that layer is eliminated
(``hamdeq.elimination``). Where it is not, ``is_convex`` is False, and E is a function of states
and no more.

A neuron's prediction is ``C = tanh(outer · Σ_μ [F(inner · ON) − F(inner · OFF)])``; a
:class:`Scaling` gives the two factors.

Source: Krotov & Hopfield, "Dense Associative Memory for Pattern Recognition" (NIPS 2016), section
2; McAlister et al., "Improved Robustness and Hyperparameter Selection in the Dense Associative
Memory" (2024), equations 5 to 8, 12 and 14; Demircigil et al. (2017) for the exponential.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hamdeq._checks import number, whole, wrong
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Neurons
from hamdeq.lagrangians import Lagrangian, Tanh
from hamdeq.lagrangians.base import total
from hamdeq.synapses import Dense

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Exponential",
    "Factors",
    "Interacting",
    "Interaction",
    "LeakyRectifiedPolynomial",
    "Normalised",
    "Original",
    "Polynomial",
    "RectifiedPolynomial",
    "Scaling",
    "power_of_two",
    "two_layers",
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
        """The power n of T by which the original formulation divides F; 1 where F has none."""
        return 1

    @property
    def is_convex(self) -> bool:
        """True if F is convex, and thus the Lagrangian of a layer that can be eliminated."""
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
    """Base of the functions with a vertex n."""

    n: int = 2

    def __post_init__(self) -> None:
        n = whole(self.n)
        if n is None or not 1 <= n <= _STEEPEST:
            expected = f"a positive integer up to {_STEEPEST}, the interaction vertex"
            remedy = "2 is the classical network, more are steeper"
            raise wrong("n", expected, repr(self.n), remedy)
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
    """F(x) = max(−x, 0): the leak, without its slope."""

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(-x), -(x < 0).to(x.dtype)


@dataclass(frozen=True)
class LeakyRectifiedPolynomial(_Power):
    """F(x) = xⁿ where x ≥ 0, −εx below; not homogeneous, so that its scale matters.

    The sign of ε is that of the paper's equation 7: with ε > 0, F rises on both sides of zero and
    is convex. The authors' code has the leak of a leaky ReLU, +0.01 x below zero, which is
    ``eps=-0.01`` here: F rises throughout, and is not convex for n > 1.

    Args:
        n: interaction vertex, a positive integer.
        eps: ε, minus the slope below zero, of either sign.

    Source: McAlister et al. (2024), equation 7.
    """

    eps: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eps", number("eps", self.eps))

    @property
    def is_convex(self) -> bool:
        # The slope must not fall at zero, from −ε to 0, or to 1 where n is 1.
        return self.eps >= (-1.0 if self.n == 1 else 0.0)

    @property
    def parts(self) -> tuple[tuple[float, Interaction], ...]:
        power = (1.0, RectifiedPolynomial(self.n))
        return (power, (self.eps, _Below(1))) if self.eps else (power,)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f, slope = _rectified(x, self.n)
        below = x < 0
        return torch.where(below, -self.eps * x, f), torch.where(below, -self.eps, slope)


@dataclass(frozen=True)
class Exponential(Interaction):
    """F(x) = exp(x): capacity exponential in the number of neurons (Demircigil et al. 2017).

    Not homogeneous: ``exp(αx)`` is ``exp(x)ᵅ``, with another temperature. A scale inside F is a
    parameter of the memory, and can change the sign of an update.
    """

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.exp(x)
        return y, y

    def gauge(self, own: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        # A common summand inside is a common positive factor outside.
        largest = torch.maximum(own.amax(-1), flipped.amax(-1)).amax(-1)[..., None, None]
        return own - largest, flipped - largest


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
        t = number("temperature", self.temperature, above=0)
        object.__setattr__(self, "temperature", t)

    @abstractmethod
    def factors(self, size: int, interaction: Interaction) -> Factors:
        """The two factors, of a memory with ``size`` neurons."""

    def at(self, temperature: float) -> Self:
        """The same at another temperature."""
        return replace(self, temperature=temperature)

    @property
    def is_gauged(self) -> bool:
        """True if updates may be computed at any scale that leaves their signs."""
        return True


@dataclass(frozen=True)
class Normalised(Scaling):
    """Scale inside F, per neuron: ``C = tanh Σ_μ [F(ON/(N T)) − F(OFF/(N T))]``.

    Similarities lie in ±1/T, whatever N and n, and updates are exact in float32 up to n = 120.
    """

    def factors(self, size: int, interaction: Interaction) -> Factors:
        return Factors(1.0 / (size * self.temperature), 1.0)


@dataclass(frozen=True)
class Original(Scaling):
    """Scale outside F: ``C = tanh(T⁻ⁿ Σ_μ [F(ON) − F(OFF)])``, as Krotov & Hopfield wrote it.

    F of similarities up to N overflows: of N = 10⁴ at n = 10 in float32, at n = 78 in float64. That
    is reported, never returned as a number.
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


class Interacting(Lagrangian):
    """A memory layer's Lagrangian L(x) = Σ_μ F(inner · x_μ), of an interaction function.

    Its elimination leaves −Σ_μ F(inner · ζ_μ·g), the energy of a dense associative memory.

    Args:
        interaction: F, which must be convex.
        inner: factor of similarities, > 0.

    Raises:
        ValueError: F is not convex.
    """

    def __init__(self, interaction: Interaction, inner: float = 1.0) -> None:
        super().__init__()
        if not interaction.is_convex:
            remedy = "use an even n or eps ≥ 0; RectifiedPolynomial agrees with it where x > 0"
            raise wrong("interaction", "a convex function", interaction, remedy)
        self.interaction = interaction
        self.inner: float = number("inner", inner, above=0)

    def forward(self, x: Tensor) -> Tensor:
        return total(self.interaction(self.inner * x))

    def activation(self, x: Tensor) -> Tensor:
        return self.inner * self.interaction.derivative(self.inner * x)

    def extra_repr(self) -> str:
        return f"{self.interaction}, inner={self.inner:.4g}"


def two_layers(memories: Tensor, lagrangian: Lagrangian, beta: float) -> HAM:
    """Layers ``state`` (N, Tanh(β)) and ``memories`` (K), with a copy of ζ ``(K, N)`` between."""
    count, size = memories.shape
    with torch.random.fork_rng(devices=[]):  # its initial weights are of no use
        synapse = Dense(size, count)
    synapse.weight = torch.nn.Parameter(memories.detach().mT.clone())
    return HAM(
        {"state": Neurons(size, Tanh(beta)), "memories": Neurons(count, lagrangian)},
        [(("state", "memories"), synapse)],
    )


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
