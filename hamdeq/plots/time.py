"""Pictures of how a memory moves in time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hamdeq.dynamics.trajectory import Trajectory
from hamdeq.plots.palette import COLOURS, DASHES

__all__ = ["trajectory_curves"]


def trajectory_curves(
    path: Trajectory,
    *,
    sample: int = 0,
    layers: Sequence[str] | None = None,
    neurons: int = 7,
    scale: Literal["linear", "log"] = "linear",
    title: str = "",
) -> Figure:
    """Energy along a trajectory, and below it the states of one sample, layer by layer.

    Args:
        path: from :func:`~hamdeq.trajectory`.
        sample: which sample's states to draw; its energy is the thick line among the others'.
        layers: which layers, default all.
        neurons: of each layer, at most how many: those that move most.
        scale: of the axis of time; ``"log"`` for time constants that differ greatly, which leaves
            out a first time of zero.
        title: of the picture.

    Raises:
        ValueError: a sample or a layer that is not there, no neurons, an unknown scale.
    """
    count, batch = path.energy.shape
    names = list(path.states) if layers is None else list(layers)
    unknown = [name for name in names if name not in path.states]
    if unknown or not names:
        raise ValueError(f"layers: expected some of {list(path.states)}, got {layers!r}")
    if not -batch <= sample < batch:
        raise ValueError(f"sample: expected one of {batch} samples, got {sample!r}")
    if neurons < 1:
        raise ValueError(f"neurons: expected at least 1, got {neurons!r}")
    if scale not in ("linear", "log"):
        raise ValueError(f"scale: expected 'linear' or 'log', got {scale!r}")

    times, energy = _numbers(path.times), _numbers(path.energy)
    shown = slice(int(scale == "log" and times[0] <= 0), None)
    figure = Figure(figsize=(7.0, 2.2 * (1 + len(names))), dpi=150, layout="constrained")
    figure.suptitle(title)
    top, *below = figure.subplots(1 + len(names), 1, sharex=True)
    top.plot(times[shown], energy[shown], color="0.7", linewidth=0.8)
    top.plot(times[shown], energy[shown, sample], color=COLOURS[0], linewidth=2.0)
    top.set(ylabel="energy", xscale=scale)
    top.set_title(f"{batch} samples, sample {sample} in colour" if batch > 1 else "1 sample")
    for axes, name in zip(below, names, strict=True):
        x = _numbers(path.states[name])[:, sample].reshape(count, -1)
        most = np.sort(np.argsort(-np.ptp(x, axis=0), kind="stable")[:neurons])
        styles = cycle(zip(COLOURS * len(DASHES), DASHES * len(COLOURS), strict=True))
        for i, (colour, dash) in zip(most, styles, strict=False):
            axes.plot(times[shown], x[shown, i], dash, color=colour, linewidth=1.2)
        of = "" if len(most) == x.shape[1] else f", {len(most)} of {x.shape[1]}"
        axes.set_ylabel(f"{name}: x{of}")
    below[-1].set_xlabel("time, in the unit of τ")
    return figure


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
