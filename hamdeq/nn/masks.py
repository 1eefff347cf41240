"""Masks as users give them, made one that broadcasts over samples and heads."""

from __future__ import annotations

import torch
from torch import Tensor

from hamdeq.elimination.cover import Cover, leaves_out

__all__ = ["INTEGERS", "causal_mask", "combined_mask", "without_padding"]


def combined_mask(
    padding: Tensor | None,
    association: Tensor | None,
    *,
    batch: int,
    heads: int,
    states: int,
    stored: int,
    extra: int = 0,
) -> Cover | None:
    """What leaves stored patterns out, for each sample, head and state pattern.

    Args:
        padding: ``(N, S)``, for each sample the stored patterns to leave out.
        association: ``(L, S)``, or ``(N·H, L, S)`` with the heads of a sample side by side.
        batch, heads, states, stored: N, H, L, S.
        extra: patterns appended by the layer itself, which always take part.

    Returns:
        masks that broadcast with ``(N, H, L, S + extra)``; None for none.

    Raises:
        TypeError: a mask that is neither boolean nor of floating point.
        ValueError: a mask of another shape.
    """
    masks = []
    if padding is not None:
        _check(padding, "stored_pattern_padding_mask", {"(N, S)": (batch, stored)})
        masks.append(padding[:, None, None, :])
    if association is not None:
        shapes = {"(L, S)": (states, stored), "(N·H, L, S)": (batch * heads, states, stored)}
        _check(association, "association_mask", shapes)
        each = (batch, heads) if association.dim() == 3 else (1, 1)
        masks.append(association.reshape(*each, states, stored))
    return Cover(*masks, extra=extra) if masks else None


def causal_mask(size: int, device: torch.device) -> Tensor:
    """True where a stored pattern comes after the state pattern: ``(size, size)``."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


def without_padding(
    padding: Tensor, stored: Tensor, projection: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The patterns, with zeros for padding that is not finite: zero times that would be NaN.

    State patterns are left as they are, unless they are the stored ones; one tensor stays one.
    """
    left_out = leaves_out(padding)
    clean, lost = _filled(stored, left_out)
    read, lost_too = (clean, None) if projection is stored else _filled(projection, left_out)
    state = clean if state is stored else state
    for rows in (lost, lost_too):
        if rows is not None:
            state = torch.where(rows[:, None, None], torch.nan, state)
    return clean, read, state


def _filled(x: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Zeros for padding that is not finite; and the samples for which it is no padding.

    That can be of patterns that all samples share, where the mask differs.
    """
    finite = x.isfinite()
    if x.shape[0] == left_out.shape[0]:
        return x.masked_fill(left_out[..., None] & ~finite, 0.0), None
    lost = (~finite.all(-1) & ~left_out).any(1)
    return x.masked_fill(left_out.any(0)[:, None] & ~finite, 0.0), lost


INTEGERS = (
    "where 1 means keep and 0 padding, as in the attention_mask of a tokenizer, give mask == 0; "
    "where 1 means leave out, give mask.bool()"
)


def _check(mask: Tensor, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{name}: expected a boolean mask, True to leave a pattern out, or one of floating "
            f"point that is added to the similarities, got {mask.dtype}; {INTEGERS}"
        )
    if tuple(mask.shape) not in shapes.values():
        wanted = " or ".join(f"{label} = {shape}" for label, shape in shapes.items())
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(mask.shape)}")
