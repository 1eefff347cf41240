"""Initial states: where a memory starts to settle."""

from __future__ import annotations

from hamdeq.clamping import Clamped
from hamdeq.layers import Connection, State

__all__ = ["forward_sweep"]


def forward_sweep(model: Clamped) -> State:
    """States of the free layers after one pass outwards from what is held.

    The layers next to held ones take on the field of these; the next ones the field of those, and
    so on: layers that have not been reached yet exert none. Of a chain whose input is held that is
    the pass of a feed-forward network. It costs one product with each weight, half as much as one
    even-odd step. Layers that nothing held leads to start at zero.

    Returns:
        the free layers' states, ``(batch, *shape)`` each.
    """
    some = next(iter((model.held | model.partly).values()))
    x = model.ham.zero_state(some, model.layers)
    # What is held in part is known to that extent, before its free neurons are.
    g = {name: model.layer(name).activation(x[name]) for name in model.partly}
    todo = [name for name in model.layers if name not in g]
    while todo:
        known = {*g, *model.held}
        # The synapses whose other layers are known, by the layer they lead to next.
        to = {name: [c for c in model.connections if _unknown(c, known) == [name]] for name in todo}
        front = [a for a in todo if a in model.drive or any(len(layers) > 1 for layers, _ in to[a])]
        if not front:
            break
        # Under autocast a field may come out in half precision.
        new = {name: model.field(g, name, to[name]).to(x[name].dtype) for name in front}
        x |= new
        g |= model.activations(new)
        todo = [name for name in todo if name not in front]
    return x


def _unknown(connection: Connection, known: set[str]) -> list[str]:
    return [name for name in connection[0] if name not in known]
