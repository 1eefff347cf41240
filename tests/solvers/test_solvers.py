"""Solvers: one contract for all of them, on maps with known fixed points."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from hamdeq import HAM, Anderson, Broyden, Newton, Picard, Solution, Status, clamp, eliminate
from hamdeq.solvers import Solver
from hamdeq.testing import SolverContract
from hamdeq.testing.solvers import Problem

SOLVERS = {
    "picard": Picard(),
    "damped": Picard(damping=0.5),
    "anderson": Anderson(),
    "anderson1": Anderson(history=1),
    "anderson_sharp": Anderson(ridge=0.0),
    "broyden": Broyden(),
    "broyden3": Broyden(history=3),
    "newton": Newton(),
}
BATCH = 6
Map = Callable[[Tensor], Tensor]


def linear(rho: float = 0.6, n: int = 8, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, n, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise)[0]
    a = basis @ torch.diag(torch.linspace(-rho, rho, n, dtype=torch.float64)) @ basis.T
    b = torch.randn(BATCH, n, generator=generator, dtype=torch.float64)
    solution = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - a, b.T).T
    return Problem(lambda rows: lambda x: x @ a + b[rows], torch.zeros_like(b), solution)


def cosine() -> Problem:
    x0 = torch.linspace(-1, 1, BATCH * 3, dtype=torch.float64).reshape(BATCH, 3)
    # The Dottie number.
    return Problem(lambda rows: torch.cos, x0, torch.full_like(x0, 0.7390851332151607))


def babylonian() -> Problem:
    a = torch.linspace(0.5, 50.0, BATCH * 4, dtype=torch.float64).reshape(BATCH, 4)
    return Problem(lambda rows: lambda x: 0.5 * (x + a[rows] / x), torch.ones_like(a), a.sqrt())


def memory() -> Problem:
    torch.manual_seed(0)
    ham = HAM.chain([7, 9, 8, 5]).double()
    with torch.no_grad():
        for p in ham.parameters():  # small weights: one equilibrium
            p *= 0.5
    images = torch.rand(BATCH, 7, dtype=torch.float64)

    def f(rows: list[int]) -> Map:
        reduced = eliminate(clamp(ham, {"input": images[rows]}), ["hidden1", "output"])
        return lambda x: reduced.update({"hidden2": x})["hidden2"]

    x = x0 = torch.zeros(BATCH, 8, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(500):
            x = f(list(range(BATCH)))(x)
    return Problem(f, x0, x)


PROBLEMS = {"linear": linear, "cos": cosine, "sqrt": babylonian, "memory": memory}


@pytest.fixture(params=SOLVERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def solver(name: str) -> Solver:
    """Each of the solvers, with a tolerance far below what the tests compare."""
    return dataclasses.replace(SOLVERS[name], tol=1e-11, max_steps=600)


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return built(request.param)


@functools.cache
def built(name: str) -> Problem:
    return PROBLEMS[name]()


def residual(f: Map, x: Tensor) -> Tensor:
    with torch.no_grad():
        fx = f(x)
    return (fx - x).norm(dim=1) / fx.norm(dim=1)


def tangent(f: Map, x: Tensor, r: Tensor) -> Tensor:
    """(I − ∂f/∂x)⁻¹ r a sample."""
    jacobian = torch.autograd.functional.jacobian(lambda x: f(x).sum(0), x)
    assert isinstance(jacobian, Tensor)
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(identity - jacobian.transpose(0, 1), r)


def same(a: Solution, b: Solution, rows: Sequence[int]) -> None:
    """That b is what a has for these samples."""
    rows = list(rows)
    torch.testing.assert_close(b.value, a.value[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b.residual, a.residual[rows], rtol=1e-6, atol=1e-12)
    assert b.steps.tolist() == a.steps[rows].tolist()
    assert b.status.tolist() == a.status[rows].tolist()


class TestContract(SolverContract):
    @pytest.fixture(autouse=True)
    def kind(self, name: str) -> None:
        self.make = lambda: SOLVERS[name]

    def problems(self) -> dict[str, Problem]:
        return {name: built(name) for name in PROBLEMS}


class TestEverySolver:
    def test_steps_count_evaluations(self, solver: Solver, problem: Problem) -> None:
        calls = derivatives = 0
        f = problem.f(list(range(BATCH)))

        def counting(x: Tensor) -> Tensor:
            nonlocal calls, derivatives
            # Newton's method evaluates f once more, with a graph, for the Jacobian of a step.
            calls += not torch.is_grad_enabled()
            derivatives += torch.is_grad_enabled()
            return f(x)

        solver = dataclasses.replace(solver, tol=1e-5)
        result = solver.solve(counting, problem.x0)
        assert result.n_evals == calls == int(result.steps.max()) == len(result.trace)
        assert derivatives == (calls - 1 if isinstance(solver, Newton) else 0)
        assert result.trace.shape == (calls, BATCH)
        below = result.trace < solver.tol
        for i, steps in enumerate(result.steps.tolist()):
            assert below[steps - 1, i]
            assert not below[: steps - 1, i].any()

    def test_trace_begins_with_the_initial_residual(self, solver: Solver, problem: Problem) -> None:
        result = problem.solve(solver)
        expected = residual(problem.f(list(range(BATCH))), problem.x0)
        torch.testing.assert_close(result.trace[0], expected)

    def test_non_finite_initial_state_harms_no_other(
        self, solver: Solver, problem: Problem
    ) -> None:
        solver = dataclasses.replace(solver, tol=1e-6)
        alone = problem.solve(solver)
        x0 = problem.x0.clone()
        x0[1], x0[4] = math.nan, math.inf
        result = solver.solve(problem.f(list(range(BATCH))), x0)
        rows = [0, 2, 3, 5]
        torch.testing.assert_close(result.value[rows], alone.value[rows], rtol=1e-12, atol=1e-12)
        assert result.steps[rows].tolist() == alone.steps[rows].tolist()
        assert result.status[1] == Status.DIVERGED

    def test_keeps_the_best_finite_state(self, solver: Solver) -> None:
        # One step up each time, the relative residual falls, until 5, where the map ends.
        def f(x: Tensor) -> Tensor:
            return torch.where(x < 5, x + 1, math.nan)

        result = solver.solve(f, torch.zeros(2, 1, dtype=torch.float64))
        step = solver.damping if isinstance(solver, Picard) else 1.0
        assert result.status.tolist() == [Status.DIVERGED] * 2
        assert result.value.flatten().tolist() == [5 - step] * 2
        assert result.residual.tolist() == [1 / (6 - step)] * 2
        assert result.steps.tolist() == [5 / step + 1] * 2

    def test_few_steps(self, solver: Solver, problem: Problem) -> None:
        f = problem.f(list(range(BATCH)))
        none, one, two = (
            dataclasses.replace(solver, max_steps=n).solve(f, problem.x0) for n in (0, 1, 2)
        )
        assert torch.equal(none.value, problem.x0)
        assert none.n_evals == 0
        assert none.trace.shape == (0, BATCH)
        assert none.residual.isinf().all()
        assert torch.equal(one.value, problem.x0)
        assert one.trace.shape == (1, BATCH)
        assert two.n_evals == 2
        # Newton's method solves a linear map with its first step.
        solved = isinstance(solver, Newton) & (two.trace[-1] < solver.tol)
        for result in (none, one, two):
            at_end = solved if result is two else torch.zeros_like(solved)
            assert torch.equal(result.status == Status.CONVERGED, at_end)
            assert torch.equal(result.status == Status.MAX_STEPS, ~at_end)
            assert (result.steps == result.n_evals).all()
        with torch.no_grad():
            step = f(problem.x0) - problem.x0
        if isinstance(solver, Newton):
            moved = problem.x0 + tangent(f, problem.x0, step)
        else:
            # The first step is a plain one, damped for the damped solver.
            moved = problem.x0 + (solver.damping if isinstance(solver, Picard) else 1.0) * step
        better = (two.trace[1] < two.trace[0])[:, None]
        torch.testing.assert_close(two.value, torch.where(better, moved, problem.x0))

    def test_parallel_residuals(self, solver: Solver) -> None:
        # The residual is the same everywhere: all differences are zero, there is no solution.
        drift = torch.tensor([[1.0, 2.0, 3.0]])
        result = dataclasses.replace(solver, max_steps=30).solve(
            lambda x: x + drift, torch.zeros(2, 3)
        )
        assert (result.status == Status.MAX_STEPS).all()
        assert result.value.isfinite().all()
        # Residuals along one line: the Gram matrix of several differences is singular.
        line = torch.tensor([[3e4, 4e4]])

        def f(x: Tensor) -> Tensor:
            return line * (1 + 0.5 * torch.tanh(x.sum(1, keepdim=True) / 1e5))

        result = dataclasses.replace(solver, tol=1e-5).solve(f, torch.zeros(2, 2))
        assert result.converged.all()
        assert residual(f, result.value).max() < 1e-5

    def test_tolerance_below_rounding(self, solver: Solver) -> None:
        problem = linear(n=30)
        f = problem.f(list(range(BATCH)))
        result = dataclasses.replace(solver, tol=1e-12, max_steps=80).solve(
            lambda x: f(x.double()).float(), problem.x0.float()
        )
        torch.testing.assert_close(result.value, problem.solution.float(), rtol=1e-5, atol=1e-5)
        # Some samples may converge to the last bit; no other has converged.
        assert torch.equal(result.converged, result.residual == 0)
        assert (result.steps[~result.converged] == 80).all()
        assert (result.status[~result.converged] == Status.MAX_STEPS).all()

    @pytest.mark.parametrize("power", [-40, 40])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_scale_invariance(self, solver: Solver, power: int, dtype: torch.dtype) -> None:
        # 2^±40, about 1e±12: a power of two changes no digit.
        problem, scale = linear(), 2.0**power
        a = problem.f([0])(torch.eye(8, dtype=torch.float64)) - problem.f([0])(
            torch.zeros(8, 8, dtype=torch.float64)
        )
        b = problem.f(list(range(BATCH)))(problem.x0).to(dtype)
        a = a.to(dtype)
        solver = dataclasses.replace(solver, tol=1e-6)
        plain = solver.solve(lambda x: x @ a + b, torch.zeros_like(b))
        scaled = solver.solve(lambda x: x @ a + scale * b, torch.zeros_like(b))
        assert plain.converged.all()
        assert scaled.steps.tolist() == plain.steps.tolist()
        torch.testing.assert_close(scaled.value / scale, plain.value, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("size", [0.0, 1.0, 10.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_zero_as_the_solution(self, solver: Solver, size: float, dtype: torch.dtype) -> None:
        result = solver.solve(torch.zeros_like, torch.full((2, 3), size, dtype=dtype))
        # Where f(x) is zero the relative residual is as good as infinite, but nothing is wrong.
        assert not (result.status == Status.DIVERGED).any()
        if not (isinstance(solver, Picard) and solver.damping < 1 and size):
            assert result.converged.all()
            assert result.value.tolist() == [[0.0] * 3] * 2
            assert result.steps.tolist() == [1 if size == 0 else 2] * 2

    def test_inference_mode_changes_nothing(self, solver: Solver, problem: Problem) -> None:
        solver = dataclasses.replace(solver, tol=1e-6)
        with torch.inference_mode():
            result = problem.solve(solver)
        same(problem.solve(solver), result, range(BATCH))

    def test_refuses_unknown_options(self, name: str) -> None:
        with pytest.raises(TypeError, match="tolerance"):
            type(SOLVERS[name])(tolerance=1e-3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="positional"):
            type(SOLVERS[name])(1e-3)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [0, -0.5, 1.5, 2, math.nan])
def test_refuses_bad_damping(value: float) -> None:
    with pytest.raises(ValueError, match="damping: expected a finite number > 0 and ≤ 1"):
        Picard(damping=value)


@pytest.mark.parametrize("kind", [Anderson, Broyden, Newton])
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        *(("history", value, "an integer ≥ 1") for value in (0, -1, 2.0)),
        *(("patience", value, "an integer ≥ 1") for value in (0, -1, 2.5)),
        *(("growth", value, "a finite number > 1") for value in (1.0, -2.0, math.nan)),
        *(("ridge", value, "a finite number ≥ 0") for value in (-0.1, math.nan, math.inf)),
    ],
)
def test_refuses_bad_acceleration(
    kind: type[Solver], option: str, value: float, expected: str
) -> None:
    known = option in {field.name for field in dataclasses.fields(kind)}
    match = f"^{option}: expected {expected}, got {value}" if known else f"unexpected.*'{option}'"
    with pytest.raises(ValueError if known else TypeError, match=match):
        kind(**{option: value})


@pytest.mark.parametrize("kind", [Anderson, Broyden, Newton])
def test_acceleration_pays_on_a_slow_contraction(kind: type[Solver]) -> None:
    problem = linear(rho=0.95, n=20)
    plain = problem.solve(Picard(tol=1e-8, max_steps=1000))
    fast = problem.solve(kind(tol=1e-8, max_steps=1000))
    assert plain.converged.all()
    assert fast.converged.all()
    assert (3 * fast.steps < plain.steps).all()


@pytest.mark.parametrize("name", ["anderson", "anderson_sharp", "broyden", "newton"])
@pytest.mark.parametrize("slope", [-1.0, -3.0, -20.0, 3.0])
def test_acceleration_solves_where_picard_cannot(name: str, slope: float) -> None:
    # One dimension: two evaluations determine the line, and the third is at its fixed point.
    def f(x: Tensor) -> Tensor:
        return slope * x + 1

    solver, x0 = dataclasses.replace(SOLVERS[name], tol=1e-10), torch.zeros(1, 1).double()
    result = solver.solve(f, x0)
    assert result.converged.all()
    torch.testing.assert_close(result.value.item(), 1 / (1 - slope), rtol=1e-9, atol=0.0)
    assert not Picard().solve(f, x0).converged.any()
    if name == "newton":  # the derivative determines it at once
        assert result.n_evals == 2


class TestNewton:
    @pytest.mark.parametrize("rho", [0.6, 3.0, 20.0])
    def test_linear_maps_take_one_step(self, rho: float) -> None:
        problem = linear(rho)
        result = problem.solve(Newton(tol=1e-12))
        assert result.n_evals == 2
        assert result.steps.tolist() == [2] * BATCH
        torch.testing.assert_close(result.value, problem.solution, rtol=1e-10, atol=1e-10)

    def test_quadratic_convergence(self) -> None:
        x0 = torch.linspace(0.0, 1.3, BATCH, dtype=torch.float64)[:, None]
        result = Newton(tol=1e-12).solve(torch.cos, x0)
        assert result.converged.all()
        assert result.steps.max() <= 6
        torch.testing.assert_close(result.value, torch.full_like(x0, 0.7390851332151607))
        # An error e becomes e² cos x/(2 + 2 sin x); the relative residual is e (1 + sin x)/x.
        x = 0.7390851332151607
        constant = x / 2 / (1 + math.sin(x)) / ((1 + math.sin(x)) / x)
        before, after = result.trace[:-1], result.trace[1:]
        seen = (before < 0.02) & (after > 1e-13)
        assert seen.any(0).sum() >= 4
        ratio = (after / before**2)[seen]
        torch.testing.assert_close(ratio, torch.full_like(ratio, constant), rtol=0.05, atol=0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_singular_systems(self, dtype: torch.dtype) -> None:
        """Of x + 1 in no, one or each direction; the others have a solution."""

        def f(x: Tensor) -> Tensor:
            moves = torch.tensor([[False, False], [True, False], [True, True]])
            return torch.where(moves, x + 1, 0.5 * x + 1)

        result = Newton(max_steps=30).solve(f, torch.zeros(3, 2, dtype=dtype))
        assert result.status.tolist() == [Status.CONVERGED, *[Status.MAX_STEPS] * 2]
        assert result.steps.tolist() == [2, 30, 30]
        assert result.value[0].tolist() == [2.0, 2.0]
        # Plain steps are what is left, and they go on for ever.
        assert result.value[2].tolist() == [29.0, 29.0]
        assert result.value[1].isfinite().all()
        assert result.trace.isfinite().all()

    def test_maps_without_a_graph(self) -> None:
        """A constant needs none; of any other map it is missed, not taken for a constant."""
        x0 = torch.zeros(2, 3)
        result = Newton(tol=1e-6).solve(torch.ones_like, x0)
        assert result.steps.tolist() == [2, 2]
        assert torch.equal(result.value, torch.ones_like(x0))
        with pytest.raises(TypeError, match=r"^Newton: .*differentiate.*use Broyden"):
            Newton().solve(lambda x: x.detach().cos(), x0)


def test_status_messages_name_a_remedy() -> None:
    for status in Status:
        assert len(status.message) > 20
    assert "damp" in Status.MAX_STEPS.message
    assert "damp" in Status.DIVERGED.message
    assert "clean the data" in Status.INVALID.message


def test_repr_of_a_solution() -> None:
    result = cosine().solve(Anderson(tol=1e-8))
    assert "converged: 6/6" in repr(result)
    assert f"n_evals: {result.n_evals}" in repr(result)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_broyden_solves_a_linear_map_of_n_numbers_in_2n_steps(n: int) -> None:
    """Gay, "Some convergence properties of Broyden's method" (1979)."""
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(64, n, n, generator=generator, dtype=torch.float64)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]
    b = torch.randn(64, n, generator=generator, dtype=torch.float64)
    solver = Broyden(tol=1e-9, max_steps=200)
    found = solver.solve(lambda x: (a @ x[..., None])[..., 0] + b, torch.zeros_like(b))
    assert found.steps.max() <= 2 * n + 1  # with the evaluation at the start
