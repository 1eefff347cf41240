"""Clamping: hold some layers of a memory, such as its input, and keep the energy of the others."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from hamdeq.ham import HAM
from hamdeq.layers import Connection, Layered, Neurons, State

__all__ = ["Clamped", "clamp"]


class Clamped(Layered):
    """The energy of the free layers of a HAM while the others are held.

    What the held layers exert on the free ones does not change while these settle, so it is
    computed once, here, and not in every step: for an image this is by far the largest product.
    It belongs to the parameters' present values: hold the layers anew after a change of these.
    """

    def __init__(self, ham: HAM, held: State) -> None:
        ham.check_state(held, layers=tuple(held))
        self.ham = ham
        self.held = held
        g = ham.activations(held)
        some = next(iter(held.values()))
        self._batch = len(some)
        self.connections, self.drive, self._settled = [], {}, []
        for layers, synapse in ham.connections:
            free = [name for name in layers if name not in held]
            if not free:
                self._settled.append((layers, synapse))
            elif len(free) == 1 and synapse.is_linear_in(place := layers.index(free[0])):
                to = free[0]
                known = g | ham.zero_state(some, [to])
                field = synapse.field(place, *(known[name] for name in layers))
                self.drive[to] = self.drive[to] + field if to in self.drive else field
            else:
                self.connections.append((layers, synapse))
        self._g = g
        self._free = tuple(name for name in ham.layers if name not in held)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the free layers."""
        return self._free

    def layer(self, name: str) -> Neurons:
        """The neurons of a layer."""
        return self.ham.layer(name)

    def check_state(
        self,
        x: Mapping[str, Tensor],
        layers: Collection[str] | None = None,
        *,
        batch: int | None = None,
    ) -> None:
        """Refuse a state that lacks a free layer, is misshapen, or not of the held batch."""
        super().check_state(x, layers, batch=self._batch if batch is None else batch)

    def field(self, g: State, to: str) -> Tensor:
        """The field on one free layer, from the free layers' activations."""
        return super().field(self._g | g, to)

    def interactions(self, g: State, connections: Iterable[Connection]) -> State:
        """The energy terms of some of the connections, and of the constant fields."""
        return super().interactions(self._g | g, connections)

    def constant_terms(self) -> State:
        """The energy terms of the held layers, with which the sum is the HAM's energy."""
        layers = {name: self.layer(name).energy(x_a) for name, x_a in self.held.items()}
        return layers | self.ham.interactions(self._g, self._settled)

    def select(self, rows: Tensor) -> Clamped:
        """The same energy for some samples of the batch, given by index."""
        part = copy.copy(self)
        for name in ("held", "drive", "_g"):
            setattr(part, name, {a: x[rows] for a, x in getattr(self, name).items()})
        part._batch = len(rows)
        return part

    def full(self, x: State) -> State:
        """A state of all layers: the free ones as in x, the others as held."""
        return {name: x[name] if name in x else self.held[name] for name in self.ham.layers}


def clamp(ham: HAM, held: State) -> Clamped:
    """Hold some layers of a memory at given states: the energy of the others remains.

    Args:
        ham: the memory.
        held: states of the layers to hold, at least one; ``(batch, *shape)`` each.
    """
    if not held:
        raise ValueError(f"held: expected states of at least one of {list(ham.layers)}, got none")
    return Clamped(ham, held)
