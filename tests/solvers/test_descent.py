"""The map of an energy model, and each of its samples for itself."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from custom_terms import Squared, Triple
from random_memories import (
    KINDS,
    SOLVERS,
    SPLITTINGS,
    assert_downhill,
    chain,
    take,
    watch,
)
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Bias,
    Dense,
    EnergyModel,
    LayerNorm,
    Neurons,
    Picard,
    RePU,
    Sigmoid,
    Softmax,
    Solution,
    Spherical,
    State,
    Status,
    Synapse,
    Tanh,
    clamp,
    eliminate,
    fixed_point,
    two_colouring,
)
from hamdeq.solvers.energy_map import EnergyInfo, EnergyMap, StateLayout
from hamdeq.testing import normal

# ---------------------------------------------------------------- what goes downhill by itself


def test_descends_where_what_is_left_is_independent() -> None:
    """A step without a safeguard is certain where no two visible layers act on each other."""
    ham = HAM.chain([5, 4, 3, 2, 3], Sigmoid(2.0))
    clamped = clamp(ham, {"input": torch.rand(2, 5)})
    assert not ham.descends
    assert not clamped.descends
    for model in (ham, clamped):
        hidden = two_colouring(ham, clamped=("input",) if model is clamped else ())[1]
        assert len(hidden) >= 2
        assert eliminate(model, hidden).descends
        other = [name for name in model.layers if name not in hidden]
        assert eliminate(model, other).descends
        # hidden2 and hidden3 are left, with a synapse between them.
        assert not eliminate(model, ("hidden1",)).descends
        assert not eliminate(model, ()).descends
        assert not eliminate(model, ("output",)).descends
    # Biases act on single layers.
    biases = {a: Neurons(3, Sigmoid()) for a in "ab"}
    assert eliminate(HAM(biases, [((a,), Bias(3)) for a in "ab"]), ()).descends


def test_third_order_and_self_acting_synapses_do_not_descend() -> None:
    neurons = {a: Neurons(n, Sigmoid()) for a, n in (("a", 2), ("b", 3), ("c", 4))}
    third = HAM(neurons, [(("a", "b", "c"), Triple(2, 3, 4))])
    assert not eliminate(third, ("a",)).descends
    assert not eliminate(third, ()).descends
    clamped = clamp(third, {"b": torch.rand(2, 3)})
    assert not clamped.descends
    assert not eliminate(clamped, ()).descends
    # With one of the three clamped it is an edge.
    assert eliminate(clamped, ("a",)).descends
    square = HAM(neurons, [(("a", "a"), Dense(2, 2)), (("a", "b"), Dense(2, 3))])
    assert not eliminate(square, ("b",)).descends
    squared = HAM(neurons, [(("a", "b"), Squared(2, 3))])
    assert not eliminate(squared, ("c",)).descends
    # One layer is left, on which the energy is not linear.
    alone = clamp(squared, {"b": torch.rand(2, 3)})
    assert not eliminate(alone, ("c",)).descends


# -------------------------------------------------------------------------- the map itself


class Picture(Dense):
    """A dense synapse from a vector to an image."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        super().__init__(n, math.prod(shape))
        self.shape, self.shapes = shape, ((n,), shape)

    def energy(self, *g: Tensor) -> Tensor:
        return super().energy(g[0], g[1].flatten(1))

    def field(self, to: int, *g: Tensor) -> Tensor:
        field = super().field(to, g[0], g[1].flatten(1))
        return field.unflatten(1, self.shape) if to == 1 else field


def mixed() -> HAM:
    """Layers coupled within (softmax, layer norm, sphere) and not, one of them an image."""
    torch.manual_seed(5)
    neurons = {
        "x": Neurons(3, Tanh()),
        "a": Neurons(4, Softmax(2.0)),
        "b": Neurons((2, 3), LayerNorm(eps=0.5)),
        "c": Neurons(3, Sigmoid(2.0, 0.3)),
        "d": Neurons(2, Spherical(eps=0.5)),
    }
    connections: list[tuple[tuple[str, ...], Synapse]] = [
        (("x", "a"), Dense(3, 4)),
        (("a", "c"), Dense(4, 3)),
        (("x", "a", "c"), Triple(3, 4, 3)),
        (("c", "b"), Picture(3, (2, 3))),
        (("d", "c"), Dense(2, 3)),
        (("x",), Bias(3, std=1.0)),
        (("a",), Bias(4, std=1.0)),
        (("b",), Bias((2, 3), std=1.0)),
    ]
    return HAM(neurons, connections).double()


ROWS = 7


def models() -> dict[str, tuple[EnergyModel, State]]:
    """Models of every kind, with a state each; its layers not in the model's order."""
    ham = mixed()
    clamped = clamp(ham, {"x": normal(ROWS, 3, seed=1)})
    found: dict[str, EnergyModel] = {
        "ham": ham,
        "clamped": clamped,
        "reduced": eliminate(clamped, ("a", "b", "d")),
        "other colour": eliminate(clamped, ("c",)),
        "partial": eliminate(clamped, ("b",)),
        "reduced, nothing clamped": eliminate(ham, ("a", "d")),
    }
    states = {}
    for name, model in found.items():
        layers = model.visible if hasattr(model, "visible") else model.layers  # type: ignore
        states[name] = {
            a: normal(ROWS, *ham.layer(a).shape, seed=10 + i)
            for i, a in enumerate(reversed(layers))
        }
    return {name: (model, states[name]) for name, model in found.items()}


@pytest.fixture(params=list(models()))
def pair(request: pytest.FixtureRequest) -> tuple[EnergyModel, State]:
    return models()[request.param]


def test_the_map_is_the_update(pair: tuple[EnergyModel, State]) -> None:
    model, x = pair
    form = StateLayout(x)
    f, rows = EnergyMap(model, form), form.flatten(x)
    with torch.no_grad():
        expected = form.flatten(model.update(x))
        torch.testing.assert_close(f(rows), expected, rtol=0, atol=0)
        fx, info = f.step(rows)
        g = info.g
        torch.testing.assert_close(fx, expected, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(g, form.flatten(model.activations(x)), rtol=0, atol=0)
        torch.testing.assert_close(f.activations(rows), g, rtol=0, atol=0)
        torch.testing.assert_close(f.fields(g), expected, rtol=1e-13, atol=1e-14)
        assert (expected - rows).abs().amin() > 0
        # The terms are those of the energy, but for what does not depend on x.
        rest = model.energy(x) - info.terms().sum(0)
        other = {a: 2 * x_a.flip(0) + 0.5 for a, x_a in x.items()}
        there = f.step(form.flatten(other))[1].terms().sum(0)
        assert ((model.energy(other) - model.energy(x)).abs() > 1e-3).all()
        torch.testing.assert_close(model.energy(other) - there, rest, rtol=0, atol=1e-12)


def test_what_the_terms_lack_belongs_to_the_clamped_layers() -> None:
    for name, (model, x) in models().items():
        form = StateLayout(x)
        with torch.no_grad():
            terms = EnergyMap(model, form).step(form.flatten(x))[1].terms()
            assert terms.shape[1:] == (ROWS,)
            rest = model.energy(x) - terms.sum(0)
            clamped = name in ("clamped", "reduced", "other colour", "partial")
            expected = torch.zeros(ROWS, dtype=torch.float64)
            if clamped:
                ham, state = mixed(), {"x": normal(ROWS, 3, seed=1)}
                bias = next(s for layers, s in ham.connections if layers == ("x",))
                layer = ham.layer("x")
                expected = layer.energy(state["x"]) + bias.energy(layer.activation(state["x"]))
                assert expected.abs().min() > 1e-2
            torch.testing.assert_close(rest, expected, rtol=0, atol=1e-12)


def test_both_halves_have_symmetric_derivatives(pair: tuple[EnergyModel, State]) -> None:
    model, x = pair
    row = torch.tensor([4])
    form = StateLayout(x)
    f, rows = EnergyMap(model, form).select(row), form.flatten(x)[row]
    g = f.activations(rows).detach()

    def jacobian(h: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(lambda v: h(v[None])[0], at[0])

    fields, gain, whole = jacobian(f.fields, g), jacobian(f.activations, rows), jacobian(f, rows)
    assert fields.abs().max() > 1e-2
    torch.testing.assert_close(fields, fields.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(gain, gain.T, rtol=0, atol=1e-13)
    # L is convex; softmax, layer norm and the sphere leave directions without gain.
    assert torch.linalg.eigvalsh(gain)[0] > -1e-13
    assert torch.linalg.eigvalsh(gain)[-1] > 1e-2
    torch.testing.assert_close(whole, fields @ gain, rtol=0, atol=1e-12)
    # The slope of the energy is D (x − f(x)).
    slope = torch.autograd.functional.jacobian(
        lambda v: model.select(row).energy(form.of_batch(1).unflatten(v))[0], rows
    )
    expected = (rows - f(rows).detach()) @ gain
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [[3], [0, 1], [6, 2, 4], [5, 5, 0, 5], list(range(ROWS))])
def test_a_selection_is_the_rows_of_the_whole(
    pair: tuple[EnergyModel, State], rows: list[int]
) -> None:
    model, x = pair
    form = StateLayout(x)
    whole, flat = EnergyMap(model, form), form.flatten(x)

    def check(part: EnergyMap, rows: list[int]) -> None:
        # A product of matrices may round otherwise in another batch.
        close = {"rtol": 1e-12, "atol": 1e-13}
        here = flat[rows]
        fx, info = part.step(here)
        all_fx, all_info = whole.step(flat)
        g, all_g = info.g, all_info.g
        torch.testing.assert_close(fx, all_fx[rows], **close)
        torch.testing.assert_close(g, all_g[rows], **close)
        torch.testing.assert_close(info.terms(), all_info.terms()[:, rows], **close)
        torch.testing.assert_close(part(here), whole(flat)[rows], **close)
        torch.testing.assert_close(part.fields(g), whole.fields(all_g)[rows], **close)
        energy = part.model.energy(take(x, rows))
        torch.testing.assert_close(energy, model.energy(x)[rows], **close)
        assert part.certain == whole.certain

    with torch.no_grad():
        before = model.energy(x)
        part = whole.select(torch.tensor(rows))
        check(part, rows)
        # Selections of selections, the second in another order.
        again = [len(rows) - 1, 0]
        check(part.select(torch.tensor(again)), [rows[i] for i in again])
        last = part.select(torch.tensor(again)).select(torch.tensor([1]))
        check(last, [rows[0]])
        # The whole is as it was.
        torch.testing.assert_close(model.energy(x), before, rtol=0, atol=0)
        check(whole, list(range(ROWS)))


# ---------------------------------------------------------------------- sample by sample


GROUPS = [[0], [31, 3], list(range(31, -1, -1)), [5, 5, 17, 5], list(range(1, 32, 3))]


@functools.cache
def scenes(gain: float = 3.0) -> tuple[HAM, State, State]:
    """An untrained chain with several equilibria; four inputs, eight starts for each."""
    torch.manual_seed(2)
    ham = HAM.chain([6, 9, 8, 7, 6], gain=gain).double()
    inputs = {"input": normal(4, 6, seed=3).abs().repeat_interleave(8, 0)}
    init = {a: 3 * normal(32, *ham.layer(a).shape, seed=i) for i, a in enumerate(ham.layers)}
    return ham, inputs, init


def settle(deq: DEQ, rows: Sequence[int]) -> Solution:
    _, inputs, init = scenes()
    visible = [a for a in init if a not in ("input", *deq.hidden)]
    with torch.no_grad():
        return deq(take(inputs, list(rows)), init={a: init[a][list(rows)] for a in visible})


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_no_sample_depends_on_its_batch(
    name: str, splitting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the batch shrinks as samples stop, each at its own time."""
    # With weaker weights all samples take as few steps of Newton's method as they can.
    ham = scenes(12.0 if name == "newton" else 3.0)[0]
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6, max_steps=100)
    if (name, splitting) == ("picard", None):
        # Undamped it cycles, between two states of the same residual, either of them the best.
        solver = Picard(tol=1e-6, max_steps=100, damping=0.5)
    deq = DEQ(ham, splitting=splitting, solver=solver, on_failure="ignore")  # type: ignore[arg-type]
    sizes: list[int] = []
    step = EnergyMap.step

    def counting(self: EnergyMap, x: Tensor) -> tuple[Tensor, EnergyInfo]:
        sizes.append(len(x))
        return step(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(EnergyMap, "step", counting)
        whole = settle(deq, range(32))
    # Samples really dropped out, more than once.
    assert len(sizes) == whole.n_evals
    assert sizes[0] == 32
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 3
    assert whole.converged.sum() >= 24
    assert len(whole.steps.unique()) >= 5
    assert whole.n_evals == int(whole.steps.max())
    assert whole.trace.shape == (whole.n_evals, 32)
    for i, steps in enumerate(whole.steps.tolist()):
        assert (whole.trace[steps:, i] == whole.residual[i]).all()
        assert whole.trace[:steps, i].min() <= whole.residual[i]
        below = whole.trace[:steps, i] < solver.tol
        assert bool(below[-1]) == bool(whole.converged[i])
        assert not below[:-1].any() or not isinstance(solver, Picard)
    # Starts with the same input end at different equilibria.
    output = whole.value["output"]
    apart = [(output[i] - output[i - i % 8]).norm() for i in range(32) if whole.converged[i]]
    assert torch.stack(apart).max() > 0.1
    for rows in GROUPS:
        part = settle(deq, rows)
        for a in ham.layers:
            torch.testing.assert_close(part.value[a], whole.value[a][rows], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part.residual, whole.residual[rows], rtol=1e-6, atol=1e-12)
        assert part.steps.tolist() == whole.steps[rows].tolist()
        assert part.status.tolist() == whole.status[rows].tolist()
        longest = part.n_evals
        torch.testing.assert_close(part.trace, whole.trace[:longest, rows], rtol=1e-6, atol=1e-12)


# ------------------------------------------------------------------------- bad neighbours


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_bad_input_harms_no_other_sample(name: str, splitting: str | None, bad: float) -> None:
    damping = 0.5 if splitting is None else 1.0
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6)
    if isinstance(solver, Picard):
        solver = dataclasses.replace(solver, damping=damping)
    lost, others = [2, 5], [0, 1, 3, 4, 6, 7]
    for case in (chain(3, scale=1.0, seed=3), chain(4, kinds=KINDS[1], scale=3.0, seed=4)):
        hidden = case.hidden(splitting)
        x0 = case.visible(hidden)
        good = watch(case, hidden, solver).solution
        broken = {a: x.clone() for a, x in case.clamped.items()}
        for x in broken.values():
            x[lost] = bad
        model = clamp(case.ham, broken)
        with torch.no_grad():
            solution = fixed_point(
                eliminate(model, hidden) if hidden else model,
                x0,
                solver=solver,
                on_failure="ignore",
            )
        value = StateLayout(x0).flatten(solution.value)
        assert good.converged[others].sum() >= 3
        torch.testing.assert_close(value[others], good.value[others], rtol=1e-12, atol=1e-12)
        assert solution.steps[others].tolist() == good.steps[others].tolist()
        assert solution.status[others].tolist() == good.status[others].tolist()
        # A saturating activation makes a number of an infinite input, but not of a NaN.
        if math.isnan(bad):
            assert solution.status[lost].tolist() == [Status.DIVERGED] * 2
            assert solution.steps[lost].tolist() == [1, 1]
            # The best finite state is the first, as there is no other.
            assert torch.equal(value[lost], StateLayout(x0).flatten(x0)[lost])
        assert value.isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
def test_an_exploding_sample_harms_no_other(name: str) -> None:
    """It ends with its best finite state, after some steps."""
    case = chain(3, kinds=[lambda: RePU(3)], scale=0.3, batch=8, seed=1)
    hidden = case.hidden("even-odd")
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6)
    good = watch(case, hidden, solver).solution
    assert good.converged.all()
    start = {a: x.clone() for a, x in case.start.items()}
    for x in start.values():
        x[3] = 10.0
    history = watch(dataclasses.replace(case, start=start), hidden, solver)
    assert_downhill(case, history)
    solution, others = history.solution, [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(solution.value[others], good.value[others], rtol=1e-12, atol=1e-12)
    assert solution.steps[others].tolist() == good.steps[others].tolist()
    assert solution.status[3] == Status.DIVERGED
    assert solution.steps[3] > 2
    assert solution.value[3].isfinite().all()
    assert solution.residual[3] == solution.trace[history.went[:, 3], 3].min()
