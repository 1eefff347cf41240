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
energy over one half and then over the other: it never rises. When it is not, its layers are brought
to their minimum one colour after another (a Gauss-Seidel sweep), and the same holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from hamdeq.energy.ham import check_ham
from hamdeq.energy.model import LayeredEnergy, State

__all__ = ["Reduced", "eliminate"]


class Reduced:
    """What remains of an energy when some of its layers are at their minimum.

    An energy model over the visible (remaining) layers; made by :func:`eliminate`.

    Attributes:
        model: the energy eliminated from.
        visible: names of the layers that remain.
        hidden: names of the layers eliminated.
        colours: the visible layers in the sets that are updated one after another.
    """

    def __init__(
        self,
        model: LayeredEnergy,
        hidden: Collection[str],
        colours: Sequence[Collection[str]] | None = None,
    ) -> None:
        self.model = model
        self.hidden: tuple[str, ...] = tuple(name for name in model.layers if name in hidden)
        self.visible: tuple[str, ...] = tuple(name for name in model.layers if name not in hidden)
        self.colours: tuple[tuple[str, ...], ...] = (
            (self.visible,) if colours is None else tuple(map(tuple, colours))
        )
        self._untouched = [
            (layers, synapse)
            for layers, synapse in model.connections
            if not set(layers) & set(self.hidden)
        ]

    def __repr__(self) -> str:
        colours = " | ".join(", ".join(colour) for colour in self.colours)
        hidden = ", ".join(self.hidden) or "none"
        return f"{type(self).__name__}(visible: {colours}; hidden: {hidden})"

    def check_state(self, x: State) -> None:
        """Refuse a state that is not one of the visible layers."""
        self.model.check_state(x, self.visible)

    @property
    def descends(self) -> bool:
        """Whether no synapse acts between layers of one colour, or on one of them but linearly.

        Then the energy is L*(g) − h(g) with h(g) = Σ_B L_B(I_B(g)) + linear terms, a difference of
        two convex functions, and the update minimises L*(g) − ⟨∇h, g⟩, which lies above the energy
        and touches it at the present state: the energy falls at least as much. Of several colours
        each minimises the full energy over its layers, the others held.
        """
        for layers, synapse in self.model.connections:
            for colour in self.colours:
                places = [place for place, name in enumerate(layers) if name in colour]
                if len(places) > 1 or not all(synapse.is_linear_in(place) for place in places):
                    return False
        return True

    def prepared(self) -> Reduced:
        """The same energy with its weights as they are now: see :meth:`HAM.prepared`."""
        model = self.model.prepared()
        return self if model is self.model else Reduced(model, self.hidden, self.colours)

    def _minimise(self, g: State) -> State:
        """Internal states of the hidden layers at their minimum: x_B = I_B(g_A)."""
        return {name: self.model.field(g, name) for name in self.hidden}

    def restore(self, x: State) -> State:
        """The full state: the visible layers as in x, the hidden ones at their minimum.

        The field on a hidden layer may overflow where x itself is finite; that layer then comes
        back infinite or NaN. A :class:`~hamdeq.DEQ` marks such samples as ``DIVERGED``.
        """
        self = self.prepared()
        self.check_state(x)
        return x | self._minimise(self.model.activations(x))

    def update(self, x: State, *, clamped: Collection[str] = ()) -> State:
        """One step, x_A <- I_A(∇L_B(I_B(g_A))): the hidden layers settle, then the visible ones."""
        self = self.prepared()
        self.model.check_names(clamped)
        self.check_state(x)
        g = self.model.activations(x)
        fresh = self._sweep(g, self._minimise(g), [name for name in x if name not in clamped])
        return {name: fresh.get(name, x[name]) for name in x}

    def activations(self, x: State) -> State:
        """g = ∇L(x) of every layer in x."""
        return self.model.activations(x)

    def fields(self, g: State) -> State:
        """The field on every visible layer, once the hidden ones have settled."""
        self = self.prepared()
        return self.model.fields(g | self.model.activations(self._minimise(g)), self.visible)

    def _sweep(self, g: State, hidden: State, layers: Collection[str]) -> State:
        """The fields that some visible layers take on, colour by colour."""
        everything, fresh = g | self.model.activations(hidden), {}
        for colour in self.colours:
            new = self.model.fields(everything, [name for name in colour if name in layers])
            fresh |= new
            if colour is not self.colours[-1]:
                everything |= self.model.activations(new)
        return fresh

    def energy(self, x: State) -> Tensor:
        """The least energy that any state of the hidden layers gives: ``(batch,)``.

        Computed as −Σ_B L_B(I_B) + (all terms without B); it equals the full energy of
        :meth:`restore`.
        """
        self = self.prepared()
        self.check_state(x)
        g = self.model.activations(x)
        layers = {name: self.model.layer(name).energy(x_a) for name, x_a in x.items()}
        terms = self.model.constant_terms() | layers | self.model.interactions(g, self._untouched)
        return torch.stack([*terms.values(), *self._gains(self._minimise(g))]).sum(0)

    def step(self, x: State) -> tuple[State, State, State, Callable[[], Tensor]]:
        """The activations, fields, update, and what yields the energy terms: ``(terms, batch)``."""
        self = self.prepared()
        g = self.model.activations(x)
        hidden = self._minimise(g)
        update = self._sweep(g, hidden, self.visible)
        fields = update
        if len(self.colours) > 1:
            fields = self.model.fields(g | self.model.activations(hidden), self.visible)

        def terms() -> Tensor:
            return torch.stack([*self.model.summands(x, g, self._untouched), *self._gains(hidden)])

        return g, fields, update, terms

    def _gains(self, hidden: State) -> list[Tensor]:
        """−L_B(I_B) of each hidden layer."""
        return [-self.model.layer(name).potential(field) for name, field in hidden.items()]

    def select(self, rows: Tensor) -> Reduced:
        """The same energy for some samples of the batch, given by index."""
        return Reduced(self.model.select(rows), self.hidden, self.colours)


def eliminate(
    ham: LayeredEnergy, hidden: Collection[str], *, colours: Sequence[Collection[str]] | None = None
) -> Reduced:
    """Remove layers from an energy exactly, by setting them to their minimum.

    Args:
        ham: a :class:`~hamdeq.HAM`, or one with some layers held (:func:`~hamdeq.clamp`).
        hidden: the layers to remove: free, without a synapse among themselves.
        colours: the layers that remain, in sets; a step updates these one after another, each with
            what those before it have become (a Gauss-Seidel sweep). By default all at once.

    Returns:
        an energy model of the remaining layers, which restores the full state.

    Raises:
        TypeError: no energy of layers; a string in place of names.
        ValueError: an unknown layer, a synapse within or between the hidden layers, or one that
            is not linear in a hidden layer. The message names it. Colours that are not the
            remaining layers, each in one of them.
    """
    if not isinstance(ham, LayeredEnergy):
        check_ham(ham)
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
    reduced = Reduced(ham, hidden, colours)
    if sorted(name for colour in reduced.colours for name in colour) != sorted(reduced.visible):
        raise ValueError(
            f"colours: expected each of {list(reduced.visible)} in one of them, got {colours!r}"
        )
    return reduced
