"""Additive Lagrangians: sums over neurons, with elementwise activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import number
from hamdeq.lagrangians.base import Lagrangian, Tempered, _shown, broadcasts, constants, total

__all__ = ["Exp", "Identity", "ReLU", "RePU", "RectifiedExp", "Sigmoid", "Tanh"]

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
        beta: inverse temperature β > 0, per unit of x; a tensor gives neurons values of their own,
            and broadcasts over the layer, such as ``(channels, 1, 1)``.
        center: state c at which the activation is one half; several likewise.
        learnable: whether β is trained.

    ``Sigmoid(4.0, 0.5)`` is the non-linearity sigmoid(4x − 2) of Goemaere et al., "Accelerating
    Hierarchical Associative Memory: A Deep Equilibrium Approach" (2023).
    """

    additive = True

    @property
    def max_slope(self) -> float:
        """β/4, at the center."""
        return self._largest() / 4

    center: float | Tensor

    def __init__(
        self,
        beta: float | Tensor = 1.0,
        center: float | Tensor = 0.0,
        *,
        learnable: bool = False,
    ) -> None:
        super().__init__(beta, learnable=learnable)
        if isinstance(center, Tensor):
            # Goes along with .to(), and like a number is no part of the state dict.
            self.register_buffer("center", constants("center", center), persistent=False)
        else:
            self.center = number("center", center)
        self._plain: bool = not learnable and not any(
            isinstance(value, Tensor) for value in (beta, center)
        )

    def _argument(self, x: Tensor) -> Tensor:
        """β(x − c), in new memory."""
        if not self._plain:
            broadcasts("center", self.center, x)
            return self._heated(x - self.center)
        beta = self._given  # one pass for both
        return torch.rsub(x, -beta * self.center, alpha=-beta)

    def forward(self, x: Tensor) -> Tensor:
        if not self._plain:
            return self._cooled(_softplus(self._argument(x)))
        # One pass over memory for all three: it is the larger part of an eliminated energy.
        return total(F.softplus(x - self.center, self._given, _SOFTPLUS_THRESHOLD))

    def activation(self, x: Tensor) -> Tensor:
        return self._argument(x).sigmoid_()

    def energy(self, x: Tensor) -> Tensor:
        # ⟨x, g⟩ − L subtracts two numbers of the size of x: at x = 1e4 in float32 nothing is left
        # of the entropy, which is computed directly instead.
        z = self._argument(x)
        return total(self.center * torch.sigmoid(z)) - self._cooled(_logistic_entropy(z))

    def log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln g′(x) and its derivative, elementwise; exact where g has rounded to 0 or 1."""
        log, slope = _log_logistic_slope(self._argument(x))
        return log + _log(self.beta), self.beta * slope

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, center={_shown(self.center)}"


class Tanh(Tempered):
    """Hyperbolic tangent neurons: L(x) = Σᵢ ln cosh(βxᵢ)/β, gᵢ = tanh(βxᵢ).

    L*(g) = (1/β) Σ [ln 2 − h((1+gᵢ)/2)], h the entropy of :class:`Sigmoid`.

    Args:
        beta: inverse temperature β > 0, per unit of x, or several.
        learnable: whether β is trained.
    """

    additive = True

    @property
    def max_slope(self) -> float:
        """β, at zero."""
        return self._largest()

    def forward(self, x: Tensor) -> Tensor:
        return self._cooled(_log_cosh(self._heated(x)))

    def activation(self, x: Tensor) -> Tensor:
        return torch.tanh(self._heated(x))

    def energy(self, x: Tensor) -> Tensor:
        z = self._heated(x)
        s = z.clamp(-1.0, 1.0)
        near = s * torch.tanh(s) - _log_cosh(s)
        far = math.log(2.0) - _logistic_entropy(2.0 * z)
        return self._cooled(torch.where(z.abs() < 1.0, near, far))

    def log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln g′(x) and its derivative, elementwise; exact where g has rounded to ±1."""
        log, slope = _log_logistic_slope(2.0 * self._heated(x))
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
        beta: inverse temperature β > 0, per unit of x, or several.
        learnable: whether β is trained.
    """

    additive = True

    def forward(self, x: Tensor) -> Tensor:
        return self._cooled(torch.exp(self._heated(x)))

    def activation(self, x: Tensor) -> Tensor:
        return torch.exp(self._heated(x))

    def energy(self, x: Tensor) -> Tensor:
        return total((x - 1.0 / self.beta) * torch.exp(self._heated(x)))


class RectifiedExp(Tempered):
    """Rectified exponential neurons: gᵢ = exp(β max(xᵢ, 0)) − 1, zero where xᵢ ≤ 0.

    L(x) = Σᵢ [(exp βx₊ − 1)/β − x₊] with x₊ = max(xᵢ, 0), zero where no neuron is active;
    L*(g) = Σ [x₊ gᵢ − ℓ(x₊)]. The function overflows float32 where βx passes 88.7, as it must.

    Args:
        beta: inverse temperature β > 0, per unit of x, or several.
        learnable: whether β is trained.
    """

    additive = True

    def forward(self, x: Tensor) -> Tensor:
        return self._cooled(_exp_remainder(self._rectified(x)))

    def activation(self, x: Tensor) -> Tensor:
        return torch.expm1(self._rectified(x))

    def energy(self, x: Tensor) -> Tensor:
        z = self._rectified(x)
        return self._cooled(z * torch.expm1(z) - _exp_remainder(z))

    def _rectified(self, x: Tensor) -> Tensor:
        """β max(x, 0)."""
        return self._heated(torch.relu(x))


def _log(beta: float | Tensor) -> float | Tensor:
    return beta.log() if isinstance(beta, Tensor) else math.log(beta)


def _log_logistic_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """ln p(1−p) of p = sigmoid(z), and its derivative −tanh(z/2), exact for any finite z."""
    # torch.abs has slope 0 at 0, which would lose the second derivative there; the other has
    # slope 1, and takes longer.
    a = torch.where(z < 0, -z, z) if z.requires_grad else z.abs()
    return -a - 2.0 * torch.log1p(torch.exp(-a)), -torch.tanh(0.5 * z)


def _exp_remainder(z: Tensor) -> Tensor:
    """e^z − 1 − z for z ≥ 0, with all digits near zero."""
    s = z.clamp_max(1.0)  # which keeps the unused branch finite
    near = torch.zeros_like(s)
    for k in range(20, 1, -1):  # 1/21! is below the last place of one half in float64
        near = near * s + 1.0 / math.factorial(k)
    return torch.where(z < 1.0, s * s * near, torch.expm1(z) - z)


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
