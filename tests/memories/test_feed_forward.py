"""The feed-forward equivalent of a dense associative memory with classes."""

import pytest
import torch
from torch import Tensor

from hamdeq.memories import (
    DenseAssociativeMemory,
    FeedForward,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
)

SMALL = {
    "size": 64,
    "interaction": RectifiedPolynomial(5),
    "scaling": Normalised(0.1),
    "memories": 64,
    "classes": 10,
    "std": 0.2,
}


def memory(**options) -> DenseAssociativeMemory:
    torch.manual_seed(0)
    return DenseAssociativeMemory(**SMALL | options)  # type: ignore[arg-type]


def images(count: int = 9) -> Tensor:
    return 2 * torch.rand(count, 64, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.parametrize("scaling", [Normalised(0.5), Original(16.0)])
def test_feed_forward_network_is_the_memory_to_first_order_of_its_class_entries(scaling):
    exact = memory(interaction=Polynomial(3), scaling=scaling, std=0.3).double()
    x, given = images().double(), exact.memories.detach().clone()

    def difference(scale: float) -> float:
        with torch.no_grad():
            exact.memories.copy_(given)
            exact.memories[:, 64:] *= scale
            a, b = exact.classify(x).atanh(), FeedForward(exact).classify(x).atanh()
        return ((a - b).norm() / scale).item()

    # What is left out is of second order: it falls with the square, and its share as it is.
    large, small = difference(1e-2), difference(1e-3)
    assert large > 0
    assert small == pytest.approx(large / 10, rel=0.1)


def test_feed_forward_gradient_is_near_that_of_the_memory():
    exact = memory(interaction=Polynomial(4)).double()
    with torch.no_grad():
        exact.memories[:, 64:] *= 1e-3
    x, labels = images().double(), torch.arange(9)
    found = []
    for each in (exact, FeedForward(exact)):
        exact.memories.grad = None
        loss, predicted = each.class_loss(x, labels, 2)
        loss.backward()
        assert not predicted.requires_grad
        assert exact.memories.grad is not None
        found.append(exact.memories.grad)
    difference = (found[0] - found[1]).norm() / found[0].norm()
    assert 0 < difference < 1e-2


def test_feed_forward_network_shares_the_memory():
    exact = memory()
    network = FeedForward(exact)
    assert [*network.parameters()] == [exact.memories]
    assert (network.inputs, network.classes) == (64, 10)
    network.scaling = Normalised(2.0)
    assert exact.scaling == Normalised(2.0)
    with torch.no_grad():
        exact.memories.fill_(3.0)
    network.clamp_()
    assert exact.memories[:, :64].max() == 1
    assert exact.memories[:, 64:].min() == 3


def test_feed_forward_network_refuses_what_does_not_fit():
    with pytest.raises(
        ValueError, match="memory: expected one with class neurons, got none; give classes=10"
    ):
        FeedForward(memory(classes=0))
    with pytest.raises(TypeError, match="memory: expected a DenseAssociativeMemory, got int"):
        FeedForward(3)  # type: ignore[arg-type]
    network = FeedForward(memory())
    with pytest.raises(ValueError, match="expected 64 neurons, got 63"):
        network.classify(torch.zeros(2, 63))
    with pytest.raises(ValueError, match="positive integer m, got 0"):
        network.class_loss(images(), torch.arange(9), 0)
    with pytest.raises(ValueError, match="classes 0 to 9, got 10"):
        network.class_loss(images(), torch.arange(9) + 4)
    steep = FeedForward(memory(interaction=Polynomial(60), scaling=Normalised(1e-4)))
    with pytest.raises(OverflowError, match="higher temperature"):
        steep.classify(images())
