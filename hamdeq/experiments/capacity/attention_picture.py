"""Pictures of how many patterns a memory holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from hamdeq.plots.palette import COLOURS, GREY, MARKERS, shades

__all__ = ["THRESHOLD", "capacity_curves", "measured_capacities"]

THRESHOLD = 0.1
"""The error up to which patterns count as stored."""


def capacity_curves(
    errors: Mapping[int, Mapping[int, float]],
    *,
    threshold: float = THRESHOLD,
    proven: Mapping[int, float | None] | None = None,
    title: str = "",
) -> Figure:
    """Retrieval error against the number of patterns, and the capacity against their size.

    Args:
        errors: of patterns of each size d, the retrieval error for each number N of them.
        threshold: the error up to which N patterns count as stored.
        proven: for each size, how many are proven to be stored, None where nothing is known.
        title: of the picture.

    The capacity is the largest N before the first whose error is above the threshold; sizes whose
    errors all are, or none, have none that is known, and no point on the right.
    """
    figure = Figure(figsize=(9.0, 4.0), dpi=150, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    sizes = sorted(errors)
    capacities = measured_capacities(errors, threshold)
    for i, (d, colour) in enumerate(zip(sizes, shades(len(sizes)), strict=True)):
        counts = sorted(errors[d])
        values = [errors[d][count] for count in counts]
        left.plot(
            counts,
            values,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            color=colour,
            label=f"d = {d}",
        )
    left.axhline(threshold, color=GREY, linestyle="--", linewidth=1)
    left.set_xscale("log", base=2)
    left.set(xlabel="patterns stored, N", ylabel="retrieval error")
    left.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))

    found = np.array(list(capacities)), np.array(list(capacities.values()))
    right.plot(*found, "o", color=COLOURS[0], label=f"largest N with error ≤ {threshold:g}")
    # A single pattern is retrieved whatever d, and says nothing of the growth.
    fitted, capacity = (x[found[1] > 1] for x in found)
    if len(fitted) > 1:
        slope, start = np.polyfit(fitted, np.log2(capacity), 1)
        line = 2 ** (start + slope * fitted)
        right.plot(fitted, line, color=GREY, label=f"doubles every {1 / slope:.1f} dimensions")
    known = [(d, count) for d, count in (proven or {}).items() if count is not None]
    if known:
        right.plot(*zip(*known, strict=True), "s:", color=COLOURS[3], label="proven")
    right.set_yscale("log", base=2)
    right.set(xlabel="dimensions, d", ylabel="capacity")
    right.legend(fontsize="small")
    return figure


def measured_capacities(
    errors: Mapping[int, Mapping[int, float]], threshold: float = THRESHOLD
) -> dict[int, int]:
    """Return for each size the largest number before the first whose error is above the threshold.

    Sizes whose errors all are, or none, are left out.
    """
    capacities = {}
    for d in sorted(errors):
        counts = sorted(errors[d])
        first = next((k for k, n in enumerate(counts) if errors[d][n] > threshold), None)
        if first:
            capacities[d] = counts[first - 1]
    return capacities
