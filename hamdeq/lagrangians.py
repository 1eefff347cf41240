"""Lagrangians: the convex functions that make a layer of neurons.

A layer with internal state x is described by one convex function L(x). Everything else
follows from it:

- the activation is its gradient, ``g = ∇L(x)``;
- the energy of the layer is its Legendre transform, ``L*(g) = ⟨x, g⟩ − L(x)``.

*Additive* Lagrangians are sums over neurons and give elementwise activations (sigmoid, tanh,
powers). *Non-additive* ones couple the neurons of a layer (softmax, layer norm, the sphere);
here they act along the last axis and add over all others, as normalisations do elsewhere in
PyTorch.

Source: Krotov & Hopfield, "Large Associative Memory Problem in Neurobiology and Machine
Learning" (ICLR 2021), equations 1 to 4 and section 3; Krotov, "Hierarchical Associative Memory"
(2021), equation 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Exp",
    "Identity",
    "Lagrangian",
    "LayerNorm",
    "ReLU",
    "RePU",
    "Sigmoid",
    "Softmax",
    "Spherical",
    "Tanh",
]

# Above this argument softplus(z) = z + exp(-z) + … is z to the last bit of float64. PyTorch's
# own threshold of 20 would cost float64 half its digits.
_SOFTPLUS_THRESHOLD = 40.0


class Lagrangian(nn.Module, ABC):
    """A convex function L of a layer's internal state.

    A subclass gives :meth:`forward`; it may give :meth:`activation` and :meth:`energy` in closed
    form for speed and accuracy, and otherwise they are derived by automatic differentiation.

    Shape:
        A state x is ``(batch, *shape)``; L(x) and L*(g) are ``(batch,)``; g has x's shape.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The Lagrangian L(x), one scalar a sample: ``(batch, *shape) -> (batch,)``."""

    def activation(self, x: Tensor) -> Tensor:
        """The activation g = ∇L(x): ``(batch, *shape) -> (batch, *shape)``."""
        return gradient(self, x)

    def energy(self, x: Tensor) -> Tensor:
        """The Legendre transform L*(g) = ⟨x, g⟩ − L(x), at g = ∇L(x): ``(batch,)``."""
        return _sum(x * self.activation(x)) - self(x)


class _Tempered(Lagrangian):
    """A Lagrangian with an inverse temperature: L(x) = ℓ(βx)/β.

    β is a fixed number, or a parameter when ``learnable``. The parameter is ln β, which keeps β
    positive, and thus L convex, whatever an optimiser does.
    """

    def __init__(self, beta: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        beta = _positive("beta", beta)
        self.learnable = learnable
        if learnable:
            self.log_beta = nn.Parameter(torch.tensor(math.log(beta)))
        else:
            self._beta = beta

    @property
    def beta(self) -> Tensor | float:
        """The inverse temperature β."""
        return self.log_beta.exp() if self.learnable else self._beta

    def extra_repr(self) -> str:
        return f"beta={float(self.beta):.4g}" + (", learnable=True" if self.learnable else "")


class Identity(Lagrangian):
    """Linear neurons: L(x) = ½‖x‖², g = x, L*(g) = ½‖g‖²."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * _sum(x * x)

    def activation(self, x: Tensor) -> Tensor:
        return x

    def energy(self, x: Tensor) -> Tensor:
        return self(x)


class Sigmoid(_Tempered):
    """Logistic neurons: L(x) = Σᵢ softplus(β(xᵢ − c))/β, gᵢ = sigmoid(β(xᵢ − c)).

    L*(g) = c·Σgᵢ − (1/β) Σ h(gᵢ) with the entropy h(g) = −g ln g − (1−g) ln(1−g).

    Args:
        beta: inverse temperature β > 0, per unit of x.
        center: state c at which the activation is one half.
        learnable: whether β is trained.

    ``Sigmoid(4.0, 0.5)`` is the non-linearity sigmoid(4x − 2) of Goemaere et al., "Accelerating
    Hierarchical Associative Memory: A Deep Equilibrium Approach" (2023).
    """

    def __init__(
        self, beta: float = 1.0, center: float = 0.0, *, learnable: bool = False
    ) -> None:
        super().__init__(beta, learnable=learnable)
        if not math.isfinite(center):
            raise ValueError(f"center: expected a finite number, got {center!r}")
        self.center = float(center)

    def _argument(self, x: Tensor) -> Tensor:
        return self.beta * (x - self.center)

    def forward(self, x: Tensor) -> Tensor:
        return _sum(_softplus(self._argument(x))) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self._argument(x))

    def energy(self, x: Tensor) -> Tensor:
        # ⟨x, g⟩ − L subtracts two numbers of the size of x: at x = 1e4 in float32 nothing is left
        # of the entropy, which is computed directly instead.
        z = self._argument(x)
        return self.center * _sum(torch.sigmoid(z)) - _sum(_logistic_entropy(z)) / self.beta

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, center={self.center:.4g}"


class Tanh(_Tempered):
    """Hyperbolic tangent neurons: L(x) = Σᵢ ln cosh(βxᵢ)/β, gᵢ = tanh(βxᵢ).

    L*(g) = (1/β) Σ [ln 2 − h((1+gᵢ)/2)], h the entropy of :class:`Sigmoid`.

    Args:
        beta: inverse temperature β > 0, per unit of x.
        learnable: whether β is trained.
    """

    def forward(self, x: Tensor) -> Tensor:
        # ln cosh z = z + softplus(−2z) − ln 2: no overflow, and, without |z|, the right second
        # derivative at z = 0, where states start.
        z = self.beta * x
        return _sum(z + _softplus(-2.0 * z) - math.log(2.0)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        return torch.tanh(self.beta * x)

    def energy(self, x: Tensor) -> Tensor:
        return _sum(math.log(2.0) - _logistic_entropy(2.0 * self.beta * x)) / self.beta


class RePU(Lagrangian):
    """Rectified power neurons: L(x) = Σᵢ max(xᵢ, 0)ⁿ/n, gᵢ = max(xᵢ, 0)ⁿ⁻¹.

    L*(g) = (1 − 1/n) Σ max(xᵢ, 0)ⁿ. A hidden layer of these, eliminated, is the dense associative
    memory with interaction function xⁿ (Krotov & Hopfield 2016).

    Args:
        n: the power, at least 2 (below, the activation has no derivative at zero).
    """

    def __init__(self, n: float = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(n) and n >= 2):
            raise ValueError(
                f"n: expected a finite power of at least 2, got {n!r}; "
                "below 2 the activation has no finite slope at zero"
            )
        self.n = float(n)

    def forward(self, x: Tensor) -> Tensor:
        return _sum(torch.relu(x) ** self.n) / self.n

    def activation(self, x: Tensor) -> Tensor:
        return torch.relu(x) ** (self.n - 1)

    def energy(self, x: Tensor) -> Tensor:
        return (self.n - 1) * self(x)

    def extra_repr(self) -> str:
        return f"n={self.n:g}"


class ReLU(RePU):
    """Rectified linear neurons: L(x) = ½ Σᵢ max(xᵢ, 0)², gᵢ = max(xᵢ, 0), L*(g) = ½‖g‖²."""

    def __init__(self) -> None:
        super().__init__(2.0)

    def activation(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def extra_repr(self) -> str:
        return ""


class Exp(_Tempered):
    """Exponential neurons: L(x) = Σᵢ exp(βxᵢ)/β, gᵢ = exp(βxᵢ), L*(g) = Σ (xᵢ − 1/β) gᵢ.

    Eliminated, they are the memory of exponential capacity of Demircigil et al. (2017). The
    function overflows float32 where βx passes 88.7, as it must.

    Args:
        beta: inverse temperature β > 0, per unit of x.
        learnable: whether β is trained.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _sum(torch.exp(self.beta * x)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        return torch.exp(self.beta * x)

    def energy(self, x: Tensor) -> Tensor:
        return _sum((x - 1.0 / self.beta) * torch.exp(self.beta * x))


class Softmax(_Tempered):
    """Softmax neurons: L(x) = lse(βx)/β, g = softmax(βx), along the last axis.

    lse(z) = ln Σᵢ exp zᵢ; L*(g) = (1/β) Σ gᵢ ln gᵢ, the negative entropy. Eliminated against a
    linear layer they are attention (Ramsauer et al., "Hopfield Networks is All You Need", ICLR
    2021, equation 3).

    Args:
        beta: inverse temperature β > 0, per unit of x; 1/√d in attention.
        learnable: whether β is trained.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _sum(torch.logsumexp(self.beta * x, dim=-1)) / self.beta

    def activation(self, x: Tensor) -> Tensor:
        return torch.softmax(self.beta * x, dim=-1)

    def energy(self, x: Tensor) -> Tensor:
        log_g = torch.log_softmax(self.beta * x, dim=-1)
        return _sum(log_g.exp() * log_g) / self.beta


class LayerNorm(Lagrangian):
    """Layer-normalised neurons: L(x) = γ d √(v + ε), g = γ (x − x̄)/√(v + ε), on the last axis.

    x̄ and v are mean and (biased) variance over the d entries; L*(g) = −γ d ε/√(v + ε). The scale
    γ is one number: no function has an elementwise-scaled layer norm as its gradient. The shift
    of other layer norms is a bias of the neighbouring layers, and is left to
    :class:`~hamdeq.Bias`.

    Args:
        gamma: scale γ > 0.
        eps: ε > 0, in units of x².
        learnable: whether γ is trained (as ln γ, to stay positive).

    Source: Krotov, "Hierarchical Associative Memory" (2021); Tang & Kopp, "A remark on a paper of
    Krotov and Hopfield" (2021).
    """

    def __init__(self, gamma: float = 1.0, eps: float = 1e-5, *, learnable: bool = False) -> None:
        super().__init__()
        gamma = _positive("gamma", gamma)
        self.eps = _positive("eps", eps)
        self.learnable = learnable
        if learnable:
            self.log_gamma = nn.Parameter(torch.tensor(math.log(gamma)))
        else:
            self._gamma = gamma

    @property
    def gamma(self) -> Tensor | float:
        """The scale γ."""
        return self.log_gamma.exp() if self.learnable else self._gamma

    def _deviation(self, x: Tensor) -> Tensor:
        return (x.var(dim=-1, keepdim=True, correction=0) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x.shape[-1] * _sum(self._deviation(x))

    def activation(self, x: Tensor) -> Tensor:
        return self.gamma * F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def energy(self, x: Tensor) -> Tensor:
        return -self.gamma * x.shape[-1] * self.eps * _sum(1.0 / self._deviation(x))

    def extra_repr(self) -> str:
        return f"gamma={float(self.gamma):.4g}, eps={self.eps:g}"


class Spherical(Lagrangian):
    """Neurons on the sphere: L(x) = √(‖x‖² + ε), g = x/√(‖x‖² + ε), along the last axis.

    L*(g) = −ε/√(‖x‖² + ε). Model C of Krotov & Hopfield (2021), with ε making it smooth at zero.

    Args:
        eps: ε > 0, in units of x².
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = _positive("eps", eps)

    def _norm(self, x: Tensor) -> Tensor:
        return ((x * x).sum(dim=-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return _sum(self._norm(x))

    def activation(self, x: Tensor) -> Tensor:
        return x / self._norm(x)

    def energy(self, x: Tensor) -> Tensor:
        return -self.eps * _sum(1.0 / self._norm(x))

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∇f of a function with one scalar a sample; differentiable again where gradients are on."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=again, materialize_grads=True)
    return g


def _sum(x: Tensor) -> Tensor:
    """Sum over everything but the batch axis."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def _softplus(z: Tensor) -> Tensor:
    return F.softplus(z, threshold=_SOFTPLUS_THRESHOLD)


def _logistic_entropy(z: Tensor) -> Tensor:
    """Entropy −p ln p − (1−p) ln(1−p) of p = sigmoid(z), exact for any finite z."""
    # torch.abs has slope 0 at 0, which would lose the second derivative there; this has slope 1.
    a = torch.where(z < 0, -z, z)
    return torch.sigmoid(-a) * a + _softplus(-a)


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return float(value)
