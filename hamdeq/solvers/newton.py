"""Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.safeguard import Extrapolation, Safeguarded
from hamdeq.solvers.state import Step, where_sample

__all__ = ["Newton"]


@dataclass(frozen=True, kw_only=True)
class Newton(Safeguarded):
    """Newton's method on f(x) − x with the exact Jacobian, for small states.

    The next state is ``x + (I − J)⁻¹ (f(x) − x)`` with J = ∂f/∂x of each sample, which takes n
    products with Jᵀ, batched, for a state of n numbers, and n² numbers a sample. ``steps`` and
    ``n_evals`` count evaluations of f alone. Of an energy model a sample takes the plain step
    where the energy is not convex, since Newton's method is drawn to saddles as well. Otherwise
    the safeguard is that of :class:`~hamdeq.solvers.safeguard.Safeguarded`.

    Args:
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
        fallback_steps: of an energy model, evaluations by :class:`~hamdeq.TrustRegion` after these.

    Raises:
        TypeError: in the solve, f cannot be differentiated by autograd.
    """

    def extrapolation(self, x0: Tensor) -> Extrapolation:
        return _Tangent()


class _Tangent(Extrapolation):
    """The linearisation of f at each state; nothing is remembered."""

    shortens = True

    def __call__(self, step: Step) -> Tensor:
        model = step.f.recordable() if isinstance(step.f, EnergyMap) else None
        if model is None or step.info is None:
            jacobian, r = _jacobian(step.f, step.x), step.r
        else:
            # All layers at once, whatever order f takes them in: the derivative tells convexity.
            jacobian, r = _jacobian(model.image, step.x), step.info.fields - step.x
        identity = torch.eye(step.x.shape[1], dtype=jacobian.dtype, device=jacobian.device)
        # A singular system gives infinities, which the safeguard turns down.
        change = torch.linalg.solve_ex(identity - jacobian, r.to(jacobian.dtype))[0]
        x = step.x + change.to(step.x.dtype)
        return x if model is None else where_sample(_is_convex(model, step.x, jacobian), x, step.fx)


def _is_convex(f: EnergyMap, x: Tensor, jacobian: Tensor) -> Tensor:
    """Whether the energy is convex around x: ``(batch,)``.

    In g its Hessian is D⁻¹ − S, with D = ∂g/∂x and ∂f/∂x = S D; this one is D − D S D.
    """
    gain = _jacobian(f.activations, x)
    hessian = gain - gain @ jacobian
    # Saturated neurons have neither gain nor a say.
    size = gain.diagonal(dim1=1, dim2=2)
    eps = torch.finfo(hessian.dtype).eps
    hessian.diagonal(dim1=1, dim2=2).add_(eps * size.amax(1, keepdim=True))
    return torch.linalg.cholesky_ex(hessian)[1] == 0


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
    # There is no linear algebra for half precision.
    return columns.transpose(0, 1).to(torch.promote_types(x.dtype, torch.float32))
