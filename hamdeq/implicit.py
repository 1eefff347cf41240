"""Equilibria as differentiable functions: ``fixed_point`` and its gradient methods.

At x* = f(x*; θ) the implicit function theorem gives ``dx*/dθ = (I − ∂f/∂x)⁻¹ ∂f/∂θ``. A solver
finds x* without a graph; a gradient method (*adjoint*) then attaches the graph. The two choices
are independent of each other.

Source: Bai, Kolter & Koltun, "Deep Equilibrium Models" (2019), theorem 1; Almeida (1987) and
Pineda (1987), recurrent back-propagation.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hamdeq.solvers import Anderson, Solution, Solver, Status

__all__ = [
    "Adjoint",
    "ConvergenceError",
    "ConvergenceWarning",
    "Implicit",
    "Phantom",
    "Unrolled",
    "fixed_point",
]

Map = Callable[[Tensor], Tensor]
Report = Callable[[Solution], None]
OnFailure = Literal["warn", "raise", "ignore"]


class ConvergenceWarning(UserWarning):
    """Some samples did not reach their equilibrium."""


class ConvergenceError(RuntimeError):
    """Some samples did not reach their equilibrium, and ``on_failure="raise"``."""


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
        # The value stays the one whose residual is reported; only the gradient is z's.
        return x + (z - z.detach()) if z.requires_grad else x


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
        solver: default ``Anderson()``.
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
        >>> solution = fixed_point(torch.cos, torch.zeros(1, 1), solver=Anderson(tol=1e-6))
        >>> round(solution.value.item(), 5)
        0.73909
    """
    failures = Failures(on_failure)
    solution = equilibrium(
        f, x0, solver=solver or Anderson(), adjoint=adjoint or Implicit(), failures=failures
    )
    failures(solution, "equilibrium", stacklevel=3)
    return solution


def equilibrium(
    f: Callable[[Any], Any], x0: Any, *, solver: Solver, adjoint: Adjoint, failures: Failures
) -> Solution:
    """:func:`fixed_point` without a word about the forward solve; the caller has it."""
    form = _Form(x0)

    def flat(x: Tensor) -> Tensor:
        return form.flatten(f(form.restore(x)))

    solution = solver.solve(flat, form.flatten(x0).detach())

    def report(backward: Solution) -> None:
        solution.adjoint.append(backward)
        failures(backward, "gradient", stacklevel=2)

    x = solution.value
    if torch.is_grad_enabled():
        x = adjoint.attach(flat, x, solver, report)
    return replace(solution, value=form.restore(x))


class Failures:
    """What to do about samples that did not converge.

    Args:
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        once: warn only once of each kind of solve.
    """

    def __init__(self, on_failure: OnFailure, *, once: bool = False) -> None:
        if on_failure not in ("warn", "raise", "ignore"):
            raise ValueError(
                f"on_failure: expected 'warn', 'raise' or 'ignore', got {on_failure!r}"
            )
        self.on_failure = on_failure
        self.once = once
        self._warned: set[str] = set()

    def __call__(self, solution: Solution, what: str, *, stacklevel: int) -> None:
        """Warn of, or raise for, the samples of a solve that did not converge.

        Raises:
            ConvergenceError: there are some, and ``on_failure="raise"``.
        """
        quiet = self.on_failure == "ignore" or (self.once and what in self._warned)
        if quiet or bool(solution.converged.all()):
            return
        total = len(solution.status)
        counts = [(s, int((solution.status == s).sum())) for s in Status if s != Status.CONVERGED]
        parts = (f"{n} of {total} samples: {s.message}" for s, n in counts if n)
        text = f"{what} not reached by {'; '.join(parts)}"
        if self.on_failure == "raise":
            raise ConvergenceError(text)
        self._warned.add(what)
        warnings.warn(text, ConvergenceWarning, stacklevel=stacklevel + 1)


class _Form:
    """The form of a state (tensor, tuple or dict), and its way to ``(batch, n)`` and back."""

    def __init__(self, x0: Any) -> None:
        self.keys = tuple(x0) if isinstance(x0, dict) else None
        self.kind = type(x0) if isinstance(x0, Tensor | tuple | list | dict) else Tensor
        leaves = self._leaves(x0, "x0")
        if not leaves:
            raise ValueError("x0: expected at least one tensor, got none")
        for leaf in leaves:
            if not leaf.is_floating_point() or leaf.dim() == 0:
                raise TypeError(
                    "x0: expected floating-point tensors (batch, *shape), got "
                    f"{leaf.dtype} of shape {tuple(leaf.shape)}"
                )
        self.batch, self.dtype = len(leaves[0]), leaves[0].dtype
        self.shapes = [leaf.shape[1:] for leaf in leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self._check(leaves, "x0")

    def flatten(self, x: Any) -> Tensor:
        """One row a sample: ``(batch, n)``."""
        leaves = self._leaves(x, "f")
        self._check(leaves, "f")
        flat = [leaf.reshape(self.batch, n) for leaf, n in zip(leaves, self.sizes, strict=True)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def restore(self, flat: Tensor) -> Any:
        """The rows in the form of x0."""
        parts = flat.split(self.sizes, dim=1) if len(self.sizes) > 1 else (flat,)
        leaves = [
            part.reshape(len(flat), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        if self.keys is not None:
            return dict(zip(self.keys, leaves, strict=True))
        return leaves[0] if issubclass(self.kind, Tensor) else tuple(leaves)

    def _leaves(self, x: Any, who: str) -> list[Tensor]:
        if self.keys is not None:
            if not isinstance(x, dict) or set(x) != set(self.keys):
                got = list(x) if isinstance(x, dict) else type(x).__name__
                raise ValueError(f"{who}: expected a dict of {list(self.keys)}, got {got}")
            leaves = [x[key] for key in self.keys]
        elif issubclass(self.kind, Tensor):
            leaves = [x]
        else:
            leaves = list(x) if isinstance(x, tuple | list) else [x]
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{who}: expected floating-point tensors (batch, *shape), alone or in a tuple "
                    f"or dict as in x0, got {type(leaf).__name__}"
                )
        return leaves

    def _check(self, leaves: list[Tensor], who: str) -> None:
        wanted = [(self.batch, *shape) for shape in self.shapes]
        got = [tuple(leaf.shape) for leaf in leaves]
        if got != wanted:
            raise ValueError(f"{who}: expected it to keep the shapes {wanted} of x0, got {got}")
        if any(leaf.dtype != self.dtype for leaf in leaves):
            raise TypeError(
                f"{who}: expected the dtype {self.dtype}, with which x0 begins, throughout, got "
                f"{[leaf.dtype for leaf in leaves]}"
            )
