"""Capacity of a modern Hopfield network: ``python -m hamdeq.experiments.capacity``.

N random patterns lie on the unit sphere in d dimensions; some of them are probed from a distance,
with β = sharpness · d. The retrieval error is ‖ξ* − xᵢ‖ of the converged state pattern ξ*. The
number of patterns at which it sets in grows exponentially in d (Ramsauer et al. 2021, theorem 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

from hamdeq.experiments.capacity.attention_picture import capacity_curves
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.nn import functional
from hamdeq.training.files import save_figure, write_csv
from hamdeq.training.progress import Progress

__all__ = ["main", "retrieval_error"]

_PROBES = 64


@torch.no_grad()
def retrieval_error(
    count: int, size: int, *, sharpness: float = 0.25, noise: float = 0.2, seed: int = 0
) -> float:
    """Return the mean distance between patterns and what their probes retrieve.

    Args:
        count: N, patterns stored.
        size: d.
        sharpness: β/d; β is per unit of a similarity, and patterns have norm 1.
        noise: distance of a probe from its pattern.
        seed: of patterns and probes.
    """
    generator = torch.Generator().manual_seed(seed)

    def directions(n: int) -> torch.Tensor:
        return F.normalize(torch.randn(n, size, generator=generator), dim=-1)

    patterns = directions(count)
    probed = patterns[:_PROBES]
    state = probed + noise * directions(len(probed))
    # At the edge of capacity a state pattern may take very long: its last value counts.
    settled = functional.settle(state, patterns, sharpness * size, on_failure="ignore")
    return float((settled.value - probed).norm(dim=-1).mean())


def main(args: Sequence[str] | None = None) -> None:
    """Measure errors over N and d, and write ``errors.csv`` and ``capacity.png``."""
    parser = Parser(
        "capacity",
        "Capacity of a modern Hopfield network: retrieval errors over N patterns in d dimensions.",
    )
    sizes = [8, 16, 24, 32, 40, 48, 56, 64]
    add, count, size = parser.add_argument, checked(int), checked(float, least=0.0)
    add("--sizes", type=count, nargs="+", default=sizes, help="dimensions d")
    add("--largest", type=count, default=18, help="N goes up to this power of 2")
    add("--repeats", type=count, default=3, help="random sets of patterns for each N and d")
    add("--sharpness", type=size, default=0.25, help="inverse temperature β, divided by d")
    add("--noise", type=size, default=0.2, help="distance of a probe from its pattern")
    add("--out", type=Path, default=Path("runs/capacity"), help="folder for the results")
    options = parser.parse_args(args)
    powers, repeats = range(options.largest + 1), range(options.repeats)
    grid = [*product(options.sizes, (2**power for power in powers), repeats)]
    errors: dict[tuple[int, int, int], float] = {}
    with tidy():
        options.out.mkdir(parents=True, exist_ok=True)
        try:
            with Progress(len(grid), description="capacity") as bar:
                for d, count, seed in grid:
                    errors[d, count, seed] = retrieval_error(
                        count, d, sharpness=options.sharpness, noise=options.noise, seed=seed
                    )
                    bar.advance()
        finally:  # What an interrupted call has measured is kept as well.
            rows = [(*key, error) for key, error in errors.items()]
            write_csv(options.out / "errors.csv", ["d", "N", "seed", "error"], rows)
        means = {
            d: {2**p: mean(errors[d, 2**p, seed] for seed in repeats) for p in powers}
            for d in options.sizes
        }
        save_figure(capacity_curves(means), options.out / "capacity.png")
    print(f"{options.out}: errors.csv, capacity.png")
