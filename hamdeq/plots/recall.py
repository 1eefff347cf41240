"""Pictures of a memory that recalls: what it is told, the way, where it settles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = ["recall_gallery"]

# Okabe & Ito's orange and blue, told apart with any kind of colour vision. No pixel is orange.
_UNKNOWN, _LINE = "#E69F00", "#0072B2"


def recall_gallery(
    rows: Mapping[str, Tensor],
    shape: tuple[int, int],
    energy: Tensor,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Images from the question to the answer, and beside them the energy along the way.

    Args:
        rows: label -> images ``(count, pixels)`` from 0, black, to 1, white; as many in each row.
            A pixel that is NaN is unknown, and drawn in orange.
        shape: height and width of an image.
        energy: the energy before the first step, and after each: ``(steps + 1, count)``.
        names: a name for each column.
        title: of the picture.

    A column is a sample. The thin lines are its energy above that of the last step, the thick one
    their mean.

    Raises:
        ValueError: no rows, rows of different lengths, images of another size, as many energies or
            names as there are no columns.
    """
    counts = sorted({len(images) for images in rows.values()})
    if len(counts) != 1 or counts == [0]:
        raise ValueError(f"rows: expected as many images in each, at least one, got {counts}")
    (count,), (height, width) = counts, shape
    for label, images in rows.items():
        if tuple(images.shape) != (count, height * width):
            raise ValueError(
                f"rows: expected images of {height} × {width} pixels, ({count}, {height * width}), "
                f"got {tuple(images.shape)} in {label!r}"
            )
    if energy.dim() != 2 or len(energy) < 2 or energy.shape[1] != count:
        raise ValueError(
            f"energy: expected (steps + 1, {count}) for at least one step and {count} images in a "
            f"row, got {tuple(energy.shape)}"
        )
    if names is not None and len(names) != count:
        raise ValueError(f"names: expected one for each of {count} columns, got {len(names)}")
    size = 0.72
    figure = Figure(
        figsize=(size * count + 5.2, max(size * len(rows) + 0.6, 3.0)),
        dpi=150,
        layout="constrained",
    )
    figure.suptitle(title)
    ((left, right),) = figure.subfigures(
        1, 2, squeeze=False, width_ratios=(size * count + 1.2, 4.0)
    )
    cells = left.subplots(len(rows), count, squeeze=False)
    colours = colormaps["gray"].with_extremes(bad=_UNKNOWN)
    for line, (label, images) in zip(cells, rows.items(), strict=True):
        for place, image in zip(line, images.detach().float().cpu().numpy(), strict=True):
            place.imshow(image.reshape(shape), cmap=colours, vmin=0.0, vmax=1.0)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for place, name in zip(cells[0], names or [], strict=False):
        place.set_title(name, fontsize="medium")

    falls = energy.detach().double().cpu().numpy()
    falls = falls - falls[-1]
    steps = np.arange(len(falls))
    axes = right.subplots()
    axes.plot(steps, falls, color=_LINE, linewidth=0.8, alpha=0.4)
    axes.plot(steps, falls.mean(1), color=_LINE, linewidth=2.2, label="mean")
    # As a logarithm, for the last steps are small; linear near zero, which has none.
    if (top := float(falls.max())) > 0:
        axes.set_yscale("symlog", linthresh=1e-4 * top)
    axes.set(xlabel="even-odd step", ylabel="energy above that of the last step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
