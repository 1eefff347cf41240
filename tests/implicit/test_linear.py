"""Conjugate gradients on an energy model's system: honest residuals, few products, saddles."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    ConjugateGradient,
    Dense,
    Identity,
    Implicit,
    LayerNorm,
    Neurons,
    Sigmoid,
    Softmax,
    Solution,
    Spherical,
    Status,
    Tanh,
    clamp,
)
from hamdeq.implicit.base import Graph
from hamdeq.solvers.energy_map import EnergyMap, StateLayout

EXACT = Anderson(tol=1e-13, max_steps=500)
BETA = Sigmoid(4.0, 0.5)
GRAPHS: dict[str, tuple[list[int], list[Any]]] = {
    "chain3": ([5, 7, 4], [BETA, BETA]),
    "chain5": ([5, 7, 6, 6, 4], [BETA, BETA, BETA, BETA]),
    "attention": ([5, 6, 4], [Identity(), Softmax(2.0)]),
    "coupled": ([5, 4, 9, 4], [LayerNorm(0.5, 0.1), Softmax(3.0), Spherical(0.1)]),
}
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])


def memory(kind: str, splitting: Any = "even-odd", adjoint: Any = None) -> DEQ:
    torch.manual_seed(0)
    sizes, free = GRAPHS[kind]
    ham = HAM.chain(sizes, [Identity(), *free]).double()
    with torch.no_grad():
        for p in ham.synapses.parameters():
            p.copy_(0.3 * torch.randn_like(p) if p.dim() == 1 else 0.4 * p)
    return DEQ(ham, splitting=splitting, solver=EXACT, adjoint=adjoint)


def inputs() -> Tensor:
    return torch.rand(6, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def system(kind: str, splitting: Any = "even-odd") -> tuple[EnergyMap, Tensor, Tensor]:
    """A memory's map of rows, its equilibria, and right-hand sides."""
    deq = memory(kind, splitting)
    with torch.no_grad():
        reduced = deq.reduced({"input": inputs()})
        value = deq({"input": inputs()}).value
    layout = StateLayout({name: value[name] for name in reduced.visible})
    x = layout.flatten({name: value[name] for name in reduced.visible})
    generator = torch.Generator().manual_seed(3)
    return EnergyMap(reduced, layout), x, torch.randn(x.shape, generator=generator, dtype=x.dtype)


def residual(f: EnergyMap, x: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """‖c + Jᵀv − v‖/‖c + Jᵀv‖ a sample."""
    image = c + torch.autograd.functional.vjp(f, x, v)[1]  # type: ignore[operator]
    return (image - v).norm(dim=1) / image.norm(dim=1)


def dense(f: EnergyMap, x: Tensor, c: Tensor) -> Tensor:
    """(I − Jᵀ)⁻¹ c a sample."""
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: f(x).sum(0), x)
    return torch.linalg.solve(torch.eye(x.shape[1]).to(x) - jacobian.permute(1, 2, 0), c)


@pytest.mark.parametrize("kind", GRAPHS)
@splittings
@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_the_residual_reported_is_that_of_the_value(kind: str, splitting: Any, tol: float) -> None:
    f, x, c = system(kind, splitting)
    solution = ConjugateGradient(tol=tol).solve(Graph(f, x), c)
    assert solution.converged.all()
    true = residual(f, x, c, solution.value)
    torch.testing.assert_close(solution.residual, true, rtol=1e-6, atol=1e-14)
    assert solution.n_evals == len(solution.trace) == int(solution.steps.max())
    for i, steps in enumerate(solution.steps.tolist()):
        assert (solution.trace[:, i] < tol).int().argmax() == steps - 1
    expected = dense(f, x, c)
    assert ((solution.value - expected).norm(dim=1) < 30 * tol * expected.norm(dim=1)).all()


@pytest.mark.parametrize(("kind", "numbers"), [("chain3", 4), ("chain5", 10), ("attention", 4)])
def test_it_takes_at_most_as_many_products_as_there_are_numbers(kind: str, numbers: int) -> None:
    f, x, c = system(kind)
    graph: Any = Graph(f, x)
    products, coupling = [], graph.coupling
    graph.coupling = lambda v: products.append(v) or coupling(v)
    solution = ConjugateGradient(tol=1e-10).solve(graph, c)
    assert solution.converged.all()
    assert x.shape[1] == numbers
    # One to begin with: the residual of the right-hand side itself.
    assert 1 < solution.n_evals <= numbers + 1
    # And perhaps one more where samples end, to make sure of it.
    ends = len(solution.steps.unique())
    assert solution.n_evals <= len(products) <= solution.n_evals + ends


@pytest.mark.parametrize("rows", [[3], [1, 4], [5, 4, 3, 2, 1, 0]])
@splittings
def test_no_sample_depends_on_its_batch(splitting: Any, rows: list[int]) -> None:
    deq = memory("chain5", splitting, Implicit(solver=ConjugateGradient(tol=1e-4)))

    def solve(rows: list[int]) -> tuple[Tensor, Solution]:
        x = inputs()[rows].requires_grad_()
        solution = deq({"input": x})
        grad = torch.autograd.grad(solution.value["output"].sin().sum(), x)[0]
        return grad, solution.adjoint[0]

    (whole, a), (part, b) = solve(list(range(6))), solve(rows)
    assert b.steps.tolist() == a.steps[rows].tolist()
    assert b.status.tolist() == a.status[rows].tolist()
    torch.testing.assert_close(b.residual, a.residual[rows], rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)


def test_a_sample_that_has_converged_stays_there() -> None:
    """S and D are of different size: once r is all rounding, its companion is another."""
    # Seven that take a few steps, and one that takes many.
    s = torch.stack([torch.linspace(-0.01, 0.01 * i, 200) for i in range(8)]).double()
    s[7] = torch.linspace(-50, 0.999, 200)
    graph: Any = SimpleNamespace(
        coupling=lambda v: 1e6 * s * v, gain=lambda v: 1e-6 * v, transposed=lambda v: s * v
    )
    c = torch.randn(8, 200, generator=torch.Generator().manual_seed(0)).double()
    solution = ConjugateGradient(tol=1e-5).solve(graph, c)
    assert solution.converged.all()
    assert (10 * solution.steps[:7] < solution.steps[7]).all()
    image = c + s * solution.value
    assert ((image - solution.value).norm(dim=1) < 2e-5 * image.norm(dim=1)).all()


def test_a_right_hand_side_of_zero_takes_one_step() -> None:
    f, x, c = system("coupled")
    c[[0, 2]] = 0.0
    for given, most in ((c, 9), (0 * c, 1)):
        solution = ConjugateGradient(tol=1e-10).solve(Graph(f, x), given)
        assert solution.converged.all()
        assert solution.n_evals <= most
        assert solution.steps[[0, 2]].tolist() == [1, 1]
        assert solution.residual[[0, 2]].tolist() == [0.0, 0.0]
        assert solution.value[[0, 2]].abs().max() == 0


def test_cut_short_it_reports_the_residual_that_it_reached() -> None:
    f, x, c = system("chain5")
    cut = [ConjugateGradient(tol=1e-12, max_steps=n).solve(Graph(f, x), c) for n in (0, 1, 2)]
    for n, solution in enumerate(cut):
        assert (solution.status == Status.MAX_STEPS).all()
        assert solution.steps.tolist() == [solution.n_evals] * 6 == [n] * 6
        assert torch.equal(solution.value, c) is (n < 2)
        true = residual(f, x, c, solution.value) if n else torch.full((6,), math.inf).double()
        torch.testing.assert_close(solution.residual, true, rtol=1e-9, atol=0.0)
    assert (cut[2].residual < cut[1].residual).all()


# ---------------------------------------------------------------------------- saddles


def saddle(w: float) -> HAM:
    """Two neurons that excite each other: zero is a saddle of the energy where w > 1."""
    torch.manual_seed(0)
    neurons = {"input": Neurons(3, Identity()), "a": Neurons(1, Tanh()), "b": Neurons(1, Tanh())}
    pairs = [("input", "a"), ("input", "b"), ("a", "b")]
    ham = HAM(neurons, [((a, b), Dense(3 if a == "input" else 1, 1)) for a, b in pairs])
    with torch.no_grad():
        ham.synapses[2].weight.fill_(w)  # type: ignore[operator]
    return ham.double()


def at_saddle(w: float, c: Tensor) -> tuple[EnergyMap, Tensor]:
    clamped = clamp(saddle(w).to(c.dtype), {"input": c.new_zeros(len(c), 3)})
    layout = StateLayout({name: c.new_zeros(len(c), 1) for name in "ab"})
    return EnergyMap(clamped, layout), torch.zeros_like(c)


@pytest.mark.parametrize("w", [1.25, 9.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow
def test_at_a_saddle_the_result_is_right_or_reported(w: float, dtype: torch.dtype) -> None:
    """The system is not positive definite there."""
    angle = torch.linspace(0, math.pi, 25)
    # Around the direction in which the first step meets a curvature of zero.
    near = torch.tensor([s * 10.0**-k for k in range(1, 8) for s in (1, -1)])
    slope = torch.cat([angle.tan(), w + math.sqrt(w * w - 1) + near])
    converged, true = [], []
    for c in torch.stack([torch.ones_like(slope), slope], 1).to(dtype).split(1):
        f, x = at_saddle(w, c)
        solution = ConjugateGradient(tol=1e-4).solve(Graph(f, x), c)
        assert solution.value.isfinite().all()
        converged.append(bool(solution.converged))
        true.append(float(residual(f, x, c, solution.value)))
    assert sum(converged) > 25
    # Well above: the residual that is updated from step to step is not that of the value.
    assert max(r for r, done in zip(true, converged, strict=True) if done) < 3e-4


def test_without_curvature_there_is_no_step() -> None:
    """Here the first step's curvature is zero to the last bit."""
    c = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    f, x = at_saddle(1.25, c)
    solution = ConjugateGradient(tol=1e-10).solve(Graph(f, x), c)
    assert solution.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED]
    assert solution.value.isfinite().all()
    torch.testing.assert_close(solution.value[1], dense(f, x, c)[1])


@splittings
def test_the_gradient_at_a_saddle_is_the_closed_form(splitting: Any) -> None:
    adjoint = Implicit(solver=ConjugateGradient(tol=1e-13))
    deq = DEQ(saddle(3.0), splitting=splitting, solver=EXACT, adjoint=adjoint)
    u = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    solution = deq({"input": u})
    (result,) = torch.autograd.grad(solution.value["b"].sum(), u)
    assert solution.value["a"].item() == solution.value["b"].item() == 0
    assert solution.adjoint[0].converged.all()
    to_a, to_b, _ = deq.parameters()
    # (I − J)⁻¹ with J = [[0, 3], [3, 0]].
    torch.testing.assert_close(result, ((3 * to_a + to_b) / (1 - 9)).T)
