"""Pictures of how a batch settles."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from hamdeq.plots.palette import BLACK, COLOURS
from hamdeq.plots.panel import panel
from hamdeq.solvers import Solution

__all__ = ["residual_histogram"]


def residual_histogram(
    solution: Solution | Tensor, *, tol: float = 1e-4, title: str = "", axes: Axes | None = None
) -> Figure:
    """2-D histogram of log₁₀ relative residual against iteration, over samples.

    Args:
        solution: how the samples settled; or relative residuals ``(iterations, samples)``, such as
            ``Solution.trace``.
        tol: the residual at which a sample counts as converged.
        title: of the picture, before the number of samples.
        axes: where to draw, default a new figure.

    The line is the mean of log₁₀ residual; the dashed lines mark tol and the mean over samples of
    the first iteration below it. Samples that never come below tol are left out of that mean and
    counted in the title.

    Raises:
        ValueError: no residuals, as of a solver with ``trace=False``.
    """
    trace = solution.trace if isinstance(solution, Solution) else solution
    residuals = trace.detach().double().cpu().numpy()
    if residuals.ndim != 2 or residuals.size == 0:
        raise ValueError(
            "solution: expected residuals (iterations, samples), at least one, got "
            f"{tuple(trace.shape)}; a solver with trace=False keeps none"
        )
    # Below rounding residuals mean nothing, and zero has no logarithm: both are drawn at the edge.
    lowest = torch.finfo(trace.dtype).eps / 100
    logs = np.log10(np.clip(np.nan_to_num(residuals, nan=np.inf), lowest, 1e3))
    count, samples = residuals.shape
    iterations = np.arange(1, count + 1)

    figure, axes = panel(axes, 7.0, 4.2)
    *_, image = axes.hist2d(
        np.repeat(iterations, samples),
        logs.ravel(),
        bins=(np.arange(0.5, count + 1), np.linspace(logs.min() - 0.1, max(logs.max(), 0), 80)),
        norm=LogNorm(),
        cmap="viridis",
    )
    axes.figure.colorbar(image, ax=axes, label="samples")
    # Vermillion differs from all of viridis in hue, and is marked besides.
    mean = {"color": COLOURS[3], "marker": ".", "linewidth": 1.5}
    axes.plot(iterations, logs.mean(axis=1), **mean, label="mean of log₁₀")
    axes.axhline(np.log10(tol), color=BLACK, linestyle=":", linewidth=1.2, label=f"tol = {tol:g}")

    below = residuals < tol
    settled = below.any(axis=0)
    text = f"{samples} samples"
    if settled.any():
        first = (below.argmax(axis=0) + 1)[settled].mean()
        label = f"mean iterations to {tol:g}: {first:.1f}"
        axes.axvline(first, color=BLACK, linestyle="--", linewidth=1.2, label=label)
    if not settled.all():
        text += f", {int((~settled).sum())} never below {tol:g}"
    axes.set_title(f"{title}: {text}" if title else text)
    axes.set(xlabel="iteration", ylabel="log₁₀ relative residual")
    axes.legend(loc="upper right", framealpha=0.9)
    return figure
