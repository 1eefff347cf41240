"""Capacity of binary memories: ``python -m hamdeq.experiments.capacity.binary``.

K random patterns of N neurons are stored, and some of them recalled from themselves, one neuron at
a time. Measured are the share of unstable neurons of a stored pattern, which would flip, and the
share of wrong neurons after recall.

With n the interaction vertex and the load α = K (2n − 3)!! / N^(n−1), a neuron is unstable with
the probability

    P = Q(1/√α),    Q(z) = ½ erfc(z/√2),

and most patterns have none up to α = 1/(2 ln N) (Krotov & Hopfield 2016, equations 5 and 6).
With F = exp about 2^(N/2) patterns are stored (Demircigil et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamdeq.experiments.capacity.binary_picture import binary_capacity
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.memories import (
    BinaryMemory,
    DenseAssociativeMemory,
    Exponential,
    HopfieldNetwork,
    Normalised,
    Polynomial,
)
from hamdeq.training.files import save_figure, write_csv
from hamdeq.training.progress import Progress

__all__ = ["Load", "Measured", "capacity", "main", "measure", "stored", "turning"]

# Loads α of the interaction vertices.
_LOADS = (0.02, 0.05, 0.09, 0.11, 0.15, 0.2, 0.3, 0.4)
_VERTICES = (2, 3, 4)


class Load(NamedTuple):
    """A memory, its neurons, and the number of stored patterns."""

    memory: str
    size: int
    patterns: int

    def build(self) -> BinaryMemory:
        """Return the empty memory: of "classical", "exp" or the interaction vertex."""
        if self.memory == "classical":
            return HopfieldNetwork(self.size)
        if self.memory == "exp":  # exp of the similarity itself: its 1/(N T) is 1
            scaling = Normalised(1 / self.size)
            return DenseAssociativeMemory(self.size, Exponential(), scaling=scaling)
        return DenseAssociativeMemory(self.size, Polynomial(int(self.memory)))


class Measured(NamedTuple):
    """Shares of neurons, means over probes: unstable in the pattern, and wrong after recall."""

    turning: float
    wrong: float


@torch.no_grad()
def measure(load: Load, *, probes: int = 50, seed: int = 0) -> Measured:
    """Store random patterns, and recall some of them from themselves."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (load.patterns, load.size), generator=generator)
    patterns = 2.0 * bits - 1.0
    memory = load.build()
    memory.store(patterns)
    probed = patterns[:probes]
    # With too many patterns recall may take very long: its last state counts.
    ended = memory.recall(probed, max_steps=50, on_failure="ignore").value
    return Measured(_share(memory.fields(probed) * probed < 0), _share(ended != probed))


def turning(load: float) -> float:
    """Return P, the share of unstable neurons of a stored pattern in theory."""
    return 0.5 * math.erfc(1 / math.sqrt(2 * load))


def stored(n: int, size: int, load: float) -> int:
    """Return K = α N^(n−1) / (2n − 3)!!, the number of patterns of a load, at least 1."""
    return max(1, round(load * size ** (n - 1) / math.prod(range(2 * n - 3, 0, -2))))


def capacity(size: int) -> float:
    """Return the load 1/(2 ln N) up to which most patterns have no error in theory."""
    return 1 / (2 * math.log(size))


def _share(x: Tensor) -> float:
    return float(x.double().mean())


def _loads(
    sizes: Sequence[int], dense: Sequence[int], small: Sequence[int], most: int
) -> Iterator[Load]:
    for size in sizes:
        for load in (0.05, 0.08, 0.1, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2):
            yield Load("classical", size, max(1, round(load * size)))
    for n in _VERTICES:
        for size in dense:
            counts = [stored(n, size, load) for load in _LOADS]
            yield from (Load(str(n), size, k) for k in dict.fromkeys(counts) if k <= most)
    for size in small:
        for power in range(-3, 4):
            yield Load("exp", size, max(1, round(2.0 ** (size / 2 + power))))


def main(args: Sequence[str] | None = None) -> None:
    """Measure errors over loads, and write ``errors.csv`` and ``binary_capacity.png``."""
    parser = Parser(
        "capacity.binary",
        "Capacity of binary memories: errors over the number of stored patterns.",
    )
    add = parser.add_argument
    count = checked(int)
    counts: dict[str, Any] = {"type": count, "nargs": "+"}
    add("--sizes", **counts, default=[200, 500, 1000], help="neurons N of classical networks")
    add(
        "--dense-sizes", **counts, default=[50, 100], help="neurons N of dense memories, n = 2 to 4"
    )
    small = [10, 14, 18, 22]
    add("--small-sizes", **counts, default=small, help="neurons N of exponential memories")
    add("--most", type=count, default=14000, help="most patterns that dense memories store")
    add("--probes", type=count, default=20, help="patterns to recall from each random set")
    add("--repeats", type=count, default=3, help="random sets of patterns for each load")
    add("--out", type=Path, default=Path("runs/binary_capacity"), help="folder for the results")
    options = parser.parse_args(args)
    loads = [*_loads(options.sizes, options.dense_sizes, options.small_sizes, options.most)]
    errors: dict[tuple[Load, int], Measured] = {}
    heads = ["memory", "N", "K", "seed", "turning", "wrong"]
    with tidy():
        options.out.mkdir(parents=True, exist_ok=True)
        try:
            with Progress(len(loads) * options.repeats, description="capacity") as bar:
                for load, seed in product(loads, range(options.repeats)):
                    errors[load, seed] = measure(load, probes=options.probes, seed=seed)
                    bar.advance()
        finally:  # What an interrupted call has measured is kept as well.
            rows = [(*load, seed, *measured) for (load, seed), measured in errors.items()]
            write_csv(options.out / "errors.csv", heads, rows)
        means = {}
        for load in loads:
            draws = (errors[load, seed] for seed in range(options.repeats))
            means[load] = Measured(*map(mean, zip(*draws, strict=True)))
        figure = binary_capacity(means, turning=turning, capacity=capacity, patterns=stored)
        save_figure(figure, options.out / "binary_capacity.png")
    print(f"{options.out}: errors.csv, binary_capacity.png")


if __name__ == "__main__":
    main()
