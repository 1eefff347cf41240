"""Base of all synapses: an interaction energy, and the fields that follow from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq._checks import integer, require
from hamdeq._recorded import Recorded
from hamdeq.lagrangians.base import gradient, total

__all__ = ["Shape", "Synapse", "layer_shape"]

Shape = tuple[int, ...]
"""A layer's shape: that of one sample."""


class Synapse(Recorded, nn.Module, ABC):
    """An interaction energy E(g₁, …, g_k) between the activations of k layers.

    A subclass gives :meth:`energy`; it may give :meth:`field` in closed form, and otherwise the
    field is derived by automatic differentiation.

    Attributes:
        shapes: the layer shape expected at each place, or None where any will do. Its length is
            the number of layers the synapse connects. A synapse that fits more shapes than a
            list can say overrides :meth:`fit`.

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

    def fit(self, names: Sequence[str], shapes: Sequence[Shape]) -> None:
        """Refuse layers that the synapse cannot connect; :class:`~hamdeq.HAM` asks.

        Args:
            names: the layers' names, in the synapse's own order.
            shapes: their shapes.

        Raises:
            ValueError: not as many layers as :attr:`shapes`, or other shapes.
        """
        if self.shapes is None:
            return
        kind = type(self).__name__
        remedy = "give one for each place of the synapse"
        fits = len(names) == len(self.shapes)
        require(fits, kind, f"{len(self.shapes)} layers", f"{len(names)} names", remedy)
        remedy = "change the synapse or the neurons"
        for name, expected, shape in zip(names, self.shapes, shapes, strict=True):
            fits = expected in (None, shape)
            require(fits, kind, f"shape {expected} for layer {name!r}", shape, remedy)

    def is_linear_in(self, place: int) -> bool:
        """True if E is linear in the activation in this place, the others fixed.

        Then E = −⟨I, g⟩ with a field I that does not depend on the layer itself, and the layer
        can be eliminated exactly. Declare it only where it holds for every value of the
        parameters; of an energy that is linear but for a rest without this layer, make the rest
        a synapse of its own.
        """
        return False

    def check_linear(self, *g: Tensor) -> None:
        """Refuse what :meth:`is_linear_in` declares and these activations contradict.

        For tests, with random activations: nothing else calls it.

        Raises:
            ValueError: a place in which E is declared to be linear, and is not.
        """
        for place in (i for i in range(len(g)) if self.is_linear_in(i)):
            with torch.no_grad():
                at_zero = (*g[:place], torch.zeros_like(g[place]), *g[place + 1 :])
                product = self.field(place, *at_zero) * g[place]
                gap = (self.energy(*g) + total(product)).abs()
            # What rounding leaves of a sum of such terms.
            slack = torch.finfo(gap.dtype).eps ** 0.5 * (total(product.abs()) + gap.new_ones(()))
            require(
                (gap <= slack).all(),
                type(self).__name__,
                f"the energy −⟨I, g⟩, as it is declared to be linear in place {place}",
                f"one that differs by {float(gap.max()):.3g}",
                "declare it only where it holds, and make what does not depend on that layer a "
                "synapse of its own",
            )


def layer_shape(shape: int | Sequence[int]) -> Shape:
    """A layer's shape as a tuple of at least one positive integer."""
    if isinstance(shape, Sequence) and len(shape) > 0:
        return tuple(integer("shape", n) for n in shape)
    return (integer("shape", shape),)
