"""Initial states: where a memory starts to settle."""

from __future__ import annotations

from hamdeq.energy.clamping import Clamped
from hamdeq.energy.model import Connection, State

__all__ = ["forward_sweep"]


def forward_sweep(model: Clamped) -> State:
    """States of the free layers after one pass outwards from what is held.

    The layers next to held ones take on the field of these; the next ones the field of those, and
    so on: layers that have not been reached yet exert none. Of a chain whose input is held that is
    the pass of a feed-forward network. It costs one product with each weight, half as much as one
    even-odd step. Layers that nothing held leads to start at zero. A bias leads nowhere: it adds to
    the field of a layer that is reached.

    Returns:
        the free layers' states, ``(batch, *shape)`` each.
    """
    some = next(iter((model.clamped | model.partial).values()))
    x = model.ham.zero_state(some, model.layers)
    # What is held in part is observed to that extent, before its free neurons are.
    g = {name: model.layer(name).activation(x[name]) for name in model.partial}
    links = [c for c in model.ham.connections if len(c[0]) > 1]
    while True:
        observed = {*g, *model.clamped}
        front = [name for name in model.layers if any(_leads(c, observed, name) for c in links)]
        if not front:
            return x
        new = {}
        for name in front:
            field = model.field(
                g, name, [c for c in model.connections if _leads(c, observed, name)]
            )
            # Under autocast it may come out in half precision.
            new[name] = field.to(x[name].dtype)
        x |= new
        g |= model.activations(new)


def _leads(connection: Connection, observed: set[str], to: str) -> bool:
    """Whether the layer is the only one in the connection that is not observed."""
    return [name for name in connection[0] if name not in observed] == [to]
