"""Pictures of how memories settle (extra ``train``: matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["capacity_curves", "residual_histogram"]


def residual_histogram(trace: Tensor, *, tol: float = 1e-4) -> Figure:
    """2-D histogram of log₁₀ relative residual against iteration, over samples.

    Args:
        trace: relative residuals ``(iterations, samples)``, such as ``Solution.trace``.
        tol: the residual at which a sample counts as converged.

    The line is the mean of log₁₀ residual; the dashed lines mark tol and the mean over samples of
    the first iteration below it. Samples that never come below tol are left out of that mean and
    counted in the title.
    """
    residuals = trace.detach().double().cpu().numpy()
    if residuals.ndim != 2 or residuals.size == 0:
        raise ValueError(
            f"trace: expected a non-empty (iterations, samples) tensor, got {tuple(trace.shape)}"
        )
    # Below rounding residuals mean nothing, and zero has no logarithm: both are drawn at the edge.
    lowest = torch.finfo(trace.dtype).eps / 100
    logs = np.log10(np.clip(np.nan_to_num(residuals, nan=np.inf), lowest, 1e3))
    count, samples = residuals.shape
    iterations = np.arange(1, count + 1)

    figure = Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    *_, image = axes.hist2d(
        np.repeat(iterations, samples),
        logs.ravel(),
        bins=(np.arange(0.5, count + 1), np.linspace(logs.min() - 0.1, max(logs.max(), 0), 80)),
        norm=LogNorm(),
        cmap="viridis",
    )
    figure.colorbar(image, ax=axes, label="samples")
    axes.plot(iterations, logs.mean(axis=1), color="tab:red", label="mean")
    axes.axhline(np.log10(tol), color="0.35", linestyle="--", linewidth=1)

    below = residuals < tol
    settled = below.any(axis=0)
    title = f"{samples} samples"
    if settled.any():
        mean = (below.argmax(axis=0) + 1)[settled].mean()
        axes.axvline(
            mean,
            color="tab:orange",
            linestyle="--",
            label=f"mean iterations to {tol:g}: {mean:.1f}",
        )
    if not settled.all():
        title += f", {int((~settled).sum())} never below {tol:g}"
    axes.set(xlabel="iteration", ylabel="log₁₀ relative residual", title=title)
    axes.legend(loc="upper right", framealpha=0.9)
    return figure


def capacity_curves(errors: Mapping[int, Mapping[int, float]], *, threshold: float = 0.1) -> Figure:
    """Retrieval error against the number of patterns, and the capacity against their size.

    Args:
        errors: of patterns of each size d, the retrieval error for each number N of them.
        threshold: the error up to which N patterns count as stored.

    The capacity is the largest N before the first whose error is above the threshold; sizes whose
    errors all are, or none, have none that is known, and no point on the right.
    """
    figure = Figure(figsize=(9.0, 4.0), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted(errors)
    colors = colormaps["viridis"](np.linspace(0.0, 0.9, len(sizes)))
    capacities: dict[int, int] = {}
    for d, color in zip(sizes, colors, strict=True):
        counts = sorted(errors[d])
        values = [errors[d][count] for count in counts]
        left.plot(counts, values, marker=".", color=color, label=f"d = {d}")
        first = next((i for i, error in enumerate(values) if error > threshold), None)
        if first:
            capacities[d] = counts[first - 1]
    left.axhline(threshold, color="0.35", linestyle="--", linewidth=1)
    left.set_xscale("log", base=2)
    left.set(xlabel="patterns stored, N", ylabel="retrieval error")
    left.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))

    found = np.array(list(capacities)), np.array(list(capacities.values()))
    right.plot(*found, "o", color="tab:blue", label=f"largest N with error ≤ {threshold:g}")
    if len(capacities) > 1:
        slope, start = np.polyfit(found[0], np.log2(found[1]), 1)
        line = 2 ** (start + slope * found[0])
        right.plot(found[0], line, color="0.35", label=f"doubles every {1 / slope:.1f} dimensions")
    right.set_yscale("log", base=2)
    right.set(xlabel="dimensions, d", ylabel="capacity")
    right.legend(fontsize="small")
    return figure
