"""Pictures of basins of attraction in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from hamdeq._checks import integer, wrong
from hamdeq.elimination.reduced import Reduced
from hamdeq.implicit import fixed_point
from hamdeq.plots.palette import BLACK, COLOURS, GREY, MARKERS, numbers, panel
from hamdeq.solvers import Picard, Solver

__all__ = ["basins"]

_NEAR = 1e-2
"""Up to what share of the width equilibria are the same."""

_PLAIN = Picard(tol=1e-6, max_steps=1000, fallback_steps=0)


def basins(
    memory: Reduced,
    *,
    extent: tuple[float, float, float, float] = (-1.5, 1.5, -1.5, 1.5),
    points: int = 100,
    solver: Solver | None = None,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Draw the equilibrium to which each state of two neurons converges, and the energy.

    Args:
        memory: an energy of which one layer of two neurons is visible, such as
            ``eliminate(ham, ["memories"])``; of a clamped one, the first sample.
        extent: left, right, lower and upper end of the states.
        points: starts along each axis.
        solver: default plain steps, ``Picard(tol=1e-6, max_steps=1000, fallback_steps=0)``: others
            may jump from one basin to another.
        title: of the picture.
        axes: where to draw, default a new figure.

    A basin has a colour, and its equilibrium a mark and a number, in the order of energy, the
    lowest first; black lines are borders of basins, thin ones those of equal energy. Starts
    that do not converge, or do to an equilibrium beyond the seventh, are left white. A start lies
    at a random place near the middle of its cell (seed 0), so that none is on the border of two
    basins merely by symmetry.

    Raises:
        ValueError: a memory of other layers, an empty extent, fewer than two points.
    """
    name = _layer_of_two(memory)
    left, right, low, high = extent
    if not (left < right and low < high):
        raise wrong("extent", "(left, right, lower, upper)", extent)
    points = integer("points", points, least=2)
    steps = _PLAIN if solver is None else solver
    result = _converge(memory, name, _starts(extent, points, memory), steps, _NEAR * (right - left))
    figure, axes = panel(axes, 5.2, 5.0)
    _draw(axes, result, extent)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", title=title)
    axes.set(xlabel=f"{name}: x₁", ylabel=f"{name}: x₂")
    return figure


@dataclass(frozen=True, eq=False)
class _Basins:
    """A grid of starts: their positions, energies, and the equilibria they converge to."""

    starts: np.ndarray  # (points, points, 2)
    energy: np.ndarray  # (points, points)
    basin: np.ndarray  # (points, points), -1 of none
    equilibria: np.ndarray  # (count, 2)


@torch.no_grad()
def _converge(memory: Reduced, name: str, starts: Tensor, solver: Solver, near: float) -> _Basins:
    def energy(x: Tensor) -> Tensor:
        return memory.select(rows.expand(len(x))).energy({name: x})

    rows = torch.zeros(1, dtype=torch.long, device=starts.device)  # all are the first sample
    flat = starts.flatten(0, 1)
    model = memory.select(rows.expand(len(flat)))
    solution = fixed_point(model, {name: flat}, solver=solver, on_failure="ignore")
    equilibria, which = _equilibria(solution.value[name], solution.converged, near)
    order = energy(equilibria).argsort()[: len(COLOURS)]
    rank = torch.full((len(equilibria) + 1,), -1)  # the last of them is of those without any
    rank[order.cpu()] = torch.arange(len(order))
    return _Basins(
        numbers(starts),
        numbers(energy(flat).reshape(starts.shape[:2])),
        rank[which].reshape(starts.shape[:2]).numpy(),
        numbers(equilibria[order]),
    )


def _draw(axes: Axes, result: _Basins, extent: tuple[float, float, float, float]) -> None:
    axes.imshow(
        np.ma.masked_less(result.basin, 0),
        ListedColormap([_tint(colour) for colour in COLOURS]),
        vmin=-0.5,
        vmax=len(COLOURS) - 0.5,
        origin="lower",
        extent=extent,
        interpolation="nearest",
    )
    where = result.starts[..., 0], result.starts[..., 1]
    if np.ptp(result.energy) > 0:
        lines = {"colors": GREY, "linewidths": 0.5, "linestyles": "solid", "alpha": 0.7}
        axes.contour(*where, result.energy, levels=14, **lines)
    for i in np.unique(result.basin) if np.ptp(result.basin) > 0 else ():
        axes.contour(*where, result.basin == i, levels=[0.5], colors=BLACK, linewidths=0.8)
    left, right, low, high = extent
    for i, centre in enumerate(result.equilibria):
        inside = left <= centre[0] <= right and low <= centre[1] <= high
        share = f"{i + 1}: {100 * np.mean(result.basin == i):.0f} %" + ", outside" * (not inside)
        look = {"color": COLOURS[i], "markeredgecolor": BLACK, "markersize": 9}
        axes.plot(*centre, MARKERS[i], **look, label=share)
        if inside:
            axes.annotate(f"{i + 1}", centre, textcoords="offset points", xytext=(7, 7))
    if len(result.equilibria):
        legend = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": "small"}
        axes.legend(title="equilibrium: share", **legend)


def _layer_of_two(memory: Reduced) -> str:
    """The only visible layer."""
    shapes = {name: memory.model.layer(name).shape for name in memory.visible}
    if list(shapes.values()) != [(2,)]:
        remedy = "eliminate or clamp the others"
        raise wrong("memory", "one visible layer of two neurons", shapes, remedy)
    return next(iter(shapes))


def _starts(extent: tuple[float, float, float, float], points: int, memory: Reduced) -> Tensor:
    """One in each cell of a grid: ``(points, points, 2)``, of rows and columns."""
    left, right, low, high = extent
    synapses = (synapse for _, synapse in memory.model.connections)
    like = next((p for each in synapses for p in each.parameters()), torch.zeros(()))
    random = torch.rand(points, points, 2, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(points), torch.arange(points), indexing="ij")
    unit = (torch.stack([columns, rows], dim=-1) + 0.3 + 0.4 * random) / points
    corner, size = torch.tensor([left, low]), torch.tensor([right - left, high - low])
    return (corner + size * unit).to(like)


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
