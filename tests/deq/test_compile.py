"""torch.compile: an update is one graph, for batches of any size, with the numbers of eager mode.

Graph breaks are a matter of Dynamo, and gradients one of AOTAutograd. So all but one test leave
out the code generator behind these, which takes most of the time and is PyTorch's affair.
"""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hamdeq import (
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Bias,
    Broyden,
    Dense,
    Identity,
    Implicit,
    Lagrangian,
    LayerNorm,
    Neurons,
    Picard,
    Sigmoid,
    Softmax,
    Solution,
    Solver,
    State,
    Synapse,
    Unrolled,
    eliminate,
    fixed_point,
)
from hamdeq.elimination.eliminate import Reduced
from hamdeq.energy.clamping import clamp
from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.layout import StateLayout

# Dynamo looks for a .grad on all tensors it meets, also on what the held layers exert, which is no
# leaf. It hides the warning from users, but not from those to whom warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # of float32, where kernels that are fused round differently
TIGHT = Anderson(tol=1e-6, max_steps=200)

# What the code generator needs; its own test is the only one that is skipped without these.
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
HEADER = Path(sysconfig.get_paths()["include"]) / "Python.h"


@pytest.fixture(autouse=True)
def _forgets_earlier_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are kept by the line that they were made from, over all tests, and are limited."""
    # Its thousands of records are not for the eye, but would be shown with every failure.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Memory(NamedTuple):
    """A memory whose input is held, and the layers of the others that are eliminated."""

    ham: HAM
    hidden: tuple[str, ...]

    def reduced(self, image: Tensor) -> Reduced:
        return eliminate(clamp(self.ham, {"input": image}), self.hidden)

    def images(self, batch: int) -> Tensor:
        return random(batch, 6, seed=1)

    def state(self, batch: int, *, full: bool = False) -> State:
        left_out = () if full else ("input", *self.hidden)
        names = [name for name in self.ham.layers if name not in left_out]
        shapes = {name: self.ham.layer(name).shape for name in names}
        return {name: random(batch, *shape, seed=2) for name, shape in shapes.items()}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chain(lagrangian: Lagrangian, *hidden: str, gain: float = 0.5) -> Memory:
    torch.manual_seed(0)
    return Memory(HAM.chain([6, 8, 7, 5], lagrangian, gain=gain), hidden)


def attention() -> Memory:
    torch.manual_seed(0)
    neurons = {
        "input": Neurons(6, Identity()),
        "query": Neurons(7, Identity()),
        "memories": Neurons(9, Softmax(2.0, learnable=True)),
    }
    pairs = [("input", "query"), ("query", "memories")]
    ham = HAM(neurons, [(pairs[0], Dense(6, 7)), (pairs[1], Dense(7, 9)), (("query",), Bias(7))])
    return Memory(ham, ("memories",))


MEMORIES: dict[str, Callable[[], Memory]] = {
    # Two layers remain, so that rows are put together and taken apart.
    "sigmoid": lambda: chain(Sigmoid(4.0, 0.5), "hidden2"),
    "learnable sigmoid": lambda: chain(Sigmoid(4.0, 0.5, learnable=True), "hidden1", "output"),
    "attention": attention,
    "layer norm": lambda: chain(LayerNorm(0.3, 0.1, learnable=True), "hidden1", "output"),
}
all_memories = pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)


def reduced_update(memory: Memory) -> tuple[Callable[..., Any], Any]:
    return memory.reduced(memory.images(4)).update, memory.state(4)


def ham_update(memory: Memory) -> tuple[Callable[..., Any], Any]:
    return memory.ham.update, memory.state(4, full=True)


def descent(memory: Memory) -> tuple[EnergyMap, Tensor]:
    form = StateLayout(memory.state(4))
    return EnergyMap(memory.reduced(memory.images(4)), form), form.flatten(memory.state(4))


def descent_call(memory: Memory) -> tuple[Callable[..., Any], Any]:
    f, x = descent(memory)
    return f.__call__, x


def descent_step(memory: Memory) -> tuple[Callable[..., Any], Any]:
    f, x = descent(memory)
    return f.step, x


def descent_terms(memory: Memory) -> tuple[Callable[..., Any], Any]:
    f, x = descent(memory)
    return lambda x: f.step(x)[1].terms(), x


def tensors(result: Any) -> list[Tensor]:
    """All that a map returns; the energy terms of a step are computed from what it returned."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        return [*result.values()]
    fx, energetic = result
    return [fx, energetic.g, energetic.terms()]


def gradients(outputs: list[Tensor], module: nn.Module) -> dict[str, Tensor | None]:
    """Of a sum with random factors, lest errors of opposite sign cancel."""
    loss = torch.stack([(y * random(*y.shape, seed=3)).sum() for y in outputs]).sum()
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return dict(zip(named, found, strict=True))


def assert_same_gradients(
    found: dict[str, Tensor | None], expected: dict[str, Tensor | None]
) -> None:
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in expected.values())
    for name, grad in expected.items():
        # Where one is None and the other zero, both are the same to an optimiser but for decay.
        assert (found[name] is None) == (grad is None), name
        if grad is not None:
            torch.testing.assert_close(
                found[name], grad, msg=lambda m, n=name: f"{n}: {m}", **CLOSE
            )


class TestOneGraph:
    @all_memories
    @pytest.mark.parametrize(
        "build", [reduced_update, ham_update, descent_call, descent_step, descent_terms]
    )
    def test_same_numbers_and_gradients(
        self,
        memory: Callable[[], Memory],
        build: Callable[[Memory], tuple[Callable[..., Any], Any]],
    ) -> None:
        built = memory()
        f, x = build(built)
        expected = tensors(f(x))
        # Anew, because what the held layers exert has a graph of its own, which is used up.
        g, _ = build(built)
        found = tensors(torch.compile(g, fullgraph=True, backend="aot_eager")(x))
        torch.testing.assert_close(found, expected, **CLOSE)
        assert_same_gradients(gradients(found, built.ham), gradients(expected, built.ham))

    @all_memories
    @pytest.mark.parametrize(
        "build", [reduced_update, ham_update, descent_call, descent_step, descent_terms]
    )
    def test_no_break(
        self,
        memory: Callable[[], Memory],
        build: Callable[[Memory], tuple[Callable[..., Any], Any]],
    ) -> None:
        f, x = build(memory())
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found = torch._dynamo.explain(f)(x)
            assert found.graph_break_count == 0, found.break_reasons
            assert found.graph_count == 1


class Counting:
    """A backend that leaves the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


class TestBatches:
    """Of any size, without a graph for each: one of the first size, one of all, one of a single."""

    SIZES = (4, 7, 3, 12, 1, 5, 9, 20, 2)

    @all_memories
    @pytest.mark.parametrize("dynamic", [None, True])
    def test_of_a_whole_memory(self, memory: Callable[[], Memory], dynamic: bool | None) -> None:
        built, count = memory(), Counting()
        compiled = torch.compile(built.ham.update, fullgraph=True, backend=count, dynamic=dynamic)
        for size in self.SIZES:
            x = built.state(size, full=True)
            torch.testing.assert_close(compiled(x), built.ham.update(x), **CLOSE)
        assert count.graphs <= 3

    @all_memories
    @pytest.mark.parametrize("dynamic", [None, True])
    def test_of_one_that_is_held_anew_for_each(
        self, memory: Callable[[], Memory], dynamic: bool | None
    ) -> None:
        built, count = memory(), Counting()

        def update(image: Tensor, x: State) -> State:
            return built.reduced(image).update(x)

        compiled = torch.compile(update, fullgraph=True, backend=count, dynamic=dynamic)
        for size in self.SIZES:
            image, x = built.images(size), built.state(size)
            torch.testing.assert_close(compiled(image, x), update(image, x), **CLOSE)
        assert count.graphs <= 3

    @all_memories
    def test_of_what_a_solver_is_left_with(self, memory: Callable[[], Memory]) -> None:
        built, count = memory(), Counting()
        form = StateLayout(built.state(20))
        f = EnergyMap(built.reduced(built.images(20)), form)
        compiled = torch.compile(EnergyMap.step, fullgraph=True, backend=count)
        sizes = (20, 13, 9, 7, 4, 3, 2)
        for size in sizes:
            f = f.select(torch.arange(size))
            x = form.of_batch(size).flatten(built.state(size))
            torch.testing.assert_close(tensors(compiled(f, x)), tensors(f.step(x)), **CLOSE)
        assert count.graphs < len(sizes)


class TestEquilibrium:
    def check(self, memory: Memory, adjoint: Adjoint, backend: str) -> None:
        x0 = {name: torch.zeros_like(x) for name, x in memory.state(4).items()}

        def solve(compiled: bool) -> Solution:
            f = memory.reduced(memory.images(4)).update
            f = torch.compile(f, fullgraph=True, backend=backend) if compiled else f
            return fixed_point(f, x0, solver=TIGHT, adjoint=adjoint)

        expected, found = solve(False), solve(True)
        assert expected.converged.all()
        assert found.converged.all()
        torch.testing.assert_close(found.value, expected.value, **CLOSE)
        grads = [gradients(tensors(solution.value), memory.ham) for solution in (found, expected)]
        assert_same_gradients(*grads)
        # An eager energy model knows nothing of either.
        energetic = fixed_point(memory.reduced(memory.images(4)), x0, solver=TIGHT).value
        torch.testing.assert_close(found.value, energetic, **CLOSE)

    @all_memories
    @pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(3)], ids=["implicit", "unrolled"])
    def test_of_a_compiled_update(self, memory: Callable[[], Memory], adjoint: Adjoint) -> None:
        self.check(memory(), adjoint, "aot_eager")

    @pytest.mark.skipif(COMPILER is None, reason="no C++ compiler; CXX may name one")
    @pytest.mark.skipif(not HEADER.exists(), reason="no Python.h, which generated code includes")
    def test_of_an_update_in_generated_code(self) -> None:
        # Only here may memory of one backward pass be given to another, which the implicit
        # gradient, that runs it many times, must survive.
        self.check(attention(), Implicit(), "inductor")


class Quartic(Lagrangian):
    """Whose activation is derived by automatic differentiation."""

    def forward(self, x: Tensor) -> Tensor:
        return (x**4 / 12 + x * x / 2).flatten(1).sum(1)


class Product(Synapse):
    """Whose fields are derived by automatic differentiation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(6, 5))

    def energy(self, *g: Tensor) -> Tensor:
        return -((g[0] @ self.weight) * g[1]).sum(-1)


class TestWithBreaks:
    """What is more than one graph is still right."""

    @pytest.mark.parametrize("synapse", [lambda: Dense(6, 5), Product], ids=["dense", "derived"])
    @pytest.mark.parametrize("lagrangian", [Sigmoid, Quartic])
    def test_derived_activations_and_fields(
        self, lagrangian: type[Lagrangian], synapse: Callable[[], Synapse]
    ) -> None:
        torch.manual_seed(0)
        neurons = {"a": Neurons(6, lagrangian()), "b": Neurons(5, lagrangian())}
        ham = HAM(neurons, [(("a", "b"), synapse())])
        x = {"a": random(4, 6, seed=1), "b": random(4, 5, seed=2)}
        found = torch.compile(ham.update, backend="aot_eager")(x)
        expected = ham.update(x)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert_same_gradients(gradients(tensors(found), ham), gradients(tensors(expected), ham))

    @pytest.mark.parametrize(
        ("splitting", "solver", "adjoint"),
        [
            ("even-odd", Broyden(tol=1e-6), Implicit()),
            (None, Picard(tol=1e-6), Implicit()),
            ("even-odd", Picard(tol=1e-6), Implicit(solver=TIGHT)),
        ],
        ids=["default", "without splitting", "gradient by Anderson"],
    )
    def test_a_whole_deq(self, splitting: Any, solver: Solver, adjoint: Adjoint) -> None:
        memory = chain(Sigmoid(4.0, 0.5))
        deq = DEQ(memory.ham, splitting=splitting, solver=solver, adjoint=adjoint)
        given = {"input": memory.images(4)}
        expected = deq(given)
        found = torch.compile(deq, backend="aot_eager")(given)
        assert found.converged.all()
        torch.testing.assert_close(found.value, expected.value, **CLOSE)
        both = [gradients([solution.value["output"]], deq) for solution in (found, expected)]
        assert_same_gradients(*both)
        assert [len(solution.adjoint) for solution in (found, expected)] == [1, 1]
