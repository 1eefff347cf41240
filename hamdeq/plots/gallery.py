"""Pictures of what memories retrieve: what they are told, the way, where they settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from hamdeq.plots.descent import energy_descent
from hamdeq.plots.palette import MISSING

__all__ = ["retrieval_gallery"]

_SIZE = 0.76
"""Of an image, in inches."""


def retrieval_gallery(
    rows: Mapping[str, Tensor],
    shape: tuple[int, int],
    *,
    limits: tuple[float, float] = (-1.0, 1.0),
    energy: Tensor | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """States as images, a row for each kind of them, such as probe, steps and recalled.

    A column is a sample. Values that are NaN are unknown, drawn in orange and hatched.

    Args:
        rows: label -> states ``(count, N)``, as many in each row.
        shape: height and width of an image, N pixels.
        limits: what is black, and what is white.
        energy: of the samples before the first step, and after each: ``(steps + 1, count)``; drawn
            beside the images, see :func:`energy_descent`.
        names: a name for each column.
        title: of the picture.

    Raises:
        ValueError: no rows, rows of different lengths, states that are no such images, as many
            energies or names as there are no columns.
    """
    count = _columns(rows, shape)
    if energy is not None and (energy.dim() != 2 or len(energy) < 2 or energy.shape[1] != count):
        raise ValueError(
            f"energy: expected (steps + 1, {count}) for at least one step and {count} images in a "
            f"row, got {tuple(energy.shape)}"
        )
    if names is not None and len(names) != count:
        raise ValueError(f"names: expected one for each of {count} columns, got {len(names)}")
    width, height = _SIZE * count + 1.2, _SIZE * len(rows) + 0.3 * bool(title) + 0.2 * bool(names)
    if energy is None:
        figure = Figure(figsize=(width, height), dpi=150, layout="compressed")
        _images(figure, rows, shape, limits, names)
    else:
        size = (width + 4.0, max(height, 3.0))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(width, 4.0))
        _images(left, rows, shape, limits, names)
        energy_descent(energy, axes=right.subplots())
    figure.suptitle(title)
    return figure


def _columns(rows: Mapping[str, Tensor], shape: tuple[int, int]) -> int:
    """How many columns there are, of rows that are images."""
    counts = sorted({len(states) for states in rows.values()})
    if len(counts) != 1 or counts == [0]:
        raise ValueError(f"rows: expected as many states in each, at least one, got {counts}")
    (count,), (height, width) = counts, shape
    for label, states in rows.items():
        if tuple(states.shape) != (count, height * width):
            raise ValueError(
                f"rows: expected states of {height} × {width} pixels, ({count}, {height * width}), "
                f"got {tuple(states.shape)} in {label!r}"
            )
    return count


def _images(
    figure: Figure | SubFigure,
    rows: Mapping[str, Tensor],
    shape: tuple[int, int],
    limits: tuple[float, float],
    names: Sequence[str] | None,
) -> None:
    # Of what is unknown the patch behind the image shows.
    colours = colormaps["gray"].with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
    low, high = limits
    count = len(next(iter(rows.values())))
    places = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, states) in zip(places, rows.items(), strict=True):
        for place, image in zip(line, states.detach().float().cpu().numpy(), strict=True):
            place.imshow(np.ma.masked_invalid(image.reshape(shape)), colours, vmin=low, vmax=high)
            place.patch.set(facecolor=MISSING, hatch="////", edgecolor="white", linewidth=0)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for place, name in zip(places[0], names or [], strict=False):
        place.set_title(name, fontsize="medium")
