"""Clamping: hold some layers of a memory, such as its input, and keep the energy of the others.

A layer may also be held in part, as the known half of an image is. Its held neurons stay in the
energy, with a Lagrangian that is linear: their activation is then a constant, whatever their field.
So everything that holds of layers, above all their elimination, holds of partly held ones.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hamdeq.energy.ham import HAM, check_ham
from hamdeq.energy.model import Connection, Layered, Neurons, State, exerted
from hamdeq.lagrangians import Lagrangian
from hamdeq.lagrangians.base import total

__all__ = ["Clamped", "check_masks", "clamp"]


class Clamped(Layered):
    """The energy of the free layers of a HAM while the others are held.

    What the held layers exert on the free ones does not change while these settle, so it is
    computed once, here, and not in every step: for an image this is by far the largest product.
    It belongs to the parameters' present values, as do weights that are computed from others, by
    normalisation or pruning: hold the layers anew after a change of these.

    Attributes:
        ham: the memory.
        held: states of the layers that are held.
        partly: states of those that are held in part, zero elsewhere.
        known: which neurons of these are held.
    """

    def __init__(self, ham: Layered, held: State, known: State | None = None) -> None:
        ham.check_state(held, layers=tuple(held))
        self.ham = ham
        self._ham = ham = ham.prepared()
        some = next(iter(held.values()))
        self._batch = len(some)
        self.known: State = check_masks(ham, held, known)
        self.partly: State = {
            name: torch.where(mask, held[name], 0.0) for name, mask in self.known.items()
        }
        held = {name: x for name, x in held.items() if name not in self.known}
        self.held = held
        g = ham.activations(held)
        connections: list[Connection] = []
        drive: State = {}
        self._settled: list[Connection] = []
        for layers, synapse in ham.connections:
            free = [name for name in layers if name not in held]
            if not free:
                self._settled.append((layers, synapse))
            elif len(free) == 1 and synapse.is_linear_in(place := layers.index(free[0])):
                to = free[0]
                around = g | ham.zero_state(some, [to])
                field = exerted(synapse, place, *(around[name] for name in layers))
                drive[to] = drive[to] + field if to in drive else field
            else:
                connections.append((layers, synapse))
        self.connections: Sequence[Connection] = connections
        self.drive: Mapping[str, Tensor] = drive
        self._g = g
        self._free = tuple(name for name in ham.layers if name not in held)
        self._remake()

    def __repr__(self) -> str:
        free = [name for name in self._free if name not in self.partly]
        parts = {"held": self.held, "held in part": self.partly, "free": free}
        text = "; ".join(f"{part}: {', '.join(names)}" for part, names in parts.items() if names)
        return f"{type(self).__name__}({text})"

    def _remake(self) -> None:
        """The neurons of the partly held layers."""
        self._neurons = {
            name: Neurons(
                self._ham.layer(name).shape,
                _PartlyHeld(self._ham.layer(name).lagrangian, x, self.known[name]),
            )
            for name, x in self.partly.items()
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
        """Refuse a state that lacks a free layer, is misshapen, or not of the held batch."""
        super().check_state(x, layers, batch=self._batch if batch is None else batch)

    def field(self, g: State, to: str, connections: Iterable[Connection] | None = None) -> Tensor:
        """The field on one free layer, from the free layers' activations."""
        return super().field(self._g | g, to, connections)

    def fields(self, g: State, to: Collection[str] | None = None) -> State:
        """What the states of some free layers become: their fields, and zero where held.

        A held neuron's state has no say: so it is left out of the size of a state.
        """
        fields = super().fields(g, to)
        return fields | {
            name: torch.where(self.known[name], 0.0, fields[name])
            for name in self.partly
            if name in fields
        }

    def interactions(self, g: State, connections: Iterable[Connection]) -> State:
        """The energy terms of some of the connections, and of the constant fields."""
        return super().interactions(self._g | g, connections)

    def constant_terms(self) -> State:
        """The energy terms of the held layers, with which the sum is the HAM's energy."""
        layers = {name: self.layer(name).energy(x_a) for name, x_a in self.held.items()}
        return layers | self._ham.interactions(self._g, self._settled)

    def select(self, rows: Tensor) -> Clamped:
        """The same energy for some samples of the batch, given by index."""
        part = copy.copy(self)
        for name in ("held", "drive", "_g", "known", "partly"):
            setattr(part, name, {a: x[rows] for a, x in getattr(self, name).items()})
        part._batch = len(rows)
        part._remake()
        return part

    def full(self, x: State) -> State:
        """A state of all layers: the free neurons as in x, the others as held, in copies."""
        known = {name: torch.where(m, self.partly[name], x[name]) for name, m in self.known.items()}
        everything = x | known | {name: held.clone() for name, held in self.held.items()}
        return {name: everything[name] for name in self._ham.layers}


class _PartlyHeld(Lagrangian):
    """Neurons of which some are held: L̃(x) = L(x̂) + ⟨g(x̂), x − x̂⟩ over these, x̂ as held.

    Their part of it is linear, the tangent of L at x̂: the activation there is g(x̂) for every x, and
    the Legendre transform is that of the full layer, L*(g).

    Args:
        lagrangian: the neurons' own, additive.
        x: the held states; elsewhere zero: ``(batch, *shape)``.
        known: which neurons are held, of x's shape.
    """

    additive = True

    def __init__(self, lagrangian: Lagrangian, x: Tensor, known: Tensor) -> None:
        super().__init__()
        self.lagrangian, self.x, self.known = lagrangian, x, known
        self.g = torch.where(known, lagrangian.activation(x), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        tangent = self.g * torch.where(self.known, x - self.x, 0.0)
        return self.lagrangian(self._seen(x)) + total(tangent)

    def activation(self, x: Tensor) -> Tensor:
        # Not the activation of x, chosen from afterwards: where that overflows for a field on a
        # held neuron, its gradient would be infinity times zero.
        return self.lagrangian.activation(self._seen(x))

    def energy(self, x: Tensor) -> Tensor:
        return self.lagrangian.energy(self._seen(x))

    def _seen(self, x: Tensor) -> Tensor:
        return torch.where(self.known, self.x, x)


def clamp(ham: HAM, held: State, known: State | None = None) -> Clamped:
    """Hold some layers of a memory at given states: the energy of the others remains.

    Args:
        ham: the memory.
        held: states of the layers to hold, at least one; ``(batch, *shape)`` each.
        known: of layers among these that are held in part, which of their neurons are: boolean,
            of the layer's shape or with a batch. The states of the others do not matter, not even
            if they are NaN.

    Raises:
        ValueError: an unknown layer, a wrong shape, unequal batches; a layer held in part whose
            Lagrangian is not a sum over neurons.
        TypeError: no HAM; states that are not of floating point, masks that are not boolean, or
            not in a dict.
    """
    check_ham(ham)
    if not held:
        raise ValueError(f"held: expected states of at least one of {list(ham.layers)}, got none")
    return Clamped(ham, held, known)


def check_masks(ham: Layered, held: State, known: State | None) -> State:
    """The masks of the layers that are held in part, with a batch, refused unless they fit."""
    known = {} if known is None else known
    if not isinstance(known, dict):
        raise TypeError(
            f"known: expected a dict {{layer name: mask}} of some of {list(held)}, got "
            f"{type(known).__name__}"
        )
    masks = {}
    for name, mask in known.items():
        if name not in held:
            raise ValueError(f"known: expected names among the given {list(held)}, got {name!r}")
        shape, batch = ham.layer(name).shape, len(held[name])
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"known[{name!r}]: expected a boolean tensor, True where a neuron is held, got "
                f"{kind}; numbers become one by mask > 0"
            )
        if tuple(mask.shape) not in (shape, (batch, *shape)):
            raise ValueError(
                f"known[{name!r}]: expected shape {shape} or {(batch, *shape)}, got "
                f"{tuple(mask.shape)}"
            )
        lagrangian = ham.layer(name).lagrangian
        if not lagrangian.additive:
            raise ValueError(
                f"known[{name!r}]: expected a layer whose neurons are independent, to hold some of "
                f"them; {type(lagrangian).__name__} couples them. Hold all of it, or make two "
                "layers of it (a Lagrangian of your own that is a sum over neurons says so by "
                "additive = True)"
            )
        masks[name] = mask.expand(batch, *shape)
    return masks
