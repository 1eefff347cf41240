"""Heat maps of a search for hyperparameters: learning rate by inverse temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from hamdeq._checks import wrong

__all__ = ["HeatMap", "heat_maps"]


@dataclass(frozen=True, eq=False)
class HeatMap:
    """The numbers of one map; NaN in cells without one, such as those that overflow.

    Args:
        rates: learning rates, the vertical axis.
        inverse_temperatures: 1/T, the horizontal axis.
        distance, loss, recalled: ``(rates, inverse temperatures)``.

    Raises:
        ValueError: numbers of another shape.
    """

    rates: Sequence[float]
    inverse_temperatures: Sequence[float]
    distance: np.ndarray
    loss: np.ndarray
    recalled: np.ndarray

    def __post_init__(self) -> None:
        shape = len(self.rates), len(self.inverse_temperatures)
        for name in ("distance", "loss", "recalled"):
            if (given := np.shape(getattr(self, name))) != shape or 0 in shape:
                raise wrong(name, f"a number for each of {shape}", given)


@dataclass(frozen=True)
class _Measure:
    """Look of one of the numbers: its names, the end of its scale, and the scale's marks."""

    name: str
    short: str
    label: str
    end: float
    marks: Mapping[float, str]
    extend: Literal["neither", "max"] = "max"
    line: float | None = None
    """Value at which a line crosses the scale."""
    beyond: str | None = None
    """Color of what is beyond the end, that of the end by default."""


def _measures(farthest: float, good: float) -> Sequence[_Measure]:
    return (
        _Measure(
            "distance",
            "distance",
            "distance from where learned states end\n(0 is best)",
            farthest,
            {
                0: "0",
                good: f"{good:.3g}\ngood below",
                farthest / 2: f"{farthest / 2:.3g}",
                farthest: f"{farthest:.3g} = √(2N)\nrandom states",
            },
            line=good,
        ),
        _Measure(
            "loss",
            "loss",
            "loss per neuron\n(0 is best)",
            1.0,
            {0: "0", 0.5: "0.5", 1: "1\nno prediction"},
            beyond="white",
        ),
        _Measure(
            "recalled",
            "recall",
            "share of states recalled exactly\n(1 is best)",
            1.0,
            {0: "0", 0.5: "0.5", 1: "1"},
            extend="neither",
        ),
    )


# Lengths are in inches: panels are placed one by one, as only that leaves no strip empty whatever
# the number of maps, and text keeps its size on the page.
_WIDTH = 10.0
_LEFT, _RIGHT, _GAP = 0.95, 0.2, 0.1
_BAR = 0.13
_MOST = 8
"""Maps side by side."""
_SMALL = 8.0
"""Size of text, in points; shrunk to a page's width it can still be read."""


def heat_maps(
    maps: Mapping[str, HeatMap], *, farthest: float, good: float, title: str = ""
) -> Figure:
    """Distance, loss and recall of maps: of one side by side, of several one above the other.

    Several maps are columns, in rows of at most eight.

    Args:
        maps: label -> numbers, such as ``n = 20``.
        farthest: end of the scale of distances: √(2N), that of random states. Scales are the same
            in all figures, so that maps can be compared.
        good: a distance to be marked on the scale: below it a cell counts as good.
        title: of the figure.

    The scale is cividis, made to be read by the colour-blind; dark is good in distance and loss,
    and bright in recall, as the scales say. A loss above 1, worse than that of no prediction, is
    white; distances beyond the end have the color of the end. Cells without a number are grey and
    hatched.

    Raises:
        ValueError: no maps, or a good distance that is not between 0 and the farthest.
    """
    if not maps:
        raise wrong("maps", "at least one", "none")
    if not 0 < good < farthest:
        raise wrong("good", f"a distance between 0 and {farthest:g}", f"{good:g}")
    measures = _measures(farthest, good)
    lines = title.count("\n") + 1 if title or len(maps) == 1 else 0
    head = 0.12 + 0.22 * lines
    if len(maps) > 1:
        figure = _several(maps, measures, head)
    else:
        figure = _one(next(iter(maps.values())), measures, head)
        title = f"{title}, {next(iter(maps))}".strip(", ")
    height = figure.get_size_inches()[1]
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / height, va="top")
    return figure


def _one(one: HeatMap, measures: Sequence[_Measure], head: float) -> Figure:
    """Panels side by side, each below its scale."""
    gap, top, size = 0.6, head + 0.95, 2.4
    figure = Figure(figsize=(_WIDTH, top + size + 0.8), dpi=150)
    width = (_WIDTH - _LEFT - _RIGHT + gap) / 3 - gap
    for i, measure in enumerate(measures):
        left = _LEFT + i * (width + gap)
        panel = _axes(figure, left, top, width, size)
        image = _draw(panel, one, measure, most=(13, 13))
        panel.set_xlabel("1/T", fontsize=9)
        if i == 0:
            panel.set_ylabel("learning rate", fontsize=9)
        _scale(_axes(figure, left, head + 0.38, width - 0.25, _BAR), image, measure)
    return figure


def _several(maps: Mapping[str, HeatMap], measures: Sequence[_Measure], head: float) -> Figure:
    """Scales above, and below them rows of maps, of each map the measures in a column."""
    rows = -(-len(maps) // _MOST)
    columns = -(-len(maps) // rows)
    room = _WIDTH - _LEFT - _RIGHT
    width = (room + _GAP) / columns - _GAP
    size = min(max(width, 1.0), 1.5)
    ticks = 0.6  # with the name of their axis
    block = 3 * (size + _GAP) + ticks + 0.3
    start = head + 1.2
    figure = Figure(figsize=(_WIDTH, start + rows * block - 0.2), dpi=150)
    most = max(2, int(width / 0.17)), max(2, int(size / 0.13))
    images: list[AxesImage] = []
    for k, (label, one) in enumerate(maps.items()):
        row, column = divmod(k, columns)
        left = _LEFT + column * (width + _GAP)
        images = []
        for i, measure in enumerate(measures):
            top = start + row * block + i * (size + _GAP)
            panel = _axes(figure, left, top, width, size)
            images.append(_draw(panel, one, measure, most=most))
            bottom, first = i == len(measures) - 1, column == 0
            panel.tick_params(labelbottom=bottom, labelleft=first)
            if i == 0:
                panel.set_title(label, fontsize=10, pad=4)
            if bottom:
                panel.set_xlabel("1/T", fontsize=9)
            if first:
                panel.set_ylabel(f"{measure.short}\nlearning rate", fontsize=9)
    gap = 0.7
    wide = (room + gap) / 3 - gap
    for i, (image, measure) in enumerate(zip(images, measures, strict=True)):
        left = _LEFT + i * (wide + gap)
        _scale(_axes(figure, left, head + 0.38, wide, _BAR), image, measure)
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a distance from the figure's left and upper edge."""
    wide, high = figure.get_size_inches()
    place = left / wide, 1 - (top + height) / high, width / wide, height / high
    return figure.add_axes(place)


def _scale(place: Axes, image: AxesImage, measure: _Measure) -> None:
    """A colour bar with its name above, and what its marks mean below."""
    figure: Any = place.figure
    bar = figure.colorbar(
        image,
        cax=place,
        orientation="horizontal",
        extend=measure.extend,
        extendfrac=0.06,
    )
    bar.set_ticks(list(measure.marks), labels=list(measure.marks.values()))
    place.tick_params(labelsize=_SMALL, length=3)
    place.set_title(measure.label, fontsize=9, pad=4)
    if measure.line is not None:
        place.axvline(measure.line, color="white", linewidth=1.2)
    if measure.beyond:
        text = f"> {measure.end:g}"
        place.text(1.08, 0.5, text, transform=place.transAxes, va="center", fontsize=_SMALL)


def _draw(panel: Axes, one: HeatMap, measure: _Measure, most: tuple[int, int]) -> AxesImage:
    """Cells, and as many labels of columns and rows as can be read."""
    values = np.asarray(getattr(one, measure.name), dtype=float)
    colors = colormaps["cividis"].with_extremes(bad="0.8", over=measure.beyond)
    # What is 1 but for rounding, or nearly so, is not to look like what is beyond.
    shown = np.where((values > measure.end) & (values < 1.005 * measure.end), measure.end, values)
    shown = np.ma.masked_invalid(shown)
    image = panel.imshow(
        shown, origin="lower", aspect="auto", vmin=0, vmax=measure.end, cmap=colors
    )
    missing = np.argwhere(~np.isfinite(values))
    look = {"hatch": "///", "facecolor": "none", "edgecolor": "0.45", "linewidth": 0}
    for row, column in missing:
        panel.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, **look)
    axes = (panel.xaxis, one.inverse_temperatures), (panel.yaxis, one.rates)
    for (axis, ticks), count in zip(axes, most, strict=True):
        step = -(-len(ticks) // count)
        places = range(0, len(ticks), step)
        axis.set_ticks(list(places), [f"{ticks[k]:.3g}" for k in places], fontsize=_SMALL)
    panel.tick_params(axis="x", rotation=90)
    panel.tick_params(length=3, pad=2)
    return image
