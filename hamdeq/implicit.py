"""Equilibria as differentiable functions: ``fixed_point`` and its gradient methods.

At x* = f(x*; θ) the implicit function theorem gives ``dx*/dθ = (I − ∂f/∂x)⁻¹ ∂f/∂θ``. A solver
finds x* without a graph; a gradient method (*adjoint*) then attaches the graph. The two choices
are independent of each other.

Source: Bai, Kolter & Koltun, "Deep Equilibrium Models" (2019), theorem 1; Almeida (1987) and
Pineda (1987), recurrent back-propagation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hamdeq.forms import Form
from hamdeq.solvers import Broyden, Failures, OnFailure, Solution, Solver

__all__ = [
    "Adjoint",
    "Implicit",
    "Phantom",
    "Unrolled",
    "fixed_point",
]

Map = Callable[[Tensor], Tensor]
Report = Callable[[Solution], None]


class Adjoint(ABC):
    """A gradient method: how an equilibrium found without a graph gets its gradient."""

    @abstractmethod
    def attach(self, f: Map, x: Tensor, solver: Solver, report: Report) -> Tensor:
        """A tensor equal to x, to the last bit, with a graph to what f depends on, if anything.

        Args:
            f: the map, ``(batch, n) -> (batch, n)``.
            x: its fixed point, ``(batch, n)``, without a graph.
            solver: the solver that found it.
            report: to be called in each backward pass that solves a system, with its solution.
        """


@dataclass(frozen=True, kw_only=True)
class Implicit(Adjoint):
    """The exact gradient at the equilibrium, by the implicit function theorem.

    The backward pass solves ``v = (∂f/∂x)ᵀ v + ∂ℓ/∂x*`` with a fixed-point solver and makes one
    vector-Jacobian product with the parameters. Memory does not grow with steps.

    Args:
        solver: for that linear system; by default the one of the forward solve. Its ``tol`` is
            the relative residual of v, and thus the order of the gradient's relative error.

    Raises:
        RuntimeError: in the backward pass, when a second derivative is asked for
            (``create_graph=True``); use :class:`Unrolled`.
    """

    solver: Solver | None = None

    def attach(self, f: Map, x: Tensor, solver: Solver, report: Report) -> Tensor:
        # One evaluation serves both: the products with (∂f/∂x)ᵀ and, at last, with (∂f/∂θ)ᵀ.
        z = x.detach().requires_grad_()
        fz = f(z)
        if not _leads_beyond(fz, z):
            return x

        def transposed_jacobian(v: Tensor) -> Tensor:
            return torch.autograd.grad(fz, z, v, retain_graph=True, materialize_grads=True)[0]

        return _ImplicitFunction.apply(fz, x, transposed_jacobian, self.solver or solver, report)


def _leads_beyond(fz: Tensor, z: Tensor) -> bool:
    """Whether the graph of f(z) leads to anything but z: whether a gradient has a use."""
    seen, stack = set(), [fz.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not z:
            return True
        stack.extend(parent for parent, _ in node.next_functions)
    return False


class _ImplicitFunction(torch.autograd.Function):
    """Forward: x. Backward: the v that x sends into f(x; θ)."""

    @staticmethod
    def forward(
        ctx: Any, fx: Tensor, x: Tensor, jacobian: Map, solver: Solver, report: Report
    ) -> Tensor:
        ctx.jacobian, ctx.solver, ctx.report = jacobian, solver, report
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the implicit gradient has no second derivative: expected backward() without "
                "create_graph=True; for higher derivatives use adjoint=Unrolled(steps)"
            )
        (grad,) = grads
        # The system is linear: solved for a right-hand side of size one, so that the small
        # gradients of a mean over a large batch do not fall below the rounding of the norms.
        scale = grad.abs().amax(dim=1, keepdim=True) if grad.numel() else grad
        unit = grad / torch.where(scale > 0, scale, 1.0)
        solution = ctx.solver.solve(lambda v: ctx.jacobian(v) + unit, unit)
        ctx.report(replace(solution, value=None))
        return solution.value * scale, None, None, None, None


class _Steps(Adjoint):
    """Gradient through a few steps of the map, started at the equilibrium."""

    steps: int

    def _check(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected an integer ≥ 1, got {self.steps!r}")

    @abstractmethod
    def step(self, f: Map, z: Tensor) -> Tensor:
        """One step."""

    def attach(self, f: Map, x: Tensor, solver: Solver, report: Report) -> Tensor:
        z = x
        for _ in range(self.steps):
            z = self.step(f, z)
        return _Attach.apply(z, x) if z.requires_grad else x


class _Attach(torch.autograd.Function):
    """The value of x, whose residual is the one reported, with the gradient of z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


@dataclass(frozen=True)
class Unrolled(_Steps):
    """Back-propagation through k steps x <- f(x) at the equilibrium (recurrent back-propagation).

    Its limit for k → ∞ is the implicit gradient wherever the map contracts. It can be
    differentiated again; memory grows with k.

    Args:
        steps: k ≥ 1. One step is the Jacobian-free gradient (Fung et al. 2022).
    """

    steps: int

    def __post_init__(self) -> None:
        self._check()

    def step(self, f: Map, z: Tensor) -> Tensor:
        return f(z)


@dataclass(frozen=True)
class Phantom(_Steps):
    """Back-propagation through k damped steps x <- x + τ (f(x) − x) at the equilibrium.

    Args:
        steps: k ≥ 1.
        damping: τ in (0, 1].

    Source: Geng et al., "On Training Implicit Models" (2021), equation 6.
    """

    steps: int
    damping: float = 0.5

    def __post_init__(self) -> None:
        self._check()
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: expected a number in (0, 1], got {self.damping!r}")

    def step(self, f: Map, z: Tensor) -> Tensor:
        return z + self.damping * (f(z) - z)


def fixed_point(
    f: Callable[[Any], Any],
    x0: Any,
    *,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Solve x = f(x) for every sample of a batch, differentiably.

    Args:
        f: the map. Each sample's image depends on that sample alone.
        x0: initial state: a tensor ``(batch, *shape)``, or a tuple or dict of such, all of one
            floating dtype; f takes and returns the same.
        solver: default ``Broyden()``.
        adjoint: gradient method, default ``Implicit()``; used wherever gradients are enabled, in
            training and evaluation mode alike.
        on_failure: what to do when samples do not converge: warn, raise or nothing.

    Returns:
        the :class:`~hamdeq.Solution`, its ``value`` in the form of x0.

    Raises:
        ConvergenceError: samples did not converge and ``on_failure="raise"``.
        TypeError: x0 is not of floating point.
        ValueError: f returns another form or shape than x0.

    Example:
        >>> solution = fixed_point(torch.cos, torch.zeros(1, 1), solver=Broyden(tol=1e-6))
        >>> round(solution.value.item(), 5)
        0.73909
    """
    solver, adjoint, failures = solver or Broyden(), adjoint or Implicit(), Failures(on_failure)
    solution = solve(f, x0, solver)
    failures(solution, "equilibrium", stacklevel=3)
    return attach(f, solution, solver=solver, adjoint=adjoint, failures=failures)


def solve(f: Callable[[Any], Any], x0: Any, solver: Solver) -> Solution:
    """The first half of :func:`fixed_point`: the equilibrium, without a graph or a word."""
    form = Form(x0)
    solution = solver.solve(form.rows(f), form.flatten(x0).detach())
    return replace(solution, value=form.restore(solution.value))


def attach(
    f: Callable[[Any], Any],
    solution: Solution,
    *,
    solver: Solver,
    adjoint: Adjoint,
    failures: Failures,
) -> Solution:
    """The second half: the same value, with its gradient where gradients are enabled."""
    if not torch.is_grad_enabled():
        return solution

    def report(backward: Solution) -> None:
        solution.adjoint.append(backward)
        failures(backward, "gradient", stacklevel=2)

    form = Form(solution.value)
    x = adjoint.attach(form.rows(f), form.flatten(solution.value), solver, report)
    return replace(solution, value=form.restore(x))
