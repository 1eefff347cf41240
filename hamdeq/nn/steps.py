"""How far each head's state patterns are updated before the result is read out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hamdeq._checks import whole

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
    if steps is None or whole(steps) is not None:
        return [(tuple(range(heads)), _count(whole(steps)))]
    if isinstance(steps, Tensor):
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise TypeError(f"update_steps_max: expected integers, got {steps.dtype}")
        steps = steps.tolist()
    each = None if isinstance(steps, str) or not isinstance(steps, Iterable) else [*steps]
    if each is None or not all(n is None or whole(n) is not None for n in each):
        raise TypeError(
            "update_steps_max: expected an integer, None to update until convergence, or one "
            f"integer for each head, got {steps!r}"
        )
    if len(each) != heads:
        raise ValueError(
            f"update_steps_max: expected one integer for each of {heads} heads, got {len(each)}"
        )
    counts = [_count(whole(n)) for n in each]
    return [
        (tuple(head for head, n in enumerate(counts) if n == count), count)
        for count in dict.fromkeys(counts)
    ]


def _count(steps: int | None) -> int | None:
    return None if steps is None or steps < 0 else steps
