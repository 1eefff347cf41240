"""Where a picture of one panel is drawn."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

__all__ = ["panel"]


def panel(axes: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """The axes given, with their figure; or those of a new figure, of a size in inches."""
    if axes is None:
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        return figure, figure.add_subplot()
    around = axes.figure
    while isinstance(around, SubFigure):
        around = around.figure
    return around, axes
