"""Heat maps of a search for hyperparameters: learning rate by inverse temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

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
                raise ValueError(f"{name}: expected a number for each of {shape}, got {given}")


def heat_maps(maps: Mapping[str, HeatMap], *, farthest: float, title: str = "") -> Figure:
    """Distance, loss and recall of maps: of one side by side, of several a column for each.

    Args:
        maps: label -> numbers, such as ``n = 20``.
        farthest: end of the scale of distances, such as √(2N), that of random states. Scales are
            the same in all figures, so that maps can be compared.
        title: of the figure.

    The scale is cividis, made to be read by the colour-blind; dark is good in distance and loss,
    and bright in recall. Cells without a number are grey and hatched.
    """
    if not maps:
        raise ValueError("maps: expected at least one, got none")
    measures = (
        ("distance", "distance from where\nlearned states end", farthest),
        ("loss", "loss per neuron\n(1: no prediction)", 2.0),
        ("recalled", "share of states\nrecalled exactly", 1.0),
    )
    single = len(maps) == 1
    rows, columns = (1, 3) if single else (3, len(maps))
    size = (10.5, 3.4) if single else (1.2 + 1.9 * columns, 6.6)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for i, (name, label, highest) in enumerate(measures):
        image = None
        for j, (head, one) in enumerate(maps.items()):
            panel = panels[0, i] if single else panels[i, j]
            image = _draw(panel, one, getattr(one, name), highest)
            bottom, left = single or i == 2, (i if single else j) == 0
            panel.set_xlabel("1/T" if bottom else "")
            panel.set_ylabel("learning rate" if left else "")
            panel.tick_params(labelbottom=bottom, labelleft=left)
            if i == 0 or single:
                panel.set_title(label.replace("\n", " ") if single else head, fontsize="medium")
        beside: Any = panels[0, i] if single else list(panels[i])
        assert image is not None
        made = figure.colorbar(image, ax=beside, extend="neither" if name == "recalled" else "max")
        if not single:
            made.set_label(label, fontsize="small")
    heading = f"{title}, {next(iter(maps))}".strip(", ") if single else title
    figure.suptitle(heading, fontsize="large")
    return figure


def _draw(panel: Axes, one: HeatMap, values: np.ndarray, highest: float) -> AxesImage:
    colors = colormaps["cividis"].with_extremes(bad="0.8")
    shown = np.ma.masked_invalid(values)
    image = panel.imshow(shown, origin="lower", aspect="auto", vmin=0, vmax=highest, cmap=colors)
    missing = np.argwhere(~np.isfinite(values))
    for row, column in missing:
        panel.fill_between(
            [column - 0.5, column + 0.5],
            row - 0.5,
            row + 0.5,
            hatch="///",
            facecolor="none",
            edgecolor="0.45",
            linewidth=0,
        )
    for axis, ticks in ((panel.xaxis, one.inverse_temperatures), (panel.yaxis, one.rates)):
        # As many labels as can be read: every second or third where there are more cells.
        step = -(-len(ticks) // 9)
        places = range(0, len(ticks), step)
        axis.set_ticks(list(places), [f"{ticks[k]:.3g}" for k in places], fontsize=7)
    panel.tick_params(axis="x", rotation=90)
    return image
