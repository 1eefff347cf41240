"""Pictures made of images: what memories retrieve, and the weights of hidden neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from hamdeq._checks import integer, wrong
from hamdeq.energy.ham import HAM
from hamdeq.energy.prepared import prepared
from hamdeq.plots.curves import energy_descent
from hamdeq.plots.palette import MISSING, numbers
from hamdeq.synapses import Dense

__all__ = ["retrieval_gallery", "weight_images"]

# Of an image, in inches.
_SIZE, _WEIGHT = 0.76, 0.8


def retrieval_gallery(
    rows: Mapping[str, Tensor],
    shape: tuple[int, ...],
    *,
    limits: tuple[float, float] = (-1.0, 1.0),
    energy: Tensor | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw states as images, a row for each kind of them, such as probe, steps and recalled.

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
    shape = _image_axes(shape)
    rows = _flat(rows, shape)
    count = len(next(iter(rows.values())))
    if energy is not None and (energy.dim() != 2 or len(energy) < 2 or energy.shape[1] != count):
        expected = f"(steps + 1, {count}) for at least one step and {count} images in a row"
        raise wrong("energy", expected, tuple(energy.shape))
    if names is not None and len(names) != count:
        raise wrong("names", f"one for each of {count} columns", len(names))
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


def weight_images(
    memory: HAM | Tensor,
    shape: tuple[int, ...],
    *,
    layers: tuple[str, str] = ("input", "hidden1"),
    count: int = 30,
    title: str = "",
) -> Figure:
    """Draw the weights of hidden neurons as images, on one scale.

    Args:
        memory: a memory; or the weights themselves, ``(neurons, pixels)``, such as ``memories`` of
            a :class:`~hamdeq.memories.DenseAssociativeMemory` or ``patterns`` of a
            :class:`~hamdeq.TwoLayer`.
        shape: ``(height, width)`` of an image, or ``(3, height, width)`` of one in colours.
        layers: of a memory, the layer of pixels, and that of hidden neurons.
        count: at most how many neurons: those whose weights have the largest norm, that first.
        title: of the picture.

    The scale is orange below zero, white at zero and purple above it. Weights of colours are shown
    in these colours, with zero as the grey in the middle. The number over an image is that of its
    neuron.

    Raises:
        ValueError: no ``Dense`` between the layers, weights of another size, no neurons, a shape
            that is none of an image.
    """
    weights = _weights(memory, layers) if isinstance(memory, HAM) else memory
    shape = _image_axes(shape)
    size = math.prod(shape)
    if weights.dim() != 2 or len(weights) == 0 or weights.shape[1] != size:
        expected = f"weights (neurons, {size}) for images of {_pixels(shape)}"
        raise wrong("memory", expected, tuple(weights.shape))
    count = integer("count", count)
    values = numbers(weights)
    norms = np.linalg.norm(values, axis=1)
    shown = np.argsort(-norms, kind="stable")[:count]
    limit = float(np.abs(values[shown]).max()) or 1.0

    columns = min(len(shown), 10)
    rows = math.ceil(len(shown) / columns)
    extent = (max(_WEIGHT * columns, 2.4) + 1.0, (_WEIGHT + 0.2) * rows + 0.5 * bool(title) + 0.2)
    figure = Figure(figsize=extent, dpi=150, layout="compressed")
    places = figure.subplots(rows, columns, squeeze=False)
    image = None
    for place, neuron in zip(places.flat, shown, strict=False):
        drawn = values[neuron].reshape(shape)
        if len(shape) == 3:
            place.imshow(_in_colours(drawn, -limit, limit))
        else:
            image = place.imshow(drawn, "PuOr", vmin=-limit, vmax=limit)
        place.set_title(f"{neuron}", fontsize="small", pad=2)
    for place in places.flat:
        place.set(xticks=[], yticks=[])
    for place in places.flat[len(shown) :]:
        place.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=places, label="weight")
    of = "" if len(shown) == len(values) else f"{len(shown)} of {len(values)} neurons"
    figure.suptitle(": ".join(part for part in (title, of) if part))
    return figure


def _image_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Check a shape: ``(height, width)``, or ``(3, height, width)``; one channel is left out."""
    axes = tuple(shape)
    if len(axes) == 3 and axes[0] == 1:
        axes = axes[1:]
    if len(axes) not in (2, 3) or (len(axes) == 3 and axes[0] != 3):
        expected = "(height, width), or (3, height, width) for colours"
        raise wrong("shape", expected, axes, "channels that come last: images.permute(0, 3, 1, 2)")
    return axes


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]} × {shape[-1]} pixels" + " in 3 colours" * (len(shape) == 3)


def _flat(rows: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Check the rows, and return them as ``(count, N)``."""
    counts = sorted({len(states) for states in rows.values()})
    if len(counts) != 1 or counts == [0]:
        raise wrong("rows", "as many states in each, at least one", counts)
    (count,), size = counts, math.prod(shape)
    for label, states in rows.items():
        got = tuple(states.shape)
        # One channel more or less is the same image.
        if got[1:] not in ((size,), shape, (1, *shape)):
            expected = f"states of {_pixels(shape)}, ({count}, {size})"
            raise wrong("rows", expected, f"{got} in {label!r}")
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
                place.imshow(_in_colours(image.reshape(shape), low, high))
            else:
                shown = np.ma.masked_invalid(image.reshape(shape))
                place.imshow(shown, colours, vmin=low, vmax=high)
            place.patch.set(facecolor=MISSING, hatch="////", edgecolor="white", linewidth=0)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for place, name in zip(places[0], names or [], strict=False):
        place.set_title(name, fontsize="medium")


def _in_colours(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """``(3, height, width)`` as red, green, blue and opacity; transparent where one is unknown."""
    rgb = np.moveaxis((image - low) / (high - low), 0, -1)
    known = np.isfinite(rgb).all(-1, keepdims=True)
    return np.concatenate([np.where(known, rgb, 0.0).clip(0, 1), known], axis=-1)


def _weights(ham: HAM, layers: tuple[str, str]) -> Tensor:
    """Weights between two layers: ``(neurons of the second, neurons of the first)``."""
    ham.check_names(layers)
    for names, synapse in ham.connections:
        if isinstance(synapse, Dense) and sorted(names) == sorted(layers):
            weight = prepared(synapse).weight
            return weight.mT if names == tuple(layers) else weight
    found = [names for names, synapse in ham.connections if isinstance(synapse, Dense)]
    expected = f"two with a Dense between them, of {found}"
    raise wrong("layers", expected, layers, "or give the weights themselves, (neurons, pixels)")
