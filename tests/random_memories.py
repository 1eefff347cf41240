"""Random memories of all kinds, and a solver that is watched from outside."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence

import torch
from custom_terms import Triple
from torch import Tensor

from hamdeq import (
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
    colouring,
    eliminate,
    two_colouring,
)
from hamdeq.energy.model import LayeredEnergy
from hamdeq.solvers import SolverState
from hamdeq.solvers.energy_map import EnergyInfo, EnergyMap, StateLayout
from hamdeq.solvers.state import Step
from hamdeq.testing import inner, normal

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
# Rounding of an energy, in units of the last place of the size of its terms: sums of hundreds of
# numbers, in another order than the solver's.
ROUNDING = 128.0
TINY = torch.finfo(torch.float64).tiny


# ---------------------------------------------------------------------------- memories


@dataclasses.dataclass
class Case:
    """A memory with states to start from, one of them perhaps clamped."""

    ham: HAM
    clamped: State
    start: State
    bounded: bool = True
    # Of the layers that are not hidden, to be updated one after another.
    colours: Sequence[Sequence[str]] | None = None

    @property
    def batch(self) -> int:
        return len(next(iter(self.start.values())))

    def layered(self, rows: Tensor | None = None) -> LayeredEnergy:
        """The energy of the free layers, for any of the samples: made anew, not selected."""
        if not self.clamped:
            return self.ham
        return clamp(self.ham, self.clamped if rows is None else take(self.clamped, rows))

    def hidden(self, splitting: str | None) -> tuple[str, ...]:
        return two_colouring(self.ham, clamped=tuple(self.clamped))[1] if splitting else ()

    def swept(self) -> tuple[Case, tuple[str, ...]]:
        """The same with an order of its layers, and those to hide."""
        hidden, *colours = colouring(self.ham, clamped=tuple(self.clamped))
        return dataclasses.replace(self, colours=colours), hidden

    def model(self, hidden: Sequence[str], rows: Tensor | None = None) -> EnergyModel:
        """What is left of it: an eliminated energy, or without hidden layers a plain one."""
        layered = self.layered(rows)
        if not hidden and self.colours is None:
            return layered
        return eliminate(layered, hidden, colours=self.colours)

    def visible(self, hidden: Sequence[str]) -> State:
        return {name: x for name, x in self.start.items() if name not in hidden}

    def to(self, dtype: torch.dtype) -> Case:
        def cast(x: State) -> State:
            return {name: x_a.to(dtype) for name, x_a in x.items()}

        ham = copy.deepcopy(self.ham).to(dtype)
        return dataclasses.replace(
            self, ham=ham, clamped=cast(self.clamped), start=cast(self.start)
        )


def take(x: State, rows: Tensor | Sequence[int]) -> State:
    return {name: x_a[rows] for name, x_a in x.items()}


def memory(
    edges: Sequence[tuple[int, int]],
    n: int,
    *,
    kinds: Lagrangians = BOUNDED,
    scale: float = 1.0,
    clamped: bool = True,
    batch: int = 8,
    seed: int = 0,
    widest: int = 6,
    triples: Sequence[tuple[int, int, int]] = (),
) -> Case:
    """A memory on a graph of layers 0 … n−1, of which the first is clamped."""
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
    kept = {names[0]: start.pop(names[0])} if clamped else {}
    bounded = not any(
        isinstance(layer.lagrangian, Exp | RePU | Identity) for layer in neurons.values()
    )
    return Case(ham, kept, start, bounded)


def chain(free: int, *, clamped: bool = True, **options: object) -> Case:
    """A chain of free layers, behind one that is clamped."""
    n = free + clamped
    return memory(list(itertools.pairwise(range(n))), n, clamped=clamped, **options)  # type: ignore[arg-type]


def bipartite(free: int, *, clamped: bool = True, seed: int, **options: object) -> Case:
    """Random connections between two sides of free layers, and from a clamped one to any."""
    rng = random.Random(seed)
    order = rng.sample(range(clamped, free + clamped), free)
    left = rng.randint(1, free - 1)
    pairs = list(itertools.product(order[:left], order[left:]))
    edges = [pair for pair in pairs if rng.random() < 0.7] or pairs[:1]
    edges += [(0, i) for i in order if clamped and rng.random() < 0.5]
    return memory(edges, free + clamped, clamped=clamped, seed=seed, **options)  # type: ignore[arg-type]


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
        found.append(chain(free, clamped=(i + j) % 2 == 0, seed=seed, **options))
        found.append(bipartite(layers, clamped=(i + j) % 2 == 1, seed=seed + 1, **options))
    return found


# ------------------------------------------------------------------------------ spying


@dataclasses.dataclass
class Log:
    """Where a map was evaluated: of which samples, at which states, and what was accepted."""

    rows: list[Tensor] = dataclasses.field(default_factory=list)
    x: list[Tensor] = dataclasses.field(default_factory=list)
    accepted: list[Tensor] = dataclasses.field(default_factory=list)


class Spied(EnergyMap):
    """A map that notes where it is evaluated, and keeps count itself of the samples it is for."""

    def __init__(self, model: EnergyModel, form: StateLayout, log: Log, rows: Tensor) -> None:
        super().__init__(model, form)
        self.log, self.rows = log, rows

    def step(self, x: Tensor) -> tuple[Tensor, EnergyInfo]:
        self.log.rows.append(self.rows)
        self.log.x.append(x.clone())
        return super().step(x)

    def select(self, rows: Tensor) -> Spied:
        part = super().select(rows)
        return Spied(part.model, part.layout, self.log, self.rows[rows])


class Watching(SolverState):
    """A solver's running memory, whose acceptances are noted."""

    def __init__(self, method: SolverState, log: Log) -> None:
        self.method, self.log = method, log

    def accepts(self, step: Step) -> Tensor | None:
        accepted = self.method.accepts(step)
        everyone = torch.ones(len(step.x), dtype=torch.bool)
        self.log.accepted.append(everyone if accepted is None else accepted.clone())
        return accepted

    def next(self, step: Step) -> Tensor:
        return self.method.next(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Solver):
    """A solver that is watched."""

    solver: Solver
    log: Log

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
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
    info: bool = True,
) -> History:
    """Solve, and look at every state that the solver went to."""
    own = case.to(dtype)
    x0 = own.visible(hidden)
    form, log = StateLayout(x0), Log()
    watched = Watched(solver=solver, log=log, tol=solver.tol, max_steps=solver.max_steps)
    everyone = torch.arange(case.batch)
    with torch.no_grad():
        spied = Spied(own.model(hidden), form, log, everyone)

        def plain(x: Tensor) -> Tensor:
            # Newton's method evaluates its map once more for the Jacobian, with gradients.
            return spied(x) if torch.is_grad_enabled() else spied.step(x)[0]

        # As a plain map, the same spy shows what happens without a safeguard.
        solution = watched.solve(spied if info else plain, form.flatten(x0))
        assert len(log.x) == len(log.accepted) == solution.n_evals
        rows, x = torch.cat(log.rows), torch.cat(log.x).double()
        state = form_of(case.visible(hidden), len(rows)).unflatten(x)
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


def magnitude(layered: LayeredEnergy, x: State) -> Tensor:
    """The sum of the absolute terms of an energy, ⟨x, g⟩ and L(x) for each layer's own."""
    size = torch.zeros(len(next(iter(x.values()))), dtype=torch.float64)
    g = layered.activations(x)
    for name, x_a in x.items():
        size += inner(x_a.abs(), g[name].abs()) + layered.layer(name).lagrangian(x_a).abs()
    return sum((term.abs() for term in layered.energy_terms(x).values()), size)


def form_of(x: State, batch: int) -> StateLayout:
    return StateLayout(x).of_batch(batch)


def assert_downhill(case: Case, history: History, dtype: torch.dtype = torch.float64) -> None:
    """That no energy rose beyond rounding, and that none was hidden from the comparison."""
    rises = history.rises()
    if case.bounded:
        assert history.energy[history.went].isfinite().all()
    worst = rises.max().item() / torch.finfo(dtype).eps if len(rises) else -math.inf
    assert worst <= ROUNDING, case.ham
