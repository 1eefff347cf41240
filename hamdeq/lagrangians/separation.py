"""Lagrangians whose activation is a distribution: how a query tells memories apart.

Their layer is one of memories, its state the similarity of each memory to the query, and its
activation the weights with which the memories are read, positive and of sum one; a memory masked by
the state −∞ has weight zero. Eliminated against a linear layer they make attention.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from hamdeq._checks import number
from hamdeq.lagrangians import sparse
from hamdeq.lagrangians.base import Tempered, total

__all__ = ["Entmax", "Separation", "Softmax", "Sparsemax"]


class Separation(Tempered):
    """A Lagrangian whose activation is a distribution along the last axis.

    L(x) = max over distributions p of ⟨x, p⟩ − Ω(p)/β, with a convex Ω; g is the p that attains
    the maximum, and L*(g) = Ω(g)/β. A subclass gives :meth:`potential`, :meth:`distribution`,
    ``energy`` and :meth:`at`.

    Args:
        beta: inverse temperature β > 0, per unit of x; a tensor gives several, and broadcasts
            against the states with one entry on their last axis, such as ``(heads, 1, 1)``.
        learnable: whether β is trained.

    Source: Niculae & Blondel, "A regularized framework for sparse and structured neural
    attention" (2017); Santos et al., "Sparse and structured Hopfield networks" (2024).
    """

    def __init__(self, beta: float | Tensor = 1.0, *, learnable: bool = False) -> None:
        super().__init__(beta, learnable=learnable)
        if isinstance(beta, Tensor) and beta.dim() and beta.shape[-1] != 1:
            raise ValueError(
                "beta: expected a number, or a tensor with one entry on its last axis, such as "
                f"(heads, 1, 1), got the shape {tuple(beta.shape)}; use beta[..., None]"
            )

    def forward(self, x: Tensor) -> Tensor:
        return total(self.each(x))

    def each(self, x: Tensor) -> Tensor:
        """L along the last axis: ``(…, n) -> (…)``. ``forward`` is its sum."""
        return (self.potential(self._argument(x)) / self.beta).squeeze(-1).to(x.dtype)

    def activation(self, x: Tensor) -> Tensor:
        return self.distribution(self._argument(x)).to(x.dtype)

    def _argument(self, x: Tensor) -> Tensor:
        """βx, in float32 where x is of half precision."""
        if self.learnable:  # the derivative by β would be 0·∞ where x is −∞
            x = x.clamp_min(torch.finfo(x.dtype).min)
        z = self.beta * _wide(x)
        if z.shape != x.shape:
            raise ValueError(
                f"beta: expected a shape that broadcasts to that of the states, {tuple(x.shape)}, "
                f"got {tuple(self.beta.shape)}; leave out its leading axes"
            )
        return z

    @abstractmethod
    def potential(self, z: Tensor) -> Tensor:
        """L at β = 1, along the last axis, which is kept: ``(…, n) -> (…, 1)``."""

    @abstractmethod
    def distribution(self, z: Tensor) -> Tensor:
        """The activation at β = 1: ``(…, n) -> (…, n)``."""

    @abstractmethod
    def at(self, beta: float | Tensor, *, learnable: bool = False) -> Separation:
        """The same function at another temperature."""


class Softmax(Separation):
    """Softmax neurons: L(x) = lse(βx)/β, g = softmax(βx), along the last axis.

    lse(z) = ln Σᵢ exp zᵢ; L*(g) = (1/β) Σ gᵢ ln gᵢ, the negative entropy. Eliminated against a
    linear layer they are attention (Ramsauer et al., "Hopfield Networks is All You Need", ICLR
    2021, equation 3).

    Args:
        beta: inverse temperature β > 0, per unit of x, or several; 1/√d in attention.
        learnable: whether β is trained.
    """

    @property
    def max_slope(self) -> float:
        """β/2, of two neurons that share all of the weight equally; of several β the largest."""
        return self._largest() / 2

    def potential(self, z: Tensor) -> Tensor:
        # torch.logsumexp has a gradient that is off by 1e-5 at states of 1e4 in float32.
        wide = _wide(z)
        top = wide.detach().amax(-1, keepdim=True)
        return (top + (wide - top).exp().sum(-1, keepdim=True).log()).to(z.dtype)

    def distribution(self, z: Tensor) -> Tensor:
        return torch.softmax(z, dim=-1)

    def energy(self, x: Tensor) -> Tensor:
        z = self._argument(x)
        # Finite also where the weight is zero.
        log_g = torch.log_softmax(z, dim=-1).clamp_min(torch.finfo(z.dtype).min)
        return total(((log_g.exp() * log_g).sum(-1, keepdim=True) / self.beta).to(x.dtype))

    def at(self, beta: float | Tensor, *, learnable: bool = False) -> Softmax:
        return Softmax(beta, learnable=learnable)


class Entmax(Separation):
    """α-entmax neurons: g = argmax over distributions p of ⟨βx, p⟩ − Ω(p), sparse for α > 1.

    Ω(p) = Σ (pᵢ^α − pᵢ)/(α(α − 1)), the negative Tsallis entropy. α → 1 is softmax, α = 2
    sparsemax. A memory whose similarity lies more than 1/(β(α − 1)) below the best has weight
    zero, so that a well separated pattern is retrieved exactly. Needs the package entmax.

    Smooth but where a memory enters or leaves the support, with the derivative of the smaller one.

    Args:
        alpha: α > 1.
        beta: inverse temperature β > 0, per unit of x, or several.
        learnable: whether β is trained.

    Raises:
        ImportError: entmax is not installed.

    Source: Peters, Niculae & Martins, "Sparse sequence-to-sequence models" (2019).
    """

    def __init__(
        self, alpha: float = 1.5, beta: float | Tensor = 1.0, *, learnable: bool = False
    ) -> None:
        super().__init__(beta, learnable=learnable)
        alpha = number("alpha", alpha, above=1, remedy="for alpha 1 use Softmax")
        # As text, which torch.compile takes as given. A number, another in a second layer, it would
        # make an input of the graph, on which nothing can branch.
        self._alpha = repr(alpha)
        sparse.package()

    @property
    def alpha(self) -> float:
        """α > 1, the larger the fewer memories share the weight."""
        return float(self._alpha)

    def distribution(self, z: Tensor) -> Tensor:
        return sparse.distribution(_wide(z), self.alpha).to(z.dtype)

    def potential(self, z: Tensor) -> Tensor:
        wide = _wide(z)
        return sparse.potential(wide, self.distribution(wide), self.alpha).to(z.dtype)

    def energy(self, x: Tensor) -> Tensor:
        g = self.distribution(self._argument(x))
        return total((sparse.entropy(g, self.alpha) / self.beta).to(x.dtype))

    def at(self, beta: float | Tensor, *, learnable: bool = False) -> Entmax:
        return Entmax(self.alpha, beta, learnable=learnable)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, {super().extra_repr()}"


class Sparsemax(Entmax):
    """Sparsemax neurons: g = the distribution nearest to βx, L*(g) = Σ (gᵢ² − gᵢ)/(2β).

    :class:`Entmax` at α = 2, and as that one it needs the package entmax.

    Args:
        beta: inverse temperature β > 0, per unit of x, or several.
        learnable: whether β is trained.

    Source: Martins & Astudillo, "From softmax to sparsemax" (2016).
    """

    def __init__(self, beta: float | Tensor = 1.0, *, learnable: bool = False) -> None:
        super().__init__(2.0, beta, learnable=learnable)

    def at(self, beta: float | Tensor, *, learnable: bool = False) -> Sparsemax:
        return Sparsemax(beta, learnable=learnable)

    def extra_repr(self) -> str:
        return Separation.extra_repr(self)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
