"""Pictures of how a batch settles."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["residual_histogram"]


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
