"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hamdeq.experiments.convergence.report import Row
from hamdeq.plots import energy_descent, residual_histogram

__all__ = ["draw"]


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """How energies fall, for each network one picture; how residuals do, for each measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    networks: dict[tuple[str, int], dict[str, list[float]]] = {}
    for name, one, about in rows:
        way = f"{one.splitting}, {one.solver}"
        networks.setdefault((name, about["seed"]), {})[way] = one.energies
        path = folder / f"residuals-{name}-{one.splitting}-{one.solver}-{about['seed']}.png"
        if not path.exists():
            residual_histogram(one.trace, tol=one.tol).savefig(path)
        found.append(path)
    for (name, seed), curves in networks.items():
        path = folder / f"energy-{name}-{seed}.png"
        energy_descent(curves, lowest=0.0, first=1, step="evaluations").savefig(path)
        found.append(path)
    return found
