"""Synapses that are a map from one layer to another: E = −⟨A(g₁), g₂⟩."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from hamdeq._checks import instance, require, wrong
from hamdeq.lagrangians.base import gradient, total
from hamdeq.synapses.base import Shape, Synapse, layer_shape

__all__ = ["Composed", "Flatten", "Map"]


class Map(Synapse):
    """A map A from the first layer to the second, as a synapse: E = −⟨A(g₁), g₂⟩.

    The fields are ``I₂ = A(g₁)`` and, for a linear map, ``I₁ = Aᵀ g₂``: what a layer of a
    feed-forward network computes, and its transpose. Of a map that is not linear ``I₁`` is
    ``A′(g₁)ᵀ g₂``, and only the second layer can be eliminated.

    A subclass gives :meth:`forward` and :meth:`output_shape`; it may give :meth:`adjoint` in closed
    form, and otherwise this is derived by automatic differentiation.

    Attributes:
        linear: whether A is linear; true unless a subclass says otherwise.
    """

    shapes: tuple[Shape | None, ...] | None = (None, None)
    linear: bool = True

    @abstractmethod
    def forward(self, g: Tensor) -> Tensor:
        """A(g), of the second layer's shape."""

    @abstractmethod
    def output_shape(self, shape: int | Sequence[int]) -> Shape:
        """The shape of the second layer, given that of the first.

        Raises:
            ValueError: a first layer that the map cannot take.
        """

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        """Aᵀh, of the shape of g; ``A′(g)ᵀ h`` of a map that is not linear.

        Of a linear map the shape of g is all that counts, which A alone may not tell: a stride of
        two makes as much of 7 numbers as of 8.
        """
        return gradient(lambda x: total(self.forward(x) * h), g, (g, h, *self.parameters()))

    def energy(self, *g: Tensor) -> Tensor:
        first, second = g
        return -total(self.forward(first) * second)

    def field(self, to: int, *g: Tensor) -> Tensor:
        first, second = g
        if to == 1:
            return self.forward(first)
        if to == 0:
            return self.adjoint(second, first)
        raise wrong("to", "place 0 or 1", repr(to))

    def is_linear_in(self, place: int) -> bool:
        return self.linear or place == 1

    def fit(self, names: Sequence[str], shapes: Sequence[Shape]) -> None:
        super().fit(names, shapes)
        if self.shapes is not None and None not in self.shapes:
            return  # that was all, as for a subclass of Dense between layers of other shapes
        first, second = shapes
        try:
            expected = self.output_shape(first)
        except ValueError as error:
            raise ValueError(f"layer {names[0]!r}: {error}") from error
        kind = type(self).__name__
        remedy = f"give it the shape {expected}"
        place = f"shape {expected} for layer {names[1]!r}, to which it maps {first}"
        require(expected == second, kind, place, second, remedy)


class Composed(Map):
    """Several maps, one after the other, with no layer between: E = −⟨A_k ⋯ A₁ g₁, g₂⟩.

    A convolution with its pooling, as in the convolutional networks of equilibrium propagation, is
    ``Composed(Conv2d(1, 32, 5), MaxPool2d(2))``, or with ``AvgPool2d(2)`` where it is to be linear;
    weights from an image to a plain layer are ``Composed(Flatten(), Dense(32 * 12 * 12, 10))``.

    It is linear in the first layer where all of its maps are linear.

    Args:
        maps: at least one, in the order in which they act on the first layer.

    Raises:
        TypeError: what is not a :class:`Map`; other synapses are no function of one layer alone.

    Source: Laborieux et al., "Scaling equilibrium propagation to deep ConvNets by drastically
    reducing its gradient estimator bias" (2021).
    """

    def __init__(self, *maps: Map) -> None:
        super().__init__()
        require(maps, "maps", "at least one, such as Conv2d(1, 32, 5)", "none")
        expected = "synapses that are maps, such as Conv2d, AvgPool2d, Flatten or Dense"
        for each in maps:
            instance("maps", each, Map, expected)
        self.maps: nn.ModuleList = nn.ModuleList(maps)
        self.linear: bool = all(each.linear for each in maps)

    @classmethod
    def of(cls, maps: Sequence[Map]) -> Composed:
        """The same, of a list of maps, as a configuration gives them."""
        return cls(*maps)

    def forward(self, g: Tensor) -> Tensor:
        for each in self.maps:
            g = each.forward(g)
        return g

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        *before, last = self._maps
        inputs = [g]
        for i, each in enumerate(before):
            x = inputs[-1]
            if all(later.linear for later in self._maps[i + 1 :]):
                # Only its shape counts from here on, so that it need not be computed.
                shape = each.output_shape(x.shape[1:])
                inputs.append(x.new_zeros(()).expand(len(x), *shape))
            else:
                inputs.append(each.forward(x))
        h = last.adjoint(h, inputs.pop())
        for each in reversed(before):
            h = each.adjoint(h, inputs.pop())
        return h

    def output_shape(self, shape: int | Sequence[int]) -> Shape:
        shape = layer_shape(shape)
        for each in self._maps:
            shape = each.output_shape(shape)
        return shape

    @property
    def _maps(self) -> list[Map]:
        return list(self.maps)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        """Return it as it is written: on one line."""
        return f"{type(self).__name__}({', '.join(map(repr, self.maps))})"


class Flatten(Map):
    """A layer of any shape as a plain vector, in row-major order; for :class:`Composed`."""

    def forward(self, g: Tensor) -> Tensor:
        return g.flatten(1)

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        return h.reshape(g.shape)

    def output_shape(self, shape: int | Sequence[int]) -> Shape:
        return (math.prod(layer_shape(shape)),)
