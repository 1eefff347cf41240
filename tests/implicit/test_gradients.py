"""Gradients of a DEQ: implicit = unrolled = nudged = finite differences, on every kind of graph."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from custom_terms import Triple
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Bias,
    Broyden,
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
    Phantom,
    Picard,
    RePU,
    Sigmoid,
    Softmax,
    Solution,
    Spherical,
    Status,
    Tanh,
    Unrolled,
)

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
graphs = pytest.mark.parametrize("kind", GRAPHS)
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])
symmetric = pytest.mark.parametrize("adjoint", [CG, EP], ids=["cg", "ep"])


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
    result = torch.autograd.grad(loss(solution), list(of.values()))
    return dict(zip(of, result, strict=True)), solution


@functools.cache
def exact(kind: str) -> dict[str, Tensor]:
    """By conjugate gradients; what finite differences confirm."""
    result, solution = gradients(memory(kind, CG))
    assert solution.adjoint[0].converged.all()
    return result


def worst(result: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a variable's gradient, relative to its size."""
    return max(float((result[a] - g).norm() / g.norm()) for a, g in expected.items())


def error(kind: str, adjoint: Adjoint, splitting: Any = "even-odd") -> float:
    return worst(gradients(memory(kind, adjoint, splitting))[0], exact(kind))


@graphs
def test_the_implicit_gradient_is_that_of_finite_differences(kind: str) -> None:
    deq, x, h = memory(kind), inputs(), 1e-5
    for name, p in [*deq.named_parameters(), ("input", x)]:
        direction, values = torch.randn_like(p), []
        with torch.no_grad():
            for shift in (h, -2 * h):
                p += shift * direction
                values.append(loss(deq({"input": x})))
            p += h * direction
        expected = (values[0] - values[1]) / (2 * h)
        result = (exact(kind)[name] * direction).sum()
        # A slope near zero is known to the rounding of the two losses, about 1e-15/h.
        assert abs(result - expected) <= 1e-6 * max(abs(expected), 1e-3), name


@graphs
@pytest.mark.parametrize(
    ("adjoint", "splitting", "limit"),
    [
        (CG, None, 1e-9),
        (Unrolled(150), "even-odd", 1e-9),
        (Implicit(solver=EXACT), None, 1e-9),
        (EP, "even-odd", 1e-5),
        (EquilibriumPropagation(beta=1e-3), None, 1e-5),
    ],
    ids=["cg", "unrolled", "anderson", "ep", "ep_default"],
)
def test_every_method_and_splitting_has_this_gradient(
    kind: str, adjoint: Adjoint, splitting: Any, limit: float
) -> None:
    assert error(kind, adjoint, splitting) < limit


@pytest.mark.parametrize("kind", ["chain4", "coupled", "triple"])
@splittings
def test_the_error_of_nudging_falls_with_the_square_of_beta(kind: str, splitting: Any) -> None:
    errors = [error(kind, dataclasses.replace(EP, beta=b), splitting) for b in (0.1, 0.05)]
    assert errors[-1] > 1e-7
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize(
    "solver",
    [
        Picard(tol=1e-12, max_steps=2000, damping=0.5),
        Broyden(tol=1e-12, max_steps=500),
        Anderson(tol=1e-12, max_steps=500, history=2),
    ],
    ids=str,
)
def test_any_solver_may_solve_the_gradients_system(solver: Any) -> None:
    assert error("chain4", Implicit(solver=solver)) < 1e-9


def test_the_tolerance_of_the_backward_solver_is_the_order_of_the_error() -> None:
    assert 1e-9 < error("chain4", Implicit(solver=Picard(tol=1e-3))) < 1e-2


def test_the_phantom_gradient_tends_to_the_implicit_one() -> None:
    errors = [error("chain3", Phantom(steps, damping=0.5)) for steps in (1, 5, 20, 200)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-8


@pytest.mark.filterwarnings("ignore::hamdeq.ConvergenceWarning")
def test_conjugate_gradients_stopped_at_once_are_the_jacobian_free_gradient() -> None:
    stopped = Implicit(solver=ConjugateGradient(tol=1e-12, max_steps=1, fallback_steps=0))
    result, _ = gradients(memory("chain4", stopped))
    assert worst(result, gradients(memory("chain4", Unrolled(1)))[0]) < 1e-12


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_an_energy_model_takes_conjugate_gradients_at_the_forward_tolerance(tol: float) -> None:
    deq = memory("chain5", splitting=None)
    # As a solver of the linear system it would take hundreds of steps.
    deq.solver = Picard(damping=0.05, tol=tol, max_steps=5000)
    result, solution = gradients(deq)
    deq.adjoint = Implicit(solver=ConjugateGradient(tol=tol))
    expected, other = gradients(deq)
    (a,), (b,) = solution.adjoint, other.adjoint
    assert a.converged.all()
    assert a.steps.tolist() == b.steps.tolist()
    assert a.steps.max() <= 24
    assert 1e-3 * tol < a.residual.max() < tol
    assert all(torch.equal(result[name], g) for name, g in expected.items())


def test_a_solver_given_to_the_call_sets_the_gradients_tolerance() -> None:
    deq = memory("chain4")
    rough = deq({"input": inputs()}, solver=Anderson(tol=1e-2))
    loss(rough).backward()
    assert 1e-6 < rough.adjoint[0].residual.max() < 1e-2
    fine = deq({"input": inputs()})
    loss(fine).backward()
    assert fine.adjoint[0].residual.max() < EXACT.tol


# -------------------------------------------------------------- what a user sees of it


@pytest.mark.parametrize(
    "adjoint", [CG, EP, Unrolled(3), Phantom(3)], ids=["cg", "ep", "unrolled", "phantom"]
)
def test_neither_the_graph_nor_the_mode_changes_a_bit(adjoint: Adjoint) -> None:
    deq = memory("coupled", adjoint)
    (expected, a), (result, b) = gradients(deq.train()), gradients(deq.eval())
    with torch.no_grad():
        without = deq({"input": inputs()}).value
    for name, x in without.items():
        assert not x.requires_grad
        assert torch.equal(a.value[name], x)
        assert torch.equal(b.value[name], x)
    assert all(torch.equal(result[name], g) for name, g in expected.items())
    assert all(g.abs().max() > 0 for g in result.values())


@pytest.mark.parametrize(
    ("adjoint", "dtype"),
    [(CG, torch.float64), (EP, torch.float64), (Implicit(), torch.float32)],
    ids=["cg", "ep", "cg in float32"],
)
def test_the_size_of_the_upstream_gradient_changes_no_digit(
    adjoint: Adjoint, dtype: torch.dtype
) -> None:
    """A power of two, as of a mean over many samples or a scaled loss; zero gives zero."""
    deq = DEQ(graph("mixed").to(dtype), solver=Anderson(tol=1e-5), adjoint=adjoint)
    of, value = [*deq.parameters()], loss(deq({"input": inputs().to(dtype)}))
    plain = torch.autograd.grad(value, of, retain_graph=True)
    for scale in (2.0**-100, 2.0**60, 0.0):
        scaled = torch.autograd.grad(value * scale, of, retain_graph=True)
        assert all(torch.equal(a, b * scale) for a, b in zip(scaled, plain, strict=True))


def test_a_sample_without_upstream_gradient_has_none_after_one_step() -> None:
    x = inputs().requires_grad_()
    solution = memory("chain3")({"input": x})
    solution.value["layer1"][1].sum().backward()
    assert x.grad is not None
    assert x.grad[[0, 2, 3]].abs().max() == 0
    assert x.grad[1].abs().min() > 0
    assert solution.adjoint[0].steps.tolist()[0] == 1


@symmetric
def test_a_batch_may_be_empty_or_of_one(adjoint: Adjoint) -> None:
    deq, results = memory("attention", adjoint), []
    for batch in (0, 1, 4):
        x = inputs()[:batch].requires_grad_()
        solution = deq({"input": x})
        results += torch.autograd.grad(solution.value["layer0"].sin().sum(), x)
        assert solution.adjoint[0].steps.shape == (batch,)
    assert results[0].shape == (0, 5)
    torch.testing.assert_close(results[1], results[2][:1], rtol=1e-9, atol=1e-9)


@symmetric
def test_a_sample_of_nan_is_kept_out_of_the_gradient_that_all_share(adjoint: Adjoint) -> None:
    deq, x, results = memory("chain4", adjoint), inputs(), []
    x[1] = math.nan
    for given in (x, x[[0, 2, 3]]):
        value = deq({"input": given}, on_failure="ignore").value["layer2"]
        results.append(torch.autograd.grad(value.sum(), [*deq.ham.synapses.parameters()]))
    assert all(map(torch.equal, *results))


@symmetric
@pytest.mark.parametrize("through", ["grad", "backward"])
def test_a_second_derivative_is_refused(adjoint: Adjoint, through: str) -> None:
    deq = memory("chain3", adjoint)
    value = loss(deq({"input": inputs()}))
    derive: dict[str, Callable[[], Any]] = {
        "grad": lambda: torch.autograd.grad(value, [*deq.parameters()], create_graph=True),
        "backward": lambda: value.backward(create_graph=True),
    }
    with pytest.raises(RuntimeError, match=r"second derivative.*adjoint=Unrolled\(steps\)"):
        derive[through]()


def test_a_graph_may_be_passed_twice_if_retained_and_each_pass_is_recorded() -> None:
    deq, x = memory("chain4"), inputs().requires_grad_()
    solution = deq({"input": x})
    assert solution.adjoint == []
    total = solution.value["layer2"].sum()
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    (second,) = torch.autograd.grad(total, x)
    assert torch.equal(first, second)
    assert len(solution.adjoint) == 2
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, x)
    record = solution.adjoint[0]
    assert record.value is None
    assert record.converged.all()
    assert (record.residual < EXACT.tol).all()
    assert record.steps.shape == (4,)
    assert record.n_evals == int(record.steps.max()) > 1


@splittings
def test_nudging_reports_both_of_its_solves(splitting: Any) -> None:
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


def test_a_gradient_that_does_not_converge_is_as_loud_as_a_solve_that_does_not() -> None:
    adjoint = Implicit(solver=ConjugateGradient(tol=1e-12, max_steps=1, fallback_steps=0))
    deq = memory("chain4", adjoint)
    solution = deq({"input": inputs()}, on_failure="raise")
    with pytest.raises(ConvergenceError, match="gradient not reached by 4 of 4"):
        loss(solution).backward()
    with pytest.warns(ConvergenceWarning, match="gradient not reached by 4 of 4"):
        _, solution = gradients(deq)
    assert (solution.adjoint[0].status == Status.MAX_STEPS).all()
    twice = EquilibriumPropagation(solver=Picard(tol=1e-12, max_steps=1))
    with pytest.warns(ConvergenceWarning, match="gradient not reached by 4 of 4"):
        _, solution = gradients(memory("chain4", twice))
    assert solution.adjoint[0].steps.tolist() == [2] * 4


class Held:
    """A tensor that is saved for a backward pass, and the most numbers held so at once."""

    now = most = 0

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach()  # the output of a node would keep the node
        Held.now += x.numel()
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= self.x.numel()


def saved(adjoint: Adjoint, tol: float) -> tuple[int, int]:
    """Numbers held for a backward pass, before and in it, and evaluations in both passes."""
    deq, Held.now, Held.most = memory("chain4", adjoint), 0, 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.x):
        solution = deq({"input": inputs()}, solver=Picard(tol=tol, max_steps=1000))
        loss(solution).backward()
    return Held.most, solution.n_evals + sum(report.n_evals for report in solution.adjoint)


@pytest.mark.parametrize("splitting", ["even-odd", None])
@pytest.mark.parametrize("sizes", [[6, 5, 3], [6, 5, 4, 3]], ids=str)
def test_the_last_evaluation_of_a_solve_serves_the_gradient(
    sizes: list[int], splitting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call with a gradient takes not one product with a weight more than one without."""
    calls = 0

    def counted(self: Dense, place: int, *g: Tensor, field: Any = Dense.field) -> Tensor:
        nonlocal calls
        calls += 1
        return field(self, place, *g)

    monkeypatch.setattr(Dense, "field", counted)
    torch.manual_seed(0)
    deq = DEQ(HAM.chain(sizes, gain=0.3), splitting=splitting, solver=Picard())
    x, taken = torch.rand(5, 6), []
    for graph in (False, True):
        calls = 0
        with torch.set_grad_enabled(graph):
            assert deq({"input": x}).converged.all()
        taken.append(calls)
    assert taken[0] == taken[1] > 0


@pytest.mark.parametrize("adjoint", [Implicit(), EquilibriumPropagation()], ids=["cg", "ep"])
def test_the_memory_of_a_gradient_does_not_grow_with_steps(adjoint: Adjoint) -> None:
    few, many = saved(adjoint, 1e-2), saved(adjoint, 1e-12)
    assert many[1] > 2 * few[1]
    assert many[0] == few[0]
    one, five, nine = (saved(Unrolled(k), 1e-2)[0] for k in (1, 5, 9))
    assert nine - five == five - one > 0
    assert few[0] <= one * 1.5


# ------------------------------------------------------------------ precision, copies


@pytest.mark.parametrize("adjoint", [Implicit(), EquilibriumPropagation()], ids=["cg", "ep"])
@graphs
def test_single_precision_suffices(adjoint: Adjoint, kind: str) -> None:
    deq = DEQ(graph(kind).float(), solver=Anderson(tol=1e-4), adjoint=adjoint)
    result, solution = gradients(deq, inputs().float())
    assert solution.adjoint[0].converged.all()
    assert result["input"].dtype == solution.adjoint[0].residual.dtype == torch.float32
    assert worst(result, exact(kind)) < 5e-3


def test_a_training_step_in_autocast_has_nearly_the_gradient_of_full_precision() -> None:
    torch.manual_seed(0)
    adjoint = Implicit(solver=ConjugateGradient(tol=1e-2))
    deq = DEQ(HAM.chain([6, 5, 4, 3], gain=0.5), solver=Anderson(tol=1e-2), adjoint=adjoint)
    optimiser = torch.optim.SGD(deq.parameters(), lr=0.1)
    x, target, errors, grads = torch.rand(8, 6), torch.rand(8, 3), [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            solution = deq({"input": x})
            errors.append((solution.value["output"].float() - target).square().mean())
        optimiser.zero_grad()
        errors[-1].backward()
        assert solution.adjoint[0].converged.all()
        grads.append(torch.cat([p.grad.flatten() for p in deq.parameters()]))  # type: ignore
    assert grads[1].isfinite().all()
    assert torch.cosine_similarity(*grads, dim=0) > 0.99
    assert 0.9 < grads[1].norm() / grads[0].norm() < 1.1
    optimiser.step()
    with torch.no_grad():
        assert (deq({"input": x}).value["output"] - target).square().mean() < errors[0]


@symmetric
def test_a_copied_or_pickled_deq_has_the_same_gradient(adjoint: Adjoint) -> None:
    deq = memory("chain4", adjoint)
    expected, _ = gradients(deq)
    for other in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
        assert other.adjoint == adjoint
        result, _ = gradients(other)
        assert all(torch.equal(result[name], g) for name, g in expected.items())


@pytest.mark.parametrize("value", [ConjugateGradient(tol=1e-3), CG, EP], ids=str)
def test_a_gradient_method_is_a_value(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == dataclasses.replace(value) == value
    assert hash(dataclasses.replace(value)) == hash(value)
    assert type(value)() != value
    assert eval(repr(value)) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.solver = None
