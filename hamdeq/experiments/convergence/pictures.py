"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hamdeq.experiments.convergence.report import Row
from hamdeq.plots import energy_descent, residual_histogram
from hamdeq.training.files import is_whole_png, save_figure

__all__ = ["draw"]


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """How energies fall, for each memory one picture; how residuals do, for each measurement."""
    found = []
    memories: dict[str, dict[str, list[float]]] = {}
    for name, key, one, about in rows:
        sizes = "-".join(map(str, one.sizes))
        curves = memories.setdefault(f"{name}-{sizes}-seed_{about['seed']}", {})
        curves[f"{one.splitting}, {one.solver}"] = one.energies
        path = folder / f"residuals-{key}.png"
        if not is_whole_png(path):
            save_figure(residual_histogram(one.trace, tol=one.tol), path)
        found.append(path)
    for name, curves in memories.items():
        path = folder / f"energy-{name}.png"
        save_figure(energy_descent(curves, lowest=0.0, first=1, step="evaluations"), path)
        found.append(path)
    return found
