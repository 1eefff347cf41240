"""DEQ(compiled=…): the first steps in one graph, with the results of eager mode."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hamdeq._compile
from hamdeq import (
    CHN,
    CHNDEQ,
    DEQ,
    HAM,
    Anderson,
    Broyden,
    Dense,
    FixedSteps,
    Identity,
    Neurons,
    Newton,
    Picard,
    Softmax,
    Solver,
    Status,
)
from hamdeq.testing import normal

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Graphs as Dynamo traces them, without the code generator; one entry for each."""
    found: list[Any] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        found.append(module)
        return module.forward

    plain = torch.compile
    traced = functools.partial(plain, backend=backend)
    monkeypatch.setattr(hamdeq._compile.torch, "compile", traced)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def attention() -> HAM:
    neurons = {
        "input": Neurons(6, Identity()),
        "query": Neurons(6, Identity()),
        "memories": Neurons(40, Softmax(2.0)),
    }
    synapses = [(("input", "query"), Dense(6, 6)), (("query", "memories"), Dense(6, 40))]
    return HAM(neurons, synapses)  # type: ignore[arg-type]


def made(kind: str, **options: Any) -> DEQ:
    torch.manual_seed(0)
    if kind == "attention":
        return DEQ(attention().double(), **options)
    if kind == "continuous Hopfield network":
        return CHNDEQ(CHN.chain([6, 8, 4], gain=0.5).double(), **options)
    ham = HAM.chain([6, 9, 7, 4], gain=1.5).double()
    splitting: Any = {"even-odd": "even-odd", "all at once": None, "sweep": "sweep"}[kind]
    return DEQ(ham, splitting=splitting, **options)


KINDS = ("even-odd", "all at once", "sweep", "attention", "continuous Hopfield network")


def inputs(batch: int = 16) -> Tensor:
    return 2 * normal(batch, 6, seed=1)


# Tracing takes seconds for each step of a solver. All solvers take their steps in the same loop:
# the two that extrapolate meet one kind each, Anderson's method in so many steps that it solves a
# system, and of the other kinds one step is traced.
@pytest.mark.parametrize(
    ("kind", "solver", "steps"),
    [
        ("even-odd", Anderson(tol=1e-9), 3),
        ("all at once", Broyden(tol=1e-9), 2),
        ("sweep", Picard(tol=1e-9), 1),
        ("attention", Picard(tol=1e-9), 1),
        ("continuous Hopfield network", Picard(tol=1e-9), 1),
    ],
    ids=KINDS,
)
def test_graphs_have_the_results_and_gradients_of_eager_mode_and_look_at_no_number(
    kind: str, solver: Solver, steps: int, graphs: list[Any]
) -> None:
    if kind == "attention" and torch.__version__.startswith("2.10."):
        pytest.skip("PyTorch 2.10 cannot trace copy.copy, with which an Attention is made")
    results = []
    for compiled in (0, steps):
        deq = made(kind, solver=solver, compiled=compiled)
        with torch.no_grad():
            plain = deq({"input": inputs()})
        solution = deq({"input": inputs()})
        loss = sum(x.square().sum() for name, x in solution.value.items() if name != "input")
        loss.backward()  # type: ignore[union-attr]
        grads = [p.grad for p in deq.parameters()]
        results.append((plain, solution, grads))
    assert len(graphs) == 2  # with a clamped layer in the graph, and outside, for its gradient
    for module in graphs:  # which can be recorded as CUDA graphs: no value is brought to the host
        called = {str(node.target) for node in module.graph.nodes}
        assert not {"item", "tolist", "nonzero"} & called
    (plain, solution, grads), (plain_, solution_, grads_) = results
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(plain_.value, plain.value, **close)
    torch.testing.assert_close(solution_.value, solution.value, **close)
    torch.testing.assert_close(grads_, grads, **close)
    for one, other in ((plain_, plain), (solution_, solution)):
        assert one.status.tolist() == other.status.tolist()
        assert one.steps.tolist() == other.steps.tolist()
        assert one.trace.shape[1] == len(inputs())
        assert one.n_evals in (other.n_evals, steps)


@pytest.mark.parametrize(("grad", "solver"), [(False, Broyden()), (True, Picard())])
def test_batches_of_any_size_share_a_graph(grad: bool, solver: Solver, graphs: list[Any]) -> None:
    deq = made("even-odd", solver=solver, compiled=2)
    with torch.set_grad_enabled(grad):
        for batch in (16, 5, 7, 30):
            assert deq({"input": inputs(batch)}).converged.all()
    assert len(graphs) == 1


@pytest.mark.parametrize("grad", [False, True])
def test_lost_samples_are_as_in_eager_mode(grad: bool) -> None:
    x = inputs(6)
    x[1], x[3] = torch.nan, 1e308
    results = []
    for compiled in (0, 3):
        deq = made("even-odd", solver=Anderson(), on_failure="ignore", compiled=compiled)
        with torch.set_grad_enabled(grad):
            results.append(deq({"input": x}))
    assert results[0].status[1] == Status.INVALID
    assert results[0].status.tolist() == results[1].status.tolist()
    torch.testing.assert_close(results[1].value, results[0].value, equal_nan=True)


def test_samples_that_overflow_within_the_graph_are_marked() -> None:
    torch.manual_seed(0)
    ham = HAM.chain([6, 5, 4], Identity(), gain=0.3).double()
    x = inputs(4)
    x[2] = 1e308
    statuses = []
    for compiled in (0, 2):
        deq = DEQ(ham, solver=Picard(), on_failure="ignore", compiled=compiled)
        statuses.append(deq({"input": x}).status.tolist())
        with torch.no_grad():
            assert deq({"input": x}).status.tolist() == statuses[-1]
    assert statuses[0] == statuses[1]
    assert statuses[0][2] == Status.DIVERGED


def test_parts_of_an_image_and_a_warm_start() -> None:
    observed = {"input": normal(16, 6, seed=2) > 0}
    results = []
    for compiled in (0, 2):
        deq = made("even-odd", solver=Picard(tol=1e-9), compiled=compiled)
        with torch.no_grad():
            first = deq({"input": inputs()}, observed=observed)
            again = deq({"input": inputs()}, observed=observed, init=first.value)
        results.append((first.value, again.value))
        assert int(again.steps.max()) <= 2
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)


def test_a_solver_that_cannot_be_traced_takes_its_steps_one_by_one(graphs: list[Any]) -> None:
    deq = made("even-odd", solver=Newton(), compiled=3)
    assert deq({"input": inputs()}).converged.all()
    assert not graphs


def test_without_a_compiler_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        def program(*args: Any) -> Any:
            raise RuntimeError("no compiler here\nat all")

        return program

    monkeypatch.setattr(hamdeq._compile.torch, "compile", broken)
    deq = made("even-odd", solver=Picard(), compiled=3)
    with pytest.warns(UserWarning, match="compiling failed: no compiler here; .*install a C"):
        solution = deq({"input": inputs()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = deq({"input": inputs()})
    torch.testing.assert_close(again.value, solution.value)
    assert solution.converged.all()


def test_a_compiled_module_compiles_its_memory(graphs: list[Any]) -> None:
    deq = made("even-odd", solver=Picard(tol=1e-9))
    expected = deq({"input": inputs()})
    result = torch.compile(deq)({"input": inputs()})
    torch.testing.assert_close(result.value, expected.value, rtol=1e-7, atol=1e-9)
    assert any("sigmoid" in str(graph.code) for graph in graphs)


def test_a_fixed_number_of_steps_is_exported_as_one_graph() -> None:
    torch.manual_seed(0)
    deq = DEQ(HAM.chain([6, 9, 4], gain=0.2).double(), solver=Anderson(tol=1e-9))
    fixed = FixedSteps(deq, 5)
    batch = torch.export.Dim("batch", min=2, max=1024)
    shapes = ({"input": {0: batch}},)
    program = torch.export.export(fixed, ({"input": inputs()},), dynamic_shapes=shapes, strict=True)
    for size in (16, 5):
        expected = deq({"input": inputs(size)}).value
        torch.testing.assert_close(program.module()({"input": inputs(size)}), expected)
        torch.testing.assert_close(fixed({"input": inputs(size)}), expected)


def test_it_can_be_copied_and_pickled_after_use() -> None:
    deq = made("even-odd", solver=Picard(), compiled=1)
    expected = deq({"input": inputs()})
    for other in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
        assert other.compiled == 1
        torch.testing.assert_close(other({"input": inputs()}).value, expected.value)
