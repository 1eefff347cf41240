"""Tables and pictures of measurements, and the figures that the papers have published."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hamdeq.experiments.convergence.measure import Measurement
from hamdeq.experiments.tables import markdown, mean_and_deviation
from hamdeq.plots import energy_descent, residual_histogram
from hamdeq.training.files import is_whole_png, save_figure

__all__ = ["Row", "csv_of", "draw", "model_of", "published", "summarise", "table"]


class Row(NamedTuple):
    """A measurement of one memory under one setting.

    Attributes:
        name: of the source of the memory.
        key: of the measurement.
        measured: the measurement.
        about: of which run it is, its seed, when and where.
    """

    name: str
    key: str
    measured: Measurement
    about: dict[str, Any]


# Heading -> number and format of a column of means and standard deviations over runs.
_COLUMNS: dict[str, tuple[Callable[[Measurement], float], str]] = {
    "accuracy, %": (lambda m: 100 * m.accuracy, "{:.2f}"),
    "iterations": (lambda m: m.iterations, "{:.2f}"),
    "as the papers count": (lambda m: m.paper_iterations, "{:.2f}"),
    "evaluations a batch": (lambda m: m.evaluations, "{:.2f}"),
    "multiplications, 10³": (lambda m: m.multiplications / 1e3, "{:.1f}"),
    "ms a batch": (lambda m: m.milliseconds, "{:.1f}"),
    "of the processor": (lambda m: m.cpu_milliseconds, "{:.1f}"),
}


def table(rows: Sequence[Row], *, with_published: bool = False) -> str:
    """Return :func:`summarise` as a Markdown table."""
    return markdown(*summarise(rows, with_published=with_published))


def summarise(
    rows: Sequence[Row], *, with_published: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return heads and a line for each setting, mean ± standard deviation over its runs.

    Args:
        rows: the measurements.
        with_published: whether published figures stand beside them, where there are some.
    """
    heads = ["configuration", "sizes", "splitting", "solver", "runs", *_COLUMNS]
    heads += ["worst", "not converged, %"]
    heads += ["published: accuracy, %", "iterations as the papers count"] if with_published else []
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for row in rows:
        one = row.measured
        sizes = "-".join(map(str, one.sizes))
        groups.setdefault((row.name, sizes, one.splitting, one.solver), []).append(one)
    lines = []
    for group, found in groups.items():
        cells = [*group, str(len(found))]
        for number, form in _COLUMNS.values():
            cells.append(mean_and_deviation([number(one) for one in found], form))
        cells.append(str(max(one.worst for one in found)))
        cells.append(f"{100 * statistics.mean(one.not_converged for one in found):.2f}")
        if with_published:
            known = published(found[0])
            cells += [known[1], known[0]] if known else ["–", "–"]
        lines.append(cells)
    return heads, lines


def csv_of(rows: Sequence[Row]) -> str:
    """Return one line for each measurement, with everything but its curves."""
    lines = []
    for row in rows:
        numbers = {
            k: value for k, value in vars(row.measured).items() if k not in ("energies", "trace")
        }
        numbers["sizes"] = "-".join(map(str, row.measured.sizes))
        lines.append({"configuration": row.name} | row.about | numbers)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw the energies of each memory, and the residuals of each measurement."""
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


# Iterations and accuracy in percent on MNIST, by model and sizes, ± over five runs where given.
# 784-512-10: Goemaere et al., "Accelerating Hierarchical Associative Memory: A Deep Equilibrium
# Approach" (2023), table 1; the others: their later comparison with continuous Hopfield networks
# and deeper memories.
_SMALL, _WIDE = "784-512-10", "784-1990-10"
_FIVE, _SEVEN = "784-1280-510-200-10", "784-1024-512-256-128-70-10"
_PUBLISHED = {
    ("HAM", _SMALL): ("8.2 ± 0.3", "96.9 ± 0.2"),
    ("HAM-DEQ", _SMALL): ("6.2 ± 0.4", "96.7 ± 0.3"),
    ("HAM-EO", _SMALL): ("5.1 ± 0.3", "97.2 ± 0.1"),
    ("HAM-EO-DEQ", _SMALL): ("4.5 ± 0.3", "96.7 ± 0.3"),
    ("HAM", _WIDE): ("11.9", "97.9"),
    ("HAM-DEQ", _WIDE): ("9.9", "97.9"),
    ("HAM-EO", _WIDE): ("8.0", "97.9"),
    ("HAM-EO-DEQ", _WIDE): ("6.6", "97.9"),
    ("HAM", _FIVE): ("36.0", "97.1"),
    ("HAM-DEQ", _FIVE): ("33.0", "97.1"),
    ("HAM-EO", _FIVE): ("18.3", "97.1"),
    ("HAM-EO-DEQ", _FIVE): ("17.7", "97.1"),
    ("HAM", _SEVEN): ("67.1", "95.6"),
    ("HAM-DEQ", _SEVEN): ("56.0", "95.6"),
    ("HAM-EO", _SEVEN): ("32.2", "95.5"),
    ("HAM-EO-DEQ", _SEVEN): ("31.0", "95.5"),
    ("CHN", _WIDE): ("75.5", "97.9"),
    ("CHN-DEQ", _WIDE): ("20.6", "97.1"),
    ("CHN-EO", _WIDE): ("16.8", "97.1"),
    ("CHN-EO-DEQ", _WIDE): ("16.2", "97.1"),
}


def model_of(measured: Measurement) -> str | None:
    """Return the papers' name of a model, such as ``HAM-EO-DEQ``; None where they have none."""
    name = measured.model
    if measured.splitting == "sweep" or measured.solver not in ("Picard", "Anderson"):
        return None
    if measured.splitting == "even-odd":
        name += "-EO"
    return name + ("-DEQ" if measured.solver == "Anderson" else "")


def published(measured: Measurement) -> tuple[str, str] | None:
    """Return published iterations and accuracy in percent of a model of these sizes and data.

    Other choices of a configuration, such as its activation or where it starts, may differ.
    """
    model = model_of(measured)
    if model is None or measured.data != "MNISTDataModule" or measured.tol != 1e-4:
        return None
    return _PUBLISHED.get((model, "-".join(map(str, measured.sizes))))
