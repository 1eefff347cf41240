"""Curves: the energy along the way, states in time, residuals against iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hamdeq._checks import instance, integer, number, one_of, wrong
from hamdeq.dynamics.trajectory import Trajectory
from hamdeq.lagrangians import Lagrangian
from hamdeq.plots.palette import BLACK, COLOURS, DASHES, numbers, panel, style
from hamdeq.solvers import Solution

__all__ = ["energy_descent", "legendre_curves", "residual_histogram", "trajectory_curves"]

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
    """Draw the energy above its minimum, in logarithms, along the way of each sample.

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
        raise wrong("ways", "energies or trajectories, at least one", list(ways.values()))
    curves = _energies(ways)
    least = np.min([curve.min(0) for curve in curves.values()], axis=0)
    zero = least if lowest is None else np.asarray(_array(lowest))
    if floor is None:
        floor = 1e-15 * max(float(np.abs(curve).max()) for curve in curves.values())

    figure, axes = panel(axes, 6.4, 4.2)
    for i, (label, way) in enumerate(ways.items()):
        fall = curves[label] - zero
        at = _array(way.times) if isinstance(way, Trajectory) else first + np.arange(len(fall))
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


def trajectory_curves(
    path: Trajectory,
    *,
    sample: int = 0,
    layers: Sequence[str] | None = None,
    neurons: int = 7,
    scale: Literal["linear", "log"] = "linear",
    title: str = "",
) -> Figure:
    """Draw the energy along a trajectory, and below it the states of one sample, layer by layer.

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
        raise wrong("layers", f"some of {list(path.states)}", repr(layers))
    if not -batch <= sample < batch:
        raise wrong("sample", f"one of {batch} samples", repr(sample))
    neurons = integer("neurons", neurons)
    one_of("scale", scale, ("linear", "log"))

    times, energy = numbers(path.times), numbers(path.energy)
    shown = slice(int(scale == "log" and times[0] <= 0), None)
    figure = Figure(figsize=(7.0, 2.2 * (1 + len(names))), dpi=150, layout="constrained")
    figure.suptitle(title)
    top, *below = figure.subplots(1 + len(names), 1, sharex=True)
    top.plot(times[shown], energy[shown], color="0.7", linewidth=0.8)
    top.plot(times[shown], energy[shown, sample], color=COLOURS[0], linewidth=2.0)
    top.set(ylabel="energy", xscale=scale)
    top.set_title(f"{batch} samples, sample {sample} in colour" if batch > 1 else "1 sample")
    for axes, name in zip(below, names, strict=True):
        x = numbers(path.states[name])[:, sample].reshape(count, -1)
        most = np.sort(np.argsort(-np.ptp(x, axis=0), kind="stable")[:neurons])
        styles = cycle(zip(COLOURS * len(DASHES), DASHES * len(COLOURS), strict=True))
        for i, (colour, dash) in zip(most, styles, strict=False):
            axes.plot(times[shown], x[shown, i], dash, color=colour, linewidth=1.2)
        of = "" if len(most) == x.shape[1] else f", {len(most)} of {x.shape[1]}"
        axes.set_ylabel(f"{name}: x{of}")
    below[-1].set_xlabel("time, in the unit of τ")
    return figure


def residual_histogram(
    solution: Solution | Tensor, *, tol: float = 1e-4, title: str = "", axes: Axes | None = None
) -> Figure:
    """Draw a 2-D histogram of log₁₀ relative residual against iteration, over samples.

    Args:
        solution: of a batch; or relative residuals ``(iterations, samples)``, such as
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
    residuals = numbers(trace)
    if residuals.ndim != 2 or residuals.size == 0:
        expected, got = "residuals (iterations, samples), at least one", tuple(trace.shape)
        raise wrong("solution", expected, got, "a solver with trace=False keeps none")
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


@torch.no_grad()
def legendre_curves(
    lagrangians: Mapping[str, Lagrangian],
    *,
    reach: float = 3.0,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Draw what a neuron's activation costs: the Legendre transform L*(g) against g.

    With g(x) the activation of a single neuron, L* is the integral of its inverse,
    L*(g) = L*(g₀) + ∫ g⁻¹(V) dV from g₀ to g, which is its term in the energy of Hopfield (1984).
    Its slope at g is the state x that has this activation, and where g saturates it rises steeply.

    Args:
        lagrangians: additive ones, by their labels, with one number for each parameter.
        reach: states from −reach to reach are drawn.
        title: of the picture.
        axes: where to draw, default a new figure.

    Raises:
        ValueError: no Lagrangian, or one whose neurons are coupled.

    Example:
        >>> figure = legendre_curves({"tanh": Tanh(), "sigmoid": Sigmoid(4.0, 0.5)})
    """
    instance("lagrangians", lagrangians, Mapping, "a dict {label: Lagrangian}")
    if not lagrangians:
        raise wrong("lagrangians", "at least one", "none")
    reach = number("reach", reach, above=0)
    x = torch.linspace(-reach, reach, 401, dtype=torch.float64)[:, None]
    figure, axes = panel(axes, 6.4, 4.2)
    for i, (label, given) in enumerate(lagrangians.items()):
        if not instance("lagrangians", given, Lagrangian).additive:
            got = f"{type(given).__name__}, whose neurons are coupled"
            raise wrong("lagrangians", "additive ones, with a curve for each neuron", got)
        g, dual = given.activation(x)[:, 0], given.energy(x)
        axes.plot(numbers(g), numbers(dual), **style(i), markevery=50, label=label)
    axes.set(xlabel="activation g", ylabel="Legendre transform L*(g)", title=title)
    axes.legend()
    return figure


def _energies(ways: Mapping[str, Way]) -> dict[str, np.ndarray]:
    """By label: ``(steps + 1, batch)``, of one batch."""
    curves = {}
    for label, way in ways.items():
        curve = _array(way.energy if isinstance(way, Trajectory) else way)
        curves[label] = curve = curve[:, None] if curve.ndim == 1 else curve
        batch = next(iter(curves.values())).shape[1:]
        if curve.ndim != 2 or curve.shape[1:] != batch or curve.size == 0:
            expected = "energies (steps + 1, batch), of the samples of the first way"
            raise wrong("ways", expected, f"{curve.shape} for {label!r}")
    return curves


def _above(fall: np.ndarray, floor: float) -> np.ndarray:
    """Values with gaps where a logarithm means nothing."""
    return np.where(fall > floor, fall, np.nan)


def _array(x: Tensor | Sequence[float] | float) -> np.ndarray:
    return numbers(x) if isinstance(x, Tensor) else np.asarray(x, dtype=float)
