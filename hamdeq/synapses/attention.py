"""Synapses of attention: between states, stored patterns and memories."""

from __future__ import annotations

from torch import Tensor

from hamdeq.synapses.base import Synapse, layer_shape

__all__ = ["Association"]


class Association(Synapse):
    """Three-way synapse by which states meet stored patterns: E = −Σ m_hls ⟨x_hl, k_hs⟩.

    Between states x ``(H, L, d)``, stored patterns k ``(H, S, d)`` and memories m ``(H, L, S)``,
    for H heads side by side. The field on a memory is the similarity of its state and its stored
    pattern, that on a state the stored patterns in the proportions of the memories. With the
    stored patterns clamped and the memories eliminated it is attention.

    Args:
        heads, states, stored, size: H, L, S and d.
    """

    def __init__(self, heads: int, states: int, stored: int, size: int) -> None:
        super().__init__()
        self.shapes = (
            layer_shape((heads, states, size)),
            layer_shape((heads, stored, size)),
            layer_shape((heads, states, stored)),
        )

    def energy(self, *g: Tensor) -> Tensor:
        x, k, m = g
        return -((x @ k.mT) * m).flatten(1).sum(1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        x, k, m = g
        if to == 0:
            return m @ k
        if to == 1:
            return m.mT @ x
        if to == 2:
            return x @ k.mT
        raise ValueError(f"to: expected place 0, 1 or 2, got {to!r}")

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        return "states {}, stored {}, memories {}".format(*self.shapes or ())
