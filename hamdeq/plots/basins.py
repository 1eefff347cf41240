"""Pictures of basins of attraction in two dimensions."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from hamdeq.implicit import fixed_point
from hamdeq.plots.palette import BLACK, COLOURS, GREY, MARKERS
from hamdeq.plots.panel import panel
from hamdeq.solvers import Picard, Solver
from hamdeq.splitting import Reduced

__all__ = ["basins"]


def basins(
    memory: Reduced,
    *,
    extent: tuple[float, float, float, float] = (-1.5, 1.5, -1.5, 1.5),
    points: int = 100,
    solver: Solver | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """To which equilibrium each state of two neurons settles, and the energy on the way.

    Args:
        memory: an energy of which one layer of two neurons is visible, such as
            ``eliminate(ham, ["memories"])``; of a clamped one, the first sample.
        extent: left, right, lower and upper end of the states.
        points: starts along each axis.
        solver: default plain steps, ``Picard(tol=1e-6, max_steps=1000)``: others may jump from one
            basin to another.
        title: of the picture.
        axes: where to draw, default a new figure.

    A basin has a colour, and its equilibrium a mark and a number, in the order of energy, the
    lowest first; the thin lines are those of equal energy. Starts that do not converge, or beyond
    the seventh equilibrium, are left white. A start lies at a random place of its cell (seed 0),
    so that none is on the border of two basins merely by symmetry.

    Raises:
        ValueError: a memory of other layers, an empty extent, fewer than two points.
    """
    name = _layer_of_two(memory)
    left, right, low, high = extent
    if not (left < right and low < high):
        raise ValueError(f"extent: expected (left, right, lower, upper), got {extent}")
    if points < 2:
        raise ValueError(f"points: expected at least 2, got {points!r}")
    steps = Picard(tol=1e-6, max_steps=1000) if solver is None else solver
    starts = _starts(extent, points, memory)
    memory = memory.select(torch.zeros(points**2, dtype=torch.long, device=starts.device))
    with torch.no_grad():
        found = fixed_point(memory, {name: starts}, solver=steps, on_failure="ignore")
        energy = memory.energy({name: starts}).reshape(points, points).double().cpu().numpy()
        width = max(right - left, high - low)
        centres, which = _equilibria(found.value[name], found.converged, 1e-2 * width)
        some = memory.select(torch.zeros(len(centres), dtype=torch.long, device=starts.device))
        order = some.energy({name: centres}).argsort()[: len(COLOURS)]
    rank = torch.full((len(centres) + 1,), -1)  # the last of them is of those without any
    rank[order.cpu()] = torch.arange(len(order))
    basin = rank[which].reshape(points, points).numpy()

    figure, axes = panel(axes, 5.2, 5.0)
    tints = [_tint(colour) for colour in COLOURS]
    axes.imshow(
        np.ma.masked_less(basin, 0),
        ListedColormap(tints),
        vmin=-0.5,
        vmax=len(tints) - 0.5,
        origin="lower",
        extent=extent,
        interpolation="nearest",
    )
    place = starts.reshape(points, points, 2).double().cpu().numpy()
    lines = {"colors": GREY, "linewidths": 0.5, "alpha": 0.7}
    if np.ptp(energy) > 0:
        axes.contour(place[..., 0], place[..., 1], energy, levels=14, **lines)
    for i, centre in enumerate(centres[order].double().cpu().numpy()):
        look = {"color": COLOURS[i], "markeredgecolor": BLACK, "markersize": 9}
        axes.plot(*centre, MARKERS[i], **look, label=f"{i + 1}: {np.mean(basin == i):.0%}")
        axes.annotate(f"{i + 1}", centre, textcoords="offset points", xytext=(7, 7))
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", title=title)
    axes.set(xlabel=f"{name}: x₁", ylabel=f"{name}: x₂")
    if len(order):
        legend = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": "small"}
        axes.legend(title="equilibrium: share", **legend)
    return figure


def _layer_of_two(memory: Reduced) -> str:
    """The only visible layer."""
    shapes = {name: memory.model.layer(name).shape for name in memory.visible}
    if list(shapes.values()) != [(2,)]:
        raise ValueError(
            f"memory: expected one visible layer of two neurons, got {shapes}; eliminate or clamp "
            "the others"
        )
    return next(iter(shapes))


def _starts(extent: tuple[float, float, float, float], points: int, memory: Reduced) -> Tensor:
    """One in each cell of a grid, row by row: ``(points², 2)``."""
    left, right, low, high = extent
    synapses = (synapse for _, synapse in memory.model.connections)
    some = next((p for each in synapses for p in each.parameters()), torch.zeros(()))
    inside = torch.rand(points, points, 2, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(points), torch.arange(points), indexing="ij")
    unit = (torch.stack([columns, rows], dim=-1) + inside) / points
    corner, size = torch.tensor([left, low]), torch.tensor([right - left, high - low])
    return (corner + size * unit).reshape(-1, 2).to(some)


def _equilibria(x: Tensor, converged: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """The distinct ones among states, and which of them each state is, -1 if it is none."""
    which = torch.full((len(x),), -1)
    centres: list[Tensor] = []
    left = converged.clone()
    while left.any():
        centre = x[left][0]
        same = left & ((x - centre).norm(dim=1) < near)
        which[same.cpu()] = len(centres)
        centres.append(x[same].mean(0))
        left &= ~same
    return torch.stack(centres) if centres else x[:0], which


def _tint(colour: str) -> tuple[float, ...]:
    """A colour on paper: light, so that lines and marks show on it."""
    return tuple(1 - 0.4 * (1 - part) for part in to_rgb(colour))
