"""The inputs of a Hopfield layer: which patterns they are, and whether they fit."""

from __future__ import annotations

import torch
from torch import Tensor

from hamdeq.nn.sizes import Sizes

__all__ = ["Input", "batched", "check_dtype", "check_patterns", "is_batched"]

Input = Tensor | tuple[Tensor, Tensor, Tensor]
"""Stored patterns, state patterns and pattern projections, or one tensor for all three."""

_NAMES = ("stored patterns", "state patterns", "pattern projections")


def is_batched(input: Input) -> bool:
    """Whether there is a batch axis."""
    return (input if isinstance(input, Tensor) else input[0]).dim() == 3


def batched(input: Input, *, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Stored patterns, state patterns and pattern projections with the batch first.

    One tensor stays one tensor, so that it is projected at once.

    Raises:
        TypeError: neither a tensor nor three of floating point, or not dense.
        ValueError: tensors without or with too many axes.
    """
    three = (input,) * 3 if isinstance(input, Tensor) else tuple(input)
    if len(three) != 3 or not all(isinstance(x, Tensor) for x in three):
        got = [type(x).__name__ for x in three]
        raise TypeError(
            "input: expected a tensor, or three: (stored patterns, state patterns, pattern "
            f"projections), got {got}"
        )
    for name, x in zip(_NAMES, three, strict=True):
        if x.is_nested or x.layout != torch.strided:
            kind = "nested" if x.is_nested else str(x.layout)
            remedy = (
                "torch.nested.to_padded_tensor(x, 0.0) with stored_pattern_padding_mask True where "
                "it pads"
                if x.is_nested
                else "x.to_dense()"
            )
            raise TypeError(f"{name}: expected a dense tensor, got a {kind} one; give {remedy}")
    dims = {x.dim() for x in three}
    if len(dims) != 1 or not dims <= {2, 3}:
        shapes = [tuple(x.shape) for x in three]
        raise ValueError(
            "input: expected tensors of three axes (batch, patterns, size), or all of them of two "
            f"without the batch, got shapes {shapes}"
        )
    for name, x in zip(_NAMES, three, strict=True):
        if not x.is_floating_point():
            raise TypeError(
                f"{name}: expected a floating-point tensor, got {x.dtype}; convert it by x.float()"
            )

    def moved(x: Tensor) -> Tensor:
        return x[None] if x.dim() == 2 else x if batch_first else x.transpose(0, 1)

    # Compared by ``is``: an id() would tie a compiled graph to these very tensors.
    stored = moved(three[0])
    state, projection = (stored if x is three[0] else moved(x) for x in three[1:])
    return stored, state, projection


def check_patterns(sizes: Sizes, stored: Tensor, state: Tensor, projection: Tensor) -> int:
    """The number of samples N of patterns ``(N, …, size)``, of which some may have one for all.

    Raises:
        ValueError: patterns whose numbers or sizes do not fit, with what was expected.
    """
    statics = (sizes.stored_static, sizes.state_static, sizes.projection_static)
    three = (stored, state, projection)
    for name, x, size, static in zip(_NAMES, three, sizes.inputs, statics, strict=True):
        if size is not None and x.shape[-1] != size:
            raise ValueError(
                f"{name}: expected size {size} on the last axis, got shape {tuple(x.shape)}"
                f"{_STATIC if static else ''}"
            )
    if sizes.state_static and sizes.stored_static and stored.shape[-1] != state.shape[-1]:
        raise ValueError(
            "static patterns: expected state and stored patterns of one size, got "
            f"{state.shape[-1]} and {stored.shape[-1]}"
        )
    batches = [x.shape[0] for x in (stored, state, projection)]  # len() is no symbol in an export
    several = [n for n in batches if n != 1]
    if any(n != several[0] for n in several):
        raise ValueError(
            "input: expected one batch size for all patterns, got "
            f"{batches[0]}, {batches[1]} and {batches[2]} for {', '.join(_NAMES)}"
        )
    if stored.shape[1] != projection.shape[1]:
        raise ValueError(
            "pattern projections: expected one for each of the "
            f"{stored.shape[1]} stored patterns, got {projection.shape[1]}"
        )
    return several[0] if several else 1


def check_dtype(x: Tensor, weight: Tensor | None) -> None:
    """Refuse patterns of another dtype than the weights, but for what autocast makes one."""
    if weight is None or x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return
    raise TypeError(
        f"input: expected {weight.dtype} as of the weights, got {x.dtype}; convert it by "
        f".to({weight.dtype}), or the layer"
    )


_STATIC = (
    "; static patterns enter every head as they are, in its association space: give hidden_size "
    "(of pattern projections, pattern_size), or let them be projected"
)
