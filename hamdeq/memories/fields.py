"""The fields on binary neurons, right in sign.

A field is the margin Dᵢ of :mod:`hamdeq.memories.flips`, of which only the sign counts. So it may
be taken at any scale that leaves the sign, and needs all digits where much cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from hamdeq.memories.flips import blockwise, similarities
from hamdeq.memories.interactions import Interaction, power_of_two

__all__ = ["Single", "fields"]


def fields(
    memories: Tensor,
    states: Tensor,
    interaction: Interaction,
    inner: float | Tensor = 1.0,
    *,
    gauged: bool = True,
) -> Tensor:
    """Σ_μ [F(inner · ON) − F(inner · OFF)] of every neuron: ``(…, M, N)``; NaN where it overflows.

    Args:
        memories, states: ``(…, K, N)`` and ``(…, M, N)``.
        interaction: F.
        inner: factor of similarities, a number or ``(…, 1, 1)`` for networks of their own.
        gauged: whether it may be given up to a positive factor for each state, at which nothing
            overflows; then it is float64.
    """
    scale = inner
    memories, states, inner = _prepared(memories, states, interaction, inner, gauged)

    def block(x: Tensor) -> Tensor:
        # Scaled once turned over: similarities that are equal stay so, and cancel.
        own, flipped = similarities(memories, x)
        flipped = flipped if _is_one(inner) else _with_axis(inner) * flipped
        own = own if _is_one(inner) else inner * own
        return x * _difference(interaction, own[..., None], flipped, gauged, scale)

    return blockwise(block, memories, states)


class Single:
    """The fields on one neuron at a time, of states in which neurons turn over.

    Similarities are carried along.
    """

    def __init__(
        self,
        memories: Tensor,
        states: Tensor,
        interaction: Interaction,
        inner: float,
        *,
        gauged: bool,
    ) -> None:
        self.interaction = interaction
        self.gauged = gauged
        self.scale = inner
        self.memories: Tensor
        self.states: Tensor
        self.inner: float | Tensor
        self.memories, self.states, self.inner = _prepared(
            memories, states.clone(), interaction, inner, gauged
        )
        self.own: Tensor = self.states @ self.memories.mT

    def field(self, neuron: int) -> Tensor:
        """The field on a neuron, as of :func:`fields`: ``(batch,)``."""
        x = self.states[:, neuron, None]
        turned = self.own - 2 * x * self.memories[:, neuron]
        own, flipped = self.inner * self.own[..., None], self.inner * turned[..., None]
        return (x * _difference(self.interaction, own, flipped, self.gauged, self.scale))[:, 0]

    def turn(self, neuron: int, change: Tensor) -> None:
        """Add a change, 0 or ±2 for each sample, to a neuron: ``(batch,)``."""
        change = change.to(self.own.dtype)
        self.own.addr_(change, self.memories[:, neuron])
        self.states[:, neuron] += change


def _prepared(
    memories: Tensor,
    states: Tensor,
    interaction: Interaction,
    inner: float | Tensor,
    gauged: bool,
) -> tuple[Tensor, Tensor, float | Tensor]:
    """All in the precision that the sign of a difference needs.

    Where the scale is free, it is float64, without a scale: similarities of ±1 are integers.
    """
    if not gauged:
        return memories, states, inner
    free = all(part.degree is not None for _, part in interaction.parts)
    return memories.double(), states.double(), 1.0 if free else inner


def _difference(
    interaction: Interaction,
    own: Tensor,
    flipped: Tensor,
    gauged: bool,
    scale: float | Tensor,
) -> Tensor:
    """Σ_μ [F(own) − F(flipped)], right in sign: ``(…, K, 1), (…, K, n) -> (…, n)``.

    Of a sum of functions Σ_j c_j F_j, each of a degree d_j, the differences D_j are taken apart,
    since each is exact, and only then added, Σ_j c_j a^{d_j} D_j at similarities scaled by a. What
    is left of that within its rounding is a tie.

    Args:
        interaction: F.
        own, flipped: similarities as they are; where F is not a sum of functions that have a
            degree, scaled.
        gauged: as of :func:`fields`.
        scale: of similarities inside F.
    """
    parts = interaction.parts
    if len(parts) == 1:
        return _difference_of_one(parts[0][1], own, flipped, gauged)
    found = torch.stack([_difference_of_one(f, own, flipped, gauged) for _, f in parts]).double()
    degrees = torch.tensor([f.degree for _, f in parts], dtype=torch.float64).to(found.device)
    slopes = torch.tensor([c for c, _ in parts], dtype=torch.float64).to(found.device)
    shape = (-1, *[1] * (found.dim() - 1))
    degrees, weights = degrees.reshape(shape), slopes.reshape(shape)
    if gauged:
        ratio = (_with_axis(scale) / power_of_two(own, flipped)).double()[..., 0]
        # Of either sign, exponents that do not overflow: a common factor does not matter.
        least, most = degrees.amin(), degrees.amax()
        weights = weights * ratio ** (degrees - torch.where(ratio < 1, least, most))
    summands = weights * found
    total, size = summands.sum(0), summands.abs().amax(0)
    rounding = torch.finfo(torch.float64).eps * 4 * (interaction.steepness + 4)
    total = torch.where(total.abs() <= rounding * size, 0.0, total)
    # A weight may underflow beside another, not where its difference is the only one.
    alone = ((found != 0).sum(0) <= 1) & (total == 0)
    return torch.where(alone, (slopes.reshape(shape).sign() * found).sum(0), total)


def _difference_of_one(
    interaction: Interaction, own: Tensor, flipped: Tensor, gauged: bool
) -> Tensor:
    """:func:`_difference` of a function that is no sum of others.

    Memories of ±1 often cancel exactly, so that what is left is far smaller than what is summed:
    where a sum could be all rounding, it is taken anew such that equal terms cancel without any.
    """
    if gauged:
        own, flipped = interaction.gauge(own, flipped)
    before, after = interaction(own), interaction(flipped)
    terms = before - after
    total = terms.sum(-2)
    size = (before.abs() + after.abs()).sum(-2)
    # A power is good to n roundings, the sum to one for each term.
    roundings = 2 * interaction.steepness + terms.shape[-2] + 16
    doubtful = total.abs() <= torch.finfo(own.dtype).eps * roundings * size
    if bool(doubtful.any()):
        total[doubtful] = _cancelled(before.expand_as(after).mT[doubtful], after.mT[doubtful])
    return torch.where(size.isfinite(), total, torch.nan)


def _cancelled(plus: Tensor, minus: Tensor) -> Tensor:
    """Σ plus − Σ minus, ``(rows, K), (rows, K) -> (rows,)``, in which equal numbers cancel exactly.

    In the order of their size, the step from each down to the next counts as often as numbers above
    it are left over: Abel's summation.
    """
    values = torch.cat([plus, -minus], -1)
    size, order = values.abs().sort(-1, descending=True)
    left = values.sign().gather(-1, order).cumsum(-1)
    return (left * (size - pad(size[..., 1:], (0, 1)))).sum(-1)


def _is_one(inner: float | Tensor) -> bool:
    return not isinstance(inner, Tensor) and inner == 1.0


def _with_axis(inner: float | Tensor) -> float | Tensor:
    """The factor of each network, for tensors with an axis more."""
    return inner[..., None] if isinstance(inner, Tensor) else inner
