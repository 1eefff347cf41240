"""Retrieval as functions of tensors, and what tells how well it works.

Notation: state patterns ξ, stored patterns X (a pattern a row), inverse temperature β, and a
Lagrangian of the memory layer, softmax unless another is given. A mask is True for the stored
patterns to leave out, or is added to β ξ Xᵀ, and broadcasts with ``(…, L, S)``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hamdeq._checks import floating, instance, integer, number, wrong
from hamdeq.elimination.attention import Retrieval, transformed
from hamdeq.implicit import Adjoint, Implicit
from hamdeq.lagrangians import Separation, Softmax
from hamdeq.nn.inputs import INTEGERS
from hamdeq.nn.settling import settle as _settle
from hamdeq.solvers import Failures, OnFailure, Picard, Solution, Solver

__all__ = [
    "energy",
    "error_bound",
    "jacobian_bound",
    "metastability",
    "pattern_separation",
    "retrieve",
    "settle",
]


def retrieve(
    state: Tensor,
    stored: Tensor,
    beta: float | Tensor = 1.0,
    steps: int | None = 1,
    *,
    mask: Tensor | None = None,
    lagrangian: Separation | None = None,
) -> Tensor:
    """State patterns after some updates ξ <- Xᵀ softmax(β X ξ).

    Args:
        state: ξ, ``(…, L, d)``.
        stored: X, ``(…, S, d)``; leading axes broadcast with those of the state.
        beta: inverse temperature > 0, a number or a tensor that broadcasts with ``(…, L, 1)``.
        steps: updates; None for as many as it takes, see :func:`settle`.
        mask: stored patterns to leave out.
        lagrangian: of the memory layer, at β = 1; default :class:`~hamdeq.Softmax`.

    Returns:
        ``(…, L, d)``; zeros where all stored patterns are left out.

    Raises:
        ValueError: shapes that do not fit, a number β that is not finite and > 0, steps < 0, a
            Lagrangian that brings its own β.
        TypeError: patterns that are not of floating point, a mask that is neither that nor boolean.

    Source: Ramsauer et al. (ICLR 2021), equation 3.

    Example:
        >>> patterns = 4.0 * torch.eye(8)
        >>> noisy = patterns[:2] + 0.3
        >>> bool((retrieve(noisy, patterns) - patterns[:2]).abs().max() < 1e-3)
        True
    """
    if steps is None:
        return settle(state, stored, beta, mask=mask, lagrangian=lagrangian).value
    steps = integer("steps", steps, least=0, expected="an integer ≥ 0, or None")
    memory, x, lead = _memory(state, stored, beta, mask, lagrangian)
    for _ in range(steps):
        x = memory.update(x)
    return x.reshape(*lead, *x.shape[2:])


def settle(
    state: Tensor,
    stored: Tensor,
    beta: float | Tensor = 1.0,
    *,
    mask: Tensor | None = None,
    lagrangian: Separation | None = None,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """State patterns updated until each has converged, with the gradient of the equilibrium.

    Args:
        state, stored, beta, mask, lagrangian: as of :func:`retrieve`.
        solver: default ``Picard()``, whose steps are the updates of :func:`retrieve`.
        adjoint: gradient method, default :class:`~hamdeq.Implicit`.
        on_failure: for state patterns that do not converge: warn, raise or ignore.

    Returns:
        a Solution; its ``value`` is ``(…, L, d)``, and ``steps``, ``residual``, ``converged`` and
        ``status`` are ``(…, L)``.
    """
    memory, x, lead = _memory(state, stored, beta, mask, lagrangian)
    solution = _settle(
        memory,
        x,
        solver=Picard() if solver is None else solver,
        adjoint=Implicit() if adjoint is None else adjoint,
        failures=Failures(on_failure),
    )
    names = ("value", "residual", "steps", "converged", "status")
    parts = {name: getattr(solution, name) for name in names}
    parts = {name: part.reshape(*lead, *part.shape[2:]) for name, part in parts.items()}
    trace = solution.trace
    return replace(solution, **parts, trace=trace.reshape(len(trace), *lead, trace.shape[-1]))


def energy(
    state: Tensor,
    stored: Tensor,
    beta: float | Tensor = 1.0,
    *,
    mask: Tensor | None = None,
    lagrangian: Separation | None = None,
) -> Tensor:
    """E(ξ) = −lse(β, Xξ) + ½ξᵀξ + β⁻¹ ln N + ½M²: ``(…, L)``, never negative.

    lse(β, z) = β⁻¹ ln Σ exp(βzᵢ), N is the number of stored patterns and M the largest norm among
    them. Of another Lagrangian L it is −L(Xξ) + ½ξᵀξ + L(0) + ½M². Updates never raise it.

    Source: Ramsauer et al. (ICLR 2021), equation 2.
    """
    memory, x, lead = _memory(state, stored, beta, mask, lagrangian)
    alike = x if memory.varies else x[..., :1, :]
    constants = memory.by_rows(
        torch.zeros_like(alike),
        lambda memory, zero: memory.potential(zero)[..., None] + 0.5 * memory.radius(zero) ** 2,
    )
    value = memory.energy(x) + constants.squeeze(-1)
    return value.to(x.dtype).reshape(*lead, x.shape[-2])


def pattern_separation(stored: Tensor) -> Tensor:
    """Δᵢ = xᵢᵀxᵢ − max over j ≠ i of xᵢᵀxⱼ: ``(…, S, d) -> (…, S)``; ∞ of a pattern alone.

    A pattern is retrieved well where this is large beside 1/β: see :func:`error_bound`.

    Source: Ramsauer et al. (ICLR 2021), equation 4.
    """
    _check_patterns("stored", stored)
    wide = stored.to(torch.promote_types(stored.dtype, torch.float32))
    own, count = wide.square().sum(-1), stored.shape[-2]
    if count < 2:
        return torch.full_like(own, torch.inf, dtype=stored.dtype)
    places = torch.arange(count, device=stored.device)

    def nearest(rows: Tensor, at: Tensor) -> Tensor:
        return (rows @ wide.mT).masked_fill(at[:, None] == places, -torch.inf).amax(-1)

    # A block of rows at a time: all products together are the square of the patterns' number.
    size = max(1, 2**22 // count) if count > 4096 else count
    again = torch.is_grad_enabled() and size < count
    largest = [
        checkpoint(nearest, rows, at, use_reentrant=False) if again else nearest(rows, at)
        for rows, at in zip(wide.split(size, -2), places.split(size), strict=True)
    ]
    return (own - torch.cat(largest, -1)).to(stored.dtype)


def error_bound(
    stored: Tensor, beta: float | Tensor = 1.0, distance: float | Tensor = 0.0
) -> Tensor:
    """Bound on ‖f(ξ) − xᵢ‖ after one update from a state near each pattern: ``(…, S)``.

    2(N − 1) exp(−β(Δᵢ − 2‖ξ − xᵢ‖ M)) M, with the separation Δᵢ and the largest norm M. It holds
    everywhere; it says something where patterns are well separated.

    Args:
        stored: xᵢ, ``(…, S, d)``.
        beta: inverse temperature, a number or a tensor that broadcasts with ``(…, S, 1)``.
        distance: ‖ξ − xᵢ‖, for all or for each pattern ``(…, S)``.

    Source: Ramsauer et al. (ICLR 2021), theorem 5, without the distance of the fixed point, which
    its proof does not need.
    """
    _check_beta(beta)
    _check_patterns("stored", stored)
    if not stored.shape[-2]:
        raise wrong("stored", "at least one pattern", tuple(stored.shape))
    if isinstance(beta, Tensor) and beta.dim():
        _check_fits("beta", beta, (*stored.shape[:-1], 1))
        beta = beta.squeeze(-1)
    largest = stored.norm(dim=-1).amax(-1, keepdim=True)
    gap = pattern_separation(stored) - 2.0 * distance * largest
    return 2.0 * (stored.shape[-2] - 1) * torch.exp(-beta * gap) * largest


def jacobian_bound(
    stored: Tensor, beta: float | Tensor = 1.0, distance: float | Tensor = 0.0
) -> Tensor:
    """Bound on ‖∂f/∂ξ‖₂ of one update f at a state near each pattern: ``(…, S)``.

    2βN M² (N − 1) exp(−β(Δᵢ − 2‖ξ − xᵢ‖ M)), with the separation Δᵢ and the largest norm M of the N
    patterns. Below 1 the update contracts there, so that it converges to one fixed point x*, and

        ‖f(ξ) − x*‖ ≤ bound · ‖ξ − x*‖

    where ``distance`` is the larger one of ‖ξ − xᵢ‖ and ‖x* − xᵢ‖. It holds everywhere; it says
    something where patterns are well separated.

    Args:
        stored: xᵢ, ``(…, S, d)``.
        beta: inverse temperature, a number or a tensor that broadcasts with ``(…, S, 1)``.
        distance: ‖ξ − xᵢ‖, for all or for each pattern ``(…, S)``.

    Source: Ramsauer et al. (ICLR 2021), appendix, equations 179 and 394.
    """
    errors = error_bound(stored, beta, distance)  # 2(N − 1) exp(…) M
    if isinstance(beta, Tensor) and beta.dim():
        beta = beta.squeeze(-1)
    largest = stored.norm(dim=-1).amax(-1, keepdim=True)
    return beta * stored.shape[-2] * largest * errors


def metastability(weights: Tensor, mass: float | None = None) -> Tensor:
    """Effective number of patterns that are read: ``(…, S) -> (…)``.

    exp of the entropy −Σ pᵢ ln pᵢ: 1 where one pattern is retrieved, N where all are averaged, k
    in a metastable state between k patterns, 0 where all are masked. With ``mass``, the least
    number of patterns that hold this share of the weight, as in figure 2 of the paper with 0.9.

    Args:
        weights: distributions along the last axis, such as ``get_association_matrix`` returns: per
            head, ``(N, H, L, S) -> (N, H, L)``.
        mass: a share, 0 < mass ≤ 1.

    Raises:
        ValueError: negative weights or a mass out of range.

    Source: Ramsauer et al. (ICLR 2021), section 3.
    """
    if _readable(weights) and bool((weights < 0).any()):
        remedy = "give the weights of the patterns, not their similarities"
        raise wrong("weights", "none that is negative", weights.min().item(), remedy)
    sums = weights.sum(-1, keepdim=True)
    something = sums.squeeze(-1) > 0
    if mass is None:
        p = weights / torch.where(sums > 0, sums, 1.0)  # dropout and rounding change the sum
        return torch.exp(-torch.xlogy(p, p).sum(-1)) * something
    mass = number("mass", mass, above=0, most=1)
    gathered = weights.sort(-1, descending=True).values.cumsum(-1)
    # The share is of what there is.
    wanted = mass * gathered[..., -1:]
    return (1 + (gathered < wanted).sum(-1)) * something


def _memory(
    state: Tensor,
    stored: Tensor,
    beta: float | Tensor,
    mask: Tensor | None,
    lagrangian: Separation | None,
) -> tuple[Retrieval, Tensor, torch.Size]:
    """The stored patterns as a memory, the state as it takes it, and the leading axes of both."""
    _check_patterns("state", state)
    _check_patterns("stored", stored)
    if state.shape[-1] != stored.shape[-1] or state.dtype != stored.dtype:
        own = f"({stored.shape[-1]}, {stored.dtype})"
        expected = f"patterns of the size and dtype of the stored ones, {own}"
        raise wrong("state", expected, f"({state.shape[-1]}, {state.dtype})")
    _check_beta(beta)
    lagrangian = Softmax() if lagrangian is None else lagrangian
    instance("lagrangian", lagrangian, Separation, "a hamdeq.Separation such as Sparsemax()")
    if isinstance(lagrangian.beta, Tensor) or lagrangian.beta != 1:
        remedy = "give the inverse temperature as beta"
        raise wrong("lagrangian", "one at beta 1", repr(lagrangian), remedy)
    try:
        lead = torch.broadcast_shapes(state.shape[:-2], stored.shape[:-2])
    except RuntimeError:
        own = tuple(stored.shape[:-2])
        expected = f"leading axes that broadcast with those of the stored patterns, {own}"
        raise wrong("state", expected, tuple(state.shape[:-2])) from None
    rows, patterns = state.shape[-2], stored.shape[-2]

    def joined(x: Tensor) -> Tensor:
        """Give x one leading axis, of size one for what is shared, and one for the heads."""
        if x.shape[:-2].numel() == 1:
            return x.reshape(1, 1, *x.shape[-2:])
        x = x.expand(*lead, *x.shape[-2:])
        return x.reshape(math.prod(lead), 1, *x.shape[-2:])

    if isinstance(beta, Tensor):
        _check_fits("beta", beta, (*lead, rows, 1))
        beta = joined(_matrix(beta)) if beta.dim() else beta
    if mask is not None:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        if kind != torch.bool and not (isinstance(mask, Tensor) and mask.is_floating_point()):
            expected = "a boolean mask, True to leave a pattern out, or one of floating point"
            raise wrong("mask", expected, kind, INTEGERS, kind=TypeError)
        _check_fits("mask", mask, (*lead, rows, patterns))
        mask = joined(_matrix(mask))
        # The last axis may be one for all.
        mask = mask.expand(*mask.shape[:3], patterns)
    state = state.expand(*lead, *state.shape[-2:])
    state = state.reshape(math.prod(lead), 1, *state.shape[-2:])
    return Retrieval(joined(stored), lagrangian, beta, mask), state, lead


def _matrix(x: Tensor) -> Tensor:
    """At least two axes."""
    return x if x.dim() > 1 else x[None]


def _check_beta(beta: float | Tensor) -> None:
    """Refuse what is no inverse temperature, or tensor of them."""
    if not isinstance(beta, Tensor):
        number("beta", beta, above=0)
    elif _readable(beta) and not bool(((beta > 0) & beta.isfinite()).all()):
        raise wrong("beta", "finite numbers > 0", repr(beta))


def _readable(x: Tensor) -> bool:
    """True if values can be looked at, without waiting for a device."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed())


def _check_fits(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that does not broadcast to a shape."""
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > len(shape) or not all(n in (1, size) for n, size in pairs):
        raise wrong(name, f"a shape that broadcasts to {shape}", tuple(x.shape))


def _check_patterns(name: str, patterns: Tensor) -> None:
    """Refuse what are no patterns ``(…, patterns, size)`` of floating point."""
    floating(name, patterns)
    if patterns.is_nested:
        remedy = "give torch.nested.to_padded_tensor(x, 0.0) with a mask that is True where it pads"
        expected = "a dense tensor (…, patterns, size)"
        raise wrong(name, expected, "a nested one", remedy, kind=TypeError)
    if patterns.dim() < 2:
        expected, remedy = "a tensor (…, patterns, size)", "give one pattern as pattern[None]"
        raise wrong(name, expected, f"shape {tuple(patterns.shape)}", remedy)
