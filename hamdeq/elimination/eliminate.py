"""The one operation of this package: see ``hamdeq.elimination``."""

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
        ham: a :class:`~hamdeq.HAM`, or one with some layers clamped (:func:`~hamdeq.clamp`).
        hidden: the layers to remove: free, without a synapse among themselves.
        colours: the layers that remain, in sets; a step updates these one after another, each with
            what those before it have become (a Gauss-Seidel sweep). By default all at once.

    Returns:
        an energy model of the remaining layers, which restores the full state. Of layers of
        memories, softmax or sparse, it is an :class:`~hamdeq.elimination.Attention`.

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
