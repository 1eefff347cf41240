"""Tables of what was measured."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hamdeq.experiments.convergence.measure import Measurement
from hamdeq.experiments.convergence.published import published

__all__ = ["Row", "table", "write_csv"]

Row = tuple[str, Measurement, dict[str, Any]]
"""The name of a source, what was measured, and what else is known of it."""

# Of each column its heading, the number, and its form. Means and deviations are over runs.
_COLUMNS: dict[str, tuple[Callable[[Measurement], float], str]] = {
    "accuracy, %": (lambda m: 100 * m.accuracy, "{:.2f}"),
    "iterations": (lambda m: m.iterations, "{:.2f}"),
    "evaluations a batch": (lambda m: m.evaluations, "{:.2f}"),
    "multiplications, 10³": (lambda m: m.multiplications / 1e3, "{:.0f}"),
    "ms a batch": (lambda m: m.milliseconds, "{:.1f}"),
}


def table(rows: Sequence[Row], *, with_published: bool = False) -> str:
    """A Markdown table: a line for each way to settle, mean ± standard deviation over its runs.

    Args:
        rows: the measurements.
        with_published: whether published figures stand beside them, where there are some.
    """
    heads = ["configuration", "sizes", "splitting", "solver", "runs", *_COLUMNS]
    heads += ["worst", "not converged, %"]
    heads += ["published: accuracy, %", "iterations"] if with_published else []
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for name, one, _ in rows:
        sizes = "-".join(map(str, one.sizes))
        groups.setdefault((name, sizes, one.splitting, one.solver), []).append(one)
    lines = [heads, ["---"] * len(heads)]
    for group, found in groups.items():
        cells = [*group, str(len(found))]
        for number, form in _COLUMNS.values():
            cells.append(_mean([number(one) for one in found], form))
        cells.append(str(max(one.worst for one in found)))
        cells.append(f"{100 * statistics.mean(one.not_converged for one in found):.2f}")
        if with_published:
            known = published(found[0])
            cells += [str(known[1]), str(known[0])] if known else ["–", "–"]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean(values: list[float], form: str) -> str:
    text = form.format(statistics.mean(values))
    return f"{text} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else text


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line for each measurement, with everything but its curves."""
    lines = []
    for name, one, about in rows:
        numbers = {key: value for key, value in vars(one).items() if key not in _CURVES}
        numbers["sizes"] = "-".join(map(str, one.sizes))
        lines.append({"configuration": name} | about | numbers)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)


_CURVES = ("energies", "trace")
