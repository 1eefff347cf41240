"""The error of few neurons of a dense associative memory, such as those of classes.

The products with all of ζ then are much of the work: they are taken of all states at once, and only
what has an axis of neurons goes block by block, as ``(…, M, n, K)`` with long rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hamdeq.memories.interactions import Interaction
from hamdeq.memories.scaling import Factors

__all__ = ["are_few", "error_of_few", "saturated", "states_at_once"]

# Similarities that are held at once.
_SPAN = 2**22


def are_few(memories: Tensor, neurons: slice) -> bool:
    """Whether so few neurons are predicted that this way is the faster one."""
    size = memories.shape[-1]
    return 8 * len(range(*neurons.indices(size))) <= size


def saturated(margin: Tensor, outer: float | Tensor) -> Tensor:
    """C = tanh(outer · D), and NaN where D has overflowed, of which the tanh would be ±1."""
    return torch.tanh(outer * margin) + 0.0 * margin


def states_at_once(memories: Tensor) -> int:
    """States of which similarities are held at once."""
    *lead, count, _ = memories.shape
    return max(1, _SPAN // max(math.prod(lead) * count, 1))


def error_of_few(
    memories: Tensor,
    states: Tensor,
    targets: Tensor,
    interaction: Interaction,
    factors: Factors,
    exponent: int,
    neurons: slice,
    *,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`~hamdeq.memories.flips.error_of_block`, with ``rows`` states in a block."""
    inner, outer = factors
    own = inner * (states @ memories.mT)
    f_own, slope_own = interaction.both(own)
    resting = f_own.sum(-1, keepdim=True)
    x = states[..., neurons]
    step = (-2 * inner * x).unsqueeze(-1)
    chosen = memories[..., neurons].mT.contiguous()
    loss, direct = memories.new_zeros(memories.shape[:-2]), torch.zeros_like(chosen)
    predictions, of_own = [], []
    parts = (each.split(rows, -2) for each in (own, slope_own, resting, x, targets))
    for a, b, c, u, t, d in zip(*parts, step.split(rows, -3), strict=True):
        f, slope = interaction.both(torch.addcmul(a.unsqueeze(-2), d, chosen.unsqueeze(-3)))
        predicted = saturated(u * (c - f.sum(-1)), outer)
        error = t - predicted
        odd = error ** (2 * exponent - 1)
        back = (-2 * exponent * outer * inner) * odd * (1 - predicted * predicted)
        turned = back * u
        through = (turned.unsqueeze(-2) @ slope).squeeze(-2)
        of_own.append(b * turned.sum(-1, keepdim=True) - through)
        direct += (back.mT.unsqueeze(-2) @ slope.transpose(-3, -2)).squeeze(-2)
        loss += (error * odd).sum((-2, -1))
        predictions.append(predicted)
    gradient = torch.cat(of_own, -2).mT @ states
    gradient[..., neurons] += 2 * direct.mT
    return loss, gradient, torch.cat(predictions, -2)
