"""Additive Lagrangians: sums over neurons, with elementwise activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import number
from hamdeq.lagrangians.base import Lagrangian, Tempered, total

__all__ = ["Exp", "Identity", "ReLU", "RePU", "Sigmoid", "Tanh"]

# Above this argument softplus(z) = z + exp(-z) + … is z to the last bit of float64. PyTorch's
# own threshold of 20 would cost float64 half its digits.
_SOFTPLUS_THRESHOLD = 40.0


class Identity(Lagrangian):
    """Linear neurons: L(x) = ½‖x‖², g = x, L*(g) = ½‖g‖²."""

    additive = True

    @property
    def max_slope(self) -> float:
        """1, everywhere."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * total(x * x)

    def activation(self, x: Tensor) -> Tensor:
        return x

    def energy(self, x: Tensor) -> Tensor:
        return self(x)

    def log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln g′(x) and its derivative, elementwise."""
        return torch.zeros_like(x), torch.zeros_like(x)


class Sigmoid(Tempered):
    """Logistic neurons: L(x) = Σᵢ softplus(β(xᵢ − c))/β, gᵢ = sigmoid(β(xᵢ − c)).

    L*(g) = c·Σgᵢ − (1/β) Σ h(gᵢ) with the entropy h(g) = −g ln g − (1−g) ln(1−g).

    Args:
        beta: inverse temperature β > 0, per unit of x.
        center: state c at which the activation is one half.
        learnable: whether β is trained.

    ``Sigmoid(4.0, 0.5)`` is the non-linearity sigmoid(4x − 2) of Goemaere et al., "Accelerating
    Hierarchical Associative Memory: A Deep Equilibrium Approach" (2023).
    """

    additive = True

    @property
    def max_slope(self) -> float:
        """β/4, at the center."""
        return self._largest() / 4

    def __init__(self, beta: float = 1.0, center: float = 0.0, *, learnable: bool = False) -> None:
        super().__init__(beta, learnable=learnable)
        self.center: float = number("center", center)

    def _argument(self, x: Tensor) -> Tensor:
        """β(x − c), in new memory."""
        if self.learnable:
            return (x - self.center) * self.beta
        beta = self._given  # one pass for both
        return torch.rsub(x, -beta * self.center, alpha=-beta)

    def forward(self, x: Tensor) -> Tensor:
        if self.learnable:
            return total(_softplus(self._argument(x))) / self.beta
        # One pass over memory for all three: it is the larger part of an eliminated energy.
        return total(F.softplus(x - self.center, self._given, _SOFTPLUS_THRESHOLD))

    def activation(self, x: Tensor) -> Tensor:
        return self._argument(x).sigmoid_()

    def energy(self, x: Tensor) -> Tensor:
        # ⟨x, g⟩ − L subtracts two numbers of the size of x: at x = 1e4 in float32 nothing is left
        # of the entropy, which is computed directly instead.
        z = self._argument(x)
        return self.center * total(torch.sigmoid(z)) - total(_logistic_entropy(z)) / self.beta

    def log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln g′(x) and its derivative, elementwise; exact where g has rounded to 0 or 1."""
        log, slope = _log_logistic_slope(self._argument(x))
        return log + _log(self.beta), self.beta * slope

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, center={self.center:.4g}"


class Tanh(Tempered):
    """Hyperbolic tangent neurons: L(x) = Σᵢ ln cosh(βxᵢ)/β, gᵢ = tanh(βxᵢ).

    L*(g) = (1/β) Σ [ln 2 − h((1+gᵢ)/2)], h the entropy of :class:`Sigmoid`.

    Args:
        beta: inverse temperature β > 0, per unit of x.
        learnable: whether β is trained.
    """

    additive = True

    @property
    def max_slope(self) -> float:
        """β, at zero."""
        return self._largest()

    def forward(self, x: Tensor) -> Tensor:
        return total(_log_cosh(self.beta * x)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        return torch.tanh(self.beta * x)

    def energy(self, x: Tensor) -> Tensor:
        z = self.beta * x
        s = z.clamp(-1.0, 1.0)
        near = s * torch.tanh(s) - _log_cosh(s)
        far = math.log(2.0) - _logistic_entropy(2.0 * z)
        return total(torch.where(z.abs() < 1.0, near, far)) / self.beta

    def log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln g′(x) and its derivative, elementwise; exact where g has rounded to ±1."""
        log, slope = _log_logistic_slope(2.0 * self.beta * x)
        return log + math.log(4.0) + _log(self.beta), 2.0 * self.beta * slope


class RePU(Lagrangian):
    """Rectified power neurons: L(x) = Σᵢ max(xᵢ, 0)ⁿ/n, gᵢ = max(xᵢ, 0)ⁿ⁻¹.

    L*(g) = (1 − 1/n) Σ max(xᵢ, 0)ⁿ. A hidden layer of these, eliminated, is the dense associative
    memory with interaction function xⁿ (Krotov & Hopfield 2016).

    Args:
        n: the power, at least 2 (below, the activation has no derivative at zero).
    """

    additive = True

    def __init__(self, n: float = 2.0) -> None:
        super().__init__()
        self.n: float = number(
            "n", n, least=2, remedy="below 2 the activation has no finite slope at zero"
        )

    @property
    def max_slope(self) -> float:
        """1, of positive states, for n = 2; none for n above."""
        return 1.0 if self.n == 2 else math.inf

    def forward(self, x: Tensor) -> Tensor:
        return total(torch.relu(x) ** self.n) / self.n

    def activation(self, x: Tensor) -> Tensor:
        return torch.relu(x) ** (self.n - 1)

    def energy(self, x: Tensor) -> Tensor:
        return (self.n - 1) * self(x)

    def extra_repr(self) -> str:
        return f"n={self.n:g}"


class ReLU(RePU):
    """Rectified linear neurons: L(x) = ½ Σᵢ max(xᵢ, 0)², gᵢ = max(xᵢ, 0), L*(g) = ½‖g‖²."""

    additive = True

    def __init__(self) -> None:
        super().__init__(2.0)

    def activation(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def extra_repr(self) -> str:
        return ""


class Exp(Tempered):
    """Exponential neurons: L(x) = Σᵢ exp(βxᵢ)/β, gᵢ = exp(βxᵢ), L*(g) = Σ (xᵢ − 1/β) gᵢ.

    Eliminated, they are the memory of exponential capacity of Demircigil et al. (2017). The
    function overflows float32 where βx passes 88.7, as it must.

    Args:
        beta: inverse temperature β > 0, per unit of x.
        learnable: whether β is trained.
    """

    additive = True

    def forward(self, x: Tensor) -> Tensor:
        return total(torch.exp(self.beta * x)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        return torch.exp(self.beta * x)

    def energy(self, x: Tensor) -> Tensor:
        return total((x - 1.0 / self.beta) * torch.exp(self.beta * x))


def _log(beta: float | Tensor) -> float | Tensor:
    return beta.log() if isinstance(beta, Tensor) else math.log(beta)


def _log_logistic_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """ln p(1−p) of p = sigmoid(z), and its derivative −tanh(z/2), exact for any finite z."""
    # torch.abs has slope 0 at 0, which would lose the second derivative there; the other has
    # slope 1, and takes longer.
    a = torch.where(z < 0, -z, z) if z.requires_grad else z.abs()
    return -a - 2.0 * torch.log1p(torch.exp(-a)), -torch.tanh(0.5 * z)


def _softplus(z: Tensor) -> Tensor:
    return F.softplus(z, threshold=_SOFTPLUS_THRESHOLD)


def _log_cosh(z: Tensor) -> Tensor:
    """ln cosh z, with all digits near zero and no overflow far from it."""
    t = torch.tanh(z.clamp(-1.0, 1.0))  # the clamp keeps the unused branch's gradient finite
    near = -0.5 * torch.log1p(-t * t)
    return torch.where(z.abs() < 1.0, near, z + _softplus(-2.0 * z) - math.log(2.0))


def _logistic_entropy(z: Tensor) -> Tensor:
    """Entropy −p ln p − (1−p) ln(1−p) of p = sigmoid(z), exact for any z."""
    # torch.abs has slope 0 at 0, which would lose the second derivative there; this has slope 1.
    # Far below the bound the entropy has become zero, and of an infinite z it would be NaN.
    a = torch.where(z < 0, -z, z).clamp_max(1e4)
    return torch.sigmoid(-a) * a + _softplus(-a)
