"""Evaluations that solvers need on fixed-point problems of known difficulty.

    pytest tests/benchmarks/test_solver_evaluations.py --benchmark-only -s

Batch 64, width 522, float32, from zero. A cell is the evaluation after which the worst sample's
relative residual is below 1e-4 / 1e-6; "–" where some sample has none within 1,000. torchdeq's own
Anderson stops with the whole batch, ours sample by sample. Only the last digits of a product depend
on the machine; hard problems magnify them.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hamdeq import Anderson, Broyden, Picard, Solver, TorchDEQSolver

BATCH, WIDTH, HIDDEN = 64, 522, 512
Map = Callable[[Tensor], Tensor]

SOLVERS: dict[str, Solver] = {
    "torchdeq's Anderson": TorchDEQSolver(name="anderson"),
    "Picard": Picard(),
    "Anderson": Anderson(),
    "Anderson(memory=10)": Anderson(memory=10),
    "Broyden": Broyden(),
}


def rho(x: Tensor) -> Tensor:
    return torch.sigmoid(4 * x - 2)


def scaled(w: Tensor, norm: float) -> Tensor:
    return w * (norm / torch.linalg.matrix_norm(w, 2))


def linear(radius: float) -> Map:
    """z ← Az + b, A symmetric with eigenvalues spread evenly over ± radius."""
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    values = torch.linspace(-radius, radius, WIDTH, dtype=torch.float64)
    a, b = ((basis * values) @ basis.T).float(), torch.randn(BATCH, WIDTH)
    return lambda z: z @ a + b


def bipartite(norm: float) -> Map:
    """Synchronous update of a memory of 512 and 10 neurons, the weights' spectral norm given."""
    w, drive = scaled(torch.randn(HIDDEN, WIDTH - HIDDEN), norm), 0.5 * torch.randn(BATCH, WIDTH)

    def f(z: Tensor) -> Tensor:
        g = rho(z)
        return torch.cat([g[:, HIDDEN:] @ w.T, g[:, :HIDDEN] @ w], dim=1) + drive

    return f


def dense(norm: float) -> Map:
    """Synchronous update of 522 neurons, all coupled to all, symmetrically."""
    w = torch.randn(WIDTH, WIDTH)
    w = scaled((w + w.T).fill_diagonal_(0), norm)
    drive = 0.5 * torch.randn(BATCH, WIDTH)
    return lambda z: rho(z) @ w + drive


PROBLEMS: dict[str, tuple[Callable[[float], Map], float]] = {
    "linear, symmetric, spectral radius 0.99": (linear, 0.99),
    "memory 512 + 10, synchronous, ‖W‖ = 0.95": (bipartite, 0.95),
    "the same, ‖W‖ = 1.6": (bipartite, 1.6),
    "the same, ‖W‖ = 3 (plain iteration cycles)": (bipartite, 3.0),
    "memory 522, all to all, ‖W‖ = 1.3": (dense, 1.3),
    "the same, ‖W‖ = 2": (dense, 2.0),
}


def evaluations(solver: Solver, f: Map, tol: float) -> str:
    solution = replace(solver, tol=tol, max_steps=1000).solve(f, torch.zeros(BATCH, WIDTH))
    return str(int(solution.steps.max())) if solution.converged.all() else "–"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_evaluations(benchmark, problem):
    build, size = PROBLEMS[problem]
    torch.manual_seed(0)
    f = build(size)

    def row() -> dict[str, str]:
        return {
            name: f"{evaluations(solver, f, 1e-4)} / {evaluations(solver, f, 1e-6)}"
            for name, solver in SOLVERS.items()
        }

    cells = benchmark.pedantic(row, rounds=1)
    benchmark.extra_info.update(cells)
    if problem == next(iter(PROBLEMS)):
        print("\n| problem | " + " | ".join(SOLVERS) + " |\n|---|" + "---|" * len(SOLVERS))
    print(f"| {problem} | " + " | ".join(cells.values()) + " |")
