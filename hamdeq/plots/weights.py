"""Pictures of what hidden neurons hold."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hamdeq.energy.ham import HAM
from hamdeq.energy.prepared import prepared
from hamdeq.plots.gallery import image_axes, in_colours
from hamdeq.synapses import Dense

__all__ = ["weight_images"]

_SIZE = 0.8
"""Of an image, in inches."""


def weight_images(
    memory: HAM | Tensor,
    shape: tuple[int, ...],
    *,
    layers: tuple[str, str] = ("input", "hidden1"),
    count: int = 30,
    title: str = "",
) -> Figure:
    """The weights of hidden neurons as images, on one scale: what each of them looks for.

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
    shape = image_axes(shape)
    size = math.prod(shape)
    if weights.dim() != 2 or len(weights) == 0 or weights.shape[1] != size:
        images = " × ".join(map(str, shape[-2:])) + " pixels" + " in 3 colours" * (len(shape) == 3)
        raise ValueError(
            f"memory: expected weights (neurons, {size}) for images of {images}, got "
            f"{tuple(weights.shape)}"
        )
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count!r}")
    numbers = weights.detach().double().cpu().numpy()
    norms = np.linalg.norm(numbers, axis=1)
    shown = np.argsort(-norms, kind="stable")[:count]
    limit = float(np.abs(numbers[shown]).max()) or 1.0

    columns = min(len(shown), 10)
    rows = math.ceil(len(shown) / columns)
    extent = (max(_SIZE * columns, 2.4) + 1.0, (_SIZE + 0.2) * rows + 0.5 * bool(title) + 0.2)
    figure = Figure(figsize=extent, dpi=150, layout="compressed")
    places = figure.subplots(rows, columns, squeeze=False)
    image = None
    for place, neuron in zip(places.flat, shown, strict=False):
        drawn = numbers[neuron].reshape(shape)
        if len(shape) == 3:
            place.imshow(in_colours(drawn, -limit, limit))
        else:
            image = place.imshow(drawn, "PuOr", vmin=-limit, vmax=limit)
        place.set_title(f"{neuron}", fontsize="small", pad=2)
    for place in places.flat:
        place.set(xticks=[], yticks=[])
    for place in places.flat[len(shown) :]:
        place.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=places, label="weight")
    of = "" if len(shown) == len(numbers) else f"{len(shown)} of {len(numbers)} neurons"
    figure.suptitle(": ".join(part for part in (title, of) if part))
    return figure


def _weights(ham: HAM, layers: tuple[str, str]) -> Tensor:
    """Of the synapse between two layers: ``(neurons of the second, neurons of the first)``."""
    ham.check_names(layers)
    for names, synapse in ham.connections:
        if isinstance(synapse, Dense) and sorted(names) == sorted(layers):
            weight = prepared(synapse).weight
            return weight.mT if names == tuple(layers) else weight
    found = [names for names, synapse in ham.connections if isinstance(synapse, Dense)]
    raise ValueError(
        f"layers: expected two with a Dense between them, of {found}, got {layers}; or give the "
        "weights themselves, (neurons, pixels)"
    )
