"""Energy differences of a dense associative memory, each neuron with one bit turned over.

With ``s_μ = ζ_μ·ξ``, one of ON and OFF is s_μ itself, and the other s_μ − 2ξᵢζ_μi:

    Dᵢ = Σ_μ [F(ON) − F(OFF)] = ξᵢ Σ_μ [F(s_μ) − F(s_μ − 2ξᵢζ_μi)].

So F is taken once of each similarity and once of each turned one; a state needs K × N numbers, and
as many states are taken at once as fit in a block. Of few neurons, such as those of classes, the
products with all of ζ are much of the work: these are taken of all states at once, and only what
has an axis of neurons goes block by block, as ``(…, M, n, K)`` with long rows.

Shapes: memories ``(…, K, N)``, states ``(…, M, N)``, with the same leading axes, which are those of
independent networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hamdeq.memories.interactions import Factors, Interaction

__all__ = [
    "PredictionError",
    "are_few",
    "blockwise",
    "error_of_block",
    "error_of_few",
    "loss_and_gradient",
    "margins",
    "similarities",
]

# Numbers in a block: it should stay in a core's cache from the first operation to the last.
_BLOCK = 2**18
# Similarities that are held at once.
_SPAN = 2**22

Parts = tuple[Tensor, Tensor, Tensor]
"""Loss ``(…)``, its gradient ``(…, K, N)``, predictions ``(…, M, n)``."""


def margins(
    memories: Tensor,
    states: Tensor,
    interaction: Interaction,
    inner: float | Tensor = 1.0,
    neurons: slice = slice(None),
) -> Tensor:
    """Dᵢ = Σ_μ [F(inner · ON) − F(inner · OFF)]: ``(…, M, n)``, differentiable.

    Args:
        memories, states: as above.
        interaction: F.
        inner: factor of similarities, a number or one for each network.
        neurons: those of which the margin is taken.
    """

    def block(x: Tensor) -> Tensor:
        own, flipped = similarities(memories, x, inner, neurons)
        return x[..., neurons] * (interaction(own[..., None]) - interaction(flipped)).sum(-2)

    return blockwise(block, memories, states, neurons)


def loss_and_gradient(
    memories: Tensor,
    states: Tensor,
    targets: Tensor,
    interaction: Interaction,
    factors: Factors,
    exponent: int = 1,
    neurons: slice = slice(None),
    *,
    kernel: Callable[..., Parts] | None = None,
) -> Parts:
    """ℓ = Σ_a Σ_i (t_ai − C_ai)^2m with C = tanh(outer · D), its gradient by ζ, and C.

    Each state's share of the gradient follows from its own predictions: one pass does it all.

    Args:
        memories, states, interaction, neurons: as of :func:`margins`.
        targets: t, ``(…, M, n)``.
        factors: inner and outer, numbers or ``(…, 1, 1)`` for networks of their own.
        exponent: m, a positive integer.
        kernel: :func:`error_of_block`, or what the compiler made of it.
    """
    rows = _rows(memories, neurons)
    if kernel is None:
        kernel = error_of_block
        if are_few(memories, neurons):
            kernel = partial(error_of_few, rows=rows)
            rows = max(1, _SPAN // max(memories[..., :1].numel(), 1))
    total, slope = memories.new_zeros(memories.shape[:-2]), torch.zeros_like(memories)
    predictions = []
    for x, t in zip(states.split(rows, -2), targets.split(rows, -2), strict=True):
        loss, gradient, predicted = kernel(memories, x, t, interaction, factors, exponent, neurons)
        total, slope = total + loss, slope.add_(gradient)
        predictions.append(predicted)
    return total, slope, torch.cat(predictions, -2) if predictions else targets


def error_of_block(
    memories: Tensor,
    states: Tensor,
    targets: Tensor,
    interaction: Interaction,
    factors: Factors,
    exponent: int,
    neurons: slice,
) -> Parts:
    """:func:`loss_and_gradient` of as many states as fit in a block."""
    own, flipped = similarities(memories, states, factors.inner, neurons)
    x = states[..., neurons]
    f_own, slope_own = interaction.both(own)
    f, slope = interaction.both(flipped)
    margin = x * (f_own.sum(-1, keepdim=True) - f.sum(-2))
    predicted, loss, back = _error(margin, targets, factors, exponent)
    turned = back * x
    through = (slope @ turned[..., None]).squeeze(-1)
    of_own = slope_own * turned.sum(-1, keepdim=True) - through
    gradient = of_own.mT @ states
    gradient[..., neurons] += 2 * (back.unsqueeze(-2) * slope).sum(-3)
    return loss, gradient, predicted


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
) -> Parts:
    """:func:`error_of_block` of few neurons, with ``rows`` states in a block."""
    own = factors.inner * (states @ memories.mT)
    f_own, slope_own = interaction.both(own)
    resting = f_own.sum(-1, keepdim=True)
    x = states[..., neurons]
    step = (-2 * factors.inner * x).unsqueeze(-1)
    chosen = memories[..., neurons].mT.contiguous()
    loss, direct = memories.new_zeros(memories.shape[:-2]), torch.zeros_like(chosen)
    predictions, of_own = [], []
    parts = (each.split(rows, -2) for each in (own, slope_own, resting, x, targets))
    for a, b, c, u, t, d in zip(*parts, step.split(rows, -3), strict=True):
        f, slope = interaction.both(torch.addcmul(a.unsqueeze(-2), d, chosen.unsqueeze(-3)))
        predicted, part, back = _error(u * (c - f.sum(-1)), t, factors, exponent)
        turned = back * u
        through = (turned.unsqueeze(-2) @ slope).squeeze(-2)
        of_own.append(b * turned.sum(-1, keepdim=True) - through)
        direct += (back.mT.unsqueeze(-2) @ slope.transpose(-3, -2)).squeeze(-2)
        loss += part
        predictions.append(predicted)
    gradient = torch.cat(of_own, -2).mT @ states
    gradient[..., neurons] += 2 * direct.mT
    return loss, gradient, torch.cat(predictions, -2)


def _error(
    margin: Tensor, targets: Tensor, factors: Factors, exponent: int
) -> tuple[Tensor, Tensor, Tensor]:
    """C = tanh(outer · D), Σ (t − C)^2m, and its gradient by D times the factor inside F."""
    inner, outer = factors
    # NaN where D has overflowed, of which the tanh would be ±1.
    predicted = torch.tanh(outer * margin) + 0.0 * margin
    error = targets - predicted
    odd = error ** (2 * exponent - 1)
    back = (-2 * exponent * outer * inner) * odd * (1 - predicted * predicted)
    return predicted, (error * odd).sum((-2, -1)), back


class PredictionError(torch.autograd.Function):
    """:func:`loss_and_gradient` in a graph: its gradient is made on the way forward."""

    @staticmethod
    def forward(ctx: Any, memories: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        loss, gradient, predicted = loss_and_gradient(memories, *rest)
        # Where F is finite, its derivative may not be: neither loss nor gradient counts then.
        loss = torch.where(gradient.isfinite().all(-1).all(-1), loss, torch.nan)
        ctx.save_for_backward(gradient, memories)
        ctx.others = len(rest)
        ctx.mark_non_differentiable(predicted)
        return loss, predicted

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_loss = grad_outputs[0]
        gradient, memories = ctx.saved_tensors
        gradient = of_loss[..., None, None] * gradient
        return (_Once.apply(gradient, memories), *[None] * ctx.others)


class _Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated. (Autograd would take it for a constant.)"""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, memories: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            "loss: its gradient is closed-form and has no derivative; make the loss from "
            "predict(states), which can be differentiated twice"
        )


def similarities(
    memories: Tensor,
    states: Tensor,
    inner: float | Tensor = 1.0,
    neurons: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """inner · s ``(…, M, K)``, and the same with each neuron turned over ``(…, M, K, n)``."""
    own = inner * (states @ memories.mT)
    step = 2 * inner * states[..., neurons]
    turned = memories[..., neurons].unsqueeze(-3)
    return own, torch.addcmul(own[..., None], step.unsqueeze(-2), turned, value=-1)


def are_few(memories: Tensor, neurons: slice) -> bool:
    """Return whether so few neurons are predicted that :func:`error_of_few` is the faster way."""
    size = memories.shape[-1]
    return 8 * len(range(*neurons.indices(size))) <= size


def _rows(memories: Tensor, neurons: slice) -> int:
    """States in a block."""
    return max(1, _BLOCK // max(memories[..., neurons].numel(), 1))


def blockwise(
    block: Callable[[Tensor], Tensor],
    memories: Tensor,
    states: Tensor,
    neurons: slice = slice(None),
) -> Tensor:
    """A function of states, of as many at once as stay in a core's cache."""
    parts = [block(x) for x in states.split(_rows(memories, neurons), -2)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, -2) if parts else states[..., neurons]
