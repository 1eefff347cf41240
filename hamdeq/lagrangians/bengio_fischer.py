"""The neurons of the continuous Hopfield network, as neurons of a hierarchical memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hamdeq._checks import instance, require
from hamdeq.lagrangians.base import Lagrangian, total
from hamdeq.lagrangians.inverse_table import InverseTable, check_elementwise, log_slope

__all__ = ["BengioFischer"]


class BengioFischer(Lagrangian):
    """Neurons of the continuous Hopfield network (CHN) of Bengio & Fischer.

    The energy of a CHN is ½‖s‖² plus the synapses' energies of ρ(s), so that at rest
    ``s = ρ′(s) I``. With ``ς(s) = s/ρ′(s)`` and u = ς(s) this reads u = I: the equilibrium of a
    HAM, whose neurons at rest have their field as their state. Their Lagrangian, activation and
    Legendre transform are

        L(u) = Σᵢ [uᵢ ρ(sᵢ) − ½sᵢ²],    gᵢ = ρ(sᵢ),    L*(g) = ½‖s‖²,    s = ς⁻¹(u),

    for ∂L/∂u = ρ(s) + (u ρ′(s) − s) ∂s/∂u, where the bracket is zero. L is convex where ρ
    increases and ς does.

    Args:
        rho: a Lagrangian whose activation is ρ, elementwise: :class:`~hamdeq.Sigmoid`,
            :class:`~hamdeq.Tanh`, :class:`~hamdeq.Identity`, or one of your own. If ρ saturates,
            give it a method ``log_slope(x)`` that returns ln ρ′(x) and its derivative in closed
            form; by automatic differentiation ρ′ is lost where ρ has rounded to a constant.

    Raises:
        TypeError: rho is no Lagrangian.
        ValueError: ρ is not elementwise, ρ′ is not positive somewhere, or ς does not increase from
            −∞ to ∞; the message says where. A sigmoid's does where abs(β·center) is below
            √3 + ln(2 + √3) = 3.049, at which it gets too flat to be inverted. If ρ has
            parameters, also later, once they have changed.

    Source: Goemaere et al., "Accelerating Hierarchical Associative Memory: A Deep Equilibrium
    Approach" (2023), appendix A; Bengio & Fischer, "Early Inference in Energy-Based Models
    Approximates Back-Propagation" (2015).
    """

    additive = True

    def __init__(self, rho: Lagrangian) -> None:
        super().__init__()
        expected = "a Lagrangian whose activation is ρ, such as hamdeq.Sigmoid(4.0, 0.5)"
        instance("rho", rho, Lagrangian, expected)
        require(not isinstance(rho, BengioFischer), "rho", expected, rho, kind=TypeError)
        check_elementwise(rho)
        self.rho = rho
        self._table = InverseTable(rho)

    def forward(self, x: Tensor) -> Tensor:
        s = self.from_ham(x)
        return total(_finite(x) * self.rho.activation(s) - 0.5 * s * s)

    def activation(self, x: Tensor) -> Tensor:
        return self.rho.activation(self.from_ham(x))

    def energy(self, x: Tensor) -> Tensor:
        s = self.from_ham(x)
        return 0.5 * total(s * s)

    def to_ham(self, s: Tensor) -> Tensor:
        """u = ς(s) = s/ρ′(s), elementwise.

        It grows as fast as ρ saturates: of a finite s that it would take beyond the largest number
        of the dtype it is about a third of that, where the activation is the same to rounding. What
        is not finite stays as it is.
        """
        finite = s.isfinite()
        given, s = s, torch.where(finite, s, 0.0)
        log, _ = log_slope(self.rho, s)
        # Before the exponential, as the gradient of what overflows is NaN.
        room = _log_max(s) - s.detach().abs().clamp_min(1.0).log()
        return torch.where(finite, s * torch.exp(torch.minimum(-log, room)), given)

    def from_ham(self, u: Tensor) -> Tensor:
        """s = ς⁻¹(u), elementwise, to rounding; differentiable as often as ρ′."""
        if u.dtype in (torch.float16, torch.bfloat16):
            return self.from_ham(u.float()).to(u.dtype)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.rho.parameters()):
            # Two steps of Newton's method from the solution change no digit of it, and have its
            # derivatives up to the third, with respect to u and the parameters alike.
            u = _finite(u)
            with torch.no_grad():
                s = self.table().solve(self.rho, u)
            return self._newton(self._newton(s, u), u)
        return _Inverse.apply(u, self)  # pyright: ignore[reportReturnType]

    def _newton(self, s: Tensor, u: Tensor) -> Tensor:
        """A step for s = u ρ′(s)."""
        log, slope = log_slope(self.rho, s)
        return s - (s - u * torch.exp(log)) / (1.0 - s * slope)

    def table(self) -> InverseTable:
        """Table of ς for the present parameters."""
        if not self._table.holds_for(self.rho):
            self._table = InverseTable(self.rho)
        return self._table

    def __repr__(self) -> str:
        """Return it as it is written: on one line."""
        return f"{type(self).__name__}({self.rho})"


class _Inverse(torch.autograd.Function):
    """Forward: s = ς⁻¹(u). Backward: ds/du = 1/ς′(s) = ρ′/(1 − s ρ″/ρ′)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, neurons: BengioFischer) -> Tensor:
        s = neurons.table().solve(neurons.rho, u)
        if ctx.needs_input_grad[0]:
            # Computed here, as the backward solve of an equilibrium asks for it in every step.
            ctx.save_for_backward(s, _slope(neurons.rho, s))
            ctx.rho = neurons.rho
        return s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        s, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, through s
            slope = _slope(ctx.rho, s)
        return grads[0] * slope, None


def _slope(rho: Lagrangian, s: Tensor) -> Tensor:
    log, slope = log_slope(rho, s)
    return torch.exp(log) / (1.0 - s * slope)


def _finite(u: Tensor) -> Tensor:
    """u, with the largest numbers of its dtype in place of infinities."""
    limit = torch.finfo(u.dtype).max
    return u.clamp(-limit, limit)


def _log_max(s: Tensor) -> float:
    return math.log(torch.finfo(s.dtype).max) - 1.0
