"""One training step of the 784-512-10 memory: settling to a tolerance against forced iterations.

    pytest tests/benchmarks/test_training_step.py --benchmark-only -s

The papers run 40 forward and 8 backward iterations of Anderson's method whatever the residual.
The variants train the same memory on the same batches (scikit-learn's digits, enlarged to
28 × 28), side by side: settling to a tolerance, under the energy's safeguard; so many iterations of
this library's Anderson without a safeguard; and so many of torchdeq's own, with this project's
gain of the initial weights and with the papers', 1. The ratios of their medians are in
``extra_info``. A second benchmark says where the time of a step goes.
"""

import time
from collections import defaultdict
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    ConjugateGradient,
    Implicit,
    Madam,
    Solver,
    TorchDEQSolver,
    clamp,
)
from hamdeq.solvers.state import SolverState, Step

pytest.importorskip("sklearn")
TensorBatches = pytest.importorskip("hamdeq.data.batches").TensorBatches


OURS = (2.0, 0.3)


class Unguarded(SolverState):
    """Anderson's method and nothing else."""

    def __init__(self, solver, x0):
        self.ahead = solver.extrapolation(x0)

    def next(self, step: Step) -> torch.Tensor:
        x = self.ahead(step)
        return step.fx if x is None else x


class Forced(Anderson):
    """Anderson for exactly so many steps, also where the residual is zero, without a safeguard."""

    def start(self, f, x0):
        return Unguarded(self, x0)


def forced_to(steps: int) -> Anderson:
    solver = Forced(max_steps=steps, fallback_steps=0)
    object.__setattr__(solver, "tol", -1.0)  # refused by the constructor, for good reasons
    return solver


def batches(size: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=28, mode="bilinear").flatten(1)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    whole = [part for part in rows.split(size) if len(part) == size]
    return [(images[part], torch.from_numpy(labels)[part]) for part in whole]


class Training:
    """A memory in training, one step a call."""

    def __init__(
        self,
        solver: Solver,
        backward: Solver | ConjugateGradient,
        gain: float | tuple[float, ...] = OURS,
    ) -> None:
        torch.manual_seed(0)
        ham = HAM.chain([784, 512, 10], gain=gain)
        self.deq = DEQ(
            ham,
            solver=solver,
            adjoint=Implicit(solver=backward),
            start="zeros",
            on_failure="ignore",
        )
        self.optimizer = Madam(self.deq.parameters(), lr=0.01)
        self.batches = batches()
        self.count = 0

    def __call__(self) -> None:
        images, labels = self.batches[self.count % len(self.batches)]
        self.count += 1
        solution = self.deq({"input": images})
        loss = F.mse_loss(solution.value["output"], F.one_hot(labels, 10).float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.evaluations = solution.n_evals, solution.adjoint[0].n_evals


@pytest.mark.parametrize("gain", [OURS, 1.0], ids=["our gain", "the papers' gain"])
def test_settling_against_forced_iterations(benchmark, gain):
    settling = Training(Anderson(max_steps=40), ConjugateGradient(tol=1e-2), gain)
    stock = {"name": "anderson", "tol": 1e-30, "fallback_steps": 0}
    variants = {
        "settling": settling,
        "forced": Training(forced_to(40), forced_to(8), gain),
        "torchdeq": Training(
            TorchDEQSolver(max_steps=40, **stock), TorchDEQSolver(max_steps=8, **stock), gain
        ),
    }
    for _ in range(100):
        settling()
    for variant in variants.values():
        variant.deq.load_state_dict(settling.deq.state_dict())
        variant.optimizer.load_state_dict(settling.optimizer.state_dict())
    times: dict[str, list[float]] = {name: [] for name in variants}

    def blocks() -> None:
        # Blocks, as in training: step by step each would find the other's weights in the cache.
        for name, step in variants.items():
            for _ in range(20):
                began = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - began)

    benchmark.pedantic(blocks, rounds=15, warmup_rounds=1)
    assert variants["forced"].evaluations == (40, 8)
    # torchdeq's residual lags a step behind: one more evaluation measures it.
    assert variants["torchdeq"].evaluations == (41, 9)
    medians = {name: 1e3 * median(values) for name, values in times.items()}
    for name, ms in medians.items():
        label = f"{ms:.2f} ms, {ms / medians['settling']:.2f}"
        benchmark.extra_info[name] = label
        print(f"\n| {name} | {variants[name].evaluations} | {label} |", end="")


def test_where_the_time_goes(benchmark):
    training = Training(Anderson(max_steps=40), ConjugateGradient(tol=1e-2))
    for _ in range(100):
        training()
    deq, optimizer = training.deq, training.optimizer
    weight = next(iter(deq.ham.synapses)).weight
    # As many images as a training set of MNIST, drawn in random order.
    images = torch.rand(55_000, 784)
    loader = TensorBatches(images, torch.zeros(len(images), dtype=torch.long), 64, shuffle=True)
    drawn = iter(loader)
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name, call):
        began = time.perf_counter()
        result = call()
        times[name].append(time.perf_counter() - began)
        return result

    def settle(images):
        with torch.no_grad():
            return deq({"input": images})

    def step() -> None:
        for images, labels in training.batches:
            target = F.one_hot(labels, 10).float()
            timed("a batch of data", lambda: next(drawn))
            product = timed("input product", lambda x=images: x @ weight)
            timed("its weight gradient", lambda p=product, x=images: x.T @ p.detach())
            with torch.no_grad():
                timed("clamping", lambda x=images: clamp(deq.ham, {"input": x}))
                memory = deq.reduced({"input": images})
                x0 = {"output": torch.zeros(len(images), 10)}
                timed("one map", lambda m=memory, x=x0: m.update(x))
            timed("settling", lambda x=images: settle(x))
            optimizer.zero_grad()
            solution = timed("forward", lambda x=images: deq({"input": x}))
            loss = F.mse_loss(solution.value["output"], target)
            timed("backward", loss.backward)
            timed("optimiser", optimizer.step)

    benchmark.pedantic(step, rounds=15, warmup_rounds=2)
    medians = {name: 1e3 * median(values) for name, values in times.items()}
    parts = ("a batch of data", "forward", "backward", "optimiser")
    total = sum(medians[name] for name in parts)
    floor = sum(medians[name] for name in ("input product", "its weight gradient", "optimiser"))
    benchmark.extra_info.update({name: round(ms, 3) for name, ms in medians.items()})
    for name, ms in medians.items():
        print(f"\n| {name} | {ms:.2f} ms | {ms / total:.0%} |", end="")
    print(f"\n| whole step | {total:.2f} ms | {total / floor:.1f} times its floor |")
