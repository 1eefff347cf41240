"""Binary memories as hierarchical ones: two layers, the second of which can be eliminated."""

from __future__ import annotations

import torch
from torch import Tensor

from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Neurons
from hamdeq.lagrangians import Lagrangian, Tanh
from hamdeq.lagrangians.base import positive, total
from hamdeq.memories.interactions import Interaction
from hamdeq.synapses import Dense

__all__ = ["Interacting", "two_layers"]


class Interacting(Lagrangian):
    """A memory layer's Lagrangian L(x) = Σ_μ F(inner · x_μ), of an interaction function.

    Its elimination leaves −Σ_μ F(inner · ζ_μ·g), the energy of a dense associative memory.

    Args:
        interaction: F, which must be convex.
        inner: factor of similarities, > 0.

    Raises:
        ValueError: F is not convex.
    """

    def __init__(self, interaction: Interaction, inner: float = 1.0) -> None:
        super().__init__()
        if not interaction.is_convex:
            raise ValueError(
                f"interaction: expected a convex function, got {interaction}; use an even n, or "
                "RectifiedPolynomial, which agrees with it where similarities are positive"
            )
        self.interaction = interaction
        self.inner: float = positive("inner", inner)

    def forward(self, x: Tensor) -> Tensor:
        return total(self.interaction(self.inner * x))

    def activation(self, x: Tensor) -> Tensor:
        return self.inner * self.interaction.derivative(self.inner * x)

    def extra_repr(self) -> str:
        return f"{self.interaction}, inner={self.inner:.4g}"


def two_layers(memories: Tensor, lagrangian: Lagrangian, beta: float) -> HAM:
    """Layers ``state`` (N, Tanh(β)) and ``memories`` (K), with a copy of ζ ``(K, N)`` between."""
    count, size = memories.shape
    with torch.random.fork_rng(devices=[]):  # its initial weights are of no use
        synapse = Dense(size, count)
    synapse.weight = torch.nn.Parameter(memories.detach().mT.clone())
    return HAM(
        {"state": Neurons(size, Tanh(beta)), "memories": Neurons(count, lagrangian)},
        [(("state", "memories"), synapse)],
    )
