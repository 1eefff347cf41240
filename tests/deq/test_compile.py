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
    State,
    Synapse,
    Unrolled,
    eliminate,
    fixed_point,
)
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.clamping import clamp
from hamdeq.solvers.energy_map import EnergyMap, StateLayout

pytestmark = [
    pytest.mark.compile,
    # Dynamo looks for a .grad on all tensors it meets, also on what the clamped layers exert, which
    # is no leaf. It hides the warning from users, but not from those to whom warnings are errors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

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
    """A memory whose input is clamped, and the layers of the others that are eliminated."""

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


def chain(lagrangian: Lagrangian, *hidden: str) -> Memory:
    torch.manual_seed(0)
    return Memory(HAM.chain([6, 8, 7, 5], lagrangian, gain=0.5), hidden)


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
    "sigmoid": lambda: chain(Sigmoid(4.0, 0.5, learnable=True), "hidden2"),
    "attention": attention,
    "layer norm": lambda: chain(LayerNorm(0.3, 0.1, learnable=True), "hidden1", "output"),
}


def energy_map(memory: Memory) -> tuple[EnergyMap, Tensor]:
    layout = StateLayout(memory.state(4))
    return EnergyMap(memory.reduced(memory.images(4)), layout), layout.flatten(memory.state(4))


def ham_update(memory: Memory) -> tuple[Callable[..., Any], Any]:
    return memory.ham.update, memory.state(4, full=True)


def map_call(memory: Memory) -> tuple[Callable[..., Any], Any]:
    f, x = energy_map(memory)
    return f.__call__, x


def map_step(memory: Memory) -> tuple[Callable[..., Any], Any]:
    f, x = energy_map(memory)

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fx, info = f.step(x)
        return fx, info.g, info.terms()

    return step, x


def tensors(result: Any) -> list[Tensor]:
    """All that a map returns."""
    if isinstance(result, Tensor):
        return [result]
    return [*(result.values() if isinstance(result, dict) else result)]


def gradients(outputs: list[Tensor], module: nn.Module) -> dict[str, Tensor | None]:
    """Of a sum with random factors, lest errors of opposite sign cancel."""
    loss = torch.stack([(y * random(*y.shape, seed=3)).sum() for y in outputs]).sum()
    named = dict(module.named_parameters())
    result = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return dict(zip(named, result, strict=True))


def assert_same_gradients(
    result: dict[str, Tensor | None], expected: dict[str, Tensor | None]
) -> None:
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in expected.values())
    for name, grad in expected.items():
        # Where one is None and the other zero, both are the same to an optimiser but for decay.
        assert (result[name] is None) == (grad is None), name
        if grad is not None:
            torch.testing.assert_close(
                result[name], grad, msg=lambda m, n=name: f"{n}: {m}", **CLOSE
            )


@pytest.mark.parametrize(
    ("memory", "build"),
    [
        ("sigmoid", ham_update),
        ("sigmoid", map_call),
        ("sigmoid", map_step),
        ("attention", ham_update),
        ("attention", map_step),
        ("layer norm", map_step),
    ],
)
def test_a_map_is_one_graph_with_the_numbers_and_gradients_of_eager_mode(
    memory: str, build: Callable[[Memory], tuple[Callable[..., Any], Any]]
) -> None:
    built = MEMORIES[memory]()
    f, x = build(built)
    expected = tensors(f(x))
    # Anew, because what the clamped layers exert has a graph of its own, which is used up.
    compiled = torch.compile(build(built)[0], fullgraph=True, backend="aot_eager")
    result = tensors(compiled(x))
    torch.testing.assert_close(result, expected, **CLOSE)
    assert_same_gradients(gradients(result, built.ham), gradients(expected, built.ham))


class Counting:
    """A backend that leaves the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize(
    ("memory", "dynamic"), [("sigmoid", None), ("sigmoid", True), ("attention", None)]
)
def test_batches_of_any_size_share_three_graphs(memory: str, dynamic: bool | None) -> None:
    if memory == "attention" and dynamic is None and torch.__version__.startswith("2.10."):
        pytest.skip("PyTorch 2.10 cannot trace copy.copy, with which an Attention is made")
    """One of the first size, one of all, one of a single; the layers are clamped anew for each."""
    built, count = MEMORIES[memory](), Counting()

    def update(image: Tensor, x: State, full: State) -> tuple[State, State]:
        return built.reduced(image).update(x), built.ham.update(full)

    compiled = torch.compile(update, fullgraph=True, backend=count, dynamic=dynamic)
    with torch.no_grad():
        for size in (4, 7, 12, 1, 2):
            arguments = built.images(size), built.state(size), built.state(size, full=True)
            torch.testing.assert_close(compiled(*arguments), update(*arguments), **CLOSE)
    assert count.graphs <= 3


def test_what_a_solver_is_left_with_shares_graphs() -> None:
    built, count = MEMORIES["sigmoid"](), Counting()
    layout = StateLayout(built.state(20))
    f = EnergyMap(built.reduced(built.images(20)), layout)

    def step(f: EnergyMap, x: Tensor) -> tuple[Tensor, Tensor]:
        fx, info = f.step(x)
        return fx, info.terms()

    compiled, sizes = torch.compile(step, fullgraph=True, backend=count), (20, 13, 9, 7, 4, 3, 2)
    for size in sizes:
        f = f.select(torch.arange(size))
        x = layout.of_batch(size).flatten(built.state(size))
        torch.testing.assert_close(compiled(f, x), step(f, x), **CLOSE)
    assert count.graphs < len(sizes)


# -------------------------------------------------------------------------- equilibrium


def check_equilibrium(memory: Memory, adjoint: Adjoint, backend: str) -> None:
    x0 = {name: torch.zeros_like(x) for name, x in memory.state(4).items()}

    def solve(compiled: bool) -> Solution:
        f = memory.reduced(memory.images(4)).update
        f = torch.compile(f, fullgraph=True, backend=backend) if compiled else f
        return fixed_point(f, x0, solver=TIGHT, adjoint=adjoint)

    expected, result = solve(False), solve(True)
    assert expected.converged.all()
    assert result.converged.all()
    torch.testing.assert_close(result.value, expected.value, **CLOSE)
    grads = [gradients(tensors(solution.value), memory.ham) for solution in (result, expected)]
    assert_same_gradients(*grads)
    # An eager energy model knows nothing of either.
    energetic = fixed_point(memory.reduced(memory.images(4)), x0, solver=TIGHT).value
    torch.testing.assert_close(result.value, energetic, **CLOSE)


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(3)], ids=["implicit", "unrolled"])
def test_a_compiled_update_has_the_equilibrium_and_gradient_of_eager_mode(adjoint: Adjoint) -> None:
    check_equilibrium(MEMORIES["sigmoid"](), adjoint, "aot_eager")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler; CXX may name one")
@pytest.mark.skipif(not HEADER.exists(), reason="no Python.h, which generated code includes")
def test_generated_code_survives_the_many_passes_of_an_implicit_gradient() -> None:
    # Only here may memory of one backward pass be given to another.
    check_equilibrium(attention(), Implicit(), "inductor")


# -------------------------------------------------------------------- more than one graph


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


@pytest.mark.parametrize("synapse", [lambda: Dense(6, 5), Product], ids=["dense", "derived"])
def test_derived_activations_and_fields_are_right_with_breaks(
    synapse: Callable[[], Synapse],
) -> None:
    torch.manual_seed(0)
    neurons = {"a": Neurons(6, Quartic()), "b": Neurons(5, Sigmoid())}
    ham = HAM(neurons, [(("a", "b"), synapse())])
    x = {"a": random(4, 6, seed=1), "b": random(4, 5, seed=2)}
    result = torch.compile(ham.update, backend="aot_eager")(x)
    expected = ham.update(x)
    torch.testing.assert_close(result, expected, **CLOSE)
    assert_same_gradients(gradients(tensors(result), ham), gradients(tensors(expected), ham))


def test_a_whole_deq_is_right_with_breaks() -> None:
    memory = chain(Sigmoid(4.0, 0.5))
    # Of all solvers the one with the fewest frames to compile.
    deq = DEQ(memory.ham, solver=Picard(tol=1e-6, fallback_steps=0))
    given = {"input": memory.images(4)}
    expected = deq(given)
    result = torch.compile(deq, backend="aot_eager")(given)
    assert result.converged.all()
    torch.testing.assert_close(result.value, expected.value, **CLOSE)
    both = [gradients([solution.value["output"]], deq) for solution in (result, expected)]
    assert_same_gradients(*both)
    assert [len(solution.adjoint) for solution in (result, expected)] == [1, 1]
