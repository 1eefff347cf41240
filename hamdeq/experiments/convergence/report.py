"""Tables of what was measured."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hamdeq.experiments.convergence.measure import Measurement
from hamdeq.experiments.convergence.published import published

__all__ = ["Row", "csv_of", "table"]


class Row(NamedTuple):
    """What was measured of one memory under one setting.

    Attributes:
        name: of the source of the memory.
        key: the name of this one measurement.
        measured: what was measured.
        about: what else is known: of which run, its seed, when and where.
    """

    name: str
    key: str
    measured: Measurement
    about: dict[str, Any]


# Of each column its heading, the number, and its form. Means and deviations are over runs.
_COLUMNS: dict[str, tuple[Callable[[Measurement], float], str]] = {
    "accuracy, %": (lambda m: 100 * m.accuracy, "{:.2f}"),
    "iterations": (lambda m: m.iterations, "{:.2f}"),
    "evaluations a batch": (lambda m: m.evaluations, "{:.2f}"),
    "multiplications, 10³": (lambda m: m.multiplications / 1e3, "{:.1f}"),
    "ms a batch": (lambda m: m.milliseconds, "{:.1f}"),
    "of the processor": (lambda m: m.cpu_milliseconds, "{:.1f}"),
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
    for row in rows:
        one = row.measured
        sizes = "-".join(map(str, one.sizes))
        groups.setdefault((row.name, sizes, one.splitting, one.solver), []).append(one)
    lines = [heads, ["---"] * len(heads)]
    for group, found in groups.items():
        cells = [*group, str(len(found))]
        for number, form in _COLUMNS.values():
            cells.append(_mean([number(one) for one in found], form))
        cells.append(str(max(one.worst for one in found)))
        cells.append(f"{100 * statistics.mean(one.not_converged for one in found):.2f}")
        if with_published:
            known = published(found[0])
            cells += [known[1], known[0]] if known else ["–", "–"]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean(values: list[float], form: str) -> str:
    text = form.format(statistics.mean(values))
    return f"{text} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else text


def csv_of(rows: Sequence[Row]) -> str:
    """One line for each measurement, with everything but its curves."""
    lines = []
    for row in rows:
        numbers = {k: value for k, value in vars(row.measured).items() if k not in _CURVES}
        numbers["sizes"] = "-".join(map(str, row.measured.sizes))
        lines.append({"configuration": row.name} | row.about | numbers)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


_CURVES = ("energies", "trace")
