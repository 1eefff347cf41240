"""Layers clamped in part: the same as two layers, one clamped and one free, by every way."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from random_memories import SOLVERS, take
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Bias,
    Conv2d,
    Dense,
    EquilibriumPropagation,
    Exp,
    Identity,
    Lagrangian,
    LayerNorm,
    Neurons,
    Newton,
    Phantom,
    Picard,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    State,
    Status,
    Synapse,
    Tanh,
    Unrolled,
    clamp,
    eliminate,
)
from hamdeq.energy.model import Connection
from hamdeq.testing import normal

TIGHT = Newton(tol=1e-13, max_steps=300)
SPLITTINGS = ("even-odd", "sweep", None)
MASK = torch.tensor([True, False, True, True, False, False])
SIZES = {"input": 6, "a": 5, "b": 4, "c": 3}
CHAIN = ("input a", "a b", "c b")
CYCLE = ("input a", "b a", "b input", "b c")


def memory(
    edges: Sequence[str] = CHAIN, *, gain: float = 0.5, lagrangian: Lagrangian | None = None
) -> HAM:
    """Layers with a bias each, and weights that leave one equilibrium."""
    torch.manual_seed(0)
    neurons = {
        name: Neurons(n, lagrangian or Sigmoid(2.0, 0.2, learnable=True))
        for name, n in SIZES.items()
    }
    connections: list[Connection] = [((name,), Bias(n, std=0.5)) for name, n in SIZES.items()]
    for edge in edges:
        one, other = edge.split()
        connections.append(((one, other), Dense(SIZES[one], SIZES[other], gain=gain)))
    return HAM(neurons, connections).double()


class Split:
    """The memory with its input as two layers, and what is one there as one again."""

    def __init__(self, ham: HAM, mask: Tensor = MASK) -> None:
        self.masks = {"clamped": mask, "free": ~mask}
        neurons = {}
        for name in ham.layers:
            layer = ham.layer(name)
            parts = self.masks if name == "input" else {name: torch.ones(layer.shape).bool()}
            neurons |= {a: Neurons(int(m.sum()), layer.lagrangian) for a, m in parts.items()}
        connections: list[tuple[tuple[str, ...], Synapse]] = []
        self.origin: list[tuple[int, Any]] = []
        for i, (layers, synapse) in enumerate(ham.connections):
            for part, mask in self.masks.items() if "input" in layers else [("", slice(None))]:
                place = layers.index("input") if part else 0
                rows = (slice(None),) * place + (mask,)
                (weight,) = synapse.parameters()
                kind = Bias(1) if isinstance(synapse, Bias) else Dense(1, 1)
                kind.shapes = tuple(neurons[part if a == "input" else a].shape for a in layers)
                ((name, _),) = kind.named_parameters()
                setattr(kind, name, torch.nn.Parameter(weight.detach()[rows].clone()))
                connections.append((tuple(part if a == "input" else a for a in layers), kind))
                self.origin.append((i, rows))
        self.ham = HAM(neurons, connections)

    def gradients(self, like: HAM) -> list[Tensor]:
        """Of the weights, put together as those of the whole memory."""
        whole = [torch.zeros_like(p) for p in like.synapses.parameters()]
        for (i, rows), p in zip(self.origin, self.ham.synapses.parameters(), strict=True):
            # A clamped neuron's bias has no effect.
            whole[i][rows] = 0.0 if p.grad is None else p.grad
        return whole

    def joined(self, x: State) -> State:
        """A state of the whole memory."""
        some = x["a"]
        joined = some.new_zeros(len(some), len(self.masks["clamped"]))
        for part, mask in self.masks.items():
            joined[:, mask] = x[part].detach()
        return {"input": joined} | {a: x[a] for a in x if a not in self.masks}


def loss(x: State) -> Tensor:
    """With random factors, lest errors of opposite sign cancel."""
    terms = [(normal(*x_a.shape, seed=7) * x_a.sin()).sum() for _, x_a in sorted(x.items())]
    return torch.stack(terms).sum()


def images(batch: int = 4) -> Tensor:
    return normal(batch, 6, seed=1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("edges", "splitting"),
    [(CHAIN, s) for s in SPLITTINGS] + [(CYCLE, "sweep"), (CYCLE, None)],
    ids=lambda p: str(p)[:16],
)
def test_equals_two_layers(edges: Sequence[str], splitting: Any, solver: str) -> None:
    """Energy, equilibrium, the gradient of all weights, of β and of the clamped values."""
    options: Any = {
        "splitting": splitting,
        "solver": dataclasses.replace(SOLVERS[solver], tol=1e-12, max_steps=500),
    }
    whole = memory(edges)
    split = Split(whole)
    given = images().requires_grad_()
    parts = given.detach()[:, MASK].requires_grad_()
    deq, reference = DEQ(whole, **options), DEQ(split.ham, ("clamped",), **options)
    found = deq({"input": given}, observed={"input": MASK})
    expected = reference({"clamped": parts})
    assert found.converged.all()
    assert expected.converged.all()
    assert tuple(found.value) == whole.layers
    joined = split.joined(expected.value)
    torch.testing.assert_close(dict(found.value), joined, rtol=1e-10, atol=1e-10)
    assert (found.value["input"] - given)[:, ~MASK].abs().min() > 1e-3
    energy = deq.energy(found.value)
    torch.testing.assert_close(energy, split.ham.energy(expected.value), rtol=1e-12, atol=1e-12)

    beta = whole.layer("a").lagrangian.log_beta
    loss(found.value).backward()
    found_gradients = [p.grad for p in whole.synapses.parameters()]
    (found_beta, beta.grad) = (beta.grad, None)
    value = dict(expected.value)
    together = torch.zeros(4, 6, dtype=torch.float64)
    together = together.index_copy(1, MASK.nonzero()[:, 0], value.pop("clamped"))
    together = together.index_copy(1, (~MASK).nonzero()[:, 0], value.pop("free"))
    loss(value | {"input": together}).backward()
    assert given.grad is not None
    assert parts.grad is not None
    torch.testing.assert_close(found_gradients, split.gradients(whole), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found_beta, beta.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(given.grad[:, MASK], parts.grad, rtol=1e-8, atol=1e-9)
    assert given.grad[:, ~MASK].tolist() == [[0.0] * 3] * 4
    assert all(g.abs().max() > 1e-3 for g in [*found_gradients, beta.grad])


@pytest.mark.parametrize("hidden", [(), ("a",), ("input", "b"), ("a", "c")])
def test_energy_and_update_equal_those_of_two_layers(hidden: tuple[str, ...]) -> None:
    """At any state of what is left, not at an equilibrium alone."""
    whole = memory(gain=3.0)
    split = Split(whole)
    reduced = eliminate(clamp(whole, {"input": images()}, {"input": MASK}), hidden)
    parts = ["free" if a == "input" else a for a in hidden]
    other = eliminate(clamp(split.ham, {"clamped": images()[:, MASK]}), parts)
    x = {a: 3 * normal(4, SIZES[a], seed=i) for i, a in enumerate(reduced.visible)}
    y = {
        ("free" if a == "input" else a): x_a[:, ~MASK] if a == "input" else x_a
        for a, x_a in x.items()
    }
    assert set(y) == set(other.visible)
    torch.testing.assert_close(reduced.energy(x), other.energy(y), rtol=1e-12, atol=1e-12)
    new = other.update(y)
    for name, x_a in reduced.update(x).items():
        if name == "input":
            assert not x_a[:, MASK].any()
        torch.testing.assert_close(
            x_a[:, ~MASK] if name == "input" else x_a,
            new["free" if name == "input" else name],
            rtol=1e-12,
            atol=1e-12,
        )


LAGRANGIANS = {
    "identity": lambda: Identity(),
    "sigmoid": lambda: Sigmoid(4.0, 0.5),
    "tanh": lambda: Tanh(2.0),
    "relu": ReLU,
    "repu": lambda: RePU(3),
    "exp": lambda: Exp(0.5),
}


@pytest.mark.parametrize("hidden", [(), ("a",), ("input", "b"), ("a", "c")])
@pytest.mark.parametrize("kind", LAGRANGIANS)
def test_energy_is_the_memorys_own(kind: str, hidden: tuple[str, ...]) -> None:
    """Whichever layers are eliminated, and wherever the clamped neurons' states happen to be."""
    ham = memory(gain=0.3, lagrangian=LAGRANGIANS[kind]())
    model = clamp(ham, {"input": images(), "c": normal(4, 3)}, {"input": MASK})
    hidden = tuple(name for name in hidden if name in model.layers)
    reduced = eliminate(model, hidden)
    for scale in (0.0, 1.0):
        x = {a: normal(4, SIZES[a], seed=5) for a in reduced.visible}
        if "input" in x:
            x["input"] = torch.where(MASK, scale * x["input"], x["input"])
        full = model.full(reduced.restore(x))
        torch.testing.assert_close(full["input"][:, MASK], images()[:, MASK], rtol=0, atol=0)
        torch.testing.assert_close(reduced.energy(x), ham.energy(full), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAGRANGIANS)
def test_its_lagrangian_has_the_activation_as_gradient(kind: str) -> None:
    """L̃ is convex, ∇L̃ = g, and ⟨x, g⟩ − L̃ the Legendre transform, at any state."""
    model = clamp(memory(lagrangian=LAGRANGIANS[kind]()), {"input": images()}, {"input": MASK})
    lagrangian = model.layer("input").lagrangian
    x, y = (2 * normal(4, 6, seed=i) for i in (3, 4))
    x.requires_grad_()
    g = lagrangian.activation(x)
    (gradient,) = torch.autograd.grad(lagrangian(x).sum(), x)
    torch.testing.assert_close(gradient, g, rtol=1e-12, atol=1e-12)
    legendre = (x * g).sum(1) - lagrangian(x)
    torch.testing.assert_close(lagrangian.energy(x), legendre, rtol=1e-12, atol=1e-12)
    assert (lagrangian(y) >= lagrangian(x) + (g * (y - x)).sum(1) - 1e-12).all()
    torch.testing.assert_close(g[:, MASK], lagrangian.activation(y)[:, MASK], rtol=0, atol=0)


# -------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_all_observed_is_clamped_and_none_observed_is_free(splitting: Any) -> None:
    ham = memory()
    x, c = images(), normal(4, 3)
    both = {"input": x, "c": c}
    options: Any = {"splitting": splitting, "solver": TIGHT}
    deq = DEQ(ham, ("input", "c"), **options)
    wholly, free = deq(both).value, DEQ(ham, ("c",), **options)({"c": c}).value
    everything, nothing = torch.ones(6).bool(), torch.zeros(6).bool()
    found = deq(both, observed={"input": everything}).value
    torch.testing.assert_close(found, wholly, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found["input"], x, rtol=0, atol=0)
    found = deq(both, observed={"input": nothing}).value
    torch.testing.assert_close(found, free, rtol=1e-11, atol=1e-11)
    # One sample so, one the other way, and one with no layer wholly clamped.
    some = torch.stack([everything, nothing, nothing, everything])
    found = deq(both, observed={"input": some}).value
    for a in ham.layers:
        expected = torch.where(some[:, :1], wholly[a], free[a])
        torch.testing.assert_close(found[a], expected, rtol=1e-11, atol=1e-11)
    found = DEQ(ham, **options)({"input": x}, observed={"input": nothing}).value
    clamped = DEQ(ham, ("c",), **options)({"c": found["c"]}).value
    torch.testing.assert_close(found, clamped, rtol=1e-10, atol=1e-10)


def test_every_layer_of_the_memory_may_be_observed_in_part() -> None:
    """Nothing is wholly clamped, or free: the first halves settle the others."""
    ham = memory()
    given = {a: normal(3, n, seed=i) for i, (a, n) in enumerate(SIZES.items())}
    known = {a: torch.arange(n) < n // 2 for a, n in SIZES.items()}
    solution = DEQ(ham, ham.layers, solver=TIGHT)(given, observed=known)
    value = solution.value
    assert solution.converged.all()
    after = ham.update(dict(value))
    for a, mask in known.items():
        assert torch.equal(value[a][:, mask], given[a][:, mask])
        torch.testing.assert_close(after[a][:, ~mask], value[a][:, ~mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adjoint", [None, Unrolled(5), Phantom(5)], ids=str)
@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e300])
def test_values_not_observed_do_not_matter(bad: float, splitting: Any, adjoint: Any) -> None:
    found = []
    for x in (images(), torch.where(MASK, images(), bad)):
        deq = DEQ(memory(), splitting=splitting, adjoint=adjoint, on_failure="raise")
        x.requires_grad_()
        value = deq({"input": x}, observed={"input": MASK}).value
        loss(value).backward()
        found.append((dict(value), x.grad, [p.grad for p in deq.parameters()]))
    assert found[0][1][:, MASK].abs().min() > 1e-4
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_observed_value_is_told_and_harms_no_other(bad: float) -> None:
    masks = torch.stack([MASK, ~MASK, MASK, ~MASK])
    broken = images()
    broken[1, 1] = broken[2, 1] = bad  # known in the one sample, unknown in the other
    others = [0, 2, 3]
    found = []
    for x, m, rows in ((images()[others], masks[others], [0, 1, 2]), (broken, masks, others)):
        deq = DEQ(memory(), on_failure="ignore")
        solution = deq({"input": x.requires_grad_()}, observed={"input": m})
        upstream = take(dict(solution.value), rows)
        loss(upstream).backward()
        found.append((upstream, x.grad[rows], [p.grad for p in deq.parameters()]))
    assert solution.status.tolist() == [0, Status.INVALID, 0, 0]
    assert all(value[1].isnan().all() for value in solution.value.values())
    assert not x.grad[1].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-11)


def test_a_field_on_clamped_neurons_that_overflows_harms_nothing() -> None:
    """It has no effect: neither has its activation, which would be infinite."""
    neurons = {
        "input": Neurons(3, Identity()),
        "hidden": Neurons(4, Exp()),
        "output": Neurons(2, Tanh()),
    }
    torch.manual_seed(0)
    pairs = [("input", "hidden"), ("hidden", "output")]
    ham = HAM(neurons, [(pairs[0], Dense(3, 4)), (pairs[1], Dense(4, 2, gain=0.1))]).double()
    with torch.no_grad():
        ham.synapses[0].weight[:, 0] = 1000.0
    deq = DEQ(ham, ("input", "hidden"), on_failure="raise")
    hidden = torch.full((2, 4), 0.1, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([True, False, False, True])
    given = {"input": torch.ones(2, 3).double(), "hidden": hidden}
    assert "hidden" in deq.reduced(given, {"hidden": mask}).hidden
    value = deq(given, observed={"hidden": mask}).value
    assert torch.equal(value["hidden"][:, mask], hidden[:, mask])
    loss(dict(value)).backward()
    assert hidden.grad[:, mask].abs().min() > 0
    assert all(p.grad.isfinite().all() for p in deq.parameters())


# ------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_and_their_masks_do_not_depend_on_the_batch(solver: str, splitting: Any) -> None:
    damping = {"damping": 0.5} if (solver, splitting) == ("picard", None) else {}
    options: Any = {
        "splitting": splitting,
        "solver": dataclasses.replace(SOLVERS[solver], tol=1e-7, max_steps=300, **damping),
        "on_failure": "ignore",
    }
    # With weaker weights all samples take as few steps of Newton's method as they can.
    deq = DEQ(memory(gain=30.0 if solver == "newton" else 2.0), **options)
    masks = normal(16, 6, seed=9) > torch.linspace(-2, 2, 16)[:, None]
    assert len({tuple(m.tolist()) for m in masks}) > 10
    x = images(16)
    whole = deq({"input": x}, observed={"input": masks})
    # Samples really dropped out, each at its own time.
    assert len(whole.steps.unique()) >= 3
    for rows in [[0], [15, 2], list(range(15, -1, -1)), [5, 5, 11, 5]]:
        part = deq({"input": x[rows]}, observed={"input": masks[rows]})
        assert part.steps.tolist() == whole.steps[rows].tolist()
        for a in deq.ham.layers:
            torch.testing.assert_close(part.value[a], whole.value[a][rows], rtol=1e-9, atol=1e-11)
    alone = deq({"input": x[7:8]}, observed={"input": masks[7]})  # a mask for all samples
    torch.testing.assert_close(alone.value["c"][0], whole.value["c"][7], rtol=1e-9, atol=1e-11)


def test_a_selection_is_the_rows_of_the_whole() -> None:
    masks = normal(5, 6, seed=9) > 0
    model = clamp(memory(), {"input": images(5), "c": normal(5, 3)}, {"input": masks})
    rows = torch.tensor([3, 0, 3])
    part = model.select(rows).select(torch.tensor([1, 2]))
    x = {a: normal(5, SIZES[a], seed=3) for a in model.layers}
    few = take(x, [0, 3])
    torch.testing.assert_close(part.energy(few), model.energy(x)[[0, 3]], rtol=1e-12, atol=1e-12)
    for f in ("update", "activations", "full"):
        some, everything = getattr(part, f)(few), getattr(model, f)(x)
        torch.testing.assert_close(some, take(everything, [0, 3]), rtol=1e-12, atol=1e-12)


def test_the_residual_ignores_clamped_neurons() -> None:
    """It is that of the free ones, however large the states and fields of the others."""
    ham = memory(("input a", "a b"), gain=2.0)
    x = torch.where(MASK, 1e6, images())
    solver = Picard(tol=1e-14, max_steps=7, fallback_steps=0)
    deq = DEQ(ham, splitting=None, solver=solver, on_failure="ignore", start="zeros")
    solution = deq({"input": x}, observed={"input": MASK})
    after = ham.update(dict(solution.value))
    free = {a: slice(None) for a in "abc"} | {"input": ~MASK}
    here, there = (
        torch.cat([state[a][:, rows] for a, rows in free.items()], 1)
        for state in (solution.value, after)
    )
    expected = (there - here).norm(dim=1) / there.norm(dim=1)
    assert expected.min() > 1e-12
    torch.testing.assert_close(solution.residual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("init", [torch.nan, 1e9])
def test_initial_states_of_clamped_neurons_do_not_matter(init: float) -> None:
    deq = DEQ(memory(), splitting=None)
    start = normal(4, 6, seed=2)
    given: Any = {"observed": {"input": MASK}}
    expected = deq({"input": images()}, init={"input": start}, **given)
    found = deq({"input": images()}, init={"input": torch.where(MASK, init, start)}, **given)
    torch.testing.assert_close(found.value, expected.value, rtol=0, atol=0)
    assert found.steps.tolist() == expected.steps.tolist()


# ------------------------------------------------------------------------------- descent


@pytest.mark.parametrize(
    ("kind", "scale"),
    [*itertools.product(LAGRANGIANS, (0.3, 3.0)), ("sigmoid", 10.0), ("tanh", 10.0)],
)
def test_even_odd_steps_never_raise_the_energy(kind: str, scale: float) -> None:
    ham = memory(gain=scale, lagrangian=LAGRANGIANS[kind]())
    masks = normal(64, 6, seed=9) > 0
    model = clamp(ham, {"input": images(64)}, {"input": masks})
    fell = 0
    for hidden in (("a", "c"), ("input", "b")):
        reduced = eliminate(model, hidden)
        assert reduced.descends
        x = {a: normal(64, SIZES[a], seed=i) for i, a in enumerate(reduced.visible)}
        for _ in range(12):
            full = reduced.restore(x)
            size = torch.stack([t.abs() for t in model.energy_terms(full).values()]).sum(0) + 1
            size += sum(
                (x_a.abs() * model.activations({a: x_a})[a].abs()).sum(1) for a, x_a in full.items()
            )
            new = reduced.update(x)
            change = reduced.energy(new) - reduced.energy(x)
            finite = change.isfinite() & size.isfinite()
            assert (change <= 1e-13 * size)[finite].all()
            fell += int((change < -1e-13 * size).sum())
            x = new
    assert fell > 64


# ----------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("splitting", "adjoint"),
    [
        *((splitting, None) for splitting in SPLITTINGS),
        ("even-odd", Unrolled(100)),
        (None, EquilibriumPropagation(beta=1e-3, solver=TIGHT)),
    ],
    ids=lambda value: getattr(type(value), "__name__", str(value)),
)
def test_gradients_equal_finite_differences(splitting: Any, adjoint: Any) -> None:
    solver = Picard(tol=1e-14, max_steps=1000)
    deq = DEQ(memory(), splitting=splitting, solver=solver, adjoint=adjoint, on_failure="ignore")
    masks = torch.stack([MASK, ~MASK, MASK.roll(1)])
    x = images(3).requires_grad_()

    def value() -> Tensor:
        return loss(dict(deq({"input": x}, observed={"input": masks}).value))

    value().backward()
    inputs = [x, *deq.parameters()]
    for i, p in enumerate(inputs):
        direction = normal(*p.shape, seed=20 + i)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                p += sign * 1e-5 * direction
                values.append(value())
                p -= sign * 1e-5 * direction
        expected = (values[0] - values[1]) / 2e-5
        rtol = 1e-6 if not isinstance(adjoint, EquilibriumPropagation) else 1e-5
        torch.testing.assert_close((p.grad * direction).sum(), expected, rtol=rtol, atol=1e-8)
        assert p.grad.abs().max() > 1e-3


# ------------------------------------------------------------------------- uses of it


def test_image_from_label_and_from_its_other_half() -> None:
    """One memory, asked in three ways; each answer is consistent with the others."""
    torch.manual_seed(0)
    ham = HAM.chain([8, 6, 4, 3], gain=0.5).double()
    deq = DEQ(ham, solver=TIGHT)
    x = images(3)[:, [0, 1, 2, 3, 4, 5, 0, 1]]
    label = deq({"input": x}).value["output"]
    left = torch.arange(8) < 4
    backwards = DEQ(deq.ham, clamped=("output",), solver=TIGHT)({"output": label}).value
    assert tuple(backwards) == ham.layers
    torch.testing.assert_close(
        ham.update(dict(backwards), clamped=["output"])["input"], backwards["input"]
    )
    half = deq({"input": x}, observed={"input": left}).value
    # What the completed image leads to is what its half did.
    again = deq({"input": half["input"]}).value
    torch.testing.assert_close(again["output"], half["output"], rtol=1e-10, atol=1e-10)
    # Half an image and the label.
    both = DEQ(ham, ("input", "output"), solver=TIGHT)
    found = both({"input": x, "output": half["output"]}, observed={"input": left}).value
    torch.testing.assert_close(found["input"], half["input"], rtol=1e-10, atol=1e-10)


def convolutional() -> HAM:
    torch.manual_seed(0)
    sigmoid = Sigmoid(4.0, 0.5)
    conv = Conv2d(1, 2, 3, gain=0.4)
    shape = conv.output_shape((1, 5, 5))
    neurons = {
        "label": Neurons(3, sigmoid),
        "input": Neurons((1, 5, 5), sigmoid),
        "maps": Neurons(shape, sigmoid),
    }
    connections: list[Connection] = [
        (("input", "maps"), conv),
        (("input",), Bias((1, 5, 5), std=0.3)),
        (("maps",), Bias(shape, std=0.3)),
        (("label", "input"), Onto(3, (1, 5, 5))),
    ]
    return HAM(neurons, connections).double()


class Onto(Dense):
    """A dense synapse onto an image."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        super().__init__(n, torch.Size(shape).numel())
        self.shapes = ((n,), shape)

    def energy(self, *g: Tensor) -> Tensor:
        return super().energy(g[0], g[1].flatten(1))

    def field(self, to: int, *g: Tensor) -> Tensor:
        field = super().field(to, g[0], g[1].flatten(1))
        return field.unflatten(1, g[1].shape[1:]) if to == 1 else field


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_images_with_a_constant_field_and_a_convolution(splitting: Any) -> None:
    """A clamped label drives the image, of which the left half is observed."""
    ham = convolutional()
    deq = DEQ(ham, ("label", "input"), splitting=splitting, solver=TIGHT)
    x = images(4)[:, :5].repeat_interleave(5, 1).reshape(4, 1, 5, 5).requires_grad_()
    label = normal(4, 3, seed=8)
    mask = (torch.arange(5) < 3).expand(1, 5, 5)
    given = {"label": label, "input": x}
    solution = deq(given, observed={"input": mask})
    value = dict(solution.value)
    assert solution.converged.all()
    assert "input" in clamp(ham, given, {"input": mask}).drive
    assert torch.equal(value["input"][..., :3], x[..., :3])
    after = ham.update(value, clamped=["label"])
    torch.testing.assert_close(after["maps"], value["maps"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        after["input"][..., 3:], value["input"][..., 3:], rtol=1e-10, atol=1e-10
    )
    assert (value["input"] - x)[..., 3:].abs().min() > 1e-4
    # The label has a say in the unknown half.
    other = deq(given | {"label": label + 1}, observed={"input": mask}).value
    assert (other["input"] - value["input"])[..., 3:].abs().max() > 1e-2
    (gradient,) = torch.autograd.grad(loss(value), x)
    assert gradient[..., :3].abs().min() > 0
    assert not gradient[..., 3:].any()


def test_copies_after_a_call_with_masks() -> None:
    for splitting in SPLITTINGS:
        deq = DEQ(memory(), splitting=splitting)  # type: ignore[arg-type]
        expected = deq({"input": images()}, observed={"input": MASK}).value
        for other in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
            found = other({"input": images()}, observed={"input": MASK}).value
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            torch.testing.assert_close(
                other({"input": images()}).value, deq({"input": images()}).value, rtol=0, atol=0
            )
        assert list(deq.state_dict()) == [f"ham.{k}" for k in deq.ham.state_dict()]


def test_nothing_is_mutated() -> None:
    x, mask = torch.where(MASK, images(), torch.nan), MASK.expand(4, 6).clone()
    before, masks = x.clone(), mask.clone()
    DEQ(memory())({"input": x}, observed={"input": mask})
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(mask, masks)


def test_float32_and_autocast() -> None:
    deq = DEQ(memory().float())
    given: Any = ({"input": images().float()}, {"input": MASK})
    value = deq(given[0], observed=given[1]).value
    assert all(x.dtype == torch.float32 for x in value.values())
    with torch.autocast("cpu", torch.bfloat16):
        half = deq(given[0], observed=given[1])
    assert half.converged.all()
    torch.testing.assert_close(half.value["c"].float(), value["c"], rtol=0.05, atol=0.05)


# -------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("observed", "error", "match"),
    [
        ({"a": MASK}, ValueError, r"observed: expected names among the given \['input'\], got 'a'"),
        ({"inputs": MASK}, ValueError, r"expected names among the given .*got 'inputs'"),
        ({"input": MASK[:5]}, ValueError, r"expected shape \(6,\) or \(4, 6\), got \(5,\)"),
        ({"input": MASK.expand(3, 6)}, ValueError, r"expected shape \(6,\) or \(4, 6\), got \(3,"),
        ({"input": MASK.expand(1, 6)}, ValueError, r"or \(4, 6\), got \(1, 6\)"),
        ({"input": MASK.double()}, TypeError, r"expected a boolean tensor.*float64; .*mask > 0"),
        ({"input": MASK.tolist()}, TypeError, r"observed\['input'\]: .* got list"),
        (MASK, TypeError, r"observed: expected a dict \{layer name: mask\}.*got Tensor"),
    ],
)
def test_masks_that_are_refused(observed: Any, error: type[Exception], match: str) -> None:
    for f in (DEQ(memory()), DEQ(memory()).reduced):
        with pytest.raises(error, match=match):
            f({"input": images()}, observed=observed)
    with pytest.raises(error, match=match):
        clamp(memory(), {"input": images()}, observed)


@pytest.mark.parametrize("lagrangian", [Softmax(2.0), LayerNorm()])
def test_coupled_neurons_are_refused(lagrangian: Lagrangian) -> None:
    neurons = {"input": Neurons(6, lagrangian), "a": Neurons(3, Tanh())}
    ham = HAM(neurons, [(("input", "a"), Dense(6, 3))]).double()
    match = (
        rf"observed\['input'\]: .*{type(lagrangian).__name__}, which couples them; clamp all of it"
    )
    with pytest.raises(ValueError, match=match):
        DEQ(ham)({"input": images()}, observed={"input": MASK})


def test_a_lagrangian_of_ones_own_is_coupled_unless_it_says_otherwise() -> None:
    class Quartic(Lagrangian):
        def forward(self, x: Tensor) -> Tensor:
            return (x**4 / 12 + x * x / 2).sum(1)

    class Additive(Quartic):
        additive = True

    results = []
    for kind in (Quartic, Additive):
        neurons = {"input": Neurons(6, kind()), "a": Neurons(3, kind())}
        torch.manual_seed(0)
        ham = HAM(neurons, [(("input", "a"), Dense(6, 3, gain=0.3)), (("a",), Bias(3, std=1.0))])
        results.append(ham.double())
    with pytest.raises(ValueError, match="additive = True"):
        clamp(results[0], {"input": images()}, {"input": MASK})
    solution = DEQ(results[1], solver=TIGHT)({"input": images()}, observed={"input": MASK})
    after = results[1].update(dict(solution.value))
    assert solution.converged.all()
    torch.testing.assert_close(after["a"], solution.value["a"], rtol=1e-10, atol=1e-10)


def test_an_odd_cycle_that_a_mask_closes() -> None:
    """Wholly clamped, the input opens the cycle; in part it does not."""
    deq = DEQ(memory(CYCLE))
    deq({"input": images()})
    with pytest.raises(ValueError, match=r"form a cycle of odd length.*splitting='sweep'"):
        deq({"input": images()}, observed={"input": MASK})


def test_all_masks_of_a_small_layer() -> None:
    """Each against the two layers it stands for, in one batch."""
    ham = memory(("input a", "a b"))
    masks = torch.tensor(list(itertools.product([False, True], repeat=6)))[1:-1]
    x = images(len(masks))
    value = DEQ(ham, solver=TIGHT)({"input": x}, observed={"input": masks}).value
    for i in range(0, len(masks), 5):
        split = Split(ham, masks[i])
        part = DEQ(split.ham, ("clamped",), solver=TIGHT)({"clamped": x[i : i + 1, masks[i]]}).value
        expected = split.joined(part)
        for a in ham.layers:
            torch.testing.assert_close(value[a][i], expected[a][0], rtol=1e-10, atol=1e-10)
