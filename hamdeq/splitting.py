"""Elimination of layers: even-odd splitting, integrating out hidden neurons, attention.

These are one operation. Let B be layers with no synapse among themselves (an independent set), in
each of which every synapse is linear. With all other layers held, the energy is convex in each
layer of B, and its minimum is known:

    min over g_B of  L*_B(g_B) − ⟨I_B, g_B⟩  =  −L_B(I_B),    attained at  g_B = ∇L_B(I_B).

So B can be removed exactly. Its part of the energy becomes −L_B(I_B(g_A)), and what is left
updates by ``x_A <- I_A(∇L_B(I_B(g_A)))``.

- A chain with B its odd layers: even-odd splitting (Goemaere et al. 2023, equation 7).
- A linear query layer and a softmax layer of memories X, B the memories: x <- Xᵀ softmax(βXx),
  attention (Ramsauer et al. 2021, equation 3).
- B a layer of rectified powers: dense associative memory (Krotov & Hopfield 2016).

When what is left is itself independent, as for two colours of a graph, each step minimises the
energy over one half and then over the other: it never rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from hamdeq.ham import HAM
from hamdeq.layers import Layered, State

__all__ = ["Reduced", "eliminate", "two_colouring"]


class Reduced:
    """What remains of an energy when some of its layers are at their minimum.

    An energy model over the visible (remaining) layers; made by :func:`eliminate`.

    Attributes:
        model: the energy eliminated from.
        visible: names of the layers that remain.
        hidden: names of the layers eliminated.
    """

    def __init__(self, model: Layered, hidden: Collection[str]) -> None:
        self.model = model
        self.hidden = tuple(name for name in model.layers if name in hidden)
        self.visible = tuple(name for name in model.layers if name not in hidden)
        self._untouched = [
            (layers, synapse)
            for layers, synapse in model.connections
            if not set(layers) & set(self.hidden)
        ]

    def check_state(self, x: State) -> None:
        """Refuse a state that is not one of the visible layers."""
        self.model.check_state(x, self.visible)

    @property
    def descends(self) -> bool:
        """Whether no synapse acts between visible layers, or on one of them but linearly.

        Then the energy is L*(g) − h(g) with h(g) = Σ_B L_B(I_B(g)) + linear terms, a difference of
        two convex functions, and the update minimises L*(g) − ⟨∇h, g⟩, which lies above the energy
        and touches it at the present state: the energy falls at least as much.
        """
        for layers, synapse in self.model.connections:
            places = [place for place, name in enumerate(layers) if name in self.visible]
            if len(places) > 1 or not all(synapse.is_linear_in(place) for place in places):
                return False
        return True

    def _minimise(self, g: State) -> State:
        """Internal states of the hidden layers at their minimum: x_B = I_B(g_A)."""
        return {name: self.model.field(g, name) for name in self.hidden}

    def restore(self, x: State) -> State:
        """The full state: the visible layers as in x, the hidden ones at their minimum."""
        self.check_state(x)
        return x | self._minimise(self.model.activations(x))

    def update(self, x: State, *, clamped: Collection[str] = ()) -> State:
        """One step, x_A <- I_A(∇L_B(I_B(g_A))): the hidden layers settle, then the visible ones."""
        self.model.check_names(clamped)
        self.check_state(x)
        fields = self.fields(self.model.activations(x))
        return {name: x[name] if name in clamped else fields[name] for name in x}

    def activations(self, x: State) -> State:
        """g = ∇L(x) of every layer in x."""
        return self.model.activations(x)

    def fields(self, g: State) -> State:
        """The field on every visible layer, once the hidden ones have settled."""
        return self._fields(g, self._minimise(g))

    def _fields(self, g: State, hidden: State) -> State:
        everything = g | self.model.activations(hidden)
        return {name: self.model.field(everything, name) for name in g}

    def energy(self, x: State) -> Tensor:
        """The least energy that any state of the hidden layers gives: ``(batch,)``.

        Computed as −Σ_B L_B(I_B) + (all terms without B); it equals the full energy of
        :meth:`restore`.
        """
        self.check_state(x)
        g = self.model.activations(x)
        layers = {name: self.model.layer(name).energy(x_a) for name, x_a in x.items()}
        terms = self.model.constant_terms() | layers | self.model.interactions(g, self._untouched)
        return torch.stack([*terms.values(), *self._gains(self._minimise(g))]).sum(0)

    def step(self, x: State) -> tuple[State, State, Callable[[], Tensor]]:
        """The activations, the update, and what yields the energy terms: ``(terms, batch)``."""
        g = self.model.activations(x)
        hidden = self._minimise(g)

        def terms() -> Tensor:
            return torch.stack([*self.model.summands(x, g, self._untouched), *self._gains(hidden)])

        return g, self._fields(g, hidden), terms

    def _gains(self, hidden: State) -> list[Tensor]:
        """−L_B(I_B) of each hidden layer."""
        return [-self.model.layer(name).lagrangian(field) for name, field in hidden.items()]

    def select(self, rows: Tensor) -> Reduced:
        """The same energy for some samples of the batch, given by index."""
        return Reduced(self.model.select(rows), self.hidden)


def eliminate(ham: Layered, hidden: Collection[str]) -> Reduced:
    """Remove layers from an energy exactly, by setting them to their minimum.

    Args:
        ham: a :class:`~hamdeq.HAM`, or one with some layers held (:func:`~hamdeq.clamping.clamp`).
        hidden: the layers to remove: free, without a synapse among themselves.

    Returns:
        an energy model of the remaining layers, which restores the full state.

    Raises:
        ValueError: an unknown layer, a synapse within or between the hidden layers, or one that
            is not linear in a hidden layer. The message names it.
    """
    if isinstance(hidden, str):
        raise TypeError(f"hidden: expected several layer names, got the string {hidden!r}")
    hidden = tuple(hidden)
    for name in hidden:
        if name not in ham.layers:
            raise ValueError(f"hidden: expected names among {list(ham.layers)}, got {name!r}")
    for layers, synapse in ham.connections:
        places = [place for place, name in enumerate(layers) if name in hidden]
        kind = type(synapse).__name__
        if len(places) > 1:
            raise ValueError(
                f"hidden: expected layers without a synapse among themselves, got {kind} "
                f"{layers}; remove {layers[places[0]]!r} or {layers[places[1]]!r} from {hidden}"
            )
        if places and not synapse.is_linear_in(places[0]):
            raise ValueError(
                f"hidden: {kind} {layers} is not linear in {layers[places[0]]!r}, which therefore "
                "has no closed minimum; keep that layer, or declare is_linear_in if it is linear"
            )
    return Reduced(ham, hidden)


def two_colouring(
    ham: HAM, *, clamped: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the free layers in two sets, neither with a synapse inside: ``(keep, hide)``.

    Clamped layers are removed first: they connect nothing, as they do not move. Of each connected
    part the wider colour, in neurons, goes to ``hide``: eliminating it leaves the solver the
    smaller state (of a 784-512-10 chain, 10 numbers instead of 522).

    Raises:
        ValueError: an unknown layer, a synapse within a layer, or an odd cycle, which is named.
    """
    ham.check_names(clamped)
    neighbours = _graph(ham, clamped)
    colour: dict[str, int] = {}
    hide: set[str] = set()
    for start in neighbours:
        if start in colour:
            continue
        component = _colour_from(start, neighbours, colour)
        sides = [[name for name in component if colour[name] == c] for c in (0, 1)]
        hide.update(max(sides, key=lambda side: sum(math.prod(ham.layer(a).shape) for a in side)))
    return (
        tuple(name for name in neighbours if name not in hide),
        tuple(name for name in neighbours if name in hide),
    )


def _graph(ham: HAM, clamped: Collection[str]) -> dict[str, list[str]]:
    """The free layers, each with those it shares a synapse with."""
    neighbours: dict[str, list[str]] = {a: [] for a in ham.layers if a not in clamped}
    for layers, synapse in ham.connections:
        free = [(place, name) for place, name in enumerate(layers) if name not in clamped]
        names = [name for _, name in free]
        for place, name in free:
            if names.count(name) > 1 or not synapse.is_linear_in(place):
                raise ValueError(
                    f"layer {name!r} acts on itself through {type(synapse).__name__} {layers}: "
                    "even-odd splitting needs synapses between different layers, linear in each; "
                    "use splitting=None"
                )
            neighbours[name] += [other for other in names if other != name]
    return neighbours


def _colour_from(start: str, neighbours: dict[str, list[str]], colour: dict[str, int]) -> list[str]:
    """Colour the connected part around ``start``, breadth first; return its layers."""
    parent: dict[str, str | None] = {start: None}
    colour[start] = 0
    queue = [start]
    for name in queue:
        for other in neighbours[name]:
            if other not in parent:
                parent[other], colour[other] = name, 1 - colour[name]
                queue.append(other)
            elif colour[other] == colour[name]:
                cycle = " – ".join(_cycle(name, other, parent))
                raise ValueError(
                    f"the layers {cycle} form a cycle of odd length: they cannot be split into "
                    "even and odd; clamp one of them, leave out a synapse, or use splitting=None"
                )
    return queue


def _cycle(a: str, b: str, parent: dict[str, str | None]) -> list[str]:
    """The cycle closed by the edge a–b in a breadth-first tree, ending where it starts."""

    def ancestry(name: str | None) -> list[str]:
        line = []
        while name is not None:
            line.append(name)
            name = parent[name]
        return line

    up, down = ancestry(a), ancestry(b)
    while len(up) > 1 and len(down) > 1 and up[-2] == down[-2]:
        up.pop()
        down.pop()
    return [*up, *reversed(down[:-1]), a]
