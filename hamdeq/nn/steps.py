"""How far each head's state patterns are updated before the result is read out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Group", "groups"]

Group = tuple[tuple[int, ...], int | None]
"""Heads, and how many updates their state patterns take; None for as many as it takes."""


def groups(steps: int | Sequence[int] | Tensor | None, heads: int) -> list[Group]:
    """The heads by their number of updates, None and negative numbers meaning to convergence.

    Raises:
        TypeError: not integers.
        ValueError: not one number for each head.
    """
    if isinstance(steps, Tensor) and steps.dim() == 0:
        steps = steps[None].expand(heads)
    if steps is None or (isinstance(steps, int) and not isinstance(steps, bool)):
        return [(tuple(range(heads)), _count(steps))]
    if isinstance(steps, Tensor):
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise TypeError(f"update_steps_max: expected integers, got {steps.dtype}")
        steps = steps.tolist()
    if not isinstance(steps, Sequence) or not all(n is None or type(n) is int for n in steps):
        raise TypeError(
            "update_steps_max: expected an integer, None to update until convergence, or one "
            f"integer for each head, got {steps!r}"
        )
    if len(steps) != heads:
        raise ValueError(
            f"update_steps_max: expected one integer for each of {heads} heads, got {len(steps)}"
        )
    counts = [_count(n) for n in steps]
    return [
        (tuple(head for head, n in enumerate(counts) if n == count), count)
        for count in dict.fromkeys(counts)
    ]


def _count(steps: int | None) -> int | None:
    return None if steps is None or steps < 0 else steps
