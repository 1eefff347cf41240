"""Pictures of what memories cost as they grow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hamdeq._checks import wrong
from hamdeq.plots.palette import COLOURS, MARKERS

__all__ = ["cost_curves", "growth"]

Curves = Mapping[str, Mapping[int, float]]
"""Measurements at each size, by name."""


def growth(curve: Mapping[int, float]) -> float:
    """The power of the size with which a cost grows: the slope of a line in log-log axes.

    Fitted to the sizes in the upper half of their logarithmic range, as small sizes show what a
    call costs whatever its size; NaN of fewer than two.
    """
    return _line(curve)[0]


def _line(curve: Mapping[int, float]) -> tuple[float, float]:
    """Slope, and height at size one, of the line in log-log axes."""
    if len(curve) < 2:
        return math.nan, math.nan
    size, cost = np.log(sorted(curve)), np.log([curve[n] for n in sorted(curve)])
    upper = size >= (size[0] + size[-1]) / 2
    upper[-2:] = True
    slope, start = np.polyfit(size[upper], cost[upper], 1)
    return float(slope), float(start)


def cost_curves(
    times: Mapping[str, Curves], memory: Mapping[str, Curves], *, title: str = ""
) -> Figure:
    """Time and memory against size, in log-log axes, with the power at which each grows.

    Dashed lines are those fitted for :func:`growth`.

    Args:
        times: seconds, for each axis of size, by its label: a column of panels.
        memory: bytes, for the same axes.
        title: of the picture.

    Raises:
        ValueError: other axes of memory than of times, or none.
    """
    if [*times] != [*memory] or not times:
        raise wrong("memory", f"the axes of times, at least one, {[*times]}", [*memory])
    figure = Figure(figsize=(4.5 * len(times), 6.5), dpi=150, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, len(times), sharex="col", sharey="row", squeeze=False)
    for (top, bottom), label in zip(panels.T, times, strict=True):
        _draw(top, {name: _scaled(c, 1e3) for name, c in times[label].items()})
        _draw(bottom, {name: _scaled(c, 2.0**-20) for name, c in memory[label].items()})
        bottom.set_xlabel(label)
    for row in panels:
        low, high = row[0].get_ylim()
        row[0].set_ylim(low, high * (high / low) ** 0.25)  # room for the legends
    panels[0, 0].set_ylabel("processor time, ms")
    panels[1, 0].set_ylabel("memory, MiB")
    return figure


def _scaled(curve: Mapping[int, float], factor: float) -> dict[int, float]:
    return {n: factor * curve[n] for n in sorted(curve)}


def _draw(axes: Axes, curves: Curves) -> None:
    for (name, curve), (colour, marker) in zip(
        curves.items(), zip(COLOURS, MARKERS, strict=True), strict=False
    ):
        slope, start = _line(curve)
        label = name if math.isnan(slope) else f"{name}, power {slope:.2f}"
        sizes = np.array([*curve])
        # Of two curves on top of each other the one below shows around the other's marks.
        axes.plot(sizes, [*curve.values()], marker, color=colour, markersize=7, fillstyle="none")
        axes.plot(sizes, np.exp(start) * sizes**slope, "--", color=colour, linewidth=1)
        axes.plot([], [], f"{marker}--", color=colour, fillstyle="none", linewidth=1, label=label)
    axes.set(xscale="log", yscale="log")
    axes.grid(color="0.9", linewidth=0.8)
    axes.legend(fontsize="small", loc="upper left")
