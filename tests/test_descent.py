"""Energy models in the solvers: downhill only, honest to the end, each sample for itself."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from contracts import EPS, Squared, Triple, inner, normal
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    Bias,
    Broyden,
    Dense,
    EnergyModel,
    Exp,
    Identity,
    Lagrangian,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    Solution,
    Solver,
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
from hamdeq.descent import Descent, Energetic
from hamdeq.forms import Form
from hamdeq.layers import Layered
from hamdeq.solvers import Method
from hamdeq.solvers.base import Step

Lagrangians = Sequence[Callable[[], Lagrangian]]

SOLVERS: dict[str, Solver] = {
    "anderson": Anderson(),
    "broyden": Broyden(),
    "newton": Newton(),
    "picard": Picard(),
}
SPLITTINGS = ("even-odd", None)
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
BOUNDED: Lagrangians = (
    lambda: Sigmoid(4.0, 0.5),
    lambda: Tanh(2.0),
    lambda: Softmax(3.0),
    LayerNorm,
    Spherical,
)
# With strong weights the energies of these have no minimum.
UNBOUNDED: Lagrangians = (Identity, ReLU, lambda: RePU(3), lambda: Exp(0.5))
# A memory takes its layers from one of these; the last two are mixtures.
KINDS: Sequence[Lagrangians] = [
    *([make] for make in (*BOUNDED, *UNBOUNDED)),
    BOUNDED,
    (*BOUNDED, *UNBOUNDED),
]
BOUNDED_KINDS: Sequence[Lagrangians] = [*([make] for make in BOUNDED), BOUNDED]
# Rounding of an energy, in units of the last place of the size of its terms: twice the 64 below
# which the safeguard, too, holds the difference of two energies for rounding.
ROUNDING = 128.0
TINY = torch.finfo(torch.float64).tiny


# ---------------------------------------------------------------------------- memories


@dataclasses.dataclass
class Case:
    """A memory with states to start from, one of them perhaps held."""

    ham: HAM
    held: State
    start: State
    bounded: bool = True

    @property
    def batch(self) -> int:
        return len(next(iter(self.start.values())))

    def layered(self, rows: Tensor | None = None) -> Layered:
        """The energy of the free layers, for any of the samples: made anew, not selected."""
        if not self.held:
            return self.ham
        return clamp(self.ham, self.held if rows is None else take(self.held, rows))

    def hidden(self, splitting: str | None) -> tuple[str, ...]:
        return two_colouring(self.ham, clamped=tuple(self.held))[1] if splitting else ()

    def model(self, hidden: Sequence[str], rows: Tensor | None = None) -> EnergyModel:
        """What is left of it: an eliminated energy, or without hidden layers a plain one."""
        layered = self.layered(rows)
        return eliminate(layered, hidden) if hidden else layered

    def visible(self, hidden: Sequence[str]) -> State:
        return {name: x for name, x in self.start.items() if name not in hidden}

    def to(self, dtype: torch.dtype) -> Case:
        def cast(x: State) -> State:
            return {name: x_a.to(dtype) for name, x_a in x.items()}

        ham = copy.deepcopy(self.ham).to(dtype)
        return dataclasses.replace(self, ham=ham, held=cast(self.held), start=cast(self.start))


def take(x: State, rows: Tensor | Sequence[int]) -> State:
    return {name: x_a[rows] for name, x_a in x.items()}


def memory(
    edges: Sequence[tuple[int, int]],
    n: int,
    *,
    kinds: Lagrangians = BOUNDED,
    scale: float = 1.0,
    held: bool = True,
    batch: int = 8,
    seed: int = 0,
    widest: int = 6,
    triples: Sequence[tuple[int, int, int]] = (),
) -> Case:
    """A memory on a graph of layers 0 … n−1, of which the first is held."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    names = [f"layer{i}" for i in range(n)]
    sizes = [rng.randint(1, widest) for _ in names]
    neurons = {a: Neurons(m, rng.choice(kinds)()) for a, m in zip(names, sizes, strict=True)}
    connections: list[tuple[tuple[str, ...], Synapse]] = [
        ((a,), Bias(m, std=0.5)) for a, m in zip(names, sizes, strict=True)
    ]
    for edge in edges:
        i, j = edge if rng.random() < 0.5 else edge[::-1]
        connections.append(((names[i], names[j]), Dense(sizes[i], sizes[j])))
    for places in triples:
        connections.append((tuple(names[i] for i in places), Triple(*(sizes[i] for i in places))))
    ham = HAM(neurons, connections).double()
    with torch.no_grad():
        for p in ham.parameters():
            # To be exact in float32 as well.
            p.copy_((scale * p).float())
    size = rng.choice((0.5, 3.0))
    start = {
        a: (size * normal(batch, m, seed=97 * seed + i)).float().double()
        for i, (a, m) in enumerate(zip(names, sizes, strict=True))
    }
    kept = {names[0]: start.pop(names[0])} if held else {}
    bounded = not any(
        isinstance(layer.lagrangian, Exp | RePU | Identity) for layer in neurons.values()
    )
    return Case(ham, kept, start, bounded)


def chain(free: int, *, held: bool = True, **options: object) -> Case:
    """A chain of free layers, behind one that is held."""
    n = free + held
    return memory(list(itertools.pairwise(range(n))), n, held=held, **options)  # type: ignore[arg-type]


def bipartite(free: int, *, held: bool = True, seed: int, **options: object) -> Case:
    """Random connections between two sides of free layers, and from a held one to any of them."""
    rng = random.Random(seed)
    order = rng.sample(range(held, free + held), free)
    left = rng.randint(1, free - 1)
    pairs = list(itertools.product(order[:left], order[left:]))
    edges = [pair for pair in pairs if rng.random() < 0.7] or pairs[:1]
    edges += [(0, i) for i in order if held and rng.random() < 0.5]
    return memory(edges, free + held, held=held, seed=seed, **options)  # type: ignore[arg-type]


def family(
    *,
    kinds: Sequence[Lagrangians] = KINDS,
    scales: Sequence[float] = SCALES,
    small: bool = False,
    batch: int = 128,
    every: int = 1,
) -> list[Case]:
    """A chain and a bipartite graph of each kind and scale, of all sizes in turn."""
    found = []
    for (i, kind), (j, scale) in itertools.product(enumerate(kinds), enumerate(scales)):
        if (i + j) % every:
            continue
        seed = 1000 * i + 10 * j
        free, layers = 2 + (i + 3 * j) % (3 if small else 8), 2 + (i + j) % (3 if small else 5)
        options = {"kinds": kind, "scale": scale, "batch": batch, "widest": 3 if small else 6}
        found.append(chain(free, held=(i + j) % 2 == 0, seed=seed, **options))
        found.append(bipartite(layers, held=(i + j) % 2 == 1, seed=seed + 1, **options))
    return found


# ------------------------------------------------------------------------------ spying


@dataclasses.dataclass
class Log:
    """Where a map was evaluated: of which samples, at which states, and what was accepted."""

    rows: list[Tensor] = dataclasses.field(default_factory=list)
    x: list[Tensor] = dataclasses.field(default_factory=list)
    accepted: list[Tensor] = dataclasses.field(default_factory=list)


class Spied(Descent):
    """A map that notes where it is evaluated, and keeps count itself of the samples it is for."""

    def __init__(self, model: EnergyModel, form: Form, log: Log, rows: Tensor) -> None:
        super().__init__(model, form)
        self.log, self.rows = log, rows

    def step(self, x: Tensor) -> tuple[Tensor, Energetic]:
        self.log.rows.append(self.rows)
        self.log.x.append(x.clone())
        return super().step(x)

    def select(self, rows: Tensor) -> Spied:
        part = super().select(rows)
        return Spied(part.model, part.form, self.log, self.rows[rows])


class Watching(Method):
    """A solver's running memory, whose acceptances are noted."""

    def __init__(self, method: Method, log: Log) -> None:
        self.method, self.log = method, log

    def accepts(self, step: Step) -> Tensor | None:
        accepted = self.method.accepts(step)
        everyone = torch.ones(len(step.x), dtype=torch.bool)
        self.log.accepted.append(everyone if accepted is None else accepted.clone())
        return accepted

    def propose(self, step: Step) -> Tensor:
        return self.method.propose(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Solver):
    """A solver that is watched."""

    solver: Solver
    log: Log

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Method:
        return Watching(self.solver.start(f, x0), self.log)


@dataclasses.dataclass
class History:
    """A solve, and its states, (evaluations, batch), seen from outside.

    Attributes:
        went: which evaluations were accepted, of samples that had not stopped.
        energy: of these, from the public energy in float64.
        size: sum of the absolute terms of that energy.
    """

    solution: Solution
    went: Tensor
    energy: Tensor
    size: Tensor

    def rises(self) -> Tensor:
        """Of each accepted state over the lowest energy before, in units of its size."""
        known = self.went & self.energy.isfinite() & self.size.isfinite()
        energy = torch.where(known, self.energy, math.inf)
        lowest, place = energy.cummin(0)
        before, size_before = lowest[:-1], self.size.gather(0, place)[:-1]
        size = torch.maximum(self.size[1:], size_before).clamp_min(TINY)
        compared = known[1:] & before.isfinite()
        return ((energy[1:] - before) / size)[compared]


def watch(
    case: Case,
    hidden: Sequence[str],
    solver: Solver,
    *,
    dtype: torch.dtype = torch.float64,
    energetic: bool = True,
) -> History:
    """Solve, and look at every state that the solver went to."""
    own = case.to(dtype)
    x0 = own.visible(hidden)
    form, log = Form(x0), Log()
    watched = Watched(solver=solver, log=log, tol=solver.tol, max_steps=solver.max_steps)
    everyone = torch.arange(case.batch)
    with torch.no_grad():
        spied = Spied(own.model(hidden), form, log, everyone)

        def plain(x: Tensor) -> Tensor:
            # Newton's method evaluates its map once more for the Jacobian, with gradients.
            return spied(x) if torch.is_grad_enabled() else spied.step(x)[0]

        # As a plain map, the same spy shows what happens without a safeguard.
        solution = watched.solve(spied if energetic else plain, form.flatten(x0))
        assert len(log.x) == len(log.accepted) == solution.n_evals
        rows, x = torch.cat(log.rows), torch.cat(log.x).double()
        state = form_of(case.visible(hidden), len(rows)).restore(x)
        model, layered = case.model(hidden, rows), case.layered(rows)
        full = model.restore(state) if hidden else state  # type: ignore[attr-defined]
        size = magnitude(layered, full)
        energy = model.energy(state)
    place = torch.cat([torch.full_like(r, k) for k, r in enumerate(log.rows)])
    # Where f(x) is not finite a sample ends, and its state is not kept.
    lost = (solution.status == Status.DIVERGED).long()
    running = place < (solution.steps - lost)[rows]
    accepted = torch.cat(log.accepted)

    def table(values: Tensor, fill: float) -> Tensor:
        empty = values.new_full((solution.n_evals, case.batch), fill)
        return empty.index_put((place, rows), values)

    history = History(
        solution,
        table(running & accepted, False),
        table(energy, math.nan),
        table(size, math.nan),
    )
    # The returned state is one of those, to the last bit.
    same = (x == solution.value.double()[rows]).all(1) & accepted
    assert table(same, False).any(0).all()
    return history


def magnitude(layered: Layered, x: State) -> Tensor:
    """The sum of the absolute terms of an energy, ⟨x, g⟩ and L(x) for each layer's own."""
    size = torch.zeros(len(next(iter(x.values()))), dtype=torch.float64)
    g = layered.activations(x)
    for name, x_a in x.items():
        size += inner(x_a.abs(), g[name].abs()) + layered.layer(name).lagrangian(x_a).abs()
    return sum((term.abs() for term in layered.energy_terms(x).values()), size)


def form_of(x: State, batch: int) -> Form:
    return Form(x).of_batch(batch)


# ------------------------------------------------------------------------- the promise


def assert_downhill(case: Case, history: History, dtype: torch.dtype = torch.float64) -> None:
    """That no energy rose beyond rounding, and that none was hidden from the comparison."""
    rises = history.rises()
    if case.bounded:
        assert history.energy[history.went].isfinite().all()
    worst = rises.max().item() / torch.finfo(dtype).eps if len(rises) else -math.inf
    assert worst <= ROUNDING, case.ham


def assert_honest(case: Case, hidden: Sequence[str], history: History, solver: Solver) -> None:
    """That every sample converged, or that its status says why not."""
    solution = history.solution
    converged, max_steps, diverged = (
        solution.status == status
        for status in (Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED)
    )
    assert (converged | max_steps | diverged).all()
    assert torch.equal(converged, solution.converged)
    assert solution.value.isfinite().all()
    assert (solution.residual[converged] < solver.tol).all()
    assert (solution.residual[~converged] >= solver.tol).all()
    assert (solution.steps[max_steps] == solver.max_steps).all()
    assert not (case.bounded and diverged.any())
    with torch.no_grad():
        x = form_of(case.visible(hidden), case.batch).restore(solution.value)
        fx = case.model(hidden).update(x)
        here, there = torch.cat([*x.values()], 1), torch.cat([*fx.values()], 1)
        # Scaled, so that no square is too large: a residual of 0 must not come from ‖f(x)‖ = ∞.
        size = there.abs().amax(1, keepdim=True).clamp_min(TINY)
        expected = ((there - here) / size).norm(dim=1) / (there / size).norm(dim=1)
    # At 1e6 f(x) is as good as zero, and the ratio a matter of rounding.
    sure = ~diverged & (solution.residual < 1e6)
    torch.testing.assert_close(solution.residual[sure], expected[sure], rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_the_energy_never_rises(name: str, splitting: str | None) -> None:
    """In no accepted state of any sample, whatever the memory: seen from outside."""
    newton = name == "newton"
    solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=25 if newton else 50)
    steps = started = compared = fell = 0
    for case in family(small=newton, batch=48 if newton else 128):
        hidden = case.hidden(splitting)
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        rises = history.rises()
        steps += int(history.went.sum())
        started += int(history.went[0].sum())
        compared += len(rises)
        fell += int((rises < -ROUNDING * EPS).sum())
    print(f"{name}, {splitting}: {steps} accepted steps, {compared} compared, {fell} fell")
    # Anderson and Broyden alone make half a million of them.
    assert compared > (20_000 if newton else 100_000)
    # Each but the first is compared, unless its energy overflows on the way to minus infinity.
    assert steps - started - compared < 0.01 * steps
    # What is tested is descent, not a rest.
    assert fell > 0.7 * compared


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden"])
def test_the_energy_never_rises_in_float32(name: str, splitting: str | None) -> None:
    """The solver sees float32 and its rounding; the energies are those of float64."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-5, max_steps=40)
    compared = 0
    for case in family(every=2):
        history = watch(case, case.hidden(splitting), solver, dtype=torch.float32)
        assert history.solution.value.dtype == torch.float32
        assert_downhill(case, history, torch.float32)
        assert not (case.bounded and (history.solution.status == Status.DIVERGED).any())
        compared += len(history.rises())
    assert compared > 30_000


def test_plain_steps_of_a_two_coloured_memory_never_raise_the_energy() -> None:
    solver = Picard(tol=1e-8, max_steps=60)
    compared = 0
    for case in family():
        hidden = case.hidden("even-odd")
        assert case.model(hidden).descends
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        compared += len(history.rises())
    assert compared > 100_000


@pytest.mark.parametrize(
    ("name", "splitting"),
    [pair for pair in itertools.product(SOLVERS, SPLITTINGS) if pair != ("picard", "even-odd")],
)
def test_without_the_energy_it_does_rise(name: str, splitting: str | None) -> None:
    """So that the tests above can fail: the same memories as plain maps, seen by the same spy."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=30)
    rose = 0
    for case in family(kinds=[BOUNDED], scales=(3.0, 10.0), small=name == "newton", batch=32):
        history = watch(case, case.hidden(splitting), solver, energetic=False)
        rose += int((history.rises() > 1e6 * ROUNDING * EPS).sum())
    assert rose > 10


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_partial_elimination_and_third_order_synapses(name: str) -> None:
    """Where layers that are left act on each other, plain steps rise and safeguarded ones not."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=40)
    rose, compared = 0, 0
    for seed, scale in itertools.product(range(3), (1.0, 3.0, 10.0)):
        options = {"scale": scale, "batch": 64, "widest": 3, "seed": seed}
        line = chain(5, **options)
        third = memory([(0, 1)], 4, triples=[(1, 2, 3), (0, 3, 2)], **options)
        for case, hidden in ((line, ("layer2",)), (third, ()), (third, ("layer2",))):
            assert not case.model(hidden).descends
            history = watch(case, hidden, solver)
            assert_downhill(case, history)
            assert_honest(case, hidden, history, solver)
            compared += len(history.rises())
            plain = watch(case, hidden, Picard(tol=1e-8, max_steps=40))
            rose += int((plain.rises() > 1e6 * ROUNDING * EPS).sum())
    assert compared > 4_000
    assert rose > 100


# ----------------------------------------------------------------------------- the end


def test_weak_bounded_memories_converge() -> None:
    """With weights up to those of an untrained memory, 99 of 100 samples at least."""
    solver = Broyden(tol=1e-6, max_steps=500)
    converged, total = 0, 0
    for case in family(kinds=BOUNDED_KINDS, scales=(0.1, 0.3, 1.0), batch=64):
        assert case.bounded
        hidden = case.hidden("even-odd")
        history = watch(case, hidden, solver)
        assert_honest(case, hidden, history, solver)
        converged += int(history.solution.converged.sum())
        total += case.batch
    print(f"{converged} of {total} converged")
    assert total == 36 * 64
    assert converged >= 0.99 * total


def linear(case: Case) -> tuple[float, State]:
    """Of a memory of identities: the largest eigenvalue of its weights, and where it can rest."""
    form, layered = Form(case.start), case.layered()
    zero = torch.zeros_like(form.flatten(case.start))
    n = zero.shape[1]
    unit, rows = torch.eye(n, dtype=torch.float64), torch.zeros(n, dtype=torch.long)
    first, each = case.layered(rows), form_of(case.start, n)

    def field(g: Tensor) -> Tensor:
        return each.flatten(first.fields(each.restore(g)))

    with torch.no_grad():
        weights = field(unit) - field(torch.zeros_like(unit))
        drive = form.flatten(layered.fields(form.restore(zero)))
        rest = torch.linalg.solve(unit - weights.T, drive.T).T
    torch.testing.assert_close(weights, weights.T, rtol=0, atol=1e-13)
    return torch.linalg.eigvalsh(weights)[-1].item(), form.restore(rest)


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden"])
def test_a_linear_memory_diverges_only_where_its_energy_falls_forever(
    name: str, splitting: str | None
) -> None:
    """½gᵀ(1 − W)g − bᵀg has a minimum where the largest eigenvalue of W is below 1."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-9, max_steps=700)
    with_minimum = without = lost = 0
    for case in family(kinds=[[Identity]], batch=16):
        hidden = case.hidden(splitting)
        largest, rest = linear(case)
        assert abs(largest - 1) > 1e-3
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        solution = history.solution
        x = form_of(case.visible(hidden), case.batch).restore(solution.value)
        for a, x_a in x.items():
            there = (x_a - rest[a]).abs() <= 1e-5 * (1 + rest[a].abs())
            assert there[solution.converged].all()
        if largest < 1:
            with_minimum += 1
            assert solution.converged.all()
        else:
            without += 1
            lost += int((solution.status == Status.DIVERGED).sum())
    assert with_minimum >= 3
    assert without >= 3
    assert lost > 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["anderson", "broyden", "picard"])
@pytest.mark.parametrize("slope", [1.2, 1.9])
def test_no_sample_converges_by_overflow(name: str, dtype: torch.dtype, slope: float) -> None:
    """‖f(x)‖ overflows before ‖f(x) − x‖ does: their ratio is then 0, and no equilibrium."""
    dense = Dense(4, 4)
    with torch.no_grad():
        dense.weight.copy_(slope**0.5 * torch.eye(4))
    ham = HAM({a: Neurons(4, Identity()) for a in "ab"}, [(("a", "b"), dense)]).to(dtype)
    x0 = {"a": 1 + torch.rand(8, 4, generator=torch.Generator().manual_seed(0)).to(dtype)}
    solver = dataclasses.replace(SOLVERS[name], tol=1e-4, max_steps=2500)
    solution = fixed_point(eliminate(ham, ("b",)), x0, solver=solver, on_failure="ignore")
    x = solution.value["a"]
    assert x.isfinite().all()
    # Zero is the only equilibrium.
    assert not (solution.converged & (x.abs().amax(1) > 1e-3)).any()


# ---------------------------------------------------------------- what goes downhill by itself


def test_descends_where_what_is_left_is_independent() -> None:
    """A step without a safeguard is certain where no two visible layers act on each other."""
    ham = HAM.chain([5, 4, 3, 2, 3], Sigmoid(2.0))
    held = clamp(ham, {"input": torch.rand(2, 5)})
    assert not ham.descends
    assert not held.descends
    for model in (ham, held):
        hidden = two_colouring(ham, clamped=("input",) if model is held else ())[1]
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
    held = clamp(third, {"b": torch.rand(2, 3)})
    assert not held.descends
    assert not eliminate(held, ()).descends
    # With one of the three held it is an edge.
    assert eliminate(held, ("a",)).descends
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
    held = {"x": normal(ROWS, 3, seed=1)}
    clamped = clamp(ham, held)
    found: dict[str, EnergyModel] = {
        "ham": ham,
        "clamped": clamped,
        "reduced": eliminate(clamped, ("a", "b", "d")),
        "other colour": eliminate(clamped, ("c",)),
        "partial": eliminate(clamped, ("b",)),
        "reduced, nothing held": eliminate(ham, ("a", "d")),
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
    form = Form(x)
    f, rows = Descent(model, form), form.flatten(x)
    with torch.no_grad():
        expected = form.flatten(model.update(x))
        torch.testing.assert_close(f(rows), expected, rtol=0, atol=0)
        fx, (g, terms) = f.step(rows)
        torch.testing.assert_close(fx, expected, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(g, form.flatten(model.activations(x)), rtol=0, atol=0)
        torch.testing.assert_close(f.activations(rows), g, rtol=0, atol=0)
        torch.testing.assert_close(f.fields(g), expected, rtol=1e-13, atol=1e-14)
        assert (expected - rows).abs().amin() > 0
        # The terms are those of the energy, but for what does not depend on x.
        rest = model.energy(x) - terms().sum(0)
        other = {a: 2 * x_a.flip(0) + 0.5 for a, x_a in x.items()}
        there = f.step(form.flatten(other))[1].terms().sum(0)
        assert ((model.energy(other) - model.energy(x)).abs() > 1e-3).all()
        torch.testing.assert_close(model.energy(other) - there, rest, rtol=0, atol=1e-12)


def test_what_the_terms_lack_belongs_to_the_held_layers() -> None:
    for name, (model, x) in models().items():
        form = Form(x)
        with torch.no_grad():
            terms = Descent(model, form).step(form.flatten(x))[1].terms()
            assert terms.shape[1:] == (ROWS,)
            rest = model.energy(x) - terms.sum(0)
            held = name in ("clamped", "reduced", "other colour", "partial")
            expected = torch.zeros(ROWS, dtype=torch.float64)
            if held:
                ham, state = mixed(), {"x": normal(ROWS, 3, seed=1)}
                bias = next(s for layers, s in ham.connections if layers == ("x",))
                layer = ham.layer("x")
                expected = layer.energy(state["x"]) + bias.energy(layer.activation(state["x"]))
                assert expected.abs().min() > 1e-2
            torch.testing.assert_close(rest, expected, rtol=0, atol=1e-12)


def test_both_halves_have_symmetric_derivatives(pair: tuple[EnergyModel, State]) -> None:
    model, x = pair
    row = torch.tensor([4])
    form = Form(x)
    f, rows = Descent(model, form).select(row), form.flatten(x)[row]
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
        lambda v: model.select(row).energy(form.of_batch(1).restore(v))[0], rows
    )
    expected = (rows - f(rows).detach()) @ gain
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [[3], [0, 1], [6, 2, 4], [5, 5, 0, 5], list(range(ROWS))])
def test_a_selection_is_the_rows_of_the_whole(
    pair: tuple[EnergyModel, State], rows: list[int]
) -> None:
    model, x = pair
    form = Form(x)
    whole, flat = Descent(model, form), form.flatten(x)

    def check(part: Descent, rows: list[int]) -> None:
        # A product of matrices may round otherwise in another batch.
        close = {"rtol": 1e-12, "atol": 1e-13}
        here = flat[rows]
        fx, (g, terms) = part.step(here)
        all_fx, (all_g, all_terms) = whole.step(flat)
        torch.testing.assert_close(fx, all_fx[rows], **close)
        torch.testing.assert_close(g, all_g[rows], **close)
        torch.testing.assert_close(terms(), all_terms()[:, rows], **close)
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
def scenes() -> tuple[HAM, State, State]:
    """An untrained chain with several equilibria; four inputs, eight starts for each."""
    torch.manual_seed(2)
    ham = HAM.chain([6, 9, 8, 7, 6], gain=3.0).double()
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
    ham = scenes()[0]
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6, max_steps=100)
    if (name, splitting) == ("picard", None):
        # Undamped it cycles, between two states of the same residual, either of them the best.
        solver = Picard(tol=1e-6, max_steps=100, damping=0.5)
    deq = DEQ(ham, splitting=splitting, solver=solver, on_failure="ignore")  # type: ignore[arg-type]
    sizes: list[int] = []
    step = Descent.step

    def counting(self: Descent, x: Tensor) -> tuple[Tensor, Energetic]:
        sizes.append(len(x))
        return step(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "step", counting)
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


# ------------------------------------------------------------- where plain steps do not settle


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_solvers_settle_where_plain_steps_cycle(name: str) -> None:
    """Two layers that answer each other at once swap their states for ever."""
    torch.manual_seed(1)
    neurons = {a: Neurons(6, Tanh()) for a in "ab"}
    ham = HAM(neurons, [(("a", "b"), Dense(6, 6))]).double()
    with torch.no_grad():
        ham.synapses[0].weight.mul_(5.0)  # type: ignore[operator]
    x0 = {a: normal(16, 6, seed=i) for i, a in enumerate("ab")}
    with torch.no_grad():
        plain = fixed_point(ham, x0, solver=Picard(tol=1e-8, max_steps=400), on_failure="ignore")
        cycling = plain.status == Status.MAX_STEPS
        assert cycling.sum() >= 12
        x = x0
        for _ in range(400):
            x = ham.update(x)
        once = ham.update(x)
        twice = ham.update(once)
        for a in "ab":
            torch.testing.assert_close(twice[a], x[a], rtol=0, atol=1e-9)
        swing = torch.cat([once[a] - x[a] for a in "ab"], 1).norm(dim=1)
        assert (swing[cycling] > 0.1).all()
        solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=400)
        solution = fixed_point(ham, x0, solver=solver, on_failure="raise")
        assert solution.converged.all()
        there = ham.update(solution.value)
        for a in "ab":
            torch.testing.assert_close(there[a], solution.value[a], rtol=0, atol=1e-6)
        assert (ham.energy(solution.value) < ham.energy(x0)).all()


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_a_saturated_neuron_does_not_stop_the_solver(name: str) -> None:
    """Where neurons have next to no gain, the energy promises more than a short step can keep."""
    ham = HAM({a: Neurons(1, Tanh()) for a in "ab"}, [(("a", "b"), Dense(1, 1))]).double()
    with torch.no_grad():
        ham.synapses[0].weight.fill_(10.0)  # type: ignore[operator]
    grid = torch.linspace(-12.0, 12.0, 17, dtype=torch.float64)
    a, b = torch.cartesian_prod(grid, grid).split(1, 1)
    # On a + b = 0, and there alone, both run into the saddle at zero.
    off = ((a + b).abs() > 1).flatten()
    x0 = {"a": a[off], "b": b[off]}
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6, max_steps=100)
    solution = fixed_point(ham, x0, solver=solver, on_failure="ignore")
    # Three equilibria: x = 10 tanh(x), to 1e-7 at ±10, and at 0.
    assert solution.converged.all(), (~solution.converged).sum()
    for x in solution.value.values():
        nearest = torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64) - x
        assert (nearest.abs().amin(1) < 1e-4).all()


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_halving_finds_a_step_downhill(name: str) -> None:
    """Without splitting a step is halved until the energy falls, which is soon."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6, max_steps=200)
    longest, converged, total = 0, 0, 0
    for case in family(kinds=BOUNDED_KINDS, batch=32, small=name == "newton"):
        history = watch(case, (), solver)
        assert_downhill(case, history)
        solution = history.solution
        streak = torch.zeros(case.batch, dtype=torch.long)
        for k, went in enumerate(history.went):
            streak = torch.where(went | (k >= solution.steps), 0, streak + 1)
            longest = max(longest, int(streak.max()))
        converged += int(solution.converged.sum())
        total += case.batch
    assert longest <= 20, (longest, converged, total)
    assert converged >= 0.99 * total


# ------------------------------------------------------------------- the same as a plain map


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_the_energy_changes_neither_equilibrium_nor_gradient(
    name: str, splitting: str | None
) -> None:
    """Of a contraction: against the plain map, and against autograd through many steps."""
    for seed in range(3):
        case = chain(4, kinds=BOUNDED[:3], scale=0.2, batch=5, seed=seed)
        hidden = case.hidden(splitting)
        x0 = case.visible(hidden)
        weights = {a: normal(*x.shape, seed=40) for a, x in x0.items()}
        case.held = {a: x.requires_grad_() for a, x in case.held.items()}
        inputs = [*case.held.values(), *case.ham.parameters()]

        def gradient(value: State) -> tuple[Tensor, ...]:
            loss = torch.stack([(value[a] * weights[a]).sum() for a in value]).sum()  # noqa: B023
            return torch.autograd.grad(loss, inputs, materialize_grads=True)  # noqa: B023

        # Made anew for each: what the held layer exerts keeps its graph for one backward pass.
        solver = dataclasses.replace(SOLVERS[name], tol=1e-12, max_steps=300)
        picard = Picard(tol=1e-13, max_steps=2000)
        with_energy = fixed_point(case.model(hidden), x0, solver=solver, on_failure="raise").value
        plain = fixed_point(case.model(hidden).update, x0, solver=picard, on_failure="raise").value
        model, unrolled = case.model(hidden), x0
        for _ in range(200):
            unrolled = model.update(unrolled)
        grads = gradient(with_energy)
        assert max(grad.abs().max() for grad in grads) > 1e-2
        for value, expected in ((plain, gradient(plain)), (unrolled, gradient(unrolled))):
            for a in x0:
                torch.testing.assert_close(with_energy[a], value[a], rtol=1e-10, atol=1e-10)
            for grad, other in zip(grads, expected, strict=True):
                torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-9)


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
        broken = {a: x.clone() for a, x in case.held.items()}
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
        value = Form(x0).flatten(solution.value)
        assert good.converged[others].sum() >= 3
        torch.testing.assert_close(value[others], good.value[others], rtol=1e-12, atol=1e-12)
        assert solution.steps[others].tolist() == good.steps[others].tolist()
        assert solution.status[others].tolist() == good.status[others].tolist()
        # A saturating activation makes a number of an infinite input, but not of a NaN.
        if math.isnan(bad):
            assert solution.status[lost].tolist() == [Status.DIVERGED] * 2
            assert solution.steps[lost].tolist() == [1, 1]
            # The best finite state is the first, as there is no other.
            assert torch.equal(value[lost], Form(x0).flatten(x0)[lost])
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
