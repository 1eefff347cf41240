"""How memories settle: steps, share of samples that do, and time, solver by solver.

    OMP_NUM_THREADS=1 pytest tests/benchmarks/test_settling.py --benchmark-only -s

First a trained 784-512-10 memory (see test_training_step.py): steps to 1e-4, and the time of a
forward and backward pass at batch 64 as a multiple of Picard's, measured in turn. Then untrained
chains, which have several equilibria: the share of samples converged within 100 steps, and their
mean steps.
"""

import dataclasses
import time
from statistics import median

import pytest
import torch
from test_training_step import Training

from hamdeq import DEQ, HAM, Anderson, Broyden, ConjugateGradient, Newton, Picard

PLAIN = {"Picard": Picard(), "Anderson": Anderson(), "Broyden": Broyden()}
# Newton's method is for small states, as even-odd splitting leaves them.
SOLVERS = {"even-odd": {**PLAIN, "Newton": Newton()}, "none": PLAIN}
SPLITTINGS = {"even-odd": "even-odd", "none": None}


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_trained(benchmark, splitting):
    training = Training(Anderson(max_steps=40), ConjugateGradient(tol=1e-2))
    for _ in range(300):
        training()
    deqs = {
        name: DEQ(training.deq.ham, splitting=SPLITTINGS[splitting], solver=solver, start="zeros")
        for name, solver in SOLVERS[splitting].items()
    }
    times: dict[str, list[float]] = {name: [] for name in deqs}
    steps: dict[str, list[torch.Tensor]] = {name: [] for name in deqs}

    def batches() -> None:
        for images, _ in training.batches:
            for name, deq in deqs.items():
                began = time.perf_counter()
                solution = deq({"input": images})
                solution.value["output"].square().mean().backward()
                times[name].append(time.perf_counter() - began)
                steps[name].append(solution.steps)

    benchmark.pedantic(batches, rounds=3, warmup_rounds=1)
    for name in deqs:
        taken = torch.cat(steps[name])
        ratio = median(times[name]) / median(times["Picard"])
        cells = f"{taken.double().mean():.1f} | {int(taken.max())} | {ratio:.2f}"
        benchmark.extra_info[name] = cells
        print(f"\n| trained, splitting {splitting} | {name} | {cells} |", end="")


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("sizes", [[20] * 5, [64, 64, 64, 10], [100] * 9], ids=str)
def test_untrained(benchmark, sizes, splitting):
    memories = []
    for seed in range(10):
        torch.manual_seed(seed)
        memories.append((HAM.chain(sizes), {"input": torch.rand(64, sizes[0])}))

    @torch.no_grad()
    def row(solver):
        solutions = [
            DEQ(
                ham,
                splitting=SPLITTINGS[splitting],
                solver=dataclasses.replace(solver, fallback_steps=0),
                start="zeros",
                on_failure="ignore",
            )(x)
            for ham, x in memories
        ]
        share = torch.cat([solution.converged for solution in solutions]).double().mean()
        mean = torch.cat([solution.steps for solution in solutions]).double().mean()
        return f"{share:.1%} | {mean:.1f}"

    solvers = dict(SOLVERS[splitting])
    if sizes[0] > 64:
        solvers.pop("Newton", None)
    cells = benchmark.pedantic(lambda: {n: row(s) for n, s in solvers.items()}, rounds=1)
    benchmark.extra_info.update(cells)
    for name, cell in cells.items():
        print(f"\n| {sizes}, splitting {splitting} | {name} | {cell} |", end="")
