"""Style of all pictures: colours, dashes and marks for any kind of colour vision; panels."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

__all__ = [
    "BLACK",
    "COLOURS",
    "DASHES",
    "GREY",
    "MARKERS",
    "MISSING",
    "numbers",
    "panel",
    "shades",
    "style",
]

# Okabe & Ito, "Color Universal Design" (2008): told apart with any kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
BLACK, GREY, MISSING = "#000000", "0.35", "#E69F00"


def style(i: int) -> dict[str, Any]:
    """Style of the i-th of several curves; colour, mark and dash differ from its neighbours'."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def shades(count: int) -> np.ndarray:
    """Colours of an ordered series, such as sizes, from dark to light: ``(count, 4)``."""
    return colormaps["viridis"](np.linspace(0.0, 0.85, max(count, 1)))[:count]


def panel(axes: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the axes given, with their figure; or those of a new figure, of a size in inches."""
    if axes is None:
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        return figure, figure.add_subplot()
    around = axes.figure
    while isinstance(around, SubFigure):
        around = around.figure
    return around, axes


def numbers(x: Tensor) -> np.ndarray:
    """Return a tensor as an array of float64."""
    return x.detach().double().cpu().numpy()
