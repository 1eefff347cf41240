"""The gradients of energy models: conjugate gradients and equilibrium propagation."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts import Triple
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Bias,
    ConjugateGradient,
    ConvergenceError,
    ConvergenceWarning,
    Dense,
    EquilibriumPropagation,
    Exp,
    Identity,
    Implicit,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    RePU,
    Sigmoid,
    Softmax,
    Solution,
    Solver,
    Spherical,
    Status,
    Tanh,
    Unrolled,
    clamp,
    fixed_point,
)
from hamdeq.implicit.base import Graph
from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.layout import StateLayout

# Far below what gradients are compared to.
EXACT = Anderson(tol=1e-13, max_steps=500)
CG = Implicit(solver=ConjugateGradient(tol=1e-13))
EP = EquilibriumPropagation(beta=1e-3, solver=EXACT)
BETA = Sigmoid(4.0, 0.5, learnable=True)
# The free layers in a row. Their gains ∂g/∂x are no diagonal matrix, or differ among the layers.
GRAPHS = {
    "chain3": [(7, BETA), (4, BETA)],
    "chain4": [(7, BETA), (6, BETA), (4, BETA)],
    "chain5": [(7, BETA), (6, BETA), (6, BETA), (4, BETA)],
    "attention": [(6, Identity()), (4, Softmax(2.0, learnable=True))],
    "coupled": [(4, LayerNorm(0.5, 0.1, learnable=True)), (9, Softmax(3.0)), (4, Spherical(0.1))],
    "mixed": [(6, Exp(0.3, learnable=True)), (5, RePU(3)), (7, Tanh(learnable=True))],
    # Its fields are derived from its energy.
    "triple": [(6, Sigmoid(learnable=True)), (4, Tanh())],
}
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])


def graph(kind: str) -> HAM:
    """A memory in float64 with one equilibrium, its input of five numbers to be clamped."""
    torch.manual_seed(0)
    free = [Neurons(*of) for of in copy.deepcopy(GRAPHS[kind])]
    layers = {"input": Neurons(5, Identity())} | {f"layer{i}": of for i, of in enumerate(free)}
    sizes = {a: layer.shape[0] for a, layer in layers.items()}
    connections: Any = [(p, Dense(sizes[p[0]], sizes[p[1]])) for p in itertools.pairwise(layers)]
    connections += [((a,), Bias(sizes[a])) for a in list(layers)[1:]]
    if kind == "triple":
        connections += [(tuple(layers), Triple(*sizes.values()))]
    ham = HAM(layers, connections).double()
    with torch.no_grad():
        for p in ham.synapses.parameters():
            p.copy_(0.3 * torch.randn_like(p) if p.dim() == 1 else 0.4 * p)
    return ham


def memory(kind: str, adjoint: Adjoint | None = None, splitting: Any = "even-odd") -> DEQ:
    return DEQ(graph(kind), splitting=splitting, solver=EXACT, adjoint=adjoint)


def inputs(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(batch, 5, generator=generator, dtype=torch.float64)


def loss(solution: Solution) -> Tensor:
    """A sum with different weights for all free numbers of the state."""
    flat = torch.cat([x for name, x in solution.value.items() if name != "input"], dim=1)
    weights = torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)
    return (torch.linspace(1, 2, len(flat))[:, None].to(flat) * weights * flat.sin()).sum()


def gradients(deq: DEQ, x: Tensor | None = None) -> tuple[dict[str, Tensor], Solution]:
    x = (inputs() if x is None else x).requires_grad_()
    of, solution = {**dict(deq.named_parameters()), "input": x}, deq({"input": x})
    found = torch.autograd.grad(loss(solution), list(of.values()))
    return dict(zip(of, found, strict=True)), solution


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a variable's gradient, relative to its size."""
    return max(float((found[a] - g).norm() / g.norm()) for a, g in expected.items())


def error(kind: str, adjoint: Adjoint, splitting: Any = "even-odd") -> float:
    exact, _ = gradients(memory(kind, CG, splitting))
    return worst(gradients(memory(kind, adjoint, splitting))[0], exact)


@pytest.mark.parametrize("kind", GRAPHS)
@splittings
class TestExact:
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_finite_differences(self, kind: str, splitting: Any, training: bool) -> None:
        deq = memory(kind, CG, splitting).train(training)
        gradient, solution = gradients(deq)
        assert solution.adjoint[0].converged.all()
        x, h = inputs(), 1e-5
        for name, p in [*deq.named_parameters(), ("input", x)]:
            direction, values = torch.randn_like(p), []
            with torch.no_grad():
                for shift in (h, -2 * h):
                    p += shift * direction
                    values.append(loss(deq({"input": x})))
                p += h * direction
            expected = (values[0] - values[1]) / (2 * h)
            found = (gradient[name] * direction).sum()
            # A slope near zero is known to the rounding of the two losses, about 1e-15/h.
            assert abs(found - expected) <= 1e-6 * max(abs(expected), 1e-3), name

    @pytest.mark.parametrize(
        ("adjoint", "limit"),
        [
            (Unrolled(150), 1e-9),
            (Implicit(solver=EXACT), 1e-9),
            (EP, 1e-5),
            (EquilibriumPropagation(beta=1e-3), 1e-5),
        ],
        ids=["unrolled", "implicit", "ep", "ep_default"],
    )
    def test_other_ways(self, kind: str, splitting: Any, adjoint: Adjoint, limit: float) -> None:
        assert error(kind, adjoint, splitting) < limit

    def test_error_falls_with_the_square_of_beta(self, kind: str, splitting: Any) -> None:
        errors = [
            error(kind, dataclasses.replace(EP, beta=beta), splitting) for beta in (0.2, 0.1, 0.05)
        ]
        assert errors[-1] > 1e-7
        assert all(3.5 < a / b < 4.5 for a, b in itertools.pairwise(errors)), errors


def system(kind: str, splitting: Any = "even-odd") -> tuple[EnergyMap, Tensor, Tensor]:
    """A memory's map of rows, its equilibria, and right-hand sides."""
    deq = memory(kind, splitting=splitting)
    with torch.no_grad():
        reduced = deq.reduced({"input": inputs(6)})
        value = deq({"input": inputs(6)}).value
    form = StateLayout({name: value[name] for name in reduced.visible})
    x = form.flatten({name: value[name] for name in reduced.visible})
    generator = torch.Generator().manual_seed(3)
    return EnergyMap(reduced, form), x, torch.randn(x.shape, generator=generator, dtype=x.dtype)


def residual(f: EnergyMap, x: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """‖c + Jᵀv − v‖/‖c + Jᵀv‖ a sample."""
    image = c + torch.autograd.functional.vjp(f, x, v)[1]  # type: ignore[operator]
    return (image - v).norm(dim=1) / image.norm(dim=1)


def dense(f: EnergyMap, x: Tensor, c: Tensor) -> Tensor:
    """(I − Jᵀ)⁻¹ c a sample."""
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: f(x).sum(0), x)
    return torch.linalg.solve(torch.eye(x.shape[1]).to(x) - jacobian.permute(1, 2, 0), c)


def saddle(w: float) -> HAM:
    """Two neurons that excite each other: at rest in zero, a saddle of the energy where w > 1."""
    torch.manual_seed(0)
    neurons = {"input": Neurons(3, Identity()), "a": Neurons(1, Tanh()), "b": Neurons(1, Tanh())}
    pairs = [("input", "a"), ("input", "b"), ("a", "b")]
    ham = HAM(neurons, [((a, b), Dense(3 if a == "input" else 1, 1)) for a, b in pairs])
    with torch.no_grad():
        ham.synapses[2].weight.fill_(w)  # type: ignore[operator]
    return ham.double()


def at_saddle(w: float, c: Tensor) -> tuple[EnergyMap, Tensor]:
    held = clamp(saddle(w).to(c.dtype), {"input": c.new_zeros(len(c), 3)})
    form = StateLayout({name: c.new_zeros(len(c), 1) for name in "ab"})
    return EnergyMap(held, form), torch.zeros_like(c)


class TestConjugateGradient:
    @pytest.mark.parametrize("kind", GRAPHS)
    @splittings
    @pytest.mark.parametrize("tol", [1e-2, 1e-6])
    def test_is_honest(self, kind: str, splitting: Any, tol: float) -> None:
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

    @pytest.mark.parametrize("kind", ["chain3", "chain5", "attention"])
    def test_as_many_products_as_numbers(self, kind: str) -> None:
        f, x, c = system(kind)
        graph: Any = Graph(f, x)
        products, coupling = [], graph.coupling
        graph.coupling = lambda v: products.append(v) or coupling(v)
        solution = ConjugateGradient(tol=1e-10).solve(graph, c)
        assert solution.converged.all()
        assert x.shape[1] == {"chain3": 4, "chain5": 10, "attention": 4}[kind]
        # One to begin with: the residual of the right-hand side itself.
        assert 1 < solution.n_evals <= x.shape[1] + 1
        # And perhaps one more where samples end, to make sure of it.
        ends = len(solution.steps.unique())
        assert solution.n_evals <= len(products) <= solution.n_evals + ends

    @pytest.mark.parametrize("rows", [[0], [3], [1, 4], [5, 4, 3, 2, 1, 0]])
    @pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
    @splittings
    def test_no_sample_depends_on_its_batch(
        self, splitting: Any, tol: float, rows: list[int]
    ) -> None:
        deq = memory("chain5", Implicit(solver=ConjugateGradient(tol=tol)), splitting)

        def solve(rows: list[int]) -> tuple[Tensor, Solution]:
            x = inputs(6)[rows].requires_grad_()
            solution = deq({"input": x})
            grad = torch.autograd.grad(solution.value["layer3"].sin().sum(), x)[0]
            return grad, solution.adjoint[0]

        (whole, a), (part, b) = solve(list(range(6))), solve(rows)
        assert b.steps.tolist() == a.steps[rows].tolist()
        assert b.status.tolist() == a.status[rows].tolist()
        torch.testing.assert_close(b.residual, a.residual[rows], rtol=1e-6, atol=1e-14)
        torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)

    def test_a_sample_that_has_converged_stays_there(self) -> None:
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

    def test_nothing_to_solve(self) -> None:
        f, x, c = system("chain4")
        c[[0, 2]] = 0.0
        for given, n_evals in ((c, 7), (0 * c, 1)):
            solution = ConjugateGradient(tol=1e-10).solve(Graph(f, x), given)
            assert solution.converged.all()
            assert solution.n_evals <= n_evals
            assert solution.steps[[0, 2]].tolist() == [1, 1]
            assert solution.residual[[0, 2]].tolist() == [0.0, 0.0]
            assert solution.value[[0, 2]].abs().max() == 0

    def test_few_steps(self) -> None:
        f, x, c = system("chain4")
        solutions = [
            ConjugateGradient(tol=1e-12, max_steps=n).solve(Graph(f, x), c) for n in (0, 1, 2)
        ]
        for n, solution in enumerate(solutions):
            assert (solution.status == Status.MAX_STEPS).all()
            assert solution.steps.tolist() == [solution.n_evals] * 6 == [n] * 6
            assert torch.equal(solution.value, c) is (n < 2)
            true = residual(f, x, c, solution.value) if n else torch.full((6,), math.inf).double()
            torch.testing.assert_close(solution.residual, true, rtol=1e-9, atol=0.0)
        assert (solutions[2].residual < solutions[1].residual).all()

    @pytest.mark.filterwarnings("ignore::hamdeq.ConvergenceWarning")
    def test_stopped_at_once_it_is_jacobian_free(self) -> None:
        stopped = Implicit(solver=ConjugateGradient(tol=1e-12, max_steps=1, fallback_steps=0))
        found, _ = gradients(memory("chain4", stopped))
        assert worst(found, gradients(memory("chain4", Unrolled(1)))[0]) < 1e-12

    @pytest.mark.parametrize("w", [1.25, 3.0, 9.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_saddle(self, w: float, dtype: torch.dtype) -> None:
        """Not positive definite: right, or reported as not converged."""
        angle = torch.linspace(0, math.pi, 50)
        # Around the direction in which the first step meets a curvature of zero.
        near = torch.tensor([s * 10.0**-k for k in range(1, 8) for s in (1, -1)])
        slope = torch.cat([angle.tan(), w + math.sqrt(w * w - 1) + near])
        found = []
        for c in torch.stack([torch.ones_like(slope), slope], 1).to(dtype).split(1):
            f, x = at_saddle(w, c)
            solution = ConjugateGradient(tol=1e-4).solve(Graph(f, x), c)
            assert solution.value.isfinite().all()
            found.append((bool(solution.converged), float(residual(f, x, c, solution.value))))
        assert sum(converged for converged, _ in found) > 50
        # Well above: the residual that is updated from step to step is not that of the value.
        assert max(true for converged, true in found if converged) < 3e-4

    def test_saddle_without_curvature(self) -> None:
        """Here the first step's curvature is zero to the last bit: there is no step to take."""
        c = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
        f, x = at_saddle(1.25, c)
        solution = ConjugateGradient(tol=1e-10).solve(Graph(f, x), c)
        assert solution.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED]
        assert solution.value.isfinite().all()
        torch.testing.assert_close(solution.value[1], dense(f, x, c)[1])

    @splittings
    def test_gradient_at_a_saddle(self, splitting: Any) -> None:
        deq = DEQ(saddle(3.0), splitting=splitting, solver=EXACT, adjoint=CG)
        u = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        solution = deq({"input": u})
        (found,) = torch.autograd.grad(solution.value["b"].sum(), u)
        assert solution.value["a"].item() == solution.value["b"].item() == 0
        assert solution.adjoint[0].converged.all()
        to_a, to_b, _ = deq.parameters()
        # (I − J)⁻¹ with J = [[0, 3], [3, 0]].
        torch.testing.assert_close(found, ((3 * to_a + to_b) / (1 - 9)).T)


class TestChoice:
    """Conjugate gradients where there is an energy, elsewhere the forward solver."""

    @pytest.mark.parametrize("tol", [1e-2, 1e-6])
    def test_tolerance_of_the_forward_pass(self, tol: float) -> None:
        deq = memory("chain5", splitting=None)
        # As a solver of the linear system it would take hundreds of steps.
        deq.solver = Picard(damping=0.05, tol=tol, max_steps=5000)
        found, solution = gradients(deq)
        deq.adjoint = Implicit(solver=ConjugateGradient(tol=tol))
        expected, other = gradients(deq)
        (a,), (b,) = solution.adjoint, other.adjoint
        assert a.converged.all()
        assert a.steps.tolist() == b.steps.tolist()
        assert a.steps.max() <= 24
        assert 1e-3 * tol < a.residual.max() < tol
        assert all(torch.equal(found[name], g) for name, g in expected.items())

    @pytest.mark.parametrize(
        "solver", [Picard(), Anderson(), Newton()], ids=["picard", "anderson", "newton"]
    )
    def test_plain_maps_take_the_forward_solver(self, solver: Solver) -> None:
        # Picard needs a contraction; what the others solve forward they solve backward.
        slope = -0.6 if isinstance(solver, Picard) else -3.0
        solver = dataclasses.replace(solver, tol=1e-10)
        w = torch.tensor(slope, dtype=torch.float64, requires_grad=True)
        steps = []
        for adjoint in (Implicit(), Implicit(solver=solver)):
            x0 = torch.zeros(1, 1, dtype=torch.float64)
            solution = fixed_point(lambda x: w * x + 1, x0, solver=solver, adjoint=adjoint)
            (found,) = torch.autograd.grad(solution.value.sum(), w)
            torch.testing.assert_close(found.item(), 1 / (1 - slope) ** 2, rtol=1e-8, atol=0.0)
            steps.append(int(solution.adjoint[0].steps))
        assert steps[0] == steps[1]

    @pytest.mark.parametrize(
        ("adjoint", "match"),
        [
            (CG, r"^ConjugateGradient: expected an energy model.*use Implicit\(solver=Broyden"),
            (EP, r"^EquilibriumPropagation: expected an energy model.*use Implicit\(\)"),
        ],
    )
    def test_plain_maps_are_refused(self, adjoint: Adjoint, match: str) -> None:
        with pytest.raises(TypeError, match=match):
            fixed_point(torch.cos, torch.zeros(1, 1), adjoint=adjoint)

    @pytest.mark.parametrize("kind", [Implicit, EquilibriumPropagation])
    def test_a_name_is_no_solver(self, kind: Any) -> None:
        with pytest.raises(TypeError, match=r"solver: expected a .*'cg'"):
            kind(solver="cg")

    def test_bad_options(self) -> None:
        for kind, option, value in [
            *((ConjugateGradient, "tol", value) for value in (0.0, -1e-4, math.nan, math.inf)),
            *((ConjugateGradient, "max_steps", value) for value in (-1, 2.5)),
            *((EquilibriumPropagation, "beta", value) for value in (0.0, -1.0, math.nan, math.inf)),
        ]:
            with pytest.raises(ValueError, match=rf"^{option}: expected .*, got {value}"):
                kind(**{option: value})
            with pytest.raises(TypeError, match="tolerance"):
                kind(tolerance=1e-3)

    @pytest.mark.parametrize("value", [ConjugateGradient(tol=1e-3), CG, EP], ids=str)
    def test_is_a_value(self, value: Any) -> None:
        assert pickle.loads(pickle.dumps(value)) == dataclasses.replace(value) == value
        assert hash(dataclasses.replace(value)) == hash(value)
        assert type(value)() != value
        assert eval(repr(value)) == value
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.solver = None


@splittings
def test_report_of_equilibrium_propagation(splitting: Any) -> None:
    tol = 1e-6
    adjoint = EquilibriumPropagation(beta=0.1, solver=Picard(tol=tol))
    (report,) = gradients(memory("chain4", adjoint, splitting))[1].adjoint
    assert report.value is None
    assert report.converged.all()
    assert report.residual.max() < tol
    assert report.trace.shape == (report.n_evals, 4)
    # The first solve ends where all samples are below the tolerance, and then the second begins.
    below = report.trace < tol
    end = int(below.all(1).int().argmax()) + 1
    steps = [half.int().argmax(0) + 1 for half in (below[:end], below[end:])]
    assert all(s.min() > 1 for s in steps)
    assert torch.equal(report.steps, steps[0] + steps[1])


@pytest.mark.parametrize("adjoint", [CG, EP], ids=["cg", "ep"])
class TestBoth:
    def test_evaluation_mode(self, adjoint: Adjoint) -> None:
        deq = memory("coupled", adjoint)
        (expected, a), (found, b) = gradients(deq.train()), gradients(deq.eval())
        with torch.no_grad():
            without = deq({"input": inputs()}).value
        # Neither the mode nor the graph changes a bit.
        for name, x in without.items():
            assert torch.equal(a.value[name], x)
            assert torch.equal(b.value[name], x)
        assert all(torch.equal(found[name], g) for name, g in expected.items())
        assert all(g.abs().max() > 0 for g in found.values())

    def test_size_of_the_upstream_gradient(self, adjoint: Adjoint) -> None:
        """A power of two changes no digit, and zero gives zero."""
        deq = memory("mixed", adjoint)
        of, value = [*deq.parameters()], loss(deq({"input": inputs()}))
        plain = torch.autograd.grad(value, of, retain_graph=True)
        for scale in (2.0**-100, 2.0**60, 0.0):
            scaled = torch.autograd.grad(value * scale, of, retain_graph=True)
            assert all(torch.equal(a, b * scale) for a, b in zip(scaled, plain, strict=True))

    @splittings
    def test_empty_batch_and_batch_of_one(self, adjoint: Adjoint, splitting: Any) -> None:
        deq, found = memory("attention", adjoint, splitting), []
        for batch in (0, 1, 4):
            x = inputs()[:batch].requires_grad_()
            solution = deq({"input": x})
            found += torch.autograd.grad(solution.value["layer0"].sin().sum(), x)
            assert solution.adjoint[0].steps.shape == (batch,)
        assert found[0].shape == (0, 5)
        torch.testing.assert_close(found[1], found[2][:1], rtol=1e-9, atol=1e-9)

    def test_lost_samples(self, adjoint: Adjoint) -> None:
        """A sample of NaN is kept out of the gradient that all samples share."""
        deq, x, found = memory("chain4", adjoint), inputs(), []
        deq.failures.on_failure = "ignore"
        x[1] = math.nan
        for given in (x, x[[0, 2, 3]]):
            value = deq({"input": given}).value["layer2"]
            found.append(torch.autograd.grad(value.sum(), [*deq.ham.synapses.parameters()]))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("through", ["grad", "backward"])
    def test_second_derivative_is_refused(self, adjoint: Adjoint, through: str) -> None:
        deq = memory("chain3", adjoint)
        value = loss(deq({"input": inputs()}))
        derive: dict[str, Callable[[], Any]] = {
            "grad": lambda: torch.autograd.grad(value, [*deq.parameters()], create_graph=True),
            "backward": lambda: value.backward(create_graph=True),
        }
        with pytest.raises(RuntimeError, match=r"second derivative.*adjoint=Unrolled\(steps\)"):
            derive[through]()

    def test_copies(self, adjoint: Adjoint) -> None:
        deq = memory("chain4", adjoint)
        expected, _ = gradients(deq)
        for other in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
            assert other.adjoint == adjoint
            found, _ = gradients(other)
            assert all(torch.equal(found[name], g) for name, g in expected.items())


ROUGH = [Implicit(solver=ConjugateGradient()), EquilibriumPropagation()]


@pytest.mark.parametrize("adjoint", ROUGH, ids=["cg", "ep"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_single_precision(adjoint: Adjoint, kind: str) -> None:
    exact, _ = gradients(memory(kind, adjoint))
    deq = DEQ(graph(kind).float(), solver=Anderson(tol=1e-4), adjoint=adjoint)
    found, solution = gradients(deq, inputs().float())
    assert solution.adjoint[0].converged.all()
    assert found["input"].dtype == solution.adjoint[0].residual.dtype == torch.float32
    assert worst(found, exact) < 5e-3


def test_training_step_in_autocast() -> None:
    torch.manual_seed(0)
    adjoint = Implicit(solver=ConjugateGradient(tol=1e-2))
    deq = DEQ(HAM.chain([6, 5, 4, 3], gain=0.5), solver=Anderson(tol=1e-2), adjoint=adjoint)
    optimiser = torch.optim.SGD(deq.parameters(), lr=0.1)
    x, target, errors, found = torch.rand(8, 6), torch.rand(8, 3), [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            solution = deq({"input": x})
            errors.append((solution.value["output"].float() - target).square().mean())
        optimiser.zero_grad()
        errors[-1].backward()
        assert solution.adjoint[0].converged.all()
        found.append(torch.cat([p.grad.flatten() for p in deq.parameters()]))  # type: ignore
    assert found[1].isfinite().all()
    assert torch.cosine_similarity(*found, dim=0) > 0.99
    assert 0.9 < found[1].norm() / found[0].norm() < 1.1
    optimiser.step()
    with torch.no_grad():
        assert (deq({"input": x}).value["output"] - target).square().mean() < errors[0]


def saved(adjoint: Adjoint, tol: float) -> tuple[int, int]:
    """Numbers saved for a backward pass, before and in it, and evaluations in both passes."""
    deq, count = memory("chain4", adjoint), 0
    deq.solver = Picard(tol=tol, max_steps=1000)

    def pack(t: Tensor) -> Tensor:
        nonlocal count
        count += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        solution = deq({"input": inputs()})
        loss(solution).backward()
    return count, solution.n_evals + sum(report.n_evals for report in solution.adjoint)


@pytest.mark.parametrize("adjoint", [Implicit(), EquilibriumPropagation()], ids=["cg", "ep"])
def test_memory_does_not_grow_with_steps(adjoint: Adjoint) -> None:
    few, many = saved(adjoint, 1e-2), saved(adjoint, 1e-12)
    assert many[1] > 2 * few[1]
    assert many[0] == few[0]
    one, five, nine = (saved(Unrolled(k), 1e-2)[0] for k in (1, 5, 9))
    assert nine - five == five - one > 0
    assert few[0] <= one * 1.5


def test_backward_failure_is_as_loud_as_a_forward_one() -> None:
    adjoint = Implicit(solver=ConjugateGradient(tol=1e-12, max_steps=1, fallback_steps=0))
    deq = DEQ(graph("chain4"), solver=EXACT, adjoint=adjoint, on_failure="raise")
    with pytest.raises(ConvergenceError, match="gradient not reached by 4 of 4"):
        gradients(deq)
    with pytest.warns(ConvergenceWarning, match="gradient not reached by 4 of 4"):
        _, solution = gradients(memory("chain4", adjoint))
    assert (solution.adjoint[0].status == Status.MAX_STEPS).all()
    twice = EquilibriumPropagation(solver=Picard(tol=1e-12, max_steps=1))
    with pytest.warns(ConvergenceWarning, match="gradient not reached by 4 of 4"):
        _, solution = gradients(memory("chain4", twice))
    assert solution.adjoint[0].steps.tolist() == [2] * 4
