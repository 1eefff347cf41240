"""An energy model as a map of rows: what solvers and gradients may know beyond x <- f(x).

A plain map only says where it goes. A map with an energy also says whether a step went downhill,
and comes in two halves with symmetric derivatives: activations g = ∇L(x), and fields I(g).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamdeq.energy.model import EnergyModel, State
from hamdeq.solvers.layout import StateLayout

__all__ = ["Derivatives", "EnergyInfo", "EnergyMap", "ready", "transposed_product"]


def ready(model: Any) -> Any:
    """An energy model for one use, its weights computed; anything else as it is."""
    return model.prepared() if hasattr(model, "prepared") else model


class EnergyInfo(NamedTuple):
    """What is known of the energy at a state.

    Attributes:
        g: the activations: ``(batch, n)``.
        fields: I(g), where x − I(g) is the gradient of the energy in g: ``(batch, n)``.
        terms: yields the energy terms, but for a constant: ``(terms, batch)``.
    """

    g: Tensor
    fields: Tensor
    terms: Callable[[], Tensor]


class EnergyMap:
    """The fixed-point map of an energy model, on rows ``(batch, n)``.

    It is f(x) = I(g(x)), or the same layer by layer, where one layer's update knows of another's;
    a fixed point of the one is a fixed point of the other.

    Args:
        model: the energy model.
        layout: how one row holds its states.

    Attributes:
        certain: whether a plain step x <- f(x) never raises the energy. A small enough step
            towards I(g) never does: at a rate of time, dE/dt = −(I(g) − x)ᵀ ∇²L (I(g) − x).
    """

    def __init__(self, model: EnergyModel, layout: StateLayout) -> None:
        self.model = model
        self.layout = layout
        self.certain: bool = model.descends

    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self._flat(self.model.update(self.layout.unflatten(x)))

    def step(self, x: Tensor) -> tuple[Tensor, EnergyInfo]:
        """f(x), and what is known of the energy at x."""
        g, fields, update, terms = self.model.step(self.layout.unflatten(x))
        fx = self._flat(update)
        return fx, EnergyInfo(self._flat(g), fx if fields is update else self._flat(fields), terms)

    def image(self, x: Tensor) -> Tensor:
        """I(g(x)): what all layers at once would become."""
        return self.fields(self.activations(x))

    def activations(self, x: Tensor) -> Tensor:
        """g(x): ``(batch, n)``."""
        return self._flat(self.model.activations(self.layout.unflatten(x)))

    def fields(self, g: Tensor) -> Tensor:
        """I(g): ``(batch, n)``."""
        return self._flat(self.model.fields(self.layout.unflatten(g)))

    def recordable(self) -> EnergyMap:
        """The same map with nothing in it that was made in inference mode, which no graph holds."""
        if not torch.is_inference_mode_enabled():
            return self
        with torch.inference_mode(False):
            return self.select(torch.arange(self.layout.batch))

    def select(self, rows: Tensor) -> EnergyMap:
        """The same map for some samples of the batch, given by index."""
        return EnergyMap(self.model.select(rows), self.layout.of_batch(len(rows)))

    def _flat(self, x: State) -> Tensor:
        # Straight from the model: its own names, shapes and batch.
        return self.layout.join(x[name] for name in self.layout.keys or ())


class Derivatives:
    """Products with the derivatives of an energy model's map at a state: D = ∂g/∂x, S = ∂I/∂g.

    Both are symmetric, since g and I are gradients, and ∂f/∂x = S D where all layers are updated at
    once.

    Attributes:
        x: the state, a leaf of the graph.
        g: g(x), with its graph.
        fx: I(g), with its graph.
    """

    def __init__(self, f: EnergyMap, x: Tensor) -> None:
        f = f.recordable()
        with torch.inference_mode(False), torch.enable_grad():
            self.x: Tensor = x.detach().clone().requires_grad_()
            self.g: Tensor = f.activations(self.x)
            self.fx: Tensor = f.fields(self.g)

    def coupling(self, v: Tensor) -> Tensor:
        """S v: how the fields answer a change of the activations."""
        return transposed_product(self.fx, self.g, v)

    def gain(self, v: Tensor) -> Tensor:
        """D v: how the activations answer a change of the states."""
        return transposed_product(self.g, self.x, v)


def transposed_product(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """(∂y/∂x)ᵀ v, zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    # Newton's method differentiates this product with respect to v.
    again = v.requires_grad and torch.is_grad_enabled()
    return torch.autograd.grad(
        y, x, v, retain_graph=True, create_graph=again, materialize_grads=True
    )[0]
