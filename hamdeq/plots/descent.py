"""Pictures of an energy that falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hamdeq.dynamics.trajectory import Trajectory
from hamdeq.plots.palette import style
from hamdeq.plots.panel import panel

__all__ = ["energy_descent"]

Way = Tensor | Trajectory | Sequence[float]
"""Energies ``(steps + 1, batch)``, or of one sample ``(steps + 1,)``; or what has them."""


def energy_descent(
    ways: Way | Mapping[str, Way],
    *,
    lowest: float | Tensor | None = None,
    floor: float | None = None,
    first: int = 0,
    step: str = "step",
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Energy above its minimum, in logarithms, along the way of each sample.

    Args:
        ways: energies before the first step, and after each: ``(steps + 1, batch)``, or
            ``(steps + 1,)`` of one sample; or a trajectory, drawn against its time. Several ways of
            the same samples, such as solvers or updates, by their labels.
        lowest: the energy at the minimum, one or ``(batch,)``; default the lowest that a sample has
            on any of the ways, towards which the last steps seem to fall faster.
        floor: what is not above it is rounding, and is not drawn; in the energy's units, default
            1e-15 of the largest.
        first: the number of the first step.
        step: what a step is: the label of that axis, where there are no times.
        title: of the picture.
        axes: where to draw, default a new figure.

    The thin lines are the samples, the thick ones with marks their mean.

    Raises:
        ValueError: no way, other samples than in the first one, or none; trajectories
            among energies that have no times.

    Example:
        >>> figure = energy_descent({"plain": [1.0, 0.1, 0.01], "Anderson": [1.0, 0.02, 0.0]})
    """
    ways = ways if isinstance(ways, Mapping) else {"mean": ways}
    timed = {isinstance(way, Trajectory) for way in ways.values()}
    if len(timed) != 1:
        raise ValueError(
            f"ways: expected energies or trajectories, at least one, got {list(ways.values())}"
        )
    curves = _energies(ways)
    least = np.min([curve.min(0) for curve in curves.values()], axis=0)
    zero = least if lowest is None else np.asarray(_numbers(lowest))
    if floor is None:
        floor = 1e-15 * max(float(np.abs(curve).max()) for curve in curves.values())

    figure, axes = panel(axes, 6.4, 4.2)
    for i, (label, way) in enumerate(ways.items()):
        fall = curves[label] - zero
        at = _numbers(way.times) if isinstance(way, Trajectory) else first + np.arange(len(fall))
        look = style(i)
        if fall.shape[1] > 1:
            axes.plot(at, _above(fall, floor), color=look["color"], linewidth=0.7, alpha=0.35)
        mean = _above(fall.mean(1), floor)
        axes.plot(at, mean, **look, linewidth=1.8, markevery=-(-len(fall) // 12), label=label)
    axes.set(ylabel="energy above its minimum", yscale="log", title=title)
    if timed == {True}:
        axes.set_xlabel("time, in the unit of τ")
    else:
        axes.set_xlabel(step)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.8)
    axes.legend(fontsize="small")
    return figure


def _energies(ways: Mapping[str, Way]) -> dict[str, np.ndarray]:
    """By label: ``(steps + 1, batch)``, of one batch."""
    curves = {}
    for label, way in ways.items():
        curve = _numbers(way.energy if isinstance(way, Trajectory) else way)
        curves[label] = curve = curve[:, None] if curve.ndim == 1 else curve
        batch = next(iter(curves.values())).shape[1:]
        if curve.ndim != 2 or curve.shape[1:] != batch or curve.size == 0:
            raise ValueError(
                "ways: expected energies (steps + 1, batch), of the samples "
                f"of the first way, got {curve.shape} for {label!r}"
            )
    return curves


def _above(fall: np.ndarray, floor: float) -> np.ndarray:
    """With gaps where a logarithm means nothing."""
    return np.where(fall > floor, fall, np.nan)


def _numbers(x: Tensor | Sequence[float] | float) -> np.ndarray:
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=float)
