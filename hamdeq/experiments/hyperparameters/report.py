"""Reports of all maps: a table, a CSV file of every cell, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hamdeq.experiments.hyperparameters.heat import heat_maps
from hamdeq.experiments.hyperparameters.protocol import LEARNING, random_distance
from hamdeq.experiments.hyperparameters.results import GOOD, MEASURES, Results
from hamdeq.experiments.tables import markdown
from hamdeq.training import files

__all__ = ["draw", "draw_overviews", "table", "write_csv", "write_table"]


def draw(results: Results, folder: Path) -> Path:
    """Draw a map: distance, loss and recall side by side."""
    protocol = results.protocol
    path = folder / f"{protocol.name}.png"
    far = random_distance(protocol.size)
    title = f"{protocol.title}, {_mean(protocol.repeats)}"
    files.save_figure(heat_maps({title: results.picture}, farthest=far, good=GOOD * far), path)
    return path


def draw_overviews(found: Sequence[Results], folder: Path) -> list[Path]:
    """Draw all n side by side, wherever maps differ in n alone."""
    groups: dict[tuple[str, str, int, str, str], list[Results]] = {}
    for each in found:
        p = each.protocol
        key = p.interaction, p.formulation, p.size, p.grid, p.variant
        groups.setdefault(key, []).append(each)
    paths = []
    for (interaction, formulation, size, grid, variant), members in groups.items():
        if len(members) > 1:
            ordered = sorted(members, key=lambda each: each.protocol.n)
            maps = {f"n = {each.protocol.n}": each.picture for each in ordered}
            states, repeats = (
                sorted({getattr(each.protocol, key) for each in members})
                for key in ("states", "repeats")
            )
            title = (
                f"{formulation}, {interaction}, N = {size}, {_listed(states)} states, {grid}, "
                f"{_mean(*repeats)}" + f"\n{variant}" * bool(variant)
            )
            suffix = "-" * bool(variant) + variant.replace(" = ", "").replace(", ", "-")
            path = folder / f"all-{interaction}-{formulation}-N{size}-{grid}{suffix}.png"
            far = random_distance(size)
            files.save_figure(heat_maps(maps, farthest=far, good=GOOD * far, title=title), path)
            paths.append(path)
    return paths


def write_csv(found: Sequence[Results], path: Path) -> None:
    """Write one row for each network of each map."""
    keys = ["interaction", "eps", "formulation", "size", "states", "grid", "n"]
    keys += ["floor", "unit", "decay", "momentum", "exponent", "recall_temperature"]
    heads = [*keys, "rate", "inverse_temperature", "repeat", *MEASURES, "overflow"]
    rows = []
    for each in found:
        p = each.protocol
        start = [getattr(p, key) for key in keys]
        for i, rate in enumerate(p.rates):
            for j, inverse in enumerate(p.inverse_temperatures):
                for k in range(p.repeats):
                    values = [each.measures[name][i, j, k] for name in MEASURES]
                    overflow = int(values[0] != values[0])
                    rows.append([*start, rate, inverse, k, *values, overflow])
    files.write_csv(path, heads, rows)


def table(found: Sequence[Results]) -> str:
    """Return a Markdown table: the best cell of each map, and where the distance is small.

    Small is below a tenth of √(2N), the distance of random states. Silent is the share of memories
    without a gradient in the first epoch, mean over all cells.
    """
    return markdown(_HEADS, _lines(found))


def write_table(found: Sequence[Results], path: Path) -> None:
    """Write the numbers of :func:`table` as CSV, for a page: of the settings those that differ."""
    names = ["formulation", "size", "grid", "interaction", "eps", *LEARNING]
    varying = [name for name in names if len({getattr(r.protocol, name) for r in found}) > 1]
    heads = [_NAMES.get(name, name) for name in varying]
    heads += [
        "n", "best distance", "at 1/T", "recall there", "good cells", "their 1/T", "their rates",
        "silent",
    ]  # fmt: skip
    files.write_csv(path, heads, [_page_row(each, varying) for each in found])


# What settings are called on a page.
_NAMES = {"size": "N", "interaction": "F", "eps": "ε", "exponent": "m", "unit": "step in units of"}


def _page_row(each: Results, varying: Sequence[str]) -> list[str]:
    p, r = each.protocol, each.region()
    settings = [getattr(p, name) for name in varying]
    row = [f"{value:g}" if isinstance(value, float) else str(value) for value in settings]
    if p.interaction != "leaky" and "eps" in varying:
        row[varying.index("eps")] = "–"
    return [
        *row,
        str(p.n),
        f"{r['best']:.3g}",
        _range(r["ties"]),
        f"{100 * r['recalled']:.3g} %",
        f"{r['good']} of {r['cells']}",
        _range(r["inverse_temperatures"]),
        _range(r["rates"]),
        _silent(each),
    ]


def _silent(each: Results) -> str:
    """The share of memories without a gradient in the first epoch, mean over cells."""
    values = each.measures["silent"]
    return "–" if np.isnan(values).all() else f"{np.nanmean(values):.2f}"


_HEADS = [
    "map", "n", "best distance", "at 1/T", "rate", "its loss", "its recall",
    "cells < 0.1 √(2N)", "their 1/T", "their rates", "silent", "overflows", "CPU seconds",
]  # fmt: skip


def _lines(found: Sequence[Results]) -> list[list[str]]:
    lines = []
    for each in found:
        p, r = each.protocol, each.region()
        variant = f", {p.variant}" * bool(p.variant)
        lines.append(
            [
                f"{p.interaction}, {p.formulation}, N = {p.size}, {p.grid}{variant}",
                str(p.n),
                f"{r['best']:.3g}",
                _range(r["ties"]),
                f"{r['best_rate']:g}",
                f"{r['loss']:.3g}",
                f"{r['recalled']:.2f}",
                f"{r['good']} of {r['cells']}",
                _range(r["inverse_temperatures"]),
                _range(r["rates"]),
                _silent(each),
                str(r["overflows"]),
                f"{each.cpu_seconds:.0f}",
            ]
        )
    return lines


def _mean(*repeats: int) -> str:
    """Say over what a cell is averaged."""
    return "one draw" if repeats == (1,) else f"mean of {_listed(repeats)} repeats"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _range(ends: Sequence[float] | None) -> str:
    if ends is None:
        return "–"
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"
