"""How many patterns a modern Hopfield network stores: ``python -m hamdeq.experiments.capacity``.

N random patterns lie on the unit sphere in d dimensions; some of them are probed from a distance,
with β = sharpness · d. The retrieval error is ‖ξ* − xᵢ‖ once the state pattern has settled. The
number of patterns at which it sets in grows exponentially in d (Ramsauer et al. 2021, theorem 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from hamdeq.experiments.capacity.attention_picture import capacity_curves
from hamdeq.experiments.options import Parser
from hamdeq.nn import functional
from hamdeq.training.files import save_figure, write_csv
from hamdeq.training.progress import Progress

__all__ = ["main", "retrieval_error"]

_PROBES = 64


@torch.no_grad()
def retrieval_error(
    count: int, size: int, *, sharpness: float = 0.25, noise: float = 0.2, seed: int = 0
) -> float:
    """Mean distance between patterns and what their probes retrieve.

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
    # At the edge of capacity a state pattern may take very long: where it is by then counts.
    settled = functional.settle(state, patterns, sharpness * size, on_failure="ignore")
    return float((settled.value - probed).norm(dim=-1).mean())


def main(args: Sequence[str] | None = None) -> None:
    """Measure errors over N and d, and write ``errors.csv`` and ``capacity.png``."""
    parser = Parser(
        "capacity",
        "Capacity of a modern Hopfield network: retrieval errors over N patterns in d dimensions.",
    )
    sizes = [8, 16, 24, 32, 40, 48, 56, 64]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="dimensions d")
    parser.add_argument("--largest", type=int, default=18, help="N goes up to this power of 2")
    parser.add_argument(
        "--repeats", type=int, default=3, help="random sets of patterns for each N and d"
    )
    parser.add_argument(
        "--sharpness", type=float, default=0.25, help="inverse temperature β, divided by d"
    )
    parser.add_argument(
        "--noise", type=float, default=0.2, help="distance of a probe from its pattern"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/capacity"), help="folder for the results"
    )
    options = parser.parse_args(args)

    grid = [
        (d, 2**power, seed)
        for d in options.sizes
        for power in range(options.largest + 1)
        for seed in range(options.repeats)
    ]
    rows: list[tuple[int, int, int, float]] = []
    errors: dict[int, dict[int, list[float]]] = {d: {} for d in options.sizes}
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with Progress(len(grid), description="capacity") as bar:
            for d, count, seed in grid:
                error = retrieval_error(
                    count, d, sharpness=options.sharpness, noise=options.noise, seed=seed
                )
                rows.append((d, count, seed, error))
                errors[d].setdefault(count, []).append(error)
                bar.advance()
    finally:  # What an interrupted call has measured is kept as well.
        write_csv(options.out / "errors.csv", ["d", "N", "seed", "error"], rows)
    means = {
        d: {count: sum(draws) / len(draws) for count, draws in by_count.items()}
        for d, by_count in errors.items()
    }
    save_figure(capacity_curves(means), options.out / "capacity.png")
    print(f"{options.out}: errors.csv, capacity.png")
