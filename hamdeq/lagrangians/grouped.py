"""Layers of several kinds of neurons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq._checks import instance, integer, require, wrong
from hamdeq.lagrangians.base import Lagrangian

__all__ = ["Grouped"]


class Grouped(Lagrangian):
    """Groups of neurons in one layer, each with a Lagrangian of its own: L(x) = Σ_k L_k(x_k).

    The groups follow each other along the last axis. A synapse sees one layer, whatever kinds of
    neurons it has. A Lagrangian for each neuron is a group of size one for each; where neurons
    differ in a parameter alone, such as β, a tensor for that is faster.

    Args:
        sizes: neurons of each group, along the last axis.
        lagrangians: as many. A Lagrangian that stands twice shares its parameters.

    Raises:
        ValueError: no group, another number of Lagrangians than sizes; in a call, a layer of
            another size.
        TypeError: what is no Lagrangian.

    Source: Krotov, "Hierarchical Associative Memory" (2021), whose general network has a
    Lagrangian of all neurons.

    Example:
        >>> layer = Grouped([2, 3], [Identity(), Softmax()])
        >>> layer.activation(torch.zeros(1, 5)).sum().item()
        1.0
    """

    def __init__(self, sizes: Sequence[int], lagrangians: Sequence[Lagrangian]) -> None:
        super().__init__()
        if isinstance(sizes, int) or not len(sizes):
            raise wrong("sizes", "a list of at least one group, such as [2, 3]", repr(sizes))
        self.sizes: tuple[int, ...] = tuple(integer("sizes", size) for size in sizes)
        each = [instance("lagrangians", one, Lagrangian) for one in lagrangians]
        expected = f"{len(self.sizes)}, one for each group"
        require(len(each) == len(self.sizes), "lagrangians", expected, len(each))
        self.lagrangians: nn.ModuleList = nn.ModuleList(each)
        self.additive: bool = all(one.additive for one in each)

    @property
    def max_slope(self) -> float:
        """The largest of any group."""
        return max(one.max_slope for one in self._each())

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([one(part) for one, part in self._groups(x)]).sum(0)

    def activation(self, x: Tensor) -> Tensor:
        return torch.cat([one.activation(part) for one, part in self._groups(x)], -1)

    def energy(self, x: Tensor) -> Tensor:
        return torch.stack([one.energy(part) for one, part in self._groups(x)]).sum(0)

    def _each(self) -> list[Lagrangian]:
        return [*self.lagrangians]  # type: ignore[list-item]

    def _groups(self, x: Tensor) -> list[tuple[Lagrangian, Tensor]]:
        size, shape = sum(self.sizes), tuple(x.shape[1:])
        fits = len(shape) > 0 and shape[-1] == size
        require(
            fits, "layer", f"{size} neurons on the last axis, as the groups have", f"shape {shape}"
        )
        return [*zip(self._each(), x.split(self.sizes, -1), strict=True)]

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"
