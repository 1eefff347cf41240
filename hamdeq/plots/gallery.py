"""Pictures of what memories retrieve."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["retrieval_gallery"]


def retrieval_gallery(rows: Mapping[str, Tensor], shape: tuple[int, int]) -> Figure:
    """States as images, a row for each kind of them, such as stored, probe and recalled.

    Args:
        rows: label -> states ``(count, N)``, as many in each row.
        shape: height and width of an image, N pixels.

    Raises:
        ValueError: no rows, rows of different lengths, or states that are no such images.
    """
    counts = {len(states) for states in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"rows: expected as many states in each, at least one, got {sorted(counts)}"
        )
    (count,) = counts
    height, width = shape
    for label, states in rows.items():
        if tuple(states.shape) != (count, height * width):
            raise ValueError(
                f"rows: expected states of {height} × {width} pixels, ({count}, {height * width}), "
                f"got {tuple(states.shape)} in {label!r}"
            )
    size = 0.8
    figure = Figure(figsize=(size * count + 1.2, size * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, states) in zip(axes, rows.items(), strict=True):
        images = states.detach().float().cpu().reshape(count, height, width).numpy()
        for place, image in zip(line, images, strict=True):
            place.imshow(image, cmap="gray", vmin=-1.0, vmax=1.0)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure
