"""Capacity of a modern Hopfield network: ``python -m hamdeq.experiments.capacity``.

N random patterns lie on the unit sphere in d dimensions; some of them are probed from a distance,
with β = sharpness · d. The retrieval error is ‖ξ* − xᵢ‖ of the converged state pattern ξ*. The
number of patterns at which it sets in grows exponentially in d, far above the number that is proven
to be stored (Ramsauer et al. 2021, theorem 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

from hamdeq._checks import integer, number
from hamdeq.experiments.capacity.attention_picture import (
    THRESHOLD,
    capacity_curves,
    measured_capacities,
)
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.nn import functional
from hamdeq.training.files import save_figure, write_csv
from hamdeq.training.progress import Progress

__all__ = ["growth", "guaranteed_capacity", "main", "retrieval_error"]

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


def growth(size: int, steepness: float, failure: float = 0.001) -> float:
    """Return c of the capacity N ≥ √p c^((d − 1)/4) of patterns on a sphere.

    c = b/W₀(exp(a + ln b)) with a = 2/(d − 1) · (1 + ln(2βK² p (d − 1))), b = 2βK²/5 and the upper
    branch W₀ of the Lambert function.

    Args:
        size: d, at least 2.
        steepness: βK², of patterns with the norm K √(d − 1).
        failure: p, the probability that patterns drawn at random are not stored, in (0, 1].

    Source: Ramsauer et al. (ICLR 2021), theorem 3.
    """
    size = integer("size", size, least=2)
    steepness = number("steepness", steepness, above=0)
    failure = number("failure", failure, above=0, most=1)
    a = 2 / (size - 1) * (1 + math.log(2 * steepness * failure * (size - 1)))
    b = 2 * steepness / 5
    goal = a + math.log(b)
    w = max(goal, math.exp(min(goal, 0.0)))  # W₀ solves w + ln w = goal, an increasing function
    for _ in range(100):
        step = w * (w + math.log(w) - goal) / (w + 1)
        w = max(w - step, w / 2)
        if abs(step) <= 1e-15 * w:
            break
    return b / w


def guaranteed_capacity(size: int, sharpness: float = 0.25, failure: float = 0.001) -> float | None:
    """Return the number of patterns of norm 1 that are proven to be stored, at β = sharpness · d.

    It is √p c^((d − 1)/4), of :func:`growth`; None where the theorem's condition on c, that these
    are at least two patterns, does not hold.

    Args:
        size: d, at least 2.
        sharpness: β/d.
        failure: p, the probability that patterns drawn at random are not stored.
    """
    exponent = (size - 1) / 4
    power = growth(size, sharpness * size / (size - 1), failure) ** exponent
    root = math.sqrt(failure)
    return root * power if power >= 2 / root else None


def main(args: Sequence[str] | None = None) -> None:
    """Measure errors over N and d; write ``errors.csv``, ``capacity.csv`` and ``capacity.png``."""
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
        proven = {d: guaranteed_capacity(d, options.sharpness) for d in options.sizes if d > 1}
        measured = measured_capacities(means)
        rows = [
            (
                d,
                options.sharpness,
                measured.get(d, _beyond(means[d])),
                f"{known:.1f}" if known else "–",
            )
            for d, known in proven.items()
        ]
        write_csv(options.out / "capacity.csv", ["d", "beta / d", "measured", "proven"], rows)
        save_figure(capacity_curves(means, proven=proven), options.out / "capacity.png")
    print(f"{options.out}: errors.csv, capacity.csv, capacity.png")


def _beyond(errors: dict[int, float]) -> str:
    """Return what is known of a capacity outside of the numbers tried."""
    return f"> {max(errors)}" if errors[min(errors)] <= THRESHOLD else f"< {min(errors)}"
