"""α-entmax along the last axis, with all its derivatives and under torch.func.

Ω(p) = Σ (pᵢ^α − pᵢ)/(α(α − 1)) is the negative Tsallis entropy of a distribution p. The package
entmax finds the p that attains max over p of ⟨z, p⟩ − Ω(p), where 1 < α ≤ 2.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["distribution", "entropy", "package", "potential"]


def distribution(z: Tensor, alpha: float) -> Tensor:
    """The p that attains the maximum: ``(…, n) -> (…, n)``."""
    return _Distribution.apply(z, alpha)  # pyright: ignore[reportReturnType]


def potential(z: Tensor, p: Tensor, alpha: float) -> Tensor:
    """The maximum, given the ``p`` that attains it: ``(…, n) -> (…, 1)``."""
    return _Potential.apply(z, p, alpha)  # pyright: ignore[reportReturnType]


def entropy(p: Tensor, alpha: float) -> Tensor:
    """Ω(p) = Σ (pᵢ^α − pᵢ)/(α(α − 1)) along the last axis, which is kept."""
    # A weight of one adds as little as one of zero, and has all derivatives. As p·(p^(α−1) − 1)
    # it keeps its digits where α is near one.
    p = p.where(p != 0, 1.0)
    each = p * torch.expm1((alpha - 1) * p.log())
    return each.sum(-1, keepdim=True) / (alpha * (alpha - 1))


class _Potential(torch.autograd.Function):
    """max over p of ⟨z, p⟩ − Ω(p), given the p that attains it, which is its derivative.

    Differentiated as written it has p^(α−2) in its second derivative, infinite where p is zero.
    """

    @staticmethod
    def forward(z: Tensor, p: Tensor, alpha: float) -> Tensor:
        top = z.amax(-1, keepdim=True)
        gap = torch.where(p > 0, z - top, 0.0)  # where the weight is zero z may be −∞
        return top + (gap * p).sum(-1, keepdim=True) - entropy(p, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        z, p, alpha = args
        z, p = _leading(z, in_dims[0], info), _leading(p, in_dims[1], info)
        return _Potential.apply(z, p, alpha), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (p,) = ctx.saved_tensors
        return grads[0] * p, None, None


class _Distribution(torch.autograd.Function):
    """entmax, with derivatives of all orders: the package's second ones are NaN where p is zero.

    dpᵢ = sᵢ (dzᵢ − ⟨s, dz⟩/Σs) with s = p^(2−α) on the support and zero elsewhere.
    """

    @staticmethod
    def forward(z: Tensor, alpha: float) -> Tensor:
        return _weights(z, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.alpha = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        z, alpha = args
        return _Distribution.apply(_leading(z, in_dims[0], info), alpha), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (p,) = ctx.saved_tensors
        floor = 1e-30 ** (1 / (ctx.alpha - 1))  # below it the slope of s would overflow
        s = p.where(p > 0, 1.0).clamp_min(floor) ** (2 - ctx.alpha) * (p > 0)
        # Relative to v where s is largest, as all but Σs: the difference keeps its digits there.
        v = grads[0] - grads[0].gather(-1, s.detach().argmax(-1, keepdim=True))
        mean = (s * v).sum(-1, keepdim=True) / s.sum(-1, keepdim=True)
        return s * (v - mean), None


def _leading(x: Tensor, axis: int | None, info: Any) -> Tensor:
    """The axis that vmap hides as one more leading axis: any number of them will do."""
    return x.expand(info.batch_size, *x.shape) if axis is None else x.movedim(axis, 0)


def _weights(z: Tensor, alpha: float) -> Tensor:
    """argmax over distributions p of ⟨z, p⟩ − Ω(p)."""
    # The package's bisection is NaN at 1e30 if not shifted, and a row of NaN fails its whole batch.
    top = z.amax(-1, keepdim=True)
    finite = top.isfinite()
    gap = torch.where(finite, z - top, 0.0)
    if alpha > 2:
        p = _steep(gap, alpha - 1)
    elif alpha in (1.5, 2):
        p = (package().sparsemax if alpha == 2 else package().entmax15)(gap, dim=-1)
    else:
        p = package().entmax_bisect(gap, alpha=alpha, dim=-1)
    return torch.where(finite, p, torch.nan)


def _steep(gap: Tensor, a: float) -> Tensor:
    """The weights p = (a(z − τ))^(1/a) on their support, for a = α − 1 > 1.

    A bisection for τ, as the package's, errs by eps^(1/a) in small weights. Here the unknown is
    the smallest weight r on the support. The sum of all weights, (r^a + a(z − edge))^(1/a), is
    convex in r and has a slope from 1 to their number: Newton's method falls to the solution.
    """
    y = a * (gap - _edge(gap, a))
    inside = y >= 0
    p = r = 1.0 / inside.sum(-1, keepdim=True).to(y.dtype)
    compiled = torch.compiler.is_compiling()  # then without a look at values: a fixed number
    for _ in range(20 if compiled else 100):  # it takes about ten
        p = torch.where(y > 0, (r**a + y.clamp_min(0.0)) ** (1 / a), r * inside)
        slope = torch.where(p > 0, r / p, 1.0) ** (a - 1) * inside
        less = r - (p.sum(-1, keepdim=True) - 1) / slope.sum(-1, keepdim=True)
        if not compiled and not bool((less < r).any()):
            break
        r = torch.minimum(r, less.clamp_min(0.0))
    return p


def _edge(gap: Tensor, a: float) -> Tensor:
    """The smallest z of the support, found by halving among the sorted."""
    sorted_, _ = gap.sort(-1, descending=True)
    edge, n = sorted_[..., :1], gap.shape[-1]
    place = torch.zeros_like(edge, dtype=torch.long)
    for bit in reversed(range((n - 1).bit_length())):
        there = place + (1 << bit)
        below = sorted_.gather(-1, there.clamp_max(n - 1))
        above = ((a * (gap - below)).clamp_min(0.0) ** (1 / a)).sum(-1, keepdim=True)
        inside = (there < n) & (above < 1)  # false where the state is −∞
        place, edge = there.where(inside, place), below.where(inside, edge)
    return edge


def package() -> ModuleType:
    """The package entmax, or an ImportError that says how to install it."""
    try:
        import entmax
    except ModuleNotFoundError:
        raise ImportError(
            "sparse separation needs the package entmax, which is not installed: "
            "pip install 'hamdeq[sparse]', or pip install entmax"
        ) from None
    return entmax
