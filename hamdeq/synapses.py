"""Synapses: the interaction energies between layers, and the fields they exert.

A synapse connects one layer (a bias), two (a weight matrix) or more. It is one scalar function of
their activations, ``E(g₁, g₂, …)``, and pulls on each of them with the field ``I_k = −∂E/∂g_k``.
Because both directions are derivatives of one function, a weight is one parameter, used both ways.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq.lagrangians.base import gradient

__all__ = ["Association", "Bias", "Dense", "Synapse"]

Shape = tuple[int, ...]


class Synapse(nn.Module, ABC):
    """An interaction energy E(g₁, …, g_k) between the activations of k layers.

    A subclass gives :meth:`energy`; it may give :meth:`field` in closed form, and otherwise the
    field is derived by automatic differentiation.

    Attributes:
        shapes: the layer shape expected at each place, or None where any will do. Its length is
            the number of layers the synapse connects; :class:`~hamdeq.HAM` checks it.

    Shape:
        Activations are ``(batch, *shape)``, the energy is ``(batch,)``.
    """

    shapes: tuple[Shape | None, ...] | None = None

    @abstractmethod
    def energy(self, *g: Tensor) -> Tensor:
        """Interaction energy of the layers' activations, one scalar a sample: ``(batch,)``."""

    def field(self, to: int, *g: Tensor) -> Tensor:
        """The field −∂E/∂g_to on the layer in place ``to``, of that layer's shape."""
        with torch.inference_mode(False):
            g = tuple(x.clone() if x.is_inference() else x for x in g)
        return -gradient(
            lambda g_to: self.energy(*g[:to], g_to, *g[to + 1 :]), g[to], (*g, *self.parameters())
        )

    def is_linear_in(self, place: int) -> bool:
        """Whether E is linear in the activation in this place, the others held fixed.

        Then E = −⟨I, g⟩ with a field I that does not depend on the layer itself, and the layer
        can be eliminated exactly. Declare it only where it holds for every value of the
        parameters; of an energy that is linear but for a rest without this layer, make the rest
        a synapse of its own.
        """
        return False


class Dense(Synapse):
    """All-to-all synapse between two layers of neurons: E = −g₁ᵀ W g₂.

    The fields are ``I₂ = Wᵀ g₁`` and ``I₁ = W g₂``.

    Args:
        n_from: neurons in the first layer, n₁.
        n_to: neurons in the second layer, n₂.
        gain: factor on the initial weights. A small gain between settling layers makes them
            settle in few steps: how much a step contracts goes with the square of the weights.

    Shape:
        ``weight`` is ``(n_from, n_to)``, initialised uniformly in ±gain·√(6/(n₁ + n₂)) after
        Glorot & Bengio ("Xavier", 2010).
    """

    def __init__(self, n_from: int, n_to: int, *, gain: float = 1.0) -> None:
        super().__init__()
        n_from, n_to = _size("n_from", n_from), _size("n_to", n_to)
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"gain: expected a finite number > 0, got {gain!r}")
        self.shapes = ((n_from,), (n_to,))
        self.weight = nn.Parameter(torch.empty(n_from, n_to))
        nn.init.xavier_uniform_(self.weight, gain)

    def energy(self, *g: Tensor) -> Tensor:
        first, second = g
        return -((first @ self.weight) * second).sum(-1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        if to == 1:
            return g[0] @ self.weight
        if to == 0:
            return g[1] @ self.weight.T
        raise ValueError(f"to: expected place 0 or 1, got {to!r}")

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


class Bias(Synapse):
    """A constant field on one layer: E = −⟨b, g⟩, with field b.

    Args:
        shape: the layer's shape.
        std: standard deviation of the initial values, drawn from N(0, std²). It is not zero by
            default because a multiplicative optimiser such as :class:`~hamdeq.Madam` can never
            move a zero.
    """

    def __init__(self, shape: int | Sequence[int], *, std: float = 0.01) -> None:
        super().__init__()
        shape = layer_shape(shape)
        if not std >= 0:
            raise ValueError(f"std: expected a number ≥ 0, got {std!r}")
        self.shapes = (shape,)
        self.bias = nn.Parameter(torch.randn(shape) * std)

    def energy(self, *g: Tensor) -> Tensor:
        return -(g[0] * self.bias).flatten(1).sum(1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        return self.bias.expand_as(g[0]).clone()  # a view would hand out the parameter itself

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        return f"{tuple(self.bias.shape)}"


class Association(Synapse):
    """Three-way synapse by which states meet stored patterns: E = −Σ m_hls ⟨x_hl, k_hs⟩.

    Between states x ``(H, L, d)``, stored patterns k ``(H, S, d)`` and memories m ``(H, L, S)``,
    for H heads side by side. The field on a memory is the similarity of its state and its stored
    pattern, that on a state the stored patterns in the proportions of the memories. With the
    stored patterns clamped and the memories eliminated it is attention.

    Args:
        heads, states, stored, size: H, L, S and d.
    """

    def __init__(self, heads: int, states: int, stored: int, size: int) -> None:
        super().__init__()
        self.shapes = (
            layer_shape((heads, states, size)),
            layer_shape((heads, stored, size)),
            layer_shape((heads, states, stored)),
        )

    def energy(self, *g: Tensor) -> Tensor:
        x, k, m = g
        return -((x @ k.mT) * m).flatten(1).sum(1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        x, k, m = g
        if to == 0:
            return m @ k
        if to == 1:
            return m.mT @ x
        if to == 2:
            return x @ k.mT
        raise ValueError(f"to: expected place 0, 1 or 2, got {to!r}")

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        return "states {}, stored {}, memories {}".format(*self.shapes or ())


def layer_shape(shape: int | Sequence[int]) -> Shape:
    """A layer's shape as a tuple of at least one positive integer."""
    if isinstance(shape, Sequence) and len(shape) > 0:
        return tuple(_size("shape", n) for n in shape)
    return (_size("shape", shape),)


def _size(name: str, n: object) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{name}: expected a positive integer, got {n!r}")
    return n
