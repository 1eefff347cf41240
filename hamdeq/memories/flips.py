"""What a dense associative memory computes, each neuron with one bit turned over.

With ``s_μ = ζ_μ·ξ``, one of ON and OFF is s_μ itself, and the other s_μ − 2ξᵢζ_μi:

    Dᵢ = Σ_μ [F(ON) − F(OFF)] = ξᵢ Σ_μ [F(s_μ) − F(s_μ − 2ξᵢζ_μi)].

So F is taken once of each similarity and once of each turned one; a state needs K × N numbers, and
as many states are taken at once as fit in a block.

Shapes: memories ``(…, K, N)``, states ``(…, M, N)``, with the same leading axes, which are those of
independent networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hamdeq.memories.few import are_few, error_of_few, saturated, states_at_once
from hamdeq.memories.interactions import Interaction
from hamdeq.memories.scaling import Factors

__all__ = [
    "PredictionError",
    "blockwise",
    "error_of_block",
    "loss_and_gradient",
    "margins",
    "similarities",
]

# Numbers in a block: it should stay in a core's cache from the first operation to the last.
_BLOCK = 2**18

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
            kernel, rows = partial(error_of_few, rows=rows), states_at_once(memories)
    total: Parts | None = None
    predictions = []
    for x, t in zip(states.split(rows, -2), targets.split(rows, -2), strict=True):
        loss, gradient, predicted = kernel(memories, x, t, interaction, factors, exponent, neurons)
        predictions.append(predicted)
        total = (
            (loss, gradient, predicted)
            if total is None
            else (total[0] + loss, total[1] + gradient, predicted)
        )
    if total is None:
        return memories.new_zeros(memories.shape[:-2]), torch.zeros_like(memories), targets
    return total[0], total[1], torch.cat(predictions, -2)


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
    inner, outer = factors
    own, flipped = similarities(memories, states, inner, neurons)
    x = states[..., neurons]
    f_own, slope_own = interaction.both(own)
    f, slope = interaction.both(flipped)
    predicted = saturated(x * (f_own.sum(-1, keepdim=True) - f.sum(-2)), outer)
    error = targets - predicted
    odd = error ** (2 * exponent - 1)
    # By D, with the factor that similarities have inside F.
    back = (-2 * exponent * outer * inner) * odd * (1 - predicted * predicted)
    turned = back * x
    through = (slope @ turned[..., None]).squeeze(-1)
    of_own = slope_own * turned.sum(-1, keepdim=True) - through
    gradient = of_own.mT @ states
    direct = (back.unsqueeze(-2) * slope).sum(-3)
    gradient[..., neurons] += 2 * direct
    return (error * odd).sum((-2, -1)), gradient, predicted


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


def _rows(memories: Tensor, neurons: slice) -> int:
    *lead, count, size = memories.shape
    each = count * len(range(*neurons.indices(size)))
    for n in lead:
        each *= n
    return max(1, _BLOCK // max(each, 1))


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
