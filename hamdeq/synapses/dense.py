"""Synapses of plain vectors of neurons: weights from all to all, and biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq.synapses.base import Synapse, layer_shape, positive_integer

__all__ = ["Bias", "Dense"]


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
        n_from, n_to = positive_integer("n_from", n_from), positive_integer("n_to", n_to)
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
