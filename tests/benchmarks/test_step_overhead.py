"""What a solver's step costs beyond the evaluation of f.

    OMP_NUM_THREADS=1 pytest tests/benchmarks/test_step_overhead.py --benchmark-only -s

Batch 64, width 522 (a memory of 512 + 10 neurons has 10 left with even-odd splitting), float32.
A cell is the time of a step as a multiple of a bare evaluation of f, measured in turn: that of 24
steps, the difference of solves of 32 and 8.
"""

import time
from statistics import median

import pytest
import torch
from test_solver_evaluations import bipartite, even_odd, linear

from hamdeq import Anderson, Broyden, Picard
from hamdeq.implicit.fixed_point import as_rows
from hamdeq.solvers.energy_map import StateLayout

SOLVERS = {
    "Picard": Picard,
    "Anderson": Anderson,
    "Anderson(history=10)": lambda **options: Anderson(history=10, **options),
    "Broyden": Broyden,
}
PROBLEMS = {
    "plain map, z ← Az + b": (linear, 0.99),
    "memory, even-odd": (even_odd, 1.6),
    "memory, synchronous": (bipartite, 1.6),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_step(benchmark, name):
    build, size = PROBLEMS[name]
    torch.manual_seed(0)
    f, x0 = build(size)
    form = StateLayout(x0)
    f, x0 = as_rows(f, form), form.flatten(x0)
    times: dict[str, list[float]] = {label: [] for label in ("f", *SOLVERS)}

    def timed(call, *args) -> float:
        began = time.perf_counter()
        call(*args)
        return time.perf_counter() - began

    def evaluate() -> None:
        for _ in range(24):
            f(x0)

    @torch.no_grad()
    def turn() -> None:
        times["f"].append(timed(evaluate))
        for label, solver in SOLVERS.items():
            # Never satisfied, so that all samples take all steps.
            few, many = (solver(tol=1e-30, max_steps=steps).solve for steps in (8, 32))
            times[label].append(timed(many, f, x0) - timed(few, f, x0))

    benchmark.pedantic(turn, rounds=30, warmup_rounds=2)
    cells = {label: f"{median(t) / median(times['f']):.2f}" for label, t in times.items()}
    benchmark.extra_info.update(cells)
    micro = 1e6 * median(times["f"]) / 24
    print(f"\n| {name} | {micro:.0f} µs | " + " | ".join(list(cells.values())[1:]) + " |", end="")
