"""The step of a descent in which the rate is how far a memory moves, however large its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normalised"]


def normalised(v: Tensor, axes: int = 1) -> Tensor:
    """Each row divided by its largest entry; zeros stay zero, and what is not finite not finite.

    Args:
        v: gradients, or what momentum made of them.
        axes: how many leading axes count rows, such as 2 of networks and their memories. If there
            are no others, every number is a row.
    """
    if v.numel() == 0:
        return v
    largest = v.abs()
    if v.dim() > axes:
        rest = tuple(range(axes, v.dim()))
        largest = largest.amax(rest, keepdim=True)
    return torch.where(largest == 0, 0.0, v / largest)
