"""Pictures of the capacity of binary memories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["Theory", "binary_capacity"]

# Where a classical network collapses (Amit, Gutfreund & Sompolinsky 1985).
_COLLAPSE = 0.138

Errors = Mapping[tuple[str, int, int], tuple[float, float]]
"""(memory, N, K) -> shares of neurons that want to turn over, and that are wrong after recall."""


class Theory(NamedTuple):
    """What theory says of one interaction vertex.

    Args:
        turning: from a number of patterns to the share of neurons that want to turn over.
        capacity: number of patterns of which one has no error.
    """

    turning: Callable[[float], float]
    capacity: float


def binary_capacity(errors: Errors, theory: Mapping[int, Theory]) -> Figure:
    """Errors against the number of stored patterns: classical networks, xⁿ, and eˣ.

    Args:
        errors: of a memory, "classical", "exp" or an interaction vertex such as "3", with N neurons
            and K patterns, the shares of neurons that want to turn over in a stored pattern, and
            that are wrong after recall.
        theory: for each interaction vertex, drawn as lines.
    """
    figure = Figure(figsize=(13.0, 4.2), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _by_size(left, errors, "classical", lambda size, count: count / size)
    left.axvline(_COLLAPSE, color="0.35", linestyle="--", linewidth=1, label=f"K = {_COLLAPSE} N")
    left.set(xlabel="patterns stored for each neuron, K / N", title="classical, Hebb's rule")

    _by_vertex(middle, errors, theory)
    middle.set_xscale("log")
    middle.set(xlabel="patterns stored, K", title="xⁿ: measured, and in theory (lines)")

    _by_size(right, errors, "exp", lambda size, count: count / 2 ** (size / 2))
    right.axvline(1.0, color="0.35", linestyle="--", linewidth=1, label="K = 2^(N/2)")
    right.set_xscale("log", base=2)
    right.set(xlabel="patterns stored, K / 2^(N/2)", title="eˣ")
    for axes in (left, middle, right):
        axes.set_ylabel("share of neurons" if axes is middle else "wrong after recall")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure


def _by_size(axes: Axes, errors: Errors, memory: str, load: Callable[[int, int], float]) -> None:
    """The share that is wrong after recall, a line for each number of neurons."""
    sizes = sorted({size for name, size, _ in errors if name == memory})
    for size, colour in zip(sizes, _colours(len(sizes)), strict=True):
        counts = sorted(k for name, n, k in errors if (name, n) == (memory, size))
        wrong = [errors[memory, size, count][1] for count in counts]
        loads = [load(size, count) for count in counts]
        axes.plot(loads, wrong, marker=".", color=colour, label=f"N = {size}")


def _by_vertex(axes: Axes, errors: Errors, theory: Mapping[int, Theory]) -> None:
    for (n, line), colour in zip(theory.items(), _colours(len(theory)), strict=True):
        found = sorted((k, both) for (name, _, k), both in errors.items() if name == str(n))
        if not found:
            continue
        counts = [count for count, _ in found]
        fine = np.geomspace(counts[0], counts[-1], 100)
        axes.plot(fine, [line.turning(count) for count in fine], color=colour, linewidth=1)
        turning, wrong = zip(*(both for _, both in found), strict=True)
        axes.plot(counts, turning, ".", color=colour, label=f"n = {n}")
        axes.plot(counts, wrong, "x", color=colour)
        axes.axvline(line.capacity, color=colour, linestyle=":", linewidth=1)
    axes.plot([], [], ".", color="0.35", label="want to turn over")
    axes.plot([], [], "x", color="0.35", label="wrong after recall")
    axes.plot([], [], ":", color="0.35", linewidth=1, label="capacity in theory")
    axes.axhline(0.01, color="0.35", linestyle="--", linewidth=1, label="1 %")
    axes.set_ylim(-0.005, 0.12)


def _colours(count: int) -> np.ndarray:
    return colormaps["viridis"](np.linspace(0.0, 0.8, max(count, 1)))[:count]
