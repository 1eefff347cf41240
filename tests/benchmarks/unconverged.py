"""Share of samples that do not converge, over random memories with a bounded energy.

    OMP_NUM_THREADS=1 python tests/benchmarks/unconverged.py --memories 4096 --samples 256

Each memory is a random graph with random Lagrangians, its weights scaled by 0.1 to 10 and its first
layer clamped to random states, solved by a DEQ at the default tolerance. Counted are samples that
have not converged, backward systems that were not solved, and saddles: states at which the energy
is not convex, so that dynamics in time would leave them.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    BengioFischer,
    Bias,
    Broyden,
    Dense,
    Entmax,
    Exp,
    Identity,
    Lagrangian,
    Lateral,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    Sparsemax,
    Spherical,
    State,
    Status,
    Synapse,
    Tanh,
)
from hamdeq.solvers.energy_map import StateLayout
from hamdeq.solvers.newton import _jacobian

SOLVERS = {"broyden": Broyden, "anderson": Anderson, "newton": Newton, "picard": Picard}
Make = Callable[[], Lagrangian]
# Activations that are bounded: whatever the synapses, so is the energy.
BOUNDED: dict[str, Make] = {
    "Sigmoid": lambda: Sigmoid(4.0, 0.5),
    "Tanh": lambda: Tanh(2.0),
    "Softmax": lambda: Softmax(3.0),
    "Sparsemax": lambda: Sparsemax(3.0),
    "Entmax": lambda: Entmax(1.5, 3.0),
    "LayerNorm": LayerNorm,
    "Spherical": Spherical,
    "BengioFischer": lambda: BengioFischer(Sigmoid(4.0, 0.5)),
}
# Of these the Legendre transform grows faster than linearly: between bounded layers, bounded below.
GROWING: dict[str, Make] = {
    "Identity": Identity,
    "ReLU": ReLU,
    "RePU": lambda: RePU(3),
    "Exp": lambda: Exp(0.5),
}
GRAPHS = ("chain", "chain", "chain", "tree", "even ring", "odd ring", "lateral")


def graph(kind: str, rng: random.Random) -> tuple[int, list[tuple[int, int]]]:
    """The number of layers and the pairs that a synapse connects; a pair of one is lateral."""
    if kind in ("chain", "lateral"):
        n = rng.randint(2, 9)
        edges = [(i, i + 1) for i in range(n - 1)]
        if kind == "lateral":
            edges += [(i, i) for i in range(1, n) if rng.random() < 0.5] or [(n - 1, n - 1)]
    elif kind == "tree":
        n = rng.randint(3, 9)
        edges = [(rng.randrange(i), i) for i in range(1, n)]
    else:  # a ring of free layers, and a clamped one beside it
        size = rng.choice((4, 6, 8)) if kind == "even ring" else rng.choice((3, 5, 7))
        n = size + 1
        edges = [(0, 1)] + [(1 + i, 1 + (i + 1) % size) for i in range(size)]
    return n, edges


def lagrangians(n: int, edges: Sequence[tuple[int, int]], rng: random.Random) -> tuple[str, list]:
    """One kind for all layers, a mixture, or growing ones between bounded ones."""
    choice = rng.choice([*BOUNDED, *GROWING, "mixture", "mixture"])
    if choice in BOUNDED:
        return choice, [BOUNDED[choice]] * n
    if choice == "mixture":
        return choice, [rng.choice(list(BOUNDED.values())) for _ in range(n)]
    taken: list[Make] = []
    for i in range(n):
        around = {b if a == i else a for a, b in edges if i in (a, b)}
        alone = i not in around and not any(taken[j] is GROWING[choice] for j in around if j < i)
        grows = i > 0 and alone
        taken.append(GROWING[choice] if grows else rng.choice(list(BOUNDED.values())))
    return choice, taken


class Case:
    """One random memory with its given states."""

    def __init__(self, seed: int, samples: int) -> None:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.graph = rng.choice(GRAPHS)
        n, edges = graph(self.graph, rng)
        self.kind, makes = lagrangians(n, edges, rng)
        self.dtype = rng.choice((torch.float32, torch.float64))
        self.scale = 10 ** rng.uniform(-1, 1)
        widths = [rng.randint(2, 24) for _ in range(n)]
        names = [f"layer{i}" for i in range(n)]
        connections: list[tuple[tuple[str, ...], Synapse]] = []
        for a, b in edges:
            if a == b:
                connections.append(((names[a],), Lateral(widths[a], gain=self.scale)))
            else:
                synapse = Dense(widths[a], widths[b], gain=self.scale)
                connections.append(((names[a], names[b]), synapse))
        for name, width in zip(names[1:], widths[1:], strict=True):
            connections.append(((name,), Bias(width, std=rng.choice((0.01, 1.0)))))
        neurons = {
            name: Neurons(width, make())
            for name, width, make in zip(names, widths, makes, strict=True)
        }
        self.ham = HAM(neurons, connections).to(self.dtype)
        if self.graph in ("odd ring", "lateral"):
            self.splitting = rng.choice(("sweep", None))
        else:
            self.splitting = rng.choice(("even-odd", "even-odd", None))
        if self.graph == "lateral" and self.splitting == "sweep":
            self.splitting = None
        spread = rng.choice((0.3, 1.0, 3.0))
        self.states = {"layer0": spread * torch.randn(samples, widths[0], dtype=self.dtype)}

    def solve(self, **options) -> tuple[DEQ, object]:
        deq = DEQ(self.ham, ("layer0",), self.splitting, on_failure="ignore", **options)
        return deq, deq(self.states)


def saddles(deq: DEQ, states: State, value: State) -> Tensor:
    """Samples at which the energy of the free layers is not convex: ``(batch,)``.

    In g its Hessian is D⁻¹ − S, with D = ∂g/∂x and S = ∂I/∂g: convex where no eigenvalue of the
    symmetric D^½ S D^½ exceeds one.
    """
    model = deq.reduced({name: x.double() for name, x in states.items()})
    x = {name: value[name].detach().double() for name in model.visible}
    if not x:
        return torch.zeros(len(states["layer0"]), dtype=torch.bool)
    form = StateLayout(x)
    flat = form.flatten(x)
    gains = _jacobian(form.rows(model.activations), flat)
    slopes = _jacobian(form.rows(model.fields), form.flatten(model.activations(x)))
    sizes, axes = torch.linalg.eigh((gains + gains.mT).nan_to_num() / 2)
    root = (axes * sizes.clamp_min(0).sqrt()[:, None]) @ axes.mT
    product = root @ (slopes + slopes.mT).nan_to_num() @ root / 2
    return torch.linalg.eigvalsh((product + product.mT) / 2).amax(1) > 1 + 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--first", type=int, default=0, help="seed of the first memory")
    parser.add_argument("--solver", choices=SOLVERS, default="broyden")
    parser.add_argument("--fallback_steps", type=int, default=500)
    parser.add_argument("--verbose", action="store_true", help="name each memory with failures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    by: dict[str, Counter[str]] = {}
    began = time.perf_counter()
    for seed in range(arguments.first, arguments.first + arguments.memories):
        case = Case(seed, arguments.samples)
        solver = SOLVERS[arguments.solver](fallback_steps=arguments.fallback_steps)
        deq, solution = case.solve(solver=solver)
        free = [name for name in case.ham.layers if name != "layer0"]
        sum(solution.value[name].square().mean() for name in free).backward()
        backward = solution.adjoint[0].converged if solution.adjoint else solution.converged
        row = Counter(samples=len(solution.status), lost=int((~solution.converged).sum()))
        row["backward"] = int((solution.converged & ~backward).sum())
        deq.double().requires_grad_(False)
        row["saddles"] = int((solution.converged & saddles(deq, case.states, solution.value)).sum())
        for status in Status:
            row[status.name] += int((solution.status == status).sum())
        counts += row
        for key in (case.kind, case.graph, str(case.dtype), str(case.splitting)):
            by.setdefault(key, Counter()).update(row)
        if arguments.verbose and (row["lost"] or row["backward"]):
            worst = solution.residual[~solution.converged]
            print(
                seed,
                case.graph,
                case.kind,
                case.dtype,
                f"{case.scale:.2f}",
                case.splitting,
                dict(row),
                [f"{r:.1e}" for r in worst[:4].tolist()],
                flush=True,
            )
    print(f"{time.perf_counter() - began:.0f} s")
    print("| | samples | not converged | backward not solved | saddles |")
    print("|---|---|---|---|---|")
    for name, row in (("all", counts), *sorted(by.items())):
        cells = (f"{row['samples']:,}", row["lost"], row["backward"], row["saddles"])
        print("|", name, "|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
