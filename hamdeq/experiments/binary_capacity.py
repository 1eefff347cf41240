"""How many patterns binary memories store: ``python -m hamdeq.experiments.binary_capacity``.

K random patterns of N neurons are stored, and some of them recalled from themselves, one neuron at
a time. Two things are measured: the share of neurons that want to turn over in a stored pattern,
and the share that is wrong where recall has ended.

With n the interaction vertex, a neuron wants to turn with the probability

    P(K) = Q(√(N^(n−1) / ((2n − 3)!! K))),    Q(z) = ½ erfc(z/√2),

and none does, in one of the patterns, up to K ≈ N^(n−1) / (2 (2n − 3)!! ln N) (Krotov & Hopfield
2016, equations 5 and 6). With F = exp it is about 2^(N/2) (Demircigil et al. 2017).
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hamdeq.memories import (
    BinaryMemory,
    DenseAssociativeMemory,
    Exponential,
    HopfieldNetwork,
    Normalised,
    Polynomial,
)
from hamdeq.plots import Theory, binary_capacity

__all__ = ["Load", "Measured", "capacity", "main", "measure", "turning"]

_LOADS = {
    2: [2, 4, 6, 8, 11, 14, 17, 20, 25, 30, 40],
    3: [50, 100, 200, 300, 400, 500, 700, 1000, 1500],
    4: [1000, 2000, 4000, 5500, 7240, 10000, 14000],
}


class Load(NamedTuple):
    """A memory and how much is stored in it."""

    memory: str
    size: int
    count: int

    def build(self) -> BinaryMemory:
        """The memory, empty: "classical", "exp" or the interaction vertex."""
        if self.memory == "classical":
            return HopfieldNetwork(self.size)
        if self.memory == "exp":  # exp of the similarity itself: its 1/(N T) is 1
            scaling = Normalised(1 / self.size)
            return DenseAssociativeMemory(self.size, Exponential(), scaling=scaling)
        return DenseAssociativeMemory(self.size, Polynomial(int(self.memory)))


class Measured(NamedTuple):
    """Shares of neurons, means over probes: that want to turn at first, and wrong in the end."""

    turning: float
    wrong: float


@torch.no_grad()
def measure(load: Load, *, probes: int = 50, seed: int = 0) -> Measured:
    """Store random patterns, and recall some of them from themselves."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (load.count, load.size), generator=generator)
    patterns = 2.0 * bits - 1.0
    memory = load.build()
    memory.store(patterns)
    probed = patterns[:probes]
    # Too many patterns may take long to end anywhere: where recall is by then counts.
    ended = memory.recall(probed, max_steps=50, on_failure="ignore").value
    return Measured(_share(memory.fields(probed) * probed < 0), _share(ended != probed))


def turning(n: int, size: int, count: float) -> float:
    """P(K), the share of neurons that want to turn in a stored pattern, from theory."""
    z = math.sqrt(size ** (n - 1) / (_odd_factorial(2 * n - 3) * count))
    return 0.5 * math.erfc(z / math.sqrt(2))


def capacity(n: int, size: int) -> float:
    """Number of patterns of which one has no error, N^(n−1) / (2 (2n − 3)!! ln N), from theory."""
    return size ** (n - 1) / (2 * _odd_factorial(2 * n - 3) * math.log(size))


def _odd_factorial(k: int) -> int:
    return math.prod(range(k, 0, -2))


def _share(x: Tensor) -> float:
    return float(x.double().mean())


def _loads(sizes: Sequence[int], dense: int, small: Sequence[int]) -> Iterator[Load]:
    for size in sizes:
        for load in (0.05, 0.08, 0.1, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2):
            yield Load("classical", size, max(1, round(load * size)))
    for n, counts in _LOADS.items():
        for count in counts:
            # The list is for N = 100; elsewhere as far from the capacity of that N.
            scaled = round(count * (dense / 100) ** (n - 1))
            yield Load(str(n), dense, max(1, scaled))
    for size in small:
        for power in range(-3, 4):
            yield Load("exp", size, max(1, round(2.0 ** (size / 2 + power))))


def main(args: Sequence[str] | None = None) -> None:
    """Measure errors over loads, and write ``errors.csv`` and ``binary_capacity.png``."""
    parser = argparse.ArgumentParser(
        description="Capacity of binary memories: errors over the number of stored patterns."
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[200, 500, 1000], help="classical N"
    )
    parser.add_argument("--dense-size", type=int, default=100, help="N of n = 2, 3, 4")
    parser.add_argument(
        "--small-sizes", type=int, nargs="+", default=[10, 14, 18, 22], help="of exp"
    )
    parser.add_argument("--probes", type=int, default=20, help="patterns recalled of each draw")
    parser.add_argument("--repeats", type=int, default=3, help="draws of the patterns")
    parser.add_argument("--out", type=Path, default=Path("runs/binary_capacity"), help="folder")
    options = parser.parse_args(args)
    loads = list(_loads(options.sizes, options.dense_size, options.small_sizes))
    options.out.mkdir(parents=True, exist_ok=True)
    means: dict[Load, Measured] = {}
    with (options.out / "errors.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["memory", "N", "K", "seed", "turning", "wrong"])
        with tqdm(total=len(loads) * options.repeats, desc="capacity", unit="draw") as bar:
            for load in loads:
                draws = []
                for seed in range(options.repeats):
                    draws.append(measure(load, probes=options.probes, seed=seed))
                    rows.writerow([*load, seed, *draws[-1]])
                    bar.update()
                means[load] = Measured(*(sum(x) / len(x) for x in zip(*draws, strict=True)))
    size = options.dense_size
    theory = {n: Theory(partial(turning, n, size), capacity(n, size)) for n in _LOADS}
    binary_capacity(means, theory).savefig(options.out / "binary_capacity.png")
    print(f"{options.out}: errors.csv, binary_capacity.png")


if __name__ == "__main__":
    main()
