"""Colours of the graph of free layers: sets of layers that do not act on each other.

Two colours, where there are two, are what even-odd splitting splits into. Every graph of layers has
some number of colours, and one after the other they can be brought to their minimum.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from hamdeq.energy.ham import HAM, check_ham

__all__ = ["colouring", "two_colouring"]


def two_colouring(
    ham: HAM, *, clamped: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the free layers in two sets, neither with a synapse inside: ``(keep, hide)``.

    Clamped layers are removed first: they connect nothing, as they do not move. Of each connected
    part the wider colour, in neurons, goes to ``hide``: eliminating it leaves the solver the
    smaller state (of a 784-512-10 chain, 10 numbers instead of 522).

    Raises:
        TypeError: no HAM.
        ValueError: an unknown layer, a synapse within a layer, or an odd cycle, which is named.
    """
    check_ham(ham)
    ham.check_names(clamped)
    neighbours, within = _graph(ham, clamped)
    for name, synapse in within.items():
        raise ValueError(
            f"layer {name!r} acts on itself through {synapse}: even-odd splitting needs synapses "
            "between different layers, linear in each; use splitting='sweep' or None"
        )
    colour: dict[str, int] = {}
    hide: set[str] = set()
    for start in neighbours:
        if start in colour:
            continue
        component = _colour_from(start, neighbours, colour)
        sides = [[name for name in component if colour[name] == c] for c in (0, 1)]
        hide.update(max(sides, key=lambda side: _width(ham, side)))
    return (
        tuple(name for name in neighbours if name not in hide),
        tuple(name for name in neighbours if name in hide),
    )


def colouring(ham: HAM, *, clamped: Collection[str] = ()) -> tuple[tuple[str, ...], ...]:
    """Split the free layers in few sets, none with a synapse between two of its layers.

    The first set is the one to eliminate: of each connected part its widest colour, in neurons,
    without layers that act on themselves. It is empty only where all layers do. Where two colours
    are enough, these are those of :func:`two_colouring`, in the order ``(hide, keep)``.

    Raises:
        TypeError: no HAM.
        ValueError: an unknown layer.

    Source: Brélaz, "New methods to color the vertices of a graph" (1979): the layer whose
    neighbours have the most colours is next. That is exact for graphs of two colours.
    """
    check_ham(ham)
    ham.check_names(clamped)
    neighbours, within = _graph(ham, clamped)
    colour: dict[str, int] = {}
    classes: list[list[str]] = [[]]
    for start in neighbours:
        if start in colour:
            continue
        component = _saturate(start, neighbours, colour)
        # Of colours equally wide that of the first layer, as in two_colouring.
        sides = [
            [a for a in component if colour[a] == c]
            for c in dict.fromkeys(colour[a] for a in component)
        ]
        free = [[a for a in side if a not in within] for side in sides]
        first = max(range(len(sides)), key=lambda c: _width(ham, free[c]))
        selfish = [a for a in sides[first] if a in within]
        others = [side for c, side in enumerate(sides) if c != first] + [selfish] * bool(selfish)
        for place, side in enumerate([free[first], *others]):
            if place == len(classes):
                classes.append([])
            classes[place] += side
    order = {name: i for i, name in enumerate(neighbours)}
    return tuple(tuple(sorted(side, key=order.__getitem__)) for side in classes)


def _width(ham: HAM, layers: Collection[str]) -> int:
    """Neurons in some layers."""
    return sum(math.prod(ham.layer(name).shape) for name in layers)


def _graph(ham: HAM, clamped: Collection[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The free layers, each with those it shares a synapse with; those that act on themselves."""
    neighbours: dict[str, list[str]] = {a: [] for a in ham.layers if a not in clamped}
    within: dict[str, str] = {}
    for layers, synapse in ham.connections:
        free = [(place, name) for place, name in enumerate(layers) if name not in clamped]
        names = [name for _, name in free]
        for place, name in free:
            if names.count(name) > 1 or not synapse.is_linear_in(place):
                within.setdefault(name, f"{type(synapse).__name__} {layers}")
            neighbours[name] += [other for other in names if other != name]
    return neighbours, within


def _saturate(start: str, neighbours: dict[str, list[str]], colour: dict[str, int]) -> list[str]:
    """Colour the connected part around ``start``, the most constrained layer first."""
    component, stack = {start}, [start]
    while stack:
        new = set(neighbours[stack.pop()]) - component
        component |= new
        stack += new
    todo = [name for name in neighbours if name in component]
    while todo:

        def constraint(name: str) -> tuple[int, int]:
            taken = {colour[other] for other in neighbours[name] if other in colour}
            return len(taken), len(set(neighbours[name]))

        name = max(todo, key=constraint)
        taken = {colour[other] for other in neighbours[name] if other in colour}
        colour[name] = next(c for c in range(len(taken) + 1) if c not in taken)
        todo.remove(name)
    return [name for name in neighbours if name in component]


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
                    "even and odd; clamp one of them, leave out a synapse, or use splitting='sweep'"
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
