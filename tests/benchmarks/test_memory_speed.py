"""An epoch of learning, of one network and of a grid, against both states of every neuron anew.

    pytest tests/benchmarks/test_memory_speed.py --benchmark-only -s

N = 100, 20 states, 100 memories, n = 20, one thread. The reference writes every neuron at +1 and at
−1 into the states and takes F of both, in float64 with autograd, as the papers' code does; its step
is the same as ours. Both sides take turns within one run; printed are the medians for one network,
the ratio of these, and the quartiles of the ratio of each turn.
"""

import statistics
import time
import warnings

import pytest
import torch
from torch import nn

from hamdeq.experiments.hyperparameters.grid import Kernel, Networks, Training, measure
from hamdeq.memories import DenseAssociativeMemory, Learning, Normalised, Polynomial
from hamdeq.optim import NormalisedSGD

N, STATES, MEMORIES, VERTEX, RATE, TEMPERATURE = 100, 20, 100, 20, 0.1, 1 / 0.9
GRID, EPOCHS = 64, 6


def drawn(count, dtype):
    torch.manual_seed(0)
    states = torch.randint(0, 2, (count, STATES, N)).to(dtype) * 2 - 1
    return (0.1 * torch.randn(count, MEMORIES, N)).to(dtype), states


class BothStates:
    """One network in float64: ON and OFF of every neuron from scratch."""

    def __init__(self, memories, states):
        self.memories, self.states = nn.Parameter(memories.double()), states.double()
        self.optimiser = NormalisedSGD([self.memories], lr=RATE)
        self.eye = torch.eye(N, dtype=torch.bool)

    def loss(self):
        beta = 1 / (N * TEMPERATURE)
        each = self.states[:, None].expand(-1, N, N)
        difference = 0.0
        for value, sign in ((1.0, 1), (-1.0, -1)):
            turned = torch.where(self.eye, value, each).reshape(-1, N)
            f = (beta * (turned @ self.memories.T)) ** VERTEX
            difference = difference + sign * f.sum(1).view(STATES, N)
        return (self.states - torch.tanh(difference)).square().mean()

    def epoch(self):
        self.optimiser.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimiser.step()
        return loss


class OneNetwork:
    """The library's memory, with its loss and its optimiser."""

    def __init__(self, memories, states):
        scaling = Normalised(TEMPERATURE)
        self.memory = DenseAssociativeMemory(
            N, Polynomial(VERTEX), scaling=scaling, memories=MEMORIES
        ).to(memories.dtype)
        with torch.no_grad():
            self.memory.memories.copy_(memories)
        self.states = states
        self.optimiser = NormalisedSGD(self.memory.parameters(), lr=RATE)

    def epoch(self):
        self.optimiser.zero_grad()
        loss = self.memory.loss(self.states)
        loss.backward()
        self.optimiser.step()
        return loss


class Grid:
    """All networks of a grid for some epochs and one recall, as the search for parameters does."""

    def __init__(self, memories, states, compiled):
        temperatures = torch.linspace(0.8, 1.4, GRID)
        rates = torch.linspace(0.05, 0.5, GRID)
        self.networks = Networks(memories, states, temperatures, rates)
        self.training = Training(Polynomial(VERTEX), Normalised(), Learning(), epochs=EPOCHS)
        self.kernel = Kernel(compiled=compiled)

    def epoch(self):
        """Of all networks: ``EPOCHS`` of them, as one."""
        return measure(self.networks, self.training, max_steps=1, kernel=self.kernel).loss


def seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compared(benchmark, name, reference, side, epochs, rounds):
    """Both take turns, and each goes first in every other one."""
    times = {"both states": [], name: []}

    def turn():
        sides = [("both states", reference, 1), (name, side, epochs)]
        for label, each, count in sides[:: 1 if len(times[name]) % 2 else -1]:
            times[label].append(seconds(each.epoch) / count)

    benchmark.pedantic(turn, rounds=rounds, warmup_rounds=2)
    medians = {label: 1e3 * statistics.median(values) for label, values in times.items()}
    low, _, high = statistics.quantiles(
        [a / b for a, b in zip(times["both states"], times[name], strict=True)]
    )
    ratio = medians["both states"] / medians[name]
    benchmark.extra_info["ratio"] = ratio
    cells = f"{medians['both states']:.2f} ms | {medians[name]:.3f} ms"
    print(f"\n| {name} | {cells} | {ratio:.2f} | {low:.2f} to {high:.2f} |", end="")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_one_network(benchmark, dtype):
    (memories,), (states,) = drawn(1, torch.float64)
    reference, side = BothStates(memories, states), OneNetwork(memories.to(dtype), states.to(dtype))
    if dtype == torch.float64:
        torch.testing.assert_close(side.memory.loss(states), reference.loss())
    compared(benchmark, f"one network, {dtype}", reference, side, 1, rounds=60)
    if dtype == torch.float64:  # they have learned the same
        torch.testing.assert_close(side.memory.memories, reference.memories, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_grid(benchmark, dtype, compiled):
    memories, states = drawn(GRID, dtype)
    reference = BothStates(memories[0], states[0])
    side = Grid(memories, states, compiled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler; whether it ran is what counts
        side.epoch()
    assert side.kernel.name == ("compiled" if compiled else "eager")
    name = f"grid of {GRID}, {side.kernel.name}, {dtype}"
    # The last gradient and the recall are part of it, and no epoch.
    compared(benchmark, name, reference, side, GRID * EPOCHS, rounds=4)
