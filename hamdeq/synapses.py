"""Synapses: the interaction energies between layers, and the fields they exert.

A synapse connects one layer (a bias), two (a weight matrix) or more. It is one scalar function of
their activations, ``E(g₁, g₂, …)``, and pulls on each of them with the field ``I_k = −∂E/∂g_k``.
Because both directions are derivatives of one function, a weight is one parameter, used both ways.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq.lagrangians import gradient

__all__ = ["Bias", "Dense", "Synapse"]

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
        return -gradient(lambda g_to: self.energy(*g[:to], g_to, *g[to + 1 :]), g[to])

    def is_linear_in(self, place: int) -> bool:
        """Whether E is linear in the activation in this place, the others held fixed.

        Then the field on that layer does not depend on the layer itself, and the layer can be
        eliminated exactly. Declare it only where it holds for every value of the parameters.
        """
        return False


class Dense(Synapse):
    """All-to-all synapse between two layers of neurons: E = −g₁ᵀ W g₂.

    The fields are ``I₂ = Wᵀ g₁`` and ``I₁ = W g₂``.

    Args:
        n_from: neurons in the first layer, n₁.
        n_to: neurons in the second layer, n₂.

    Shape:
        ``weight`` is ``(n_from, n_to)``, initialised uniformly after Glorot & Bengio ("Xavier",
        2010), with the two fans of this matrix.
    """

    def __init__(self, n_from: int, n_to: int) -> None:
        super().__init__()
        n_from, n_to = _size("n_from", n_from), _size("n_to", n_to)
        self.shapes = ((n_from,), (n_to,))
        self.weight = nn.Parameter(torch.empty(n_from, n_to))
        nn.init.xavier_uniform_(self.weight)

    def energy(self, *g: Tensor) -> Tensor:
        first, second = g
        return -((first @ self.weight) * second).sum(-1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        return g[0] @ self.weight if to == 1 else g[1] @ self.weight.T

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
        return self.bias.expand_as(g[0])

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        return f"{tuple(self.bias.shape)}"


def layer_shape(shape: int | Sequence[int]) -> Shape:
    """A layer's shape as a tuple of positive integers."""
    return tuple(_size("shape", n) for n in ((shape,) if isinstance(shape, int) else shape))


def _size(name: str, n: int) -> int:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"{name}: expected a positive integer, got {n!r}")
    return n
