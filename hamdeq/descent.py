"""An energy model as a map of rows: what solvers and gradients may know beyond x <- f(x).

A plain map only says where it goes. A map with an energy also says whether a step went downhill,
and comes in two halves with symmetric derivatives: activations g = ∇L(x), and fields I(g).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hamdeq.forms import Form
from hamdeq.layers import EnergyModel, State

__all__ = ["Descent", "Energetic"]


class Energetic(NamedTuple):
    """What is known of the energy at a state.

    Attributes:
        g: the activations: ``(batch, n)``.
        fields: I(g), where x − I(g) is the gradient of the energy in g: ``(batch, n)``.
        terms: yields the energy terms, but for a constant: ``(terms, batch)``.
    """

    g: Tensor
    fields: Tensor
    terms: Callable[[], Tensor]


class Descent:
    """The fixed-point map of an energy model, on rows ``(batch, n)``.

    It is f(x) = I(g(x)), or the same layer by layer, where one layer's update knows of another's;
    a fixed point of the one is a fixed point of the other.

    Args:
        model: the energy model.
        form: the form of its states.

    Attributes:
        certain: whether a plain step x <- f(x) never raises the energy. A small enough step
            towards I(g) never does: at a rate of time, dE/dt = −(I(g) − x)ᵀ ∇²L (I(g) − x).
    """

    def __init__(self, model: EnergyModel, form: Form) -> None:
        self.model = model
        self.form = form
        self.certain: bool = model.descends

    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self._flat(self.model.update(self.form.restore(x)))

    def step(self, x: Tensor) -> tuple[Tensor, Energetic]:
        """f(x), and what is known of the energy at x."""
        g, fields, update, terms = self.model.step(self.form.restore(x))
        fx = self._flat(update)
        return fx, Energetic(self._flat(g), fx if fields is update else self._flat(fields), terms)

    def image(self, x: Tensor) -> Tensor:
        """I(g(x)): what all layers at once would become."""
        return self.fields(self.activations(x))

    def activations(self, x: Tensor) -> Tensor:
        """g(x): ``(batch, n)``."""
        return self._flat(self.model.activations(self.form.restore(x)))

    def fields(self, g: Tensor) -> Tensor:
        """I(g): ``(batch, n)``."""
        return self._flat(self.model.fields(self.form.restore(g)))

    def select(self, rows: Tensor) -> Descent:
        """The same map for some samples of the batch, given by index."""
        return Descent(self.model.select(rows), self.form.of_batch(len(rows)))

    def _flat(self, x: State) -> Tensor:
        # Straight from the model: its own names, shapes and batch.
        return self.form.join(x[name] for name in self.form.keys or ())
