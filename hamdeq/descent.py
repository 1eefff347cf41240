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
        terms: yields the energy terms, but for a constant: ``(terms, batch)``.
    """

    g: Tensor
    terms: Callable[[], Tensor]


class Descent:
    """The fixed-point map f(x) = I(g(x)) of an energy model, on rows ``(batch, n)``.

    Args:
        model: the energy model.
        form: the form of its states.

    Attributes:
        certain: whether a plain step x <- f(x) never raises the energy. A small enough step
            towards f(x) never does: at a rate of time, dE/dt = −(f(x) − x)ᵀ ∇²L (f(x) − x).
    """

    def __init__(self, model: EnergyModel, form: Form) -> None:
        self.model, self.form = model, form
        self.certain = model.descends

    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self._flat(self.model.update(self.form.restore(x)))

    def step(self, x: Tensor) -> tuple[Tensor, Energetic]:
        """f(x), and what is known of the energy at x."""
        g, fx, terms = self.model.step(self.form.restore(x))
        return self._flat(fx), Energetic(self._flat(g), terms)

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
