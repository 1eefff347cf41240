"""The classical Hopfield network, and its learning rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hamdeq._checks import instance, integer, wrong
from hamdeq.energy.ham import HAM
from hamdeq.lagrangians import Identity
from hamdeq.memories.interactions import two_layers
from hamdeq.memories.recall import BinaryMemory, Walk, check_states

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Hebbian", "HopfieldNetwork", "PseudoInverse", "Rule", "Storkey"]


class Rule(ABC):
    """A learning rule: from patterns of ±1 to weights, symmetric with a zero diagonal."""

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

    Fewer than N linearly independent patterns, however alike, are stable; basins shrink from N/2
    on. With N of them the projection is the identity, and without its diagonal nothing.

    Source: Personnaz, Guyon & Dreyfus (1985); without the diagonal: Kanter & Sompolinsky (1987).
    """

    def learn(self, weights: Tensor, patterns: Tensor, new: Tensor) -> Tensor:
        # In float64: patterns that are nearly dependent have a projection that is not.
        given = patterns.double()
        projection = torch.linalg.pinv(given) @ given
        # Symmetric to the last bit, without which states need not converge.
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


class HopfieldNetwork(BinaryMemory):
    """E(ξ) = −½ ξᵀWξ, of states ξ of ±1: ξᵢ <- sign(Σⱼ Wᵢⱼ ξⱼ), with sign(0) = +1.

    Args:
        size: N, neurons.
        rule: from patterns to weights: :class:`~hamdeq.memories.Hebbian` (default),
            :class:`~hamdeq.memories.PseudoInverse` or :class:`~hamdeq.memories.Storkey`.

    Attributes:
        weights: W, ``(N, N)``, symmetric with a zero diagonal.
        patterns: what has been stored, ``(K, N)``.

    Source: Hopfield, "Neural networks and physical systems with emergent collective computational
    abilities" (1982).

    Example:
        >>> patterns = torch.tensor([[1.0, 1, 1, 1, -1, -1, -1, -1]])
        >>> network = HopfieldNetwork(8).store(patterns)
        >>> probe = patterns.clone()
        >>> probe[0, 0] = -1.0
        >>> bool((network.recall(probe).value == patterns).all())
        True
    """

    weights: Tensor
    patterns: Tensor

    def __init__(self, size: int, rule: Rule | None = None) -> None:
        super().__init__()
        size = integer("size", size)
        rule = Hebbian() if rule is None else rule
        self.size = size
        self.rule: Rule = instance("rule", rule, Rule, "Hebbian(), PseudoInverse() or Storkey()")
        self.register_buffer("weights", torch.zeros(size, size))
        self.register_buffer("patterns", torch.zeros(0, size))

    _stored = "patterns"

    def store(self, states: Tensor) -> Self:
        """Learn further states, ``(count, N)`` of ±1, by the rule; returns itself.

        Raises:
            ValueError: states that do not fit, or are not ±1.
        """
        check_states("states", states, self.size, self)
        self.patterns = torch.cat([self.patterns, states.detach()])
        self.weights = self.rule.learn(self.weights, self.patterns, states.detach())
        return self

    def energy(self, states: Tensor) -> Tensor:
        """E = −½ ξᵀWξ: ``(batch, N) -> (batch,)``.

        Raises:
            ValueError: states that do not fit, or are not ±1.
        """
        self._check(states)
        return -0.5 * ((states @ self.weights) * states).sum(-1)

    def fields(self, states: Tensor) -> Tensor:
        """Σⱼ Wᵢⱼ ξⱼ of every neuron: ``(batch, N)``."""
        self._check(states)
        return states @ self.weights

    def as_ham(self, beta: float = 1.0) -> HAM:
        """The same memory with graded neurons: layers ``state`` and ``memories``.

        The state's neurons are ``Tanh(beta)``, the memories' linear. A diagonal of W adds a
        constant to the energy of binary states, so it is chosen such that W = BᵀB, of the least
        rank; the rows of B are the memories, and with these eliminated the energy is
        L*(g) − ½ gᵀBᵀBg.

        Raises:
            ValueError: the weights are all zero.
        """
        values, vectors = torch.linalg.eigh(self.weights.double())
        values = values - values[0]
        kept = values > 1e-9 * values[-1]
        if not bool(kept.any()):
            raise wrong("weights", "some that are not zero", "zeros", "store(states) first")
        rows = values[kept].sqrt()[:, None] * vectors[:, kept].T
        return two_layers(rows.to(self.dtype), Identity(), beta)

    def _check(self, states: Tensor) -> None:
        if not len(self.patterns) and not bool(self.weights.any()):
            raise wrong("weights", "a stored pattern", "none", "store(states) first")
        check_states("states", states, self.size, self)

    def _walk(self, states: Tensor, *, scaled: bool = False) -> Walk:
        self._check(states)
        return _Walk(2 * self.weights if scaled else self.weights, states)

    def extra_repr(self) -> str:
        return f"{self.size}, rule={self.rule}, patterns={len(self.patterns)}"


class _Walk(Walk):
    """The fields, updated with each flip."""

    def __init__(self, weights: Tensor, states: Tensor) -> None:
        self.weights, self.fields = weights, states @ weights

    def field(self, neuron: int) -> Tensor:
        return self.fields[:, neuron]

    def turn(self, neuron: int, change: Tensor) -> None:
        self.fields.addr_(change, self.weights[neuron])


def _without_diagonal(weights: Tensor) -> Tensor:
    return weights - torch.diag(weights.diagonal())
