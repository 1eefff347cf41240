"""What the tests of several folders share: users' synapses, and checks of modules."""

import torch
from torch import nn

from hamdeq import Lagrangian, Synapse
from hamdeq.testing import Contract, derivative, inner, normal
from hamdeq.testing.contract import CLOSE, EPS

__all__ = [
    "CLOSE",
    "EPS",
    "OnlyEnergy",
    "OnlyForward",
    "Squared",
    "Triple",
    "assert_copies_agree",
    "assert_prints",
    "derivative",
    "inner",
    "normal",
]

assert_copies_agree = Contract().copies_agree
assert_prints = Contract().prints


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
