"""Non-additive Lagrangians, which couple the neurons along the last axis."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq._checks import instance, number, wrong
from hamdeq.lagrangians.base import Scaled, _shown, broadcasts, constants, total

__all__ = ["LayerNorm", "Spherical"]


class _Normalised(Scaled):
    """The parts of normalised neurons: a scale γ, the ε that smooths them, and a shift δ."""

    shift: Tensor | None

    def __init__(self, gamma: float, eps: float, shift: Tensor | None, *, learnable: bool) -> None:
        super().__init__("gamma", gamma, learnable=learnable)
        self.eps: float = number("eps", eps, above=0)
        if shift is not None:
            shift = constants("shift", instance("shift", shift, Tensor))
            if shift.dim() != 1:
                raise wrong("shift", "one number for each entry, (d,)", tuple(shift.shape))
        if shift is not None and learnable:
            self.shift = nn.Parameter(shift)
        else:  # goes along with .to(), and like a number is no part of the state dict
            self.register_buffer("shift", shift, persistent=False)

    @property
    def gamma(self) -> Tensor | float:
        """The scale γ."""
        return self._number()

    def _shifted(self, g: Tensor, x: Tensor) -> Tensor:
        """g + δ."""
        if self.shift is None:
            return g
        broadcasts("shift", self.shift, x)
        return g + self.shift

    def _tilted(self, value: Tensor, x: Tensor) -> Tensor:
        """L + ⟨δ, x⟩, of which g + δ is the gradient."""
        if self.shift is None:
            return value
        broadcasts("shift", self.shift, x)
        return value + total(self.shift * x)

    def extra_repr(self) -> str:
        shift = "" if self.shift is None else f", shift={_shown(self.shift)}"
        return f"{super().extra_repr()}, eps={self.eps:g}{shift}"


class LayerNorm(_Normalised):
    """Layer-normalised neurons: g = γ (x − x̄)/√(v + ε) + δ along the last axis, of d entries.

    L(x) = γ d √(v + ε) + ⟨δ, x⟩ with the mean x̄ and the (biased) variance v of the entries;
    L*(g) = −γ d ε/√(v + ε). The scale γ is one number: no function has an elementwise-scaled layer
    norm as its gradient. A shift δ is as good as a :class:`~hamdeq.Bias` of the layers that only
    dense synapses connect with this one; others, such as :class:`~hamdeq.SelfAttention`, see it.

    Args:
        gamma: scale γ > 0.
        eps: ε > 0, in units of x².
        shift: δ, of shape ``(d,)``; None for none.
        learnable: whether γ is trained (as ln γ, to stay positive), and δ where it is given.

    Source: Krotov, "Hierarchical Associative Memory" (2021); Tang & Kopp, "A remark on a paper of
    Krotov and Hopfield" (2021).
    """

    def __init__(
        self,
        gamma: float = 1.0,
        eps: float = 1e-5,
        *,
        shift: Tensor | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__(gamma, eps, shift, learnable=learnable)

    @property
    def max_slope(self) -> float:
        """γ/√ε, of states that are all equal."""
        return self._largest() / math.sqrt(self.eps)

    def _deviation(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return ((centred * centred).mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self._tilted(self.gamma * x.shape[-1] * total(self._deviation(x)), x)

    def activation(self, x: Tensor) -> Tensor:
        return self._shifted(self.gamma * F.layer_norm(x, x.shape[-1:], eps=self.eps), x)

    def energy(self, x: Tensor) -> Tensor:
        return -self.gamma * x.shape[-1] * self.eps * total(1.0 / self._deviation(x))


class Spherical(_Normalised):
    """Neurons on a sphere: g = γ x/√(‖x‖² + ε) + δ along the last axis.

    L(x) = γ √(‖x‖² + ε) + ⟨δ, x⟩; L*(g) = −γε/√(‖x‖² + ε). Model C of Krotov & Hopfield (2021),
    with ε making it smooth at zero.

    Args:
        eps: ε > 0, in units of x².
        gamma: radius γ > 0 of the sphere.
        shift: its centre δ, of shape ``(d,)``; None for the origin.
        learnable: whether γ is trained (as ln γ, to stay positive), and δ where it is given.
    """

    def __init__(
        self,
        eps: float = 1e-5,
        gamma: float = 1.0,
        *,
        shift: Tensor | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__(gamma, eps, shift, learnable=learnable)

    @property
    def max_slope(self) -> float:
        """γ/√ε, at zero."""
        return self._largest() / math.sqrt(self.eps)

    def _norm(self, x: Tensor) -> Tensor:
        return ((x * x).sum(dim=-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self._tilted(self.gamma * total(self._norm(x)), x)

    def activation(self, x: Tensor) -> Tensor:
        return self._shifted(self.gamma * x / self._norm(x), x)

    def energy(self, x: Tensor) -> Tensor:
        return -self.gamma * self.eps * total(1.0 / self._norm(x))
