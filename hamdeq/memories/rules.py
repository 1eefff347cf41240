"""Learning rules of the classical network: from patterns to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Hebbian", "PseudoInverse", "Rule", "Storkey"]


class Rule(ABC):
    """How weights ``(N, N)``, symmetric with a zero diagonal, follow from patterns of ±1."""

    @abstractmethod
    def learn(self, weights: Tensor, patterns: Tensor, new: Tensor) -> Tensor:
        """The weights with further patterns.

        Args:
            weights: those of ``patterns``, ``(N, N)``.
            patterns: ``(K, N)``, all that are stored, the new ones last.
            new: ``(k, N)``, the new ones.
        """


@dataclass(frozen=True)
class Hebbian(Rule):
    """W = Σ_μ ξ_μ ξ_μᵀ, without its diagonal: integers, so that fields and ties are exact.

    It stores about 0.14 N random patterns.

    Source: Hopfield (1982), equation 2.
    """

    def learn(self, weights: Tensor, patterns: Tensor, new: Tensor) -> Tensor:
        return _without_diagonal(weights + new.T @ new)


@dataclass(frozen=True)
class PseudoInverse(Rule):
    """W = Ξ⁺Ξ, the projection onto the patterns Ξ, without its diagonal.

    Fewer than N linearly independent patterns, however alike, are at rest; basins shrink from N/2
    on. With N of them the projection is the identity, and without its diagonal nothing.

    Source: Personnaz, Guyon & Dreyfus (1985); without the diagonal: Kanter & Sompolinsky (1987).
    """

    def learn(self, weights: Tensor, patterns: Tensor, new: Tensor) -> Tensor:
        # In float64: patterns that are nearly dependent have a projection that is not.
        given = patterns.double()
        projection = torch.linalg.pinv(given) @ given
        # Symmetric to the last bit, without which states need not come to rest.
        return _without_diagonal(((projection + projection.T) / 2).to(weights.dtype))


@dataclass(frozen=True)
class Storkey(Rule):
    """W <- W + (ξξᵀ − ξhᵀ − hξᵀ)/N with h_ij = Σ_{k≠i,j} W_ik ξ_k, one pattern after the other.

    Local and incremental as Hebb's rule, with room for more: about N/√(2 ln N) patterns.

    Source: Storkey, "Increasing the capacity of a Hopfield network without sacrificing
    functionality" (1997), with the diagonal left out.
    """

    def learn(self, weights: Tensor, patterns: Tensor, new: Tensor) -> Tensor:
        for x in new:
            # h_ij, the local field at i without what i and j contribute.
            local = (weights @ x)[:, None] - weights * x
            through = local * x  # h_ij ξ_j
            weights = weights + (torch.outer(x, x) - (through + through.T)) / len(x)
            weights = _without_diagonal(weights)
        return weights


def _without_diagonal(weights: Tensor) -> Tensor:
    return weights - torch.diag(weights.diagonal())
