"""Clamping: fix some layers of a memory, such as its input, and keep the energy of the others.

A layer may also be clamped in part, as the observed half of an image is. Its clamped neurons stay
in the energy, with a Lagrangian that is linear: their activation is then a constant, whatever their
field. So everything that holds of layers, above all their elimination, holds of
partially clamped ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hamdeq._checks import boolean, instance, wrong
from hamdeq.energy.ham import HAM, check_ham
from hamdeq.energy.model import Connection, LayeredEnergy, Neurons, State, exerted
from hamdeq.lagrangians import Lagrangian
from hamdeq.lagrangians.base import total

__all__ = ["Clamped", "check_masks", "clamp", "forward_sweep"]


class Clamped(LayeredEnergy):
    """The energy of the free layers of a HAM while the others are clamped.

    What the clamped layers exert on the free ones does not change while these settle, so it is
    computed once, here, and not in every step: for an image this is by far the largest product.
    It belongs to the parameters' present values, as do weights that are computed from others, by
    normalisation or pruning: clamp the layers anew after a change of these.

    Attributes:
        ham: the memory.
        clamped: states of the layers that are clamped.
        partial: states of those that are clamped in part, zero elsewhere.
        observed: which neurons of these are clamped.
    """

    def __init__(self, ham: LayeredEnergy, clamped: State, observed: State | None = None) -> None:
        ham.check_state(clamped, layers=tuple(clamped))
        self.ham = ham
        self._ham = ham = ham.prepared()
        some = next(iter(clamped.values()))
        self._batch = len(some)
        self.observed: State = check_masks(ham, clamped, observed)
        self.partial: State = {
            name: torch.where(mask, clamped[name], 0.0) for name, mask in self.observed.items()
        }
        clamped = {name: x for name, x in clamped.items() if name not in self.observed}
        self.clamped = clamped
        g = ham.activations(clamped)
        connections: list[Connection] = []
        drive: State = {}
        self._settled: list[Connection] = []
        for layers, synapse in ham.connections:
            free = [name for name in layers if name not in clamped]
            if not free:
                self._settled.append((layers, synapse))
            elif len(free) == 1 and synapse.is_linear_in(place := layers.index(free[0])):
                to = free[0]
                # Of the free layer's own activation only the shape counts.
                own = drive[to] if to in drive else ham.nothing(some, to)
                field = exerted(synapse, place, *(own if a == to else g[a] for a in layers))
                drive[to] = drive[to] + field if to in drive else field
            else:
                connections.append((layers, synapse))
        self.connections: Sequence[Connection] = connections
        self.drive: Mapping[str, Tensor] = drive
        self._g = g
        self._free = tuple(name for name in ham.layers if name not in clamped)
        self._remake()

    def __repr__(self) -> str:
        free = [name for name in self._free if name not in self.partial]
        parts = {"clamped": self.clamped, "clamped in part": self.partial, "free": free}
        text = "; ".join(f"{part}: {', '.join(names)}" for part, names in parts.items() if names)
        return f"{type(self).__name__}({text})"

    def _remake(self) -> None:
        """Make the neurons of the partially clamped layers."""
        self._neurons = {
            name: Neurons(
                self._ham.layer(name).shape,
                _PartiallyClamped(self._ham.layer(name).lagrangian, x, self.observed[name]),
            )
            for name, x in self.partial.items()
        }

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are free, or free in part."""
        return self._free

    def layer(self, name: str) -> Neurons:
        """The neurons of a layer."""
        return self._neurons.get(name) or self._ham.layer(name)

    def check_state(
        self,
        x: Mapping[str, Tensor],
        layers: Collection[str] | None = None,
        *,
        batch: int | None = None,
    ) -> None:
        """Refuse a state that lacks a free layer, is misshapen, or not of the clamped batch."""
        super().check_state(x, layers, batch=self._batch if batch is None else batch)

    def field(self, g: State, to: str, connections: Iterable[Connection] | None = None) -> Tensor:
        """The field on one free layer, from the free layers' activations."""
        return super().field(self._g | g, to, connections)

    def fields(self, g: State, to: Collection[str] | None = None) -> State:
        """What the states of some free layers become: their fields, and zero where clamped.

        A clamped neuron's state has no say: so it is left out of the size of a state.
        """
        fields = super().fields(g, to)
        return fields | {
            name: torch.where(self.observed[name], 0.0, fields[name])
            for name in self.partial
            if name in fields
        }

    def interactions(self, g: State, connections: Iterable[Connection]) -> State:
        """The energy terms of some of the connections, and of the constant fields."""
        return super().interactions(self._g | g, connections)

    def constant_terms(self) -> State:
        """The energy terms of the clamped layers, with which the sum is the HAM's energy."""
        layers = {name: self.layer(name).energy(x_a) for name, x_a in self.clamped.items()}
        return layers | self._ham.interactions(self._g, self._settled)

    def select(self, rows: Tensor) -> Clamped:
        """The same energy for some samples of the batch, given by index."""
        part = self._mapped(lambda x: x[rows])
        part._batch = len(rows)
        return part

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Clamped:
        part = copy.copy(self)
        for name in _STATES:
            setattr(part, name, {a: function(x) for a, x in getattr(self, name).items()})
        part._remake()
        return part

    def states(self) -> list[State]:
        """All that it was clamped at and made of that: tensors with the batch first."""
        return [getattr(self, name) for name in _STATES]

    def detach(self) -> Clamped:
        """The same energy without a graph to what it was clamped at."""
        return self._mapped(Tensor.detach)

    def full(self, x: State) -> State:
        """A state of all layers: the free neurons as in x, the others as clamped, in copies."""
        observed = {
            name: torch.where(m, self.partial[name], x[name]) for name, m in self.observed.items()
        }
        everything = (
            x | observed | {name: clamped.clone() for name, clamped in self.clamped.items()}
        )
        return {name: everything[name] for name in self._ham.layers}


_STATES = ("clamped", "drive", "_g", "observed", "partial")


class _PartiallyClamped(Lagrangian):
    """Neurons of which some are clamped: L̃(x) = L(x̂) + ⟨g(x̂), x − x̂⟩ over these, x̂ as clamped.

    Their part of it is linear, the tangent of L at x̂: the activation there is g(x̂) for every x, and
    the Legendre transform is that of the full layer, L*(g).

    Args:
        lagrangian: the neurons' own, additive.
        x: the clamped states; elsewhere zero: ``(batch, *shape)``.
        observed: which neurons are clamped, of x's shape.
    """

    additive = True

    def __init__(self, lagrangian: Lagrangian, x: Tensor, observed: Tensor) -> None:
        super().__init__()
        self.lagrangian, self.x, self.observed = lagrangian, x, observed
        self.g = torch.where(observed, lagrangian.activation(x), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        tangent = self.g * torch.where(self.observed, x - self.x, 0.0)
        return self.lagrangian(self._seen(x)) + total(tangent)

    def activation(self, x: Tensor) -> Tensor:
        # Not the activation of x, chosen from afterwards: where that overflows for a field on a
        # clamped neuron, its gradient would be infinity times zero.
        return self.lagrangian.activation(self._seen(x))

    def energy(self, x: Tensor) -> Tensor:
        return self.lagrangian.energy(self._seen(x))

    def _seen(self, x: Tensor) -> Tensor:
        return torch.where(self.observed, self.x, x)


def clamp(ham: HAM, clamped: State, observed: State | None = None) -> Clamped:
    """Clamp some layers of a memory at given states: the energy of the others remains.

    Args:
        ham: the memory.
        clamped: states of the layers to clamp, at least one; ``(batch, *shape)`` each.
        observed: of layers among these that are clamped in part, which of their neurons are:
            boolean, of the layer's shape or with a batch. The states of the others do not
            matter, not even if they are NaN.

    Raises:
        ValueError: an unknown layer, a wrong shape, unequal batches; a layer clamped in part whose
            Lagrangian is not a sum over neurons.
        TypeError: no HAM; states that are not of floating point, masks that are not boolean, or
            not in a dict.
    """
    check_ham(ham)
    if not clamped:
        raise wrong("clamped", f"states of at least one of {list(ham.layers)}", "none")
    return Clamped(ham, clamped, observed)


def forward_sweep(model: Clamped) -> State:
    """States of the free layers after one pass outwards from what is clamped.

    The layers next to clamped ones take on the field of these, the next ones the field of those,
    and so on: layers that have not been reached yet exert none. Of a chain whose input is clamped
    that is the pass of a feed-forward network. It costs one product with each weight, half as much
    as one even-odd step. Layers that no clamped one leads to start at zero. A bias leads nowhere:
    it adds to the field of a layer that is reached.

    Returns:
        the free layers' states, ``(batch, *shape)`` each.
    """
    some = next(iter((model.clamped | model.partial).values()))
    x = model.ham.zero_state(some, model.partial)
    # What is clamped in part is observed to that extent, before its free neurons are.
    g = {name: model.layer(name).activation(x[name]) for name in model.partial}
    links = [c for c in model.ham.connections if len(c[0]) > 1]
    while True:
        observed = {*g, *model.clamped}
        front = [name for name in model.layers if any(_leads(c, observed, name) for c in links)]
        if not front:
            missing = [name for name in model.layers if name not in x]
            x |= model.ham.zero_state(some, missing)
            return {name: x[name] for name in model.layers}
        new = {}
        for name in front:
            field = model.field(
                g, name, [c for c in model.connections if _leads(c, observed, name)]
            )
            # Under autocast it may come out in half precision.
            new[name] = field.to(some.dtype)
        x |= new
        g |= model.activations(new)


def _leads(connection: Connection, observed: set[str], to: str) -> bool:
    """Whether the layer is the only one in the connection that is not observed."""
    return [name for name in connection[0] if name not in observed] == [to]


def check_masks(ham: LayeredEnergy, clamped: State, observed: State | None) -> State:
    """The masks of the layers that are clamped in part, with a batch, refused unless they fit."""
    observed = {} if observed is None else observed
    instance("observed", observed, dict, f"a dict {{layer name: mask}} of some of {list(clamped)}")
    masks = {}
    for name, mask in observed.items():
        if name not in clamped:
            raise wrong("observed", f"names among the given {list(clamped)}", repr(name))
        shape, batch = ham.layer(name).shape, len(clamped[name])
        what = f"observed[{name!r}]"
        boolean(what, mask, "True where a neuron is clamped; numbers become one by mask > 0")
        if tuple(mask.shape) not in (shape, (batch, *shape)):
            raise wrong(what, f"shape {shape} or {(batch, *shape)}", str(tuple(mask.shape)))
        lagrangian = ham.layer(name).lagrangian
        if not lagrangian.additive:
            raise wrong(
                what,
                "a layer of independent neurons, to clamp some of them",
                f"{type(lagrangian).__name__}, which couples them",
                "clamp all of it, or make two layers of it (a Lagrangian of your own that is a sum "
                "over neurons says so by additive = True)",
            )
        masks[name] = mask.expand(batch, *shape)
    return masks
