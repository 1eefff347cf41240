"""The continuous Hopfield network: its neurons, and its identity with a hierarchical memory."""

import pytest
from contracts import LagrangianContract

from hamdeq import BengioFischer, Identity, Sigmoid, Tanh

NEURONS = {
    "Sigmoid(4, 0.5)": lambda: Sigmoid(4.0, 0.5),
    "Sigmoid": lambda: Sigmoid(),
    "Sigmoid(2, -0.5)": lambda: Sigmoid(2.0, -0.5),
    "Tanh": lambda: Tanh(),
    "Identity": lambda: Identity(),
    "learnable Sigmoid": lambda: Sigmoid(2.0, 0.25, learnable=True),
    "learnable Tanh": lambda: Tanh(0.7, learnable=True),
}


class TestNeurons(LagrangianContract):
    @pytest.fixture(params=NEURONS.values(), ids=NEURONS.keys())
    def lagrangian(self, request):
        return BengioFischer(request.param()).double()
