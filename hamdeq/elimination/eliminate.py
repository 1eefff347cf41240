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

from collections.abc import Collection, Sequence

from hamdeq.elimination.fused import Attention, associations
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.ham import check_ham
from hamdeq.energy.model import LayeredEnergy

__all__ = ["eliminate"]


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
    kind = Attention if associations(ham, hidden) else Reduced
    reduced = kind(ham, hidden, colours)
    if sorted(name for colour in reduced.colours for name in colour) != sorted(reduced.visible):
        raise ValueError(
            f"colours: expected each of {list(reduced.visible)} in one of them, got {colours!r}"
        )
    return reduced
