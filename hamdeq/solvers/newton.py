"""Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.energy.model import EnergyModel, State
from hamdeq.solvers.energy_map import EnergyMap, StateLayout, ready, transposed_product
from hamdeq.solvers.safeguard import Extrapolation, Safeguarded
from hamdeq.solvers.state import Step, all_without_sync, full_precision, norm, where_sample

__all__ = ["Newton", "linearised_start"]


@dataclass(frozen=True, kw_only=True)
class Newton(Safeguarded):
    """Newton's method with exact derivatives, for small states.

    Of a plain map the next state is ``x + (I − J)⁻¹ (f(x) − x)`` with J = ∂f/∂x of each sample.

    Of an energy model only the fields are linearised, and the activations stay exact. With
    S = ∂I/∂g at g = g(x) the next state x′ solves

        x′ = I(g) + S (g(x′) − g).

    There L*(g′) plus the quadratic Taylor polynomial of the rest of the energy is stationary: a
    proximal Newton method. What it neglects is of second order in the change of the *eliminated*
    layers' states, and so a trained memory mostly takes two evaluations. The equation is solved by
    Newton's method, without an evaluation of f, and where its energy is not convex by plain steps,
    since Newton's method is drawn to saddles as well. The safeguard is that of
    :class:`~hamdeq.solvers.safeguard.Safeguarded`.

    For a state of n numbers, J and S take n² numbers a sample, and n products with a transposed
    derivative, batched. Where the eliminated neurons are independent and have linear synapses with
    the others, S is in closed form, Σ K_Bᵀ D_B K_B with the weights K_B and the slopes D_B of the
    eliminated neurons, and takes one product of matrices. ``steps`` and ``n_evals`` count
    evaluations of f alone.

    Args:
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.

    Raises:
        TypeError: in the solve, f cannot be differentiated by autograd.

    Source: Lee, Sun & Saunders, "Proximal Newton-type methods for minimizing composite functions"
    (2014), for the exact L*.
    """

    def extrapolation(self, x0: Tensor) -> Extrapolation:
        return _Tangent(self.tol)


class _Tangent(Extrapolation):
    """The linearisation of f, or of its fields, at each state; nothing is remembered."""

    shortens = True

    def __init__(self, tol: float) -> None:
        self.tol = tol

    def __call__(self, step: Step) -> Tensor:
        f, info = step.f, step.info
        if isinstance(f, EnergyMap) and info is not None:
            coupling = _coupling(f, info.g) if info.coupling is None else info.coupling()
            return _solve_linearised(f, info.g, info.fields, coupling, self.tol)
        jacobian = _jacobian(f, step.x)
        identity = torch.eye(step.x.shape[1], dtype=jacobian.dtype, device=jacobian.device)
        # A singular system gives infinities, which the safeguard turns down.
        change = torch.linalg.solve_ex(identity - jacobian, step.r.to(jacobian.dtype))[0]
        return step.x + change.to(step.x.dtype)


@torch.no_grad()
def linearised_start(model: EnergyModel, zeros: State) -> State:
    """The equilibrium of an energy whose fields are linearised where no neuron is active.

    It solves x = I(0) + S g(x) with S = ∂I/∂g at g = 0. The fields there take half an evaluation of
    f, as a pass through a feed-forward network does, and S as much as in a step of :class:`Newton`.

    Args:
        model: the energy.
        zeros: of the form of the state to find, ``(batch, *shape)`` each.
    """
    f = EnergyMap(ready(model), StateLayout(zeros))
    g = f.layout.flatten(zeros)
    with full_precision(g):
        fields, coupling = f.linearised(g)
        found = _coupling(f, g) if coupling is None else coupling()
        return f.layout.unflatten(_solve_linearised(f, g, fields, found, _START_TOL))


# Newton's steps in the linearised equation at most, its relative residual as a share of tol, and
# the one from which on a sample takes the plain step instead.
_INNER_STEPS, _INNER_TOL, _FAR = 10, 0.1, 0.1
# As if of a solver to start from there: what is neglected is larger.
_START_TOL = 1e-3


def _solve_linearised(
    f: EnergyMap, g: Tensor, fields: Tensor, coupling: Tensor, tol: float
) -> Tensor:
    """Solve x = I + S (g(x) − g) for x, each sample by itself.

    Args:
        f: the energy model, for its activations g(x).
        g: the activations at which its fields were linearised.
        fields: I, the fields there.
        coupling: S = ∂I/∂g there, ``(batch, n, n)``.
        tol: of the solver.
    """
    f, dtype = f.recordable(), fields.dtype
    g, fields, coupling = (_full(x) for x in (g, fields, coupling))
    x, r = fields, torch.zeros_like(fields)
    tol = max(_INNER_TOL * tol, 4 * torch.finfo(dtype).eps)
    for _ in range(_INNER_STEPS):
        now, gain = _activated(f, x.to(dtype))
        r = fields + _times(coupling, _full(now) - g) - x
        done = norm(r) <= tol * norm(x)
        if all_without_sync(done):
            break
        x = torch.where(done[:, None], x, x + _change(coupling, _full(gain()), r))
    else:
        # On the way to minus infinity, where the energy has no minimum, there is nothing to solve.
        x = torch.where((norm(r) < _FAR * norm(x))[:, None], x, fields)
    return x.to(dtype)


def _full(x: Tensor) -> Tensor:
    """In float32 at least: there is no linear algebra for half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _coupling(f: EnergyMap, g: Tensor) -> Tensor:
    """S = ∂I/∂g by automatic differentiation."""
    return _jacobian(f.recordable().fields, g)


def _activated(f: EnergyMap, x: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """g(x), and what yields D = ∂g/∂x, its diagonal ``(batch, n)`` where that is all of it."""
    if not f.independent:
        return f.activations(x), lambda: _jacobian(f.activations, x)
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        g = f.activations(x)
    return g.detach(), lambda: transposed_product(g, x, torch.ones_like(g))


def _change(coupling: Tensor, gain: Tensor, r: Tensor) -> Tensor:
    """(I − S D)⁻¹ r, and r where the second derivative D⁻¹ − S of the energy is not positive."""
    if gain.dim() == 2:
        # (I − S D) dx = r is (I − √D S √D) y = √D r with dx = r + S √D y.
        root = gain.clamp_min(0.0).sqrt()
        matrix = root[:, :, None] * coupling * -root[:, None]
        matrix.diagonal(dim1=1, dim2=2).add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        y = torch.cholesky_solve((root * r)[..., None], factor)[..., 0]
        change = r + _times(coupling, root * y)
    else:
        hessian = gain - gain @ coupling @ gain
        # Saturated neurons have neither gain nor a say.
        size = gain.diagonal(dim1=1, dim2=2)
        eps = torch.finfo(hessian.dtype).eps
        hessian.diagonal(dim1=1, dim2=2).add_(eps * size.amax(1, keepdim=True))
        failed = torch.linalg.cholesky_ex(hessian)[1]
        identity = torch.eye(r.shape[1], dtype=r.dtype, device=r.device)
        # A singular system gives infinities, which the safeguard turns down.
        change = torch.linalg.solve_ex(identity - coupling @ gain, r)[0]
    return where_sample(failed == 0, change, r)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """The product with one matrix a sample: ``(batch, n)``."""
    return (matrix @ x[..., None])[..., 0]


def _jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f_i/∂x_j of each sample, in float32 at least: ``(batch, n, n)``."""
    batch, n = x.shape
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        fx = f(x)
        rows = torch.eye(n, dtype=x.dtype, device=x.device)[:, None].expand(n, batch, n)
        if fx.requires_grad:
            (columns,) = torch.autograd.grad(fx, x, rows, is_grads_batched=True, allow_unused=True)
            if columns is None:  # a graph to parameters alone
                columns = torch.zeros_like(rows)
        elif torch.equal(f(x + 1), fx):
            columns = torch.zeros_like(rows)
        else:
            raise TypeError(
                "Newton: expected a map that autograd can differentiate, got one whose result has "
                "no graph to the state; use Broyden(), which needs values alone"
            )
    return _full(columns.transpose(0, 1))
