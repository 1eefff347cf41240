"""The classical Hopfield network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hamdeq._checks import integer
from hamdeq.energy.ham import HAM
from hamdeq.lagrangians import Identity
from hamdeq.memories.continuous import two_layers
from hamdeq.memories.recall import BinaryMemory, Walk
from hamdeq.memories.rules import Hebbian, Rule
from hamdeq.memories.states import check_states

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HopfieldNetwork"]


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
        if not isinstance(rule, Rule):
            raise TypeError(f"rule: expected Hebbian(), PseudoInverse() or Storkey(), got {rule!r}")
        self.size = size
        self.rule = rule
        self.register_buffer("weights", torch.zeros(size, size))
        self.register_buffer("patterns", torch.zeros(0, size))

    _stored = "patterns"

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.device

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
            raise ValueError("weights: expected some that are not zero; store(states) first")
        rows = values[kept].sqrt()[:, None] * vectors[:, kept].T
        return two_layers(rows.to(self.dtype), Identity(), beta)

    def _check(self, states: Tensor) -> None:
        if not len(self.patterns) and not bool(self.weights.any()):
            raise ValueError("weights: expected a stored pattern, got none; store(states) first")
        check_states("states", states, self.size, self)

    def _walk(self, states: Tensor) -> Walk:
        self._check(states)
        return _Walk(self, states)

    def extra_repr(self) -> str:
        return f"{self.size}, rule={self.rule}, patterns={len(self.patterns)}"


class _Walk(Walk):
    """Fields that are carried along while single neurons turn over."""

    def __init__(self, network: HopfieldNetwork, states: Tensor) -> None:
        self.weights, self.fields = network.weights, states @ network.weights

    def field(self, neuron: int) -> Tensor:
        return self.fields[:, neuron]

    def turn(self, neuron: int, change: Tensor) -> None:
        self.fields.addr_(change, self.weights[neuron])
