"""Evaluations that solvers need on fixed-point problems of known difficulty.

    pytest tests/benchmarks/test_solver_evaluations.py --benchmark-only -s

Batch 64, width 522, float32, from zero. A cell is the evaluation after which the worst sample's
relative residual is below 1e-4 / 1e-6, for three draws of the problem; "–" where some sample has
none within 1,000. torchdeq's own
Anderson stops with the whole batch, ours sample by sample, and of a memory ours know the energy.
An update of a memory with even-odd splitting costs as much as a synchronous one. Only the last
digits of a product depend on the machine; hard problems magnify them.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hamdeq import (
    HAM,
    Anderson,
    Broyden,
    Dense,
    EnergyModel,
    Identity,
    Neurons,
    Newton,
    Picard,
    Sigmoid,
    Solver,
    TorchDEQSolver,
    clamp,
    eliminate,
)
from hamdeq.implicit import solve_state

BATCH, WIDTH, HIDDEN = 64, 522, 512
Problem = tuple[Callable[[Tensor], Tensor] | EnergyModel, Tensor | dict[str, Tensor]]

SOLVERS: dict[str, Solver] = {
    "torchdeq's Anderson": TorchDEQSolver(name="anderson"),
    "Picard": Picard(),
    "Anderson": Anderson(),
    "Anderson(history=10)": Anderson(history=10),
    "Broyden": Broyden(),
    "Newton": Newton(),
}


def scaled(w: Tensor, norm: float) -> Tensor:
    return w * (norm / torch.linalg.matrix_norm(w, 2))


def linear(radius: float) -> Problem:
    """z ← Az + b, A symmetric with eigenvalues spread evenly over ± radius."""
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    values = torch.linspace(-radius, radius, WIDTH, dtype=torch.float64)
    a, b = ((basis * values) @ basis.T).float(), torch.randn(BATCH, WIDTH)
    return lambda z: z @ a + b, torch.zeros(BATCH, WIDTH)


def weighted(w: Tensor) -> Dense:
    synapse = Dense(*w.shape)
    synapse.weight.data = w
    return synapse


def driven(sizes: dict[str, int], couplings: dict[tuple[str, str], Tensor]) -> Problem:
    """A memory in which each sample drives each neuron by a number of its own."""
    neurons = {name: Neurons(n, Sigmoid(4.0, 0.5)) for name, n in sizes.items()}
    drives = {f"drive_{name}": Neurons(n, Identity()) for name, n in sizes.items()}
    ham = HAM(
        neurons | drives,
        [
            *((pair, weighted(w)) for pair, w in couplings.items()),
            *(((f"drive_{a}", a), weighted(torch.eye(n))) for a, n in sizes.items()),
        ],
    )
    clamped = {f"drive_{name}": 0.5 * torch.randn(BATCH, n) for name, n in sizes.items()}
    return clamp(ham, clamped), {name: torch.zeros(BATCH, n) for name, n in sizes.items()}


def bipartite(norm: float) -> Problem:
    """Synchronous update of a memory of 512 and 10 neurons, the weights' spectral norm given."""
    w = scaled(torch.randn(HIDDEN, WIDTH - HIDDEN), norm)
    return driven({"wide": HIDDEN, "narrow": WIDTH - HIDDEN}, {("wide", "narrow"): w})


def even_odd(norm: float) -> Problem:
    """The same with the wide layer eliminated."""
    memory, x0 = bipartite(norm)
    return eliminate(memory, ["wide"]), {"narrow": x0["narrow"]}


def dense(norm: float) -> Problem:
    """Synchronous update of 522 neurons, all coupled to all, symmetrically."""
    w = torch.randn(WIDTH, WIDTH)
    w = scaled((w + w.T).fill_diagonal_(0), norm)
    return driven({"all": WIDTH}, {("all", "all"): 0.5 * w})  # it acts at both of its places


PROBLEMS: dict[str, tuple[Callable[[float], Problem], float]] = {
    "linear, symmetric, spectral radius 0.99": (linear, 0.99),
    "memory 512 + 10, synchronous, ‖W‖ = 0.95": (bipartite, 0.95),
    "memory 512 + 10, even-odd, ‖W‖ = 0.95": (even_odd, 0.95),
    "memory 512 + 10, synchronous, ‖W‖ = 1.6": (bipartite, 1.6),
    "memory 512 + 10, even-odd, ‖W‖ = 1.6": (even_odd, 1.6),
    "memory 512 + 10, synchronous, ‖W‖ = 3 (plain iteration cycles)": (bipartite, 3.0),
    "memory 512 + 10, even-odd, ‖W‖ = 3": (even_odd, 3.0),
    "memory 522, all to all, ‖W‖ = 1.3": (dense, 1.3),
    "memory 522, all to all, ‖W‖ = 2": (dense, 2.0),
}


def evaluations(solver: Solver, problem: Problem, tol: float) -> str:
    f, x0 = problem
    solution = solve_state(f, x0, replace(solver, tol=tol, max_steps=1000, fallback_steps=0))
    return str(int(solution.steps.max())) if solution.converged.all() else "–"


@pytest.mark.parametrize("name", PROBLEMS)
def test_evaluations(benchmark, name):
    build, size = PROBLEMS[name]
    draws = []
    for seed in range(3):
        torch.manual_seed(seed)
        draws.append(build(size))
    # A Jacobian of 522 numbers by 522 for each sample is not what Newton is for.
    solvers = SOLVERS if build is even_odd else {n: s for n, s in SOLVERS.items() if n != "Newton"}

    def row() -> dict[str, str]:
        return {
            label: " / ".join(
                " ".join(evaluations(solver, draw, tol) for draw in draws) for tol in (1e-4, 1e-6)
            )
            for label, solver in solvers.items()
        }

    cells = benchmark.pedantic(row, rounds=1)
    benchmark.extra_info.update(cells)
    line = " | ".join(cells.get(label, "") for label in SOLVERS)
    print(f"\n| {name} | {line} |", end="")
