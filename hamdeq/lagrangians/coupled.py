"""Non-additive Lagrangians, which couple the neurons along the last axis."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import number
from hamdeq.lagrangians.base import Lagrangian, Scaled, total

__all__ = ["LayerNorm", "Spherical"]


class LayerNorm(Scaled):
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
        super().__init__("gamma", gamma, learnable=learnable)
        self.eps: float = number("eps", eps, above=0)

    @property
    def gamma(self) -> Tensor | float:
        """The scale γ."""
        return self._number()

    @property
    def max_slope(self) -> float:
        """γ/√ε, of states that are all equal."""
        return self._largest() / math.sqrt(self.eps)

    def _deviation(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return ((centred * centred).mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x.shape[-1] * total(self._deviation(x))

    def activation(self, x: Tensor) -> Tensor:
        return self.gamma * F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def energy(self, x: Tensor) -> Tensor:
        return -self.gamma * x.shape[-1] * self.eps * total(1.0 / self._deviation(x))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps:g}"


class Spherical(Lagrangian):
    """Neurons on the sphere: L(x) = √(‖x‖² + ε), g = x/√(‖x‖² + ε), along the last axis.

    L*(g) = −ε/√(‖x‖² + ε). Model C of Krotov & Hopfield (2021), with ε making it smooth at zero.

    Args:
        eps: ε > 0, in units of x².
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps: float = number("eps", eps, above=0)

    @property
    def max_slope(self) -> float:
        """1/√ε, at zero."""
        return 1 / math.sqrt(self.eps)

    def _norm(self, x: Tensor) -> Tensor:
        return ((x * x).sum(dim=-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return total(self._norm(x))

    def activation(self, x: Tensor) -> Tensor:
        return x / self._norm(x)

    def energy(self, x: Tensor) -> Tensor:
        return -self.eps * total(1.0 / self._norm(x))

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"
