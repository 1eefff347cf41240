"""Layers of neurons, and what every energy over named layers has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hamdeq._recorded import Recorded
from hamdeq.lagrangians import Lagrangian
from hamdeq.lagrangians.base import total
from hamdeq.synapses import Shape, Synapse, layer_shape

__all__ = [
    "Connection",
    "EnergyModel",
    "Evaluation",
    "LayeredEnergy",
    "Neurons",
    "State",
    "exerted",
    "misshapen",
]

State = dict[str, Tensor]
"""Layer name -> tensor ``(batch, *shape)``."""

Connection = tuple[tuple[str, ...], Synapse]
"""The layers that a synapse connects, in the synapse's own order, and the synapse."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of an energy model at a state x tells.

    Attributes:
        g: the activations ∇L(x).
        fields: I(g).
        update: the next state, f(x).
        at_once: whether all layers are updated at once, so that the update is the fields.
        terms: yields the energy terms that depend on x: ``(terms, batch)``.
        lagrangian: yields Σ_A L_A(x_A), ``(batch,)``, where the energy is Σ_A L*_A(g_A) − h(g) with
            a convex h, of which the update is the gradient; None where it need not be. Then
            E(g′) − E(g) ≤ Σ_A [L_A(x_A) − L_A(x′_A) + ⟨g′_A, x′_A − x_A⟩] − ⟨update − x, g′ − g⟩.
        coupling: yields S = ∂I/∂g, ``(batch, n, n)`` for a state of n numbers, its layers in the
            order of g; None where it has no closed form.
    """

    g: State
    fields: State
    update: State
    at_once: bool
    terms: Callable[[], Tensor]
    lagrangian: Callable[[], Tensor] | None = None
    coupling: Callable[[], Tensor] | None = None


@runtime_checkable
class EnergyModel(Protocol):
    """What a solver needs of a memory: a scalar that falls, and the map that lets it fall.

    The map is two: the activation g = ∇L(x) of each layer, whose derivative D = ∇²L is symmetric,
    and the field I(g) that these activations exert, minus the gradient of an energy, whose
    derivative S is symmetric too.
    """

    @property
    def descends(self) -> bool:
        """Whether the update of all layers at once never raises the energy."""
        ...

    def check_state(self, x: State) -> None:
        """Refuse what is not a state of this model, by a ValueError or TypeError."""
        ...

    def energy(self, x: State) -> Tensor:
        """Energy of a state, one scalar a sample: ``(batch,)``."""
        ...

    def update(self, x: State) -> State:
        """One step of the fixed-point map, x <- field(activation(x))."""
        ...

    def activations(self, x: State) -> State:
        """g = ∇L(x) of every layer."""
        ...

    def fields(self, g: State) -> State:
        """The field on every layer."""
        ...

    def step(self, x: State) -> Evaluation:
        """The update, and what is known besides of the energy at x."""
        ...

    def select(self, rows: Tensor) -> EnergyModel:
        """The same energy for some samples of the batch."""
        ...


class Neurons(Recorded, nn.Module):
    """A layer of neurons: a shape and a Lagrangian.

    Args:
        shape: shape of one sample's state, an integer for a plain vector.
        lagrangian: the convex function that gives the layer its activation.
    """

    def __init__(self, shape: int | Sequence[int], lagrangian: Lagrangian) -> None:
        super().__init__()
        if not isinstance(lagrangian, Lagrangian):
            raise TypeError(
                "lagrangian: expected a Lagrangian such as hamdeq.Sigmoid(4.0, 0.5), "
                f"got {type(lagrangian).__name__}"
            )
        self.shape: Shape = layer_shape(shape)
        self.lagrangian = lagrangian

    def activation(self, x: Tensor) -> Tensor:
        """g = ∇L(x), of x's shape."""
        g = self.lagrangian.activation(x)
        if g.shape != x.shape:
            raise misshapen(self.lagrangian, "an activation", x.shape, g)
        return g

    def potential(self, x: Tensor) -> Tensor:
        """The Lagrangian L(x): ``(batch,)``."""
        potential = self.lagrangian(x)
        if potential.shape != x.shape[:1]:
            raise misshapen(self.lagrangian, "one number a sample", x.shape[:1], potential)
        return potential

    def energy(self, x: Tensor) -> Tensor:
        """The Legendre transform L*(g): ``(batch,)``."""
        energy = self.lagrangian.energy(x)
        if energy.shape != x.shape[:1]:
            raise misshapen(self.lagrangian, "one number a sample", x.shape[:1], energy)
        return energy

    def extra_repr(self) -> str:
        return f"{self.shape}"


class LayeredEnergy(ABC):
    """An energy over named layers: what a :class:`HAM` and a
    :class:`~hamdeq.energy.clamping.Clamped` one share.

    Attributes:
        connections: the synapses that act between the layers.
        drive: constant fields on some of the layers (of a plain HAM: none).
    """

    connections: Sequence[Connection]
    drive: Mapping[str, Tensor] = {}
    # Layers that act on each other, updated at once, can fall into a cycle of two.
    descends = False

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose states this energy is a function of."""

    @abstractmethod
    def layer(self, name: str) -> Neurons:
        """The neurons of a layer."""

    def prepared(self) -> LayeredEnergy:
        """The same energy, for one use: see :meth:`HAM.prepared <hamdeq.HAM.prepared>`."""
        return self

    @property
    def independent(self) -> bool:
        """True where the activation of each neuron depends on its own state alone."""
        return self.are_independent(self.layers)

    def are_independent(self, layers: Iterable[str]) -> bool:
        """Tell if that is so in some layers."""
        return all(self.layer(name).lagrangian.additive for name in layers)

    def zero_state(self, like: Tensor, layers: Collection[str] | None = None) -> State:
        """Zeros for the layers (default all), with the batch, dtype and device of ``like``."""
        names = self.layers if layers is None else layers
        return {a: like.new_zeros((like.shape[0], *self.layer(a).shape)) for a in names}

    def activations(self, x: State) -> State:
        """g = ∇L(x) of every layer in x."""
        return {name: self.layer(name).activation(x_a) for name, x_a in x.items()}

    def field(self, g: State, to: str, connections: Iterable[Connection] | None = None) -> Tensor:
        """The field on one layer, I = −∂(Σ_s E_s)/∂g_to, ``(batch, *shape)``.

        The layer's own activation may be left out of g where all its synapses are linear in it.
        With ``connections`` only these exert it, and the constant ones.
        """
        total = self.drive.get(to)
        if to not in g:
            some = next(iter(g.values()), total)
            if some is None:
                raise ValueError(
                    f"g: expected the activation of at least one of {list(self.layers)}, which "
                    "sets the batch, got none"
                )
            g = g | {to: self.nothing(some, to)}
        for layers, synapse in self.connections if connections is None else connections:
            if to not in layers:
                continue
            for place, name in enumerate(layers):
                if name == to:
                    term = exerted(synapse, place, *[g[a] for a in layers])
                    total = term if total is None else total + term
        return torch.zeros_like(g[to]) if total is None else total

    def nothing(self, like: Tensor, layer: str) -> Tensor:
        """The zero state of a layer without memory of its own, to be read alone."""
        return like.new_zeros(()).expand(len(like), *self.layer(layer).shape)

    def fields(self, g: State, to: Collection[str] | None = None) -> State:
        """The field on some layers (default every layer in g): what their states become."""
        return {name: self.field(g, name) for name in (g if to is None else to)}

    def energy_terms(self, x: State) -> State:
        """The energy term by term, each ``(batch,)``: one for a layer, one for what it shares.

        Several synapses between the same layers make one term.
        """
        self.check_state(x)
        layers = {name: self.layer(name).energy(x_a) for name, x_a in x.items()}
        interactions = self.interactions(self.activations(x), self.connections)
        return self.constant_terms() | layers | interactions

    def constant_terms(self) -> State:
        """The energy terms that do not depend on the layers' states."""
        return {}

    def interactions(self, g: State, connections: Iterable[Connection]) -> State:
        """The energy terms of some of the connections, and of the constant fields."""
        terms: State = {}
        for layers, synapse in connections:
            label = f"{type(synapse).__name__} {'–'.join(layers)}"
            energy = synapse.energy(*(g[name] for name in layers))
            if energy.shape != g[layers[0]].shape[:1]:
                raise misshapen(synapse, "one energy a sample", g[layers[0]].shape[:1], energy)
            terms[label] = terms[label] + energy if label in terms else energy
        for name in (name for name in g if name in self.drive):
            terms[f"clamped–{name}"] = -total(self.drive[name] * g[name])
        return terms

    def summands(self, x: State, g: State, connections: Iterable[Connection]) -> list[Tensor]:
        """What the energy of the layers in x is the sum of, in its cheapest form.

        ⟨x, g⟩ and −L(x), apart, in place of L*(g): their sizes tell what rounding leaves of it.
        """
        parts = [*self.interactions(g, connections).values()]
        for name, x_a in x.items():
            parts += [total(x_a * g[name]), -self.layer(name).potential(x_a)]
        return parts

    def energy(self, x: State) -> Tensor:
        """E(x), one scalar a sample: ``(batch,)``."""
        return torch.stack(tuple(self.energy_terms(x).values())).sum(0)

    def update(self, x: State, *, clamped: Collection[str] = ()) -> State:
        """One synchronous step: every layer takes on its field; clamped layers stay.

        Picard iteration of this map with damping h is forward Euler with step h.

        Raises:
            ValueError: an unknown or missing layer, a wrong shape, unequal batches.
            TypeError: a tensor that is not of floating point.
        """
        self.check_names(clamped)
        self.check_state(x)
        g = self.activations(x)
        fresh = self.fields(g, [name for name in x if name not in clamped])
        return {name: fresh.get(name, x[name]) for name in x}

    def step(self, x: State) -> Evaluation:
        """The update, and what is known besides of the energy at x."""
        g = self.activations(x)
        fields = self.fields(g)
        return Evaluation(
            g, fields, fields, True, lambda: torch.stack(self.summands(x, g, self.connections))
        )

    @abstractmethod
    def select(self, rows: Tensor) -> LayeredEnergy:
        """The same energy for some samples of the batch, given by index."""

    def check_names(self, names: Collection[str]) -> None:
        """Refuse names that are no layer's, and a single name in place of several."""
        if isinstance(names, str):
            raise TypeError(
                f"expected several layer names, such as ({names!r},), got the string {names!r}"
            )
        unknown = [name for name in names if name not in self.layers]
        if unknown:
            raise ValueError(f"unknown layer {unknown[0]!r}: this HAM has {list(self.layers)}")

    def check_state(
        self,
        x: Mapping[str, Tensor],
        layers: Collection[str] | None = None,
        *,
        batch: int | None = None,
    ) -> None:
        """Refuse a state that lacks a layer of ``layers`` (default all), or is misshapen.

        Raises:
            ValueError: a missing or unknown layer, a wrong shape, unequal batches.
            TypeError: a tensor that is not of floating point.
        """
        self.check_names(x)
        names = self.layers if layers is None else tuple(layers)
        if set(names) != set(x):
            raise ValueError(f"state: expected the layers {list(names)}, got {list(x)}")
        for name, x_a in x.items():
            shape = self.layer(name).shape
            if not isinstance(x_a, Tensor) or not x_a.is_floating_point():
                kind = x_a.dtype if isinstance(x_a, Tensor) else type(x_a).__name__
                raise TypeError(
                    f"layer {name!r}: expected a floating-point tensor, got {kind}; "
                    "images of bytes become one by images.float() / 255"
                )
            if tuple(x_a.shape[1:]) != shape or x_a.dim() == 0:
                raise ValueError(
                    f"layer {name!r}: expected shape (batch, {', '.join(map(str, shape))}), "
                    f"got {tuple(x_a.shape)}"
                )
            batch = x_a.shape[0] if batch is None else batch
            if x_a.shape[0] != batch:
                raise ValueError(
                    f"layer {name!r}: expected a batch of {batch} as in the other layers, "
                    f"got {x_a.shape[0]}"
                )


def exerted(synapse: Synapse, place: int, *g: Tensor) -> Tensor:
    """The field of a synapse on one of its layers, refused unless it has the layer's shape."""
    field = synapse.field(place, *g)
    if field.shape != g[place].shape:
        raise misshapen(synapse, f"a field on its layer {place}", g[place].shape, field)
    return field


def misshapen(module: nn.Module, what: str, expected: Sequence[int], found: Tensor) -> ValueError:
    """The error of a Lagrangian or synapse whose result has another shape than it should."""
    return ValueError(
        f"{type(module).__name__}: expected {what}, of shape {tuple(expected)}, got "
        f"{tuple(found.shape)}; the first axis is the batch, and energies and Lagrangians are "
        "summed over all others, as by x.flatten(1).sum(1)"
    )
