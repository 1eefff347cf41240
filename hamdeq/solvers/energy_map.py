"""States as rows ``(batch, n)``, and an energy model as a map of them.

A plain map only says where it goes. A map with an energy also says whether a step went downhill,
and comes in two halves with symmetric derivatives: activations g = ∇L(x), and fields I(g).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hamdeq.energy.model import EnergyModel, State

__all__ = [
    "Derivatives",
    "EnergyInfo",
    "EnergyMap",
    "Recorded",
    "StateLayout",
    "ready",
    "transposed_product",
]


def ready(model: Any) -> Any:
    """An energy model for one use, its weights computed; anything else as it is."""
    return model.prepared() if hasattr(model, "prepared") else model


class StateLayout:
    """The layout of a state (tensor, tuple or dict), and its way to ``(batch, n)`` and back."""

    def __init__(self, x0: Any) -> None:
        self.keys: tuple[str, ...] | None = tuple(x0) if isinstance(x0, dict) else None
        self.kind: type[Any] = type(x0) if isinstance(x0, Tensor | tuple | list | dict) else Tensor
        leaves = self._leaves(x0, "x0")
        if not leaves:
            raise ValueError("x0: expected at least one tensor, got none")
        for leaf in leaves:
            if not leaf.is_floating_point() or leaf.dim() == 0:
                raise TypeError(
                    "x0: expected floating-point tensors (batch, *shape), got "
                    f"{leaf.dtype} of shape {tuple(leaf.shape)}"
                )
        self.batch: int = len(leaves[0])
        self.dtype: torch.dtype = leaves[0].dtype
        self.shapes: list[torch.Size] = [leaf.shape[1:] for leaf in leaves]
        self.sizes: list[int] = [math.prod(shape) for shape in self.shapes]
        # One tensor that is rows already.
        self.plain: bool = [len(shape) for shape in self.shapes] == [1]
        self._check(leaves, "x0")

    def rows(self, f: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
        """f as a map of rows: ``(batch, n) -> (batch, n)``."""
        return lambda x: self.flatten(f(self.unflatten(x)))

    def flatten(self, x: Any) -> Tensor:
        """One row a sample: ``(batch, n)``."""
        leaves = self._leaves(x, "f")
        self._check(leaves, "f")
        return self.join(leaves)

    def join(self, leaves: Iterable[Tensor]) -> Tensor:
        """:meth:`flatten` for what is known to have this layout."""
        if self.plain:
            (leaf,) = leaves
            return leaf if leaf.dtype == self.dtype else leaf.to(self.dtype)
        flat = [
            leaf.reshape(self.batch, n).to(self.dtype)
            for leaf, n in zip(leaves, self.sizes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def unflatten(self, flat: Tensor) -> Any:
        """The rows in the form of x0."""
        if self.plain:
            leaves = [flat]
        else:
            parts = flat.split(self.sizes, dim=1)
            leaves = [
                part.reshape(len(flat), *shape)
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
        if self.keys is not None:
            return dict(zip(self.keys, leaves, strict=True))
        return leaves[0] if issubclass(self.kind, Tensor) else tuple(leaves)

    def of_batch(self, batch: int) -> StateLayout:
        """The same form of another number of samples."""
        layout = copy.copy(self)
        layout.batch = batch
        return layout

    def _leaves(self, x: Any, who: str) -> list[Tensor]:
        if self.keys is not None:
            if not isinstance(x, dict) or set(x) != set(self.keys):
                got = list(x) if isinstance(x, dict) else type(x).__name__
                raise ValueError(f"{who}: expected a dict of {list(self.keys)}, got {got}")
            leaves = [x[key] for key in self.keys]
        elif issubclass(self.kind, Tensor):
            leaves = [x]
        else:
            leaves = list(x) if isinstance(x, tuple | list) else [x]
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{who}: expected floating-point tensors (batch, *shape), alone or in a tuple "
                    f"or dict as in x0, got {type(leaf).__name__}"
                )
        return leaves

    def _check(self, leaves: list[Tensor], who: str) -> None:
        wanted = [(self.batch, *shape) for shape in self.shapes]
        got = [tuple(leaf.shape) for leaf in leaves]
        if got != wanted:
            raise ValueError(f"{who}: expected it to keep the shapes {wanted} of x0, got {got}")
        if torch.is_autocast_enabled(leaves[0].device.type):
            return  # which lets products come out in another dtype; flatten turns them back
        if any(leaf.dtype != self.dtype for leaf in leaves):
            raise TypeError(
                f"{who}: expected the dtype {self.dtype}, with which x0 begins, throughout, got "
                f"{[leaf.dtype for leaf in leaves]}"
            )


@dataclass(slots=True)
class EnergyInfo:
    """What is known of the energy at a state.

    Attributes:
        g: the activations: ``(batch, n)``.
        fields: I(g), where x − I(g) is the gradient of the energy in g: ``(batch, n)``.
        at_once: whether all layers are updated at once, so that f(x) is the fields.
        terms: yields the energy terms, but for a constant: ``(terms, batch)``.
        lagrangian: of a map that is certain and at once, yields Σ_A L_A(x_A): ``(batch,)``.
        coupling: yields S = ∂I/∂g, ``(batch, n, n)``; None where it has no closed form.
    """

    g: Tensor
    fields: Tensor
    at_once: bool
    terms: Callable[[], Tensor]
    lagrangian: Callable[[], Tensor] | None = None
    coupling: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Recorded:
    """One evaluation with its graph.

    Attributes:
        x: the state, a leaf: ``(batch, n)``.
        parts: the activations that the fields were computed of, whose rows make up g.
        g: g(x): ``(batch, n)``.
        fields: I(g): ``(batch, n)``.
    """

    x: Tensor
    parts: tuple[Tensor, ...]
    g: Tensor
    fields: Tensor


class EnergyMap:
    """The fixed-point map of an energy model, on rows ``(batch, n)``.

    It is f(x) = I(g(x)), or the same layer by layer, where one layer's update knows of another's;
    a fixed point of the one is a fixed point of the other.

    Args:
        model: the energy model.
        layout: how one row holds its states.
        records: whether each :meth:`step` is taken with a graph, of which the last is kept: at an
            equilibrium :class:`Derivatives` then need no evaluation of their own. It asks for a
            model whose ``step`` has the derivatives of ``activations`` and ``fields``.

    Attributes:
        certain: whether a plain step x <- f(x) never raises the energy. A small enough step
            towards I(g) never does: at a rate of time, dE/dt = −(I(g) − x)ᵀ ∇²L (I(g) − x).
    """

    def __init__(self, model: EnergyModel, layout: StateLayout, *, records: bool = False) -> None:
        self.model = model
        self.layout = layout
        self.certain: bool = model.descends
        self.records = records
        self._last: Recorded | None = None

    @property
    def independent(self) -> bool:
        """True where the activation of each neuron is known to depend on its own state alone."""
        return getattr(self.model, "independent", False)

    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self._flat(self.model.update(self.layout.unflatten(x)))

    def step(self, x: Tensor) -> tuple[Tensor, EnergyInfo]:
        """f(x), and what is known of the energy at x."""
        if not self.records:
            return self._step(x)[1:]
        self._last = None  # its memory is free for this one
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            parts, fx, info = self._step(x)
        self._last = Recorded(x, parts, info.g, info.fields)
        # What the solver is told has no graph.
        fx, info.g = fx.detach(), info.g.detach()
        info.fields = fx if info.at_once else info.fields.detach()
        return fx, info

    def _step(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, EnergyInfo]:
        here = self.model.step(self.layout.unflatten(x))
        fx = self._flat(here.update)
        fields = fx if here.at_once else self._flat(here.fields)
        info = EnergyInfo(
            self._flat(here.g), fields, here.at_once, here.terms, here.lagrangian, here.coupling
        )
        return tuple(here.g[name] for name in self.layout.keys or ()), fx, info

    def recorded(self, x: Tensor) -> Recorded | None:
        """The last step with its graph, if it was taken at x; it is kept no longer."""
        last, self._last = self._last, None
        return last if last is not None and torch.equal(last.x, x) else None

    def linearised(self, g: Tensor) -> tuple[Tensor, Callable[[], Tensor] | None]:
        """I(g), and what yields S = ∂I/∂g there, None where it has no closed form."""
        if not hasattr(self.model, "linearised"):
            return self.fields(g), None
        fields, coupling = self.model.linearised(self.layout.unflatten(g))  # type: ignore[attr-defined]
        return self._flat(fields), coupling

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
        """The same map for some samples of the batch, given by index, without a record."""
        self._last = None
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
        at = f.recorded(x)
        if at is None:
            f = f.recordable()
            with torch.inference_mode(False), torch.enable_grad():
                x = x.detach().clone().requires_grad_()
                g = f.activations(x)
                at = Recorded(x, (g,), g, f.fields(g))
        self.x: Tensor = at.x
        self.g: Tensor = at.g
        self.fx: Tensor = at.fields
        self._parts = at.parts
        # Of neurons that are independent D is diagonal, and known once it has been asked for.
        self._slopes: Tensor | None = None
        self._independent: bool = f.independent

    def coupling(self, v: Tensor) -> Tensor:
        """S v: how the fields answer a change of the activations."""
        products = [p.flatten(1) for p in _transposed_products(self.fx, self._parts, v)]
        return products[0] if len(products) == 1 else torch.cat(products, dim=1)

    def gain(self, v: Tensor) -> Tensor:
        """D v: how the activations answer a change of the states."""
        if not self._independent or v.requires_grad:
            return transposed_product(self.g, self.x, v)
        if self._slopes is None:
            self._slopes = transposed_product(self.g, self.x, torch.ones_like(self.g))
        return self._slopes * v


def transposed_product(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """(∂y/∂x)ᵀ v, zero where y does not depend on x."""
    return _transposed_products(y, (x,), v)[0]


def _transposed_products(y: Tensor, xs: Sequence[Tensor], v: Tensor) -> Sequence[Tensor]:
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in xs]
    # Newton's method differentiates this product with respect to v.
    again = v.requires_grad and torch.is_grad_enabled()
    return torch.autograd.grad(
        y, xs, v, retain_graph=True, create_graph=again, materialize_grads=True
    )
