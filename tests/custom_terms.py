"""Lagrangians and synapses as users write them, for tests of several folders."""

import torch
from torch import nn

from hamdeq import Lagrangian, Synapse


class OnlyForward(Lagrangian):
    """A user's Lagrangian with nothing but L(x): everything else is the base class's."""

    def __init__(self, closed):
        super().__init__()
        self.closed = closed

    def forward(self, x):
        return self.closed(x)


class OnlyEnergy(Synapse):
    """A user's synapse with nothing but E(g₁, …): the field is the base class's."""

    def __init__(self, closed):
        super().__init__()
        self.closed = closed
        self.shapes = closed.shapes

    def energy(self, *g):
        return self.closed.energy(*g)

    def is_linear_in(self, place):
        return self.closed.is_linear_in(place)


class Triple(Synapse):
    """E = −Σ T_ijk aᵢ bⱼ cₖ, through the default field; linear in each layer."""

    def __init__(self, *sizes):
        super().__init__()
        self.shapes = tuple((n,) for n in sizes)
        self.tensor = nn.Parameter(torch.randn(*sizes) / 4)

    def energy(self, *g):
        return -torch.einsum("ijk,bi,bj,bk->b", self.tensor, *g)

    def is_linear_in(self, place):
        return True


class Squared(Synapse):
    """E = ½ (aᵀ W b)², linear in neither layer."""

    def __init__(self, n, m):
        super().__init__()
        self.shapes = ((n,), (m,))
        self.weight = nn.Parameter(torch.randn(n, m) / 4)

    def energy(self, *g):
        return ((g[0] @ self.weight) * g[1]).sum(-1) ** 2 / 2
