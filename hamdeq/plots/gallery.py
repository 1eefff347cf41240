"""Pictures of what memories retrieve: what they are told, the way, where they settle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from hamdeq.plots.descent import energy_descent
from hamdeq.plots.palette import MISSING

__all__ = ["image_axes", "in_colours", "retrieval_gallery"]

_SIZE = 0.76
"""Of an image, in inches."""


def retrieval_gallery(
    rows: Mapping[str, Tensor],
    shape: tuple[int, ...],
    *,
    limits: tuple[float, float] = (-1.0, 1.0),
    energy: Tensor | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """States as images, a row for each kind of them, such as probe, steps and recalled.

    A column is a sample. Values that are NaN are unknown, drawn in orange and hatched.

    Args:
        rows: label -> states ``(count, N)`` or ``(count, *shape)``, as many in each row.
        shape: ``(height, width)`` of an image, or ``(3, height, width)`` of one in colours, N
            numbers.
        limits: what is black, and what is white; of colours, the least and the most of each.
        energy: of the samples before the first step, and after each: ``(steps + 1, count)``; drawn
            beside the images, see :func:`energy_descent`.
        names: a name for each column.
        title: of the picture.

    Raises:
        ValueError: no rows, rows of different lengths, states that are no such images, as many
            energies or names as there are no columns; a shape that is none of an image.
    """
    shape = image_axes(shape)
    rows = _flat(rows, shape)
    count = len(next(iter(rows.values())))
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


def image_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """``(height, width)``, or ``(3, height, width)`` of colours; one channel is left out.

    Raises:
        ValueError: the shape is none of an image.
    """
    axes = tuple(shape)
    if len(axes) == 3 and axes[0] == 1:
        axes = axes[1:]
    if len(axes) not in (2, 3) or (len(axes) == 3 and axes[0] != 3):
        raise ValueError(
            f"shape: expected (height, width), or (3, height, width) for colours, got {axes}; "
            "channels that come last are moved by images.permute(0, 3, 1, 2)"
        )
    return axes


def _flat(rows: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The rows as ``(count, N)``.

    Raises:
        ValueError: no rows, rows of different lengths, states that are no such images.
    """
    counts = sorted({len(states) for states in rows.values()})
    if len(counts) != 1 or counts == [0]:
        raise ValueError(f"rows: expected as many states in each, at least one, got {counts}")
    (count,), size = counts, math.prod(shape)
    for label, states in rows.items():
        got = tuple(states.shape)
        # One channel more or less is the same image.
        if got[1:] not in ((size,), shape, (1, *shape)):
            pixels = f"{shape[-2]} × {shape[-1]} pixels" + " in 3 colours" * (len(shape) == 3)
            raise ValueError(
                f"rows: expected states of {pixels}, ({count}, {size}), got {got} in {label!r}"
            )
    return {label: states.reshape(count, size) for label, states in rows.items()}


def _images(
    figure: Figure | SubFigure,
    rows: Mapping[str, Tensor],
    shape: tuple[int, ...],
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
            if len(shape) == 3:
                place.imshow(in_colours(image.reshape(shape), low, high))
            else:
                shown = np.ma.masked_invalid(image.reshape(shape))
                place.imshow(shown, colours, vmin=low, vmax=high)
            place.patch.set(facecolor=MISSING, hatch="////", edgecolor="white", linewidth=0)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for place, name in zip(places[0], names or [], strict=False):
        place.set_title(name, fontsize="medium")


def in_colours(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """``(3, height, width)`` as red, green, blue and opacity; transparent where one is unknown."""
    rgb = np.moveaxis((image - low) / (high - low), 0, -1)
    known = np.isfinite(rgb).all(-1, keepdims=True)
    return np.concatenate([np.where(known, rgb, 0.0).clip(0, 1), known], axis=-1)
