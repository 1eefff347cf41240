"""Sweeps over colours: the same equilibria and gradients, and an energy that never rises."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from random_memories import (
    BOUNDED,
    KINDS,
    ROUNDING,
    SOLVERS,
    Case,
    Log,
    Watched,
    assert_downhill,
    form_of,
    memory,
    take,
    watch,
)
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Bias,
    Broyden,
    ConjugateGradient,
    Dense,
    EquilibriumPropagation,
    FunctionSynapse,
    Identity,
    Implicit,
    Lateral,
    LayerNorm,
    MaxPool2d,
    Neurons,
    Newton,
    Phantom,
    Picard,
    SelfAttention,
    Sigmoid,
    State,
    Status,
    Unrolled,
    clamp,
    colouring,
    eliminate,
    fixed_point,
)
from hamdeq.energy.model import Connection
from hamdeq.solvers.energy_map import EnergyMap, StateLayout
from hamdeq.solvers.safeguard import Extrapolation, Safeguarded
from hamdeq.solvers.state import Step
from hamdeq.testing import normal

EPS = torch.finfo(torch.float64).eps
TIGHT = Newton(tol=1e-13, max_steps=300)
ACCELERATED = ("anderson", "broyden", "newton")
# By their free layers: a cycle of three, all to all, connections that skip a layer, and synapses
# within a layer. The last two have two colours but for what acts within.
GRAPHS: dict[str, Sequence[str]] = {
    "triangle": ("input a", "a b", "b c", "c a"),
    "complete": ("input a", "a b", "a c", "d a", "b c", "b d", "c d"),
    "skip to the output": ("input a", "a b", "b c", "a c"),
    "skip from the input": ("input a", "input b", "a b", "b c"),
    "lateral": ("input a", "a b", "b b", "b c"),
    "all lateral": ("input a", "a a", "a b", "b b"),
}
SIZES = {"input": 4, "a": 5, "b": 3, "c": 4, "d": 2}


def graph(name: str, *, gain: float = 0.35, seed: int = 0) -> HAM:
    """Layers with a bias each, and weights that leave one equilibrium."""
    torch.manual_seed(seed)
    edges = [edge.split() for edge in GRAPHS[name]]
    names = [a for a in SIZES if any(a in edge for edge in edges)]
    neurons = {a: Neurons(SIZES[a], Sigmoid(4.0, 0.5, learnable=True)) for a in names}
    connections: list[Connection] = [((a,), Bias(SIZES[a], std=0.5)) for a in names]
    for a, b in edges:
        synapse = Lateral(SIZES[a], gain=gain) if a == b else Dense(SIZES[a], SIZES[b], gain=gain)
        connections.append(((a,) if a == b else (a, b), synapse))
    return HAM(neurons, connections).double()


def images(batch: int = 5) -> Tensor:
    return normal(batch, 4, seed=1)


def loss(x: State) -> Tensor:
    """With random factors, lest errors of opposite sign cancel."""
    return torch.stack(
        [(normal(*x_a.shape, seed=7 + i) * x_a.sin()).sum() for i, x_a in enumerate(x.values())]
    ).sum()


# -------------------------------------------------------------------------- equilibrium


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_equilibrium_and_its_gradient_are_those_of_all_layers_at_once(
    name: str, solver: str
) -> None:
    ham = graph(name)
    options: Any = {"solver": dataclasses.replace(SOLVERS[solver], tol=1e-12, max_steps=1000)}
    found = []
    for splitting in ("sweep", None):
        x = images().requires_grad_()
        deq = DEQ(ham, splitting=splitting, **options)  # type: ignore[arg-type]
        solution = deq({"input": x})
        assert solution.converged.all()
        value = dict(solution.value)
        free = [p for n, p in ham.named_parameters() if n != "synapses.0.bias"]
        found.append((value, torch.autograd.grad(loss(value), [x, *free])))
        after = ham.update(value, clamped=["input"])
        torch.testing.assert_close(after, value, rtol=1e-10, atol=1e-10)
    (sweep, gradient), (whole, expected) = found
    torch.testing.assert_close(sweep, whole, rtol=1e-8, atol=1e-8)
    assert max(g.abs().max() for g in expected) > 0.1
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sizes", [[4, 5, 3], [4, 3, 3, 3, 3], [4, 2, 5, 3, 6]], ids=str)
def test_of_two_colours_it_is_the_even_odd_step(sizes: list[int], solver: str) -> None:
    """To the last bit, in every step and in the gradient, on strong weights as well."""
    torch.manual_seed(0)
    ham = HAM.chain(sizes, gain=2.0).double()
    found = []
    for splitting in ("sweep", "even-odd"):
        deq = DEQ(ham, splitting=splitting, solver=SOLVERS[solver], on_failure="ignore")  # type: ignore[arg-type]
        solution = deq({"input": images()})
        value = dict(solution.value)
        gradient = torch.autograd.grad(loss(value), [*ham.parameters()])
        found.append((value, gradient, solution.trace, solution.steps))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def random_memory(seed: int, **options: Any) -> Case:
    """Three to five layers, with most of the synapses there can be, some among three layers."""
    rng = random.Random(seed)
    n = rng.randint(3, 5)
    pairs = list(itertools.combinations(range(n), 2))
    edges = [pair for pair in pairs if rng.random() < 0.8] or pairs[:1]
    edges += [(i, i) for i in range(n) if options.pop(f"lateral{i}", False)]
    triples = [(0, 1, 2)] if rng.random() < 0.3 else []
    return memory(edges, n, seed=seed, triples=triples, clamped=seed % 2 == 0, **options)


def sweep_by_hand(case: Case, hidden: Sequence[str], x: State) -> State:
    """One layer after another takes on its field, in a memory of which nothing is eliminated."""
    assert case.colours is not None
    layered, first = case.layered(), next(iter(case.start.values()))
    full = {
        a: x.get(a, torch.zeros(len(first), *case.ham.layer(a).shape).double())
        for a in layered.layers
    }
    for colour in (hidden, *case.colours):
        for name in colour:
            full = full | {name: layered.update(full)[name]}
    return {a: full[a] for a in x}


@pytest.mark.parametrize("seed", range(8))
def test_a_step_is_one_layer_after_another(seed: int) -> None:
    case, hidden = random_memory(seed, scale=2.0).swept()
    reduced = case.model(hidden)
    x = case.visible(hidden)
    with torch.no_grad():
        for _ in range(3):
            new = reduced.update(x)
            torch.testing.assert_close(new, sweep_by_hand(case, hidden, x), rtol=1e-12, atol=1e-12)
            here = reduced.step(x)
            torch.testing.assert_close(here.update, new, rtol=0, atol=0)
            torch.testing.assert_close(here.fields, reduced.fields(here.g), rtol=0, atol=0)
            assert here.at_once == (len(reduced.colours) == 1)
            x = new


def test_colours_change_only_the_order_of_an_update() -> None:
    """Energy, activations and fields are those of the layers that are left."""
    ham = graph("complete")
    model = clamp(ham, {"input": images()})
    first, *colours = colouring(ham, clamped=("input",))
    swept, plain = eliminate(model, first, colours=colours), eliminate(model, first)
    assert len(swept.colours) == 3
    x = {a: normal(5, SIZES[a], seed=i) for i, a in enumerate(plain.visible)}
    g = plain.activations(x)
    torch.testing.assert_close(swept.energy(x), plain.energy(x), rtol=0, atol=0)
    torch.testing.assert_close(swept.fields(g), plain.fields(g), rtol=0, atol=0)
    torch.testing.assert_close(swept.restore(x), plain.restore(x), rtol=0, atol=0)
    new, at_once = swept.update(x), plain.update(x)
    (start,) = swept.colours[0]
    torch.testing.assert_close(new[start], at_once[start], rtol=0, atol=0)
    for (name,) in swept.colours[1:]:
        assert (new[name] - at_once[name]).abs().max() > 1e-3


def test_layers_clamped_in_an_update_stay_and_count() -> None:
    ham = graph("complete")
    first, *colours = colouring(ham, clamped=("input",))
    reduced = eliminate(clamp(ham, {"input": images()}), first, colours=colours)
    (one,), (two,), (three,) = reduced.colours
    x = {a: normal(5, SIZES[a], seed=i) for i, a in enumerate(reduced.visible)}
    free, clamped = reduced.update(x), reduced.update(x, clamped=(one,))
    assert torch.equal(clamped[one], x[one])
    # Those after it see it where it was.
    assert (clamped[two] - free[two]).abs().max() > 1e-3
    kept = eliminate(clamp(ham, {"input": images(), one: x[one]}), first, colours=[[two], [three]])
    expected = kept.update({a: x[a] for a in kept.visible})
    for name in (two, three):
        torch.testing.assert_close(clamped[name], expected[name], rtol=1e-12, atol=1e-12)
    last = reduced.update(x, clamped=(three,))
    torch.testing.assert_close(last, free | {three: x[three]}, rtol=0, atol=0)
    everything = reduced.update(x, clamped=reduced.visible)
    torch.testing.assert_close(everything, x, rtol=0, atol=0)
    with pytest.raises(ValueError, match="unknown layer 'e'"):
        reduced.update(x, clamped=("e",))


def test_descends_unless_a_layer_acts_on_itself() -> None:
    for name in GRAPHS:
        reduced = DEQ(graph(name), splitting="sweep").reduced({"input": images()})
        assert reduced.descends == ("lateral" not in name)
        synchronous = eliminate(reduced.model, reduced.hidden)
        assert synchronous.descends == (name == "skip from the input")
    # Two layers of one colour with a synapse between them are updated at once.
    model = clamp(graph("complete"), {"input": images()})
    assert not eliminate(model, ("a",), colours=[["b", "c"], ["d"]]).descends
    assert eliminate(model, ("a",), colours=[["b"], ["c"], ["d"]]).descends


def test_nothing_to_solve() -> None:
    torch.manual_seed(0)
    ham = HAM.chain([4, 3]).double()
    solution = DEQ(ham, splitting="sweep")({"input": images()})
    assert solution.n_evals == 0
    torch.testing.assert_close(
        solution.value["output"], DEQ(ham)({"input": images()}).value["output"], rtol=0, atol=0
    )


# ------------------------------------------------------------------------------ descent


def cases(**options: Any) -> list[Case]:
    """Of every kind of Lagrangian, with weak and strong weights."""
    found = []
    for (i, kind), (j, scale) in itertools.product(
        enumerate(KINDS), enumerate((0.3, 1.0, 3.0, 10.0))
    ):
        given = {"kinds": kind, "scale": scale, "batch": 32, "widest": 4} | options
        found.append(random_memory(10 * i + j, **given))
    return found


@pytest.mark.slow
def test_plain_sweeps_never_raise_the_energy() -> None:
    """Without damping, from random states, where all layers at once do."""
    fell = compared = colours = 0
    for case in cases():
        swept, hidden = case.swept()
        assert swept.model(hidden).descends
        history = watch(swept, hidden, Picard(tol=1e-10, max_steps=40))
        assert_downhill(swept, history)
        rises = history.rises()
        fell, compared = fell + int((rises < -ROUNDING * EPS).sum()), compared + len(rises)
        colours = max(colours, len(swept.colours or ()))
    assert colours == 3  # and the hidden one
    assert compared > 10_000
    assert fell > 0.5 * compared
    rose = 0
    for case in cases(kinds=BOUNDED, scale=10.0)[::4]:
        history = watch(case, case.swept()[1], Picard(tol=1e-10, max_steps=40))
        rose += int((history.rises() > 1e6 * ROUNDING * EPS).sum())
    assert rose > 100


@pytest.mark.parametrize("lateral", [False, True])
@pytest.mark.parametrize("solver", ACCELERATED)
@pytest.mark.slow
def test_the_energy_never_rises(solver: str, lateral: bool) -> None:
    """Whatever is accepted, of graphs of any number of colours; also with synapses within."""
    within = {"lateral1": True, "lateral2": True} if lateral else {}
    options = {"batch": 16, "widest": 3} if solver == "newton" else {}
    fell = compared = 0
    for case in cases(**within, **options)[::2]:
        swept, hidden = case.swept()
        assert swept.model(hidden).descends != lateral
        accelerated = dataclasses.replace(SOLVERS[solver], tol=1e-8, max_steps=30)
        history = watch(swept, hidden, accelerated)
        assert_downhill(swept, history)
        rises = history.rises()
        fell, compared = fell + int((rises < -ROUNDING * EPS).sum()), compared + len(rises)
        solution = history.solution
        assert not (case.bounded and (solution.status == Status.DIVERGED).any())
        # What has converged is at rest when all layers move at once.
        with torch.no_grad():
            x = form_of(case.visible(hidden), case.batch).unflatten(solution.value)
            model = eliminate(case.layered(), hidden)
            here, there = (torch.cat([*y.values()], 1) for y in (x, model.update(x)))
            gap = (here - there).norm(dim=1) / there.norm(dim=1).clamp_min(1e-300)
        assert (gap[solution.converged] < 1e-3).all()
    assert compared > (1_000 if solver == "newton" else 3_000)
    assert fell > 0.5 * compared


@pytest.mark.parametrize("solver", ACCELERATED)
def test_without_the_energy_it_does_rise(solver: str) -> None:
    """So that the test above can fail."""
    rose = 0
    for case in cases(kinds=BOUNDED, scale=10.0)[::4]:
        swept, hidden = case.swept()
        accelerated = dataclasses.replace(SOLVERS[solver], tol=1e-8, max_steps=30)
        history = watch(swept, hidden, accelerated, info=False)
        rose += int((history.rises() > 1e6 * ROUNDING * EPS).sum())
    assert rose > 10


class Nowhere(Extrapolation):
    """An extrapolation that never leads to a state."""

    def __call__(self, step: Step) -> Tensor:
        return torch.full_like(step.x, torch.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost(Safeguarded):
    """A solver that is left with plain steps."""

    def extrapolation(self, x0: Tensor) -> Extrapolation:
        return Nowhere()


@pytest.mark.parametrize("lateral", [False, True])
def test_plain_steps_of_a_solver(lateral: bool) -> None:
    """A whole sweep where that goes downhill; otherwise towards I(g), which at last always does.

    A short step towards f(x), where f is a sweep, need not: it is no step along the gradient.
    """
    within = {"lateral1": True, "lateral2": True} if lateral else {}
    shorter = 0
    for seed in range(6):
        one = random_memory(seed, kinds=BOUNDED[:2], scale=4.0, batch=1, **within)
        case, hidden = one.swept()
        f = EnergyMap(case.model(hidden), StateLayout(case.visible(hidden)))
        assert f.certain != lateral
        seen: list[Tensor] = []

        class Seeing(EnergyMap):
            def step(self, x: Tensor) -> Any:
                seen.append(x)  # noqa: B023
                return super().step(x)

        x0 = f.layout.flatten(case.visible(hidden))
        log = Log()
        solver = Watched(solver=Lost(), log=log, max_steps=40, tol=1e-12)
        with torch.no_grad():
            solver.solve(Seeing(f.model, f.layout), x0)
            base = x0
            for x, accepted in zip(seen[1:], log.accepted[1:], strict=True):
                fx, info = f.step(base)
                fields = info.fields
                if lateral:
                    force = fields - base
                    length = ((x - base) * force).sum() / force.square().sum()
                    torch.testing.assert_close(x, base + length * force, rtol=1e-9, atol=1e-11)
                    exponent = -length.log2().item()
                    assert abs(exponent - round(exponent)) < 1e-6
                    shorter += round(exponent) > 0
                else:
                    torch.testing.assert_close(x, fx, rtol=1e-12, atol=1e-12)
                    assert accepted.all()
                base = torch.where(accepted[:, None], x, base)
    assert (shorter > 10) == lateral


def test_newtons_method_solves_a_quadratic_energy_in_one_step() -> None:
    """In any order of layers: it knows the energy's own derivatives, and its convexity."""
    convex = 0
    for seed in range(80):
        edges = list(itertools.combinations(range(4), 2))
        options: Any = {
            "kinds": [Identity],
            "widest": 3,
            "scale": (0.3, 0.45)[seed % 2],
            "batch": 8,
            "seed": seed,
        }
        case, hidden = memory(edges, 4, clamped=False, **options).swept()
        reduced, x0 = case.model(hidden), case.visible(hidden)
        form = StateLayout(x0)
        f = EnergyMap(reduced, form).select(torch.tensor([0])).fields
        weights = torch.autograd.functional.jacobian(f, form.flatten(x0)[:1])[0, :, 0]
        if torch.linalg.eigvalsh(weights)[-1] > 0.95:  # of the energy's Hessian, 1 − weights
            continue
        convex += 1
        solution = fixed_point(reduced, x0, solver=Newton(tol=1e-10), on_failure="raise")
        assert solution.steps.tolist() == [2] * 8
    assert convex > 10


def test_plain_sweeps_converge_where_all_layers_at_once_do_not() -> None:
    ham, given = graph("triangle", gain=10.0), {"input": images(64)}
    settled = {}
    for splitting in ("sweep", None):
        solver = Picard(tol=1e-6, max_steps=500, fallback_steps=0)
        deq = DEQ(ham, splitting=splitting, solver=solver, on_failure="ignore")  # type: ignore[arg-type]
        with torch.no_grad():
            settled[splitting] = deq(given).converged.double().mean()
    assert settled["sweep"] == 1
    assert settled[None] < 0.5


@pytest.mark.parametrize("kind", ["maximum", "attention", "product"])
@pytest.mark.parametrize("solver", ACCELERATED)
def test_synapses_that_are_not_linear(solver: str, kind: str) -> None:
    """Their layers are not eliminated; the solver goes downhill, to where all are at rest."""
    torch.manual_seed(0)
    sigmoid = Sigmoid(2.0, 0.2)
    others: list[Connection] = []
    if kind == "maximum":
        neurons = {"input": Neurons(4, sigmoid), "a": Neurons((1, 4, 4), sigmoid)}
        neurons["b"] = Neurons((1, 2, 2), sigmoid)
        others = [(("a", "b"), MaxPool2d(2)), (("a",), Bias((1, 4, 4), std=1.0))]
        project = torch.randn(4, 16).double()
    else:
        neurons = {"input": Neurons(4, sigmoid), "a": Neurons((3, 4), LayerNorm(0.5))}
        neurons["b"] = Neurons(5, sigmoid)
        project = torch.randn(4, 12).double()
        readout = 0.3 * torch.randn(12, 5).double()
        others = [
            (
                ("a", "b"),
                FunctionSynapse(
                    lambda a, b: -((a.flatten(1) @ readout) * b).sum(1), linear_in=(0, 1)
                ),
            )
        ]
        if kind == "attention":
            others.append((("a",), SelfAttention(4, 2, 3)))
        else:
            others.append((("a",), FunctionSynapse(lambda a: -a.flatten(1).prod(1))))
    drive = FunctionSynapse(lambda i, a: -((i @ project) * a.flatten(1)).sum(1), linear_in=(0, 1))
    ham = HAM(neurons, [(("input", "a"), drive), *others]).double()
    options: Any = {"solver": dataclasses.replace(SOLVERS[solver], tol=1e-9, max_steps=300)}
    deq, whole = (DEQ(ham, splitting=s, **options) for s in ("sweep", None))  # type: ignore[arg-type]
    given = {"input": images()}
    assert deq.hidden == ("b",)
    assert not deq.reduced(given).descends
    solution, expected = deq(given), whole(given)
    assert solution.converged.all()
    after = ham.update(dict(solution.value), clamped=["input"])
    torch.testing.assert_close(after, dict(solution.value), rtol=1e-6, atol=1e-6)
    assert (deq.energy(solution.value) <= deq.energy(expected.value) + 1e-6).all()


# ---------------------------------------------------------------------------- gradients


def swept_loss(
    name: str, adjoint: Adjoint | None = None
) -> tuple[Callable[[], Tensor], dict[str, Tensor]]:
    """The loss at the equilibrium of a graph, and all that it depends on."""
    ham = graph(name)
    x = images(3).requires_grad_()
    deq = DEQ(ham, splitting="sweep", solver=TIGHT, adjoint=adjoint)
    inputs = {"input": x} | {n: p for n, p in ham.named_parameters() if n != "synapses.0.bias"}
    return lambda: loss(dict(deq({"input": x}).value)), inputs


def direction(inputs: dict[str, Tensor], label: str) -> Tensor:
    return normal(*inputs[label].shape, seed=20 + list(inputs).index(label))


@functools.cache
def slopes(name: str) -> list[Tensor]:
    """Finite differences of a graph's loss, which are the same for every gradient method."""
    value, inputs = swept_loss(name)
    found = []
    with torch.no_grad():
        for label, p in inputs.items():
            step = 1e-5 * direction(inputs, label)
            p += step
            after = value()
            p -= 2 * step
            found.append((after - value()) / 2e-5)
            p += step
    return found


@pytest.mark.parametrize(
    "adjoint",
    [
        Implicit(solver=ConjugateGradient(tol=1e-13)),
        Implicit(solver=Broyden(tol=1e-12)),
        Implicit(solver=Anderson(tol=1e-12)),
        Unrolled(120),
        Phantom(200),
        EquilibriumPropagation(beta=1e-3, solver=TIGHT),
    ],
    ids=["conjugate gradients", "broyden", "anderson", "unrolled", "phantom", "propagation"],
)
@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_equal_finite_differences(name: str, adjoint: Adjoint) -> None:
    value, inputs = swept_loss(name, adjoint)
    value().backward()
    for (label, p), expected in zip(inputs.items(), slopes(name), strict=True):
        found = (p.grad * direction(inputs, label)).sum()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=label)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_map_knows_its_energy(name: str) -> None:
    """x − I(g) is the energy's gradient in g, and S and D are symmetric, in any order of layers."""
    reduced = DEQ(graph(name), splitting="sweep").reduced({"input": images(1)})
    x = {a: normal(1, SIZES[a], seed=i) for i, a in enumerate(reduced.visible)}
    form = StateLayout(x)
    f, flat = EnergyMap(reduced, form), form.flatten(x).requires_grad_()
    fx, info = f.step(flat)
    g, fields = info.g, info.fields
    torch.testing.assert_close(fields, f.fields(g), rtol=0, atol=0)
    torch.testing.assert_close(f.image(flat), fields, rtol=0, atol=0)
    torch.testing.assert_close(fx, f(flat), rtol=0, atol=0)
    several = len(reduced.colours) > 1
    assert ((fx - fields).abs().max() > 1e-3) == several
    (slope,) = torch.autograd.grad(info.terms().sum(), flat, retain_graph=True)
    gain = torch.autograd.functional.jacobian(lambda v: f.activations(v)[0], flat)[:, 0]
    torch.testing.assert_close(slope, (flat - fields) @ gain, rtol=0, atol=1e-12)
    coupling = torch.autograd.functional.jacobian(lambda v: f.fields(v)[0], g.detach())[:, 0]
    assert coupling.abs().max() > 1e-2
    torch.testing.assert_close(coupling, coupling.T, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("name", ["complete", "lateral"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_do_not_depend_on_their_batch(solver: str, name: str) -> None:
    ham = graph(name, gain=2.0)
    options: Any = {"solver": dataclasses.replace(SOLVERS[solver], tol=1e-7, max_steps=300)}
    deq = DEQ(ham, splitting="sweep", on_failure="ignore", **options)
    with torch.no_grad():
        x = 2 * images(24)
        whole = deq({"input": x})
        assert len(whole.steps.unique()) >= 3
        for rows in ([0], [23, 2], list(range(23, -1, -1)), [5, 5, 11, 5]):
            part = deq({"input": x[rows]})
            assert part.steps.tolist() == whole.steps[rows].tolist()
            for a in ham.layers:
                torch.testing.assert_close(
                    part.value[a], whole.value[a][rows], rtol=1e-9, atol=1e-11
                )
    x[1, 2] = torch.nan
    solution = deq({"input": x})
    assert solution.status[1] == Status.INVALID
    others = [0, *range(2, 24)]
    assert solution.steps[others].tolist() == whole.steps[others].tolist()


def test_a_selection_is_the_rows_of_the_whole() -> None:
    reduced = DEQ(graph("complete"), splitting="sweep").reduced({"input": images()})
    x = {a: normal(5, SIZES[a], seed=i) for i, a in enumerate(reduced.visible)}
    rows = torch.tensor([3, 0, 3])
    part = reduced.select(rows)
    assert part.colours == reduced.colours
    some = part.update(take(x, rows))
    torch.testing.assert_close(some, take(reduced.update(x), rows), rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------- as a module


def test_copies_and_settings() -> None:
    deq = DEQ(graph("complete"), splitting="sweep")
    given = {"input": images()}
    mask = torch.tensor([True, False, True, False])
    expected = deq(given).value, deq(given, observed={"input": mask}).value
    for other in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
        found = other(given).value, other(given, observed={"input": mask}).value
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "splitting='sweep'" in repr(deq)


def test_one_memory_two_questions() -> None:
    """The label of an image; an image of a label."""
    torch.manual_seed(0)
    sizes = {"input": 6, "h1": 5, "h2": 4, "output": 3}
    pairs = [("input", "h1"), ("h1", "h2"), ("h2", "output"), ("h1", "output"), ("input", "h2")]
    neurons = {a: Neurons(n, Sigmoid(4.0, 0.5)) for a, n in sizes.items()}
    links: list[Connection] = [((a, b), Dense(sizes[a], sizes[b], gain=0.4)) for a, b in pairs]
    ham = HAM(neurons, links).double()
    label = DEQ(ham, splitting="sweep", solver=TIGHT)
    image = DEQ(label.ham, clamped=("output",), splitting="sweep", solver=TIGHT)
    x = normal(4, 6)
    answer = label({"input": x}).value
    assert answer["output"].shape == (4, 3)
    back = image({"output": answer["output"]})
    assert back.converged.all()
    after = ham.update(dict(back.value), clamped=["output"])
    torch.testing.assert_close(after, dict(back.value), rtol=1e-9, atol=1e-9)
    # With its own image and label clamped, the layers between are where they were.
    both = DEQ(ham, ("input", "output"), splitting="sweep", solver=TIGHT)
    clamped = both({"input": back.value["input"], "output": answer["output"]}).value
    torch.testing.assert_close(dict(clamped), dict(back.value), rtol=1e-9, atol=1e-9)
    # Both questions can be learned at once.
    (answer["output"].sum() + back.value["input"].sum()).backward()
    assert all(p.grad.abs().max() > 1e-6 for p in ham.parameters())


# Dynamo looks for a .grad on all tensors it meets: see test_compile.py.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.compile
def test_autocast_and_compiling() -> None:
    deq = DEQ(graph("complete").float(), splitting="sweep", solver=Broyden(tol=1e-6))
    given = {"input": images().float()}
    expected = deq(given)
    with torch.autocast("cpu", torch.bfloat16):
        half = deq(given)
    assert half.converged.all()
    torch.testing.assert_close(half.value["a"].float(), expected.value["a"], rtol=0.05, atol=0.05)
    mask = {"input": torch.tensor([True, False, True, False])}
    for reduced in (deq.reduced(given), deq.reduced(given, mask)):
        torch._dynamo.reset()
        x = {a: normal(5, SIZES[a]).float() for a in reduced.visible}
        compiled = torch.compile(reduced.update, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), reduced.update(x), rtol=1e-5, atol=1e-5)
