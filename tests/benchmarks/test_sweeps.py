"""Gauss-Seidel sweeps over a chain against even-odd splitting: why there are no sweeps here.

    pytest tests/benchmarks/test_sweeps.py --benchmark-only -s

A sweep updates one layer after the other, each from its neighbours' newest states: forwards, or
forwards and back again. Information then crosses the whole depth in one map, where even-odd steps
need as many as half the layers. But for a chain of layers even-odd and forward sweeps contract
alike (Young, "Iterative Solution of Large Linear Systems", 1971, for consistently ordered systems),
and there and back costs twice the products.

Cells are the mean cost to 1e-4 over 64 samples, in evaluations of the even-odd map (products with
weights, divided by its own), and the share of samples that converged within 300 maps.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_training_step import batches
from torch import Tensor

from hamdeq import DEQ, HAM, Broyden, Clamped, Madam, Picard, Solution, clamp, fixed_point
from hamdeq.energy.model import State

SOLVERS = {
    "Picard": Picard(max_steps=300, fallback_steps=0),
    "Broyden": Broyden(max_steps=300, fallback_steps=0),
}


def sweep(memory: Clamped, *, back: bool) -> Callable[[State], State]:
    forwards = memory.layers
    order = (*forwards, *forwards[-2::-1]) if back else forwards

    def f(x: State) -> State:
        x, g = dict(x), memory.activations(x)
        for name in order:
            x[name] = memory.field(g, name)
            g[name] = memory.layer(name).activation(x[name])
        return x

    return f


def products(names: tuple[str, ...], order: tuple[str, ...]) -> int:
    """Weights that the fields of the layers in ``order`` take, along a chain."""
    return sum((name != names[0]) + (name != names[-1]) for name in order)


def untrained(sizes: list[int], gain: float) -> tuple[HAM, Tensor]:
    torch.manual_seed(0)
    return HAM.chain(sizes, gain=gain), torch.rand(64, sizes[0])


def trained(hidden: list[int]) -> tuple[HAM, Tensor]:
    """On digits of 28 × 28 pixels."""
    torch.manual_seed(0)
    sizes = [784, *hidden, 10]
    deq = DEQ(
        HAM.chain(sizes, gain=[2.0] + [0.7] * len(hidden)), start="zeros", on_failure="ignore"
    )
    optimizer = Madam(deq.parameters(), lr=0.01)
    data = batches()
    for count in range(100):
        images, labels = data[count % len(data)]
        loss = F.mse_loss(deq({"input": images}).value["output"], F.one_hot(labels, 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return deq.ham, data[0][0]


MEMORIES = {
    "untrained, 8 layers of 100, gain 0.5": lambda: untrained([100] * 9, 0.5),
    "untrained, 8 layers of 100": lambda: untrained([100] * 9, 1.0),
    "untrained, 19 layers of 100, gain 0.6": lambda: untrained([100] * 20, 0.6),
    "trained, 784-128-96-64-48-32-10": lambda: trained([128, 96, 64, 48, 32]),
}


def cell(solution: Solution, cost: float) -> str:
    return f"{cost * solution.steps.double().mean():.1f} ({solution.converged.double().mean():.0%})"


@torch.no_grad()
def compare(ham: HAM, images: Tensor) -> dict[str, str]:
    memory = clamp(ham, {"input": images})
    names = memory.layers
    once = products(names, names)
    x0 = ham.zero_state(images, names)
    cells = {}
    for label, solver in SOLVERS.items():
        even_odd = DEQ(ham, solver=solver, start="zeros", on_failure="ignore")({"input": images})
        cells[f"{label}, even-odd"] = cell(even_odd, 1.0)
        for way, back in (("forwards", False), ("there and back", True)):
            order = (*names, *names[-2::-1]) if back else names
            found = fixed_point(sweep(memory, back=back), x0, solver=solver, on_failure="ignore")
            cells[f"{label}, {way}"] = cell(found, products(names, order) / once)
    return cells


@pytest.mark.parametrize("name", MEMORIES)
def test_sweeps(benchmark, name):
    ham, images = MEMORIES[name]()
    cells = benchmark.pedantic(compare, args=(ham, images), rounds=1)
    benchmark.extra_info.update(cells)
    if name == next(iter(MEMORIES)):
        print("\n| memory | " + " | ".join(cells) + " |\n|---|" + "---|" * len(cells), end="")
    print(f"\n| {name} | " + " | ".join(cells.values()) + " |", end="")
