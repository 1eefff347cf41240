"""The reduced energy: an energy with some of its layers at their minimum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from hamdeq.elimination.coupling import bilinear_links, coupling
from hamdeq.energy.model import Evaluation, LayeredEnergy, State

__all__ = ["Reduced"]


class Reduced:
    """An energy with some of its layers eliminated, that is, at their minimum.

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
        self._descends: bool = self._is_affine()
        self._remain(model, self.hidden)

    def _remain(self, model: LayeredEnergy, computed: Collection[str]) -> None:
        """Let energy and fields come from a model, of whose layers some are still to be hidden."""
        self._remaining = model
        self._computed = computed
        self._untouched = [c for c in model.connections if not set(c[0]) & set(computed)]

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
        return self._descends

    def _is_affine(self) -> bool:
        for layers, synapse in self.model.connections:
            for colour in self.colours:
                places = [place for place, name in enumerate(layers) if name in colour]
                if len(places) > 1 or not all(synapse.is_linear_in(place) for place in places):
                    return False
        return True

    @property
    def independent(self) -> bool:
        """True where the activation of each visible neuron depends on its own state alone."""
        return self._remaining.are_independent(self.visible)

    def prepared(self) -> Reduced:
        """The same energy with its weights as they are now: see :meth:`HAM.prepared`."""
        model = self.model.prepared()
        return self if model is self.model else type(self)(model, self.hidden, self.colours)

    def minimum(self, g: State) -> State:
        """Internal states of the hidden layers at their minimum, x_B = I_B(g_A).

        Args:
            g: activations of the layers that act on these.
        """
        self = self.prepared()
        return {name: self.model.field(g, name) for name in self.hidden}

    def _inner(self, g: State) -> State:
        """Those of them that are computed for a step."""
        return {name: self._remaining.field(g, name) for name in self._computed}

    def restore(self, x: State) -> State:
        """The full state: the visible layers as in x, the hidden ones at their minimum.

        The field on a hidden layer may overflow where x itself is finite; that layer then comes
        back infinite or NaN. A :class:`~hamdeq.DEQ` marks such samples as ``DIVERGED``.
        """
        self = self.prepared()
        self.check_state(x)
        return x | self.minimum(self.model.activations(x))

    def update(self, x: State, *, clamped: Collection[str] = ()) -> State:
        """One step, x_A <- I_A(∇L_B(I_B(g_A))): the hidden layers settle, then the visible ones."""
        self = self.prepared()
        self._remaining.check_names(clamped)
        self.check_state(x)
        g = self._remaining.activations(x)
        fresh = self._sweep(g, self._inner(g), [name for name in x if name not in clamped])
        return {name: fresh.get(name, x[name]) for name in x}

    def activations(self, x: State) -> State:
        """g = ∇L(x) of every layer in x."""
        return self._remaining.activations(x)

    def fields(self, g: State) -> State:
        """The field on every visible layer, once the hidden ones have settled."""
        self = self.prepared()
        return self._remaining.fields(g | self._remaining.activations(self._inner(g)), self.visible)

    def _sweep(self, g: State, hidden: State, layers: Collection[str]) -> State:
        """The fields that some visible layers take on, colour by colour."""
        everything, fresh = g | self._remaining.activations(hidden), {}
        for colour in self.colours:
            new = self._remaining.fields(everything, [name for name in colour if name in layers])
            fresh |= new
            if colour is not self.colours[-1]:
                everything |= self._remaining.activations(new)
        return fresh

    def energy(self, x: State) -> Tensor:
        """The least energy that any state of the hidden layers gives: ``(batch,)``.

        Computed as −Σ_B L_B(I_B) + (all terms without B); it equals the full energy of
        :meth:`restore`.
        """
        self = self.prepared()
        self.check_state(x)
        g = self._remaining.activations(x)
        model = self._remaining
        terms = model.constant_terms()
        terms |= {name: model.layer(name).energy(x_a) for name, x_a in x.items()}
        terms |= model.interactions(g, self._untouched)
        return torch.stack([*terms.values(), *self._gains(self._inner(g))]).sum(0)

    def step(self, x: State) -> Evaluation:
        """The update, and what is known besides of the energy at x."""
        self = self.prepared()
        g = self._remaining.activations(x)
        hidden = self._inner(g)
        update = self._sweep(g, hidden, self.visible)
        fields, at_once = update, len(self.colours) < 2
        if not at_once:
            fields = self._remaining.fields(g | self._remaining.activations(hidden), self.visible)

        def terms() -> Tensor:
            return torch.stack(
                [*self._remaining.summands(x, g, self._untouched), *self._gains(hidden)]
            )

        def lagrangian() -> Tensor:
            first, *others = (self._remaining.layer(a).potential(x_a) for a, x_a in x.items())
            return sum(others, first)

        convex = at_once and self.descends
        return Evaluation(
            g,
            fields,
            update,
            at_once,
            terms,
            lagrangian if convex else None,
            self._coupling(hidden, tuple(x)),
        )

    def linearised(self, g: State) -> tuple[State, Callable[[], Tensor] | None]:
        """The fields I at some activations, and what yields their derivative there.

        Args:
            g: activations of the visible layers.

        Returns:
            I(g), and what yields S = ∂I/∂g, ``(batch, n, n)`` for n visible neurons, the layers in
            the order of g; None where it has no closed form. Where each hidden neuron depends on
            its own field alone and has a linear synapse with each visible layer,
            I_B = Σ_A K_BA g_A + constant, it is S = Σ_B K_Bᵀ D_B K_B with the diagonal
            D_B = ∂g_B/∂I_B.
        """
        self = self.prepared()
        hidden = self._inner(g)
        everything = g | self._remaining.activations(hidden)
        fields = self._remaining.fields(everything, self.visible)
        return {name: fields[name] for name in g}, self._coupling(hidden, tuple(g))

    def _coupling(self, hidden: State, visible: tuple[str, ...]) -> Callable[[], Tensor] | None:
        """See :meth:`linearised`."""
        links = bilinear_links(self._remaining, self.visible, self._computed)
        if links is None:
            return None
        return lambda: coupling(self._remaining, links, hidden, visible)

    def _gains(self, hidden: State) -> list[Tensor]:
        """−L_B(I_B) of each hidden layer."""
        return [-self._remaining.layer(name).potential(field) for name, field in hidden.items()]

    def select(self, rows: Tensor) -> Reduced:
        """The same energy for some samples of the batch, given by index."""
        return type(self)(self.model.select(rows), self.hidden, self.colours)
