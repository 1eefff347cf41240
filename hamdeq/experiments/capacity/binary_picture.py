"""Pictures of the capacity of binary memories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hamdeq.plots.palette import GREY, MARKERS, shades

__all__ = ["binary_capacity"]

# Where a classical network collapses (Amit, Gutfreund & Sompolinsky 1985).
_COLLAPSE = 0.138

Key = tuple[str, int, int]
"""A memory, N neurons, K patterns."""

Errors = Mapping[Key, tuple[float, float]]
"""The shares of neurons that want to turn over at first, and that are wrong after recall."""


def binary_capacity(
    errors: Errors,
    *,
    turning: Callable[[float], float],
    capacity: Callable[[int], float],
    patterns: Callable[[int, int, float], float],
    title: str = "",
) -> Figure:
    """Errors against the number of stored patterns: classical networks, xⁿ, and eˣ.

    Args:
        errors: of a memory, "classical", "exp" or an interaction vertex such as "3", with N neurons
            and K patterns, the shares of neurons that want to turn over in a stored pattern, and
            that are wrong after recall.
        turning: from a load of xⁿ to the first of these shares in theory.
        capacity: from N to the load at which errors begin in theory.
        patterns: from n, N and a load to K; linear in the load.
        title: of the picture.
    """
    figure = Figure(figsize=(10.0, 8.0), dpi=150, layout="constrained")
    figure.suptitle(title)
    (classical, turn), (wrong, exponential) = figure.subplots(2, 2)
    line: dict[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1}
    _by_size(classical, errors, "classical", lambda size, count: count / size)
    classical.axvline(_COLLAPSE, **line, label=f"K = {_COLLAPSE} N")
    classical.set(xlabel="patterns stored for each neuron, K / N", title="classical, Hebb's rule")

    # Of a million loads: so many patterns that rounding does not matter.
    unit = {key: patterns(int(key[0]), key[1], 1e6) / 1e6 for key in errors if key[0].isdigit()}
    for axes, which in ((turn, 0), (wrong, 1)):
        _by_vertex(axes, errors, unit, which)
        axes.set(xlabel="load, K (2n − 3)!! / N^(n − 1)", title="xⁿ")
    if unit:
        loads = np.linspace(0.005, max(key[2] / unit[key] for key in unit), 100)
        turn.plot(loads, [turning(load) for load in loads], color=GREY, label="theory")
        for size in sorted({key[1] for key in unit}):
            wrong.axvline(capacity(size), **line, label=f"capacity of N = {size} in theory")
        wrong.axhline(0.01, color=GREY, linestyle=":", linewidth=1, label="1 %")

    _by_size(exponential, errors, "exp", lambda size, count: count / 2 ** (size / 2))
    exponential.axvline(1.0, **line, label="K = 2^(N/2)")
    exponential.set_xscale("log", base=2)
    exponential.set(xlabel="patterns stored, K / 2^(N/2)", title="eˣ")
    for axes in (classical, turn, wrong, exponential):
        axes.set_ylabel("want to turn over at first" if axes is turn else "wrong after recall")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", loc="upper left")
    return figure


def _by_size(axes: Axes, errors: Errors, memory: str, load: Callable[[int, int], float]) -> None:
    """The share that is wrong after recall, a line for each number of neurons."""
    sizes = sorted({size for name, size, _ in errors if name == memory})
    for size, colour in zip(sizes, shades(len(sizes)), strict=True):
        counts = sorted(k for name, n, k in errors if (name, n) == (memory, size))
        shares = [errors[memory, size, count][1] for count in counts]
        loads = [load(size, count) for count in counts]
        mark = MARKERS[sizes.index(size) % len(MARKERS)]
        axes.plot(loads, shares, marker=mark, markersize=4, color=colour, label=f"N = {size}")


def _by_vertex(axes: Axes, errors: Errors, unit: Mapping[Key, float], which: int) -> None:
    """One of the shares against the load: a colour for each n, a marker for each N."""
    series = sorted({key[:2] for key in unit})
    names = sorted({name for name, _ in series})
    sizes = sorted({size for _, size in series})
    colours = dict(zip(names, shades(len(names)), strict=True))
    for name, size in series:
        keys = sorted(key for key in unit if key[:2] == (name, size))
        axes.plot(
            [key[2] / unit[key] for key in keys],
            [errors[key][which] for key in keys],
            marker=MARKERS[sizes.index(size) % len(MARKERS)],
            markersize=4,
            linestyle="-" if which else "none",
            linewidth=1,
            color=colours[name],
            label=f"n = {name}, N = {size}",
        )
