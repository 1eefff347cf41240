"""Synapses of plain layers: weights between two layers or within one, and biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq._checks import integer, number, require, wrong
from hamdeq.synapses.base import Shape, Synapse, layer_shape
from hamdeq.synapses.maps import Map

__all__ = ["Bias", "Dense", "Lateral"]


class Dense(Map):
    """All-to-all synapse between two layers of neurons: E = −g₁ᵀ W g₂.

    The fields are ``I₂ = Wᵀ g₁`` and ``I₁ = W g₂``.

    Args:
        n_from: neurons in the first layer, n₁.
        n_to: neurons in the second layer, n₂.
        gain: factor on the initial weights. A small gain between free layers makes them
            converge in few steps: how much a step contracts goes with the square of the weights.
        orthogonal: whether the initial weights are gain times a matrix with orthonormal rows or
            columns. All directions then pass on equally strongly, and none more than the gain
            says: what deep memories need to carry a signal and yet converge.

    Shape:
        ``weight`` is ``(n_from, n_to)``, initialised uniformly in ±gain·√(6/(n₁ + n₂)) after
        Glorot & Bengio ("Xavier", 2010), or orthogonal after Saxe, McClelland & Ganguli (2014).
    """

    def __init__(
        self, n_from: int, n_to: int, *, gain: float = 1.0, orthogonal: bool = False
    ) -> None:
        super().__init__()
        n_from, n_to = integer("n_from", n_from), integer("n_to", n_to)
        gain = number("gain", gain, above=0)
        self.shapes: tuple[Shape | None, ...] | None = ((n_from,), (n_to,))
        self.weight: nn.Parameter = nn.Parameter(torch.empty(n_from, n_to))
        start = nn.init.orthogonal_ if orthogonal else nn.init.xavier_uniform_
        start(self.weight, gain)

    def forward(self, g: Tensor) -> Tensor:
        return g @ self.weight

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        return h @ self.weight.T

    def output_shape(self, shape: int | Sequence[int]) -> Shape:
        n_from, n_to = self.weight.shape
        fits = layer_shape(shape) == (n_from,)
        require(fits, type(self).__name__, f"shape {(n_from,)}", layer_shape(shape))
        return (n_to,)

    def energy(self, *g: Tensor) -> Tensor:
        first, second = g
        return -((first @ self.weight) * second).sum(-1)

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


class Bias(Synapse):
    """A constant field on one layer: E = −⟨b, g⟩, with field b.

    Args:
        shape: the layer's shape.
        std: standard deviation of the initial values, drawn from N(0, std²). It is not zero by
            default because a multiplicative optimiser such as :class:`~hamdeq.Madam` can never
            move a zero.
        by_channel: whether one number serves a whole channel, an entry of the layer's first axis,
            as in convolutional networks.

    Shape:
        ``bias`` has the layer's shape; by channel, ``(channels, 1, …)``.
    """

    def __init__(
        self, shape: int | Sequence[int], *, std: float = 0.01, by_channel: bool = False
    ) -> None:
        super().__init__()
        shape = layer_shape(shape)
        std = number("std", std, least=0)
        self.shapes: tuple[Shape | None, ...] | None = (shape,)
        numbers = (shape[0], *[1] * (len(shape) - 1)) if by_channel else shape
        self.bias: nn.Parameter = nn.Parameter(torch.randn(numbers) * std)

    def energy(self, *g: Tensor) -> Tensor:
        return -(g[0] * self.bias).flatten(1).sum(1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        return self.bias.expand_as(g[0]).clone()  # a view would hand out the parameter itself

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        shape = self.shapes[0] if self.shapes else None
        return f"{shape}" + ", by_channel=True" * (tuple(self.bias.shape) != shape)


class Lateral(Synapse):
    """All-to-all synapse within a layer of neurons: E = −½ gᵀ W g, W symmetric with zero diagonal.

    The field is ``W g``: each neuron is driven by the others, as in a Hopfield network. The synapse
    has one place, ``(("hidden",), Lateral(n))``, in which its energy is quadratic. As a
    synapse between a layer and itself, in two places, it would have the same energy and field, in
    two products instead of one.

    A layer with lateral synapses can be clamped, but not eliminated: use
    ``splitting="sweep"`` or ``None``.

    Args:
        n: neurons in the layer, at least two.
        gain: factor on the initial weights.

    Shape:
        ``weight`` is ``(n, n)``; of it the symmetric part off the diagonal is used,
        ``W = ½(weight + weightᵀ) − diagonal``. It starts as such a matrix, drawn uniformly from
        ±gain·√(3/n) (Glorot & Bengio, 2010), and remains one under an optimiser that treats all
        entries alike, as their gradients are symmetric too.

    Source: Hopfield, "Neurons with graded response have collective computational properties like
    those of two-state neurons" (1984).
    """

    def __init__(self, n: int, *, gain: float = 1.0) -> None:
        super().__init__()
        n = integer("n", n, least=2, remedy="no neuron acts on itself")
        self.shapes: tuple[Shape | None, ...] | None = ((n,),)
        weight = nn.init.xavier_uniform_(torch.empty(n, n), number("gain", gain, above=0)).triu(1)
        self.weight: nn.Parameter = nn.Parameter(weight + weight.T)

    def matrix(self) -> Tensor:
        """W, symmetric with zero diagonal: ``(n, n)``."""
        off = self.weight - self.weight.diagonal().diag_embed()
        return (off + off.T) / 2

    def energy(self, *g: Tensor) -> Tensor:
        return -((g[0] @ self.matrix()) * g[0]).sum(-1) / 2

    def field(self, to: int, *g: Tensor) -> Tensor:
        if to != 0:
            raise wrong("to", "place 0", repr(to))
        return g[0] @ self.matrix()

    def extra_repr(self) -> str:
        return f"{len(self.weight)}"
