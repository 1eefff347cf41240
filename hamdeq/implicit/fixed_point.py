"""Differentiable equilibria: solve x = f(x) without a graph, then attach the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypeIs

from hamdeq._checks import instance, wrong
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.model import EnergyModel, LayeredEnergy
from hamdeq.implicit.base import Adjoint, RowMap
from hamdeq.implicit.linear import Implicit
from hamdeq.solvers import (
    Broyden,
    Failures,
    OnFailure,
    Solution,
    Solver,
    Status,
    TrustRegion,
    with_fallback,
)
from hamdeq.solvers.energy_map import EnergyMap, StateLayout, ready
from hamdeq.solvers.run import Run
from hamdeq.solvers.state import forget_casts

__all__ = ["as_rows", "attach_gradient", "fixed_point", "solve_state"]


def fixed_point(
    f: Callable[[Any], Any] | EnergyModel,
    x0: Any,
    *,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Solve x = f(x) for every sample of a batch, differentiably.

    Args:
        f: the map, or an energy model such as :func:`~hamdeq.eliminate` returns, of which the
            solver then knows the energy. Each sample's image depends on that sample alone.
        x0: initial state: a tensor ``(batch, *shape)``, or a tuple or dict of such, all of one
            floating dtype; f takes and returns the same.
        solver: default ``Broyden()``.
        adjoint: gradient method, default ``Implicit()``; used wherever gradients are enabled, in
            training and evaluation mode alike. Of an energy model, samples that are lost
            (``DIVERGED`` or ``INVALID``) have zero gradient and leave that of the others as it
            is, unless the model was clamped at what overflows, which only a
            :class:`~hamdeq.DEQ` keeps out as well. Of a plain map, a sample that is not finite
            makes the gradient of what f shares among samples NaN, as everywhere in PyTorch.
        on_failure: what to do when samples do not converge: warn, raise or nothing.

    Returns:
        the :class:`~hamdeq.Solution`, its ``value`` in the form of x0. A sample is ``CONVERGED``
        only if its state is finite and, of a model of which layers are eliminated, these are as
        well. Of one that is ``DIVERGED`` the value is its best finite state, its initial one if
        no other was.

    Raises:
        ConvergenceError: samples did not converge and ``on_failure="raise"``.
        TypeError: x0 is not of floating point.
        ValueError: f returns another form or shape than x0.

    Example:
        >>> solution = fixed_point(torch.cos, torch.zeros(1, 1), solver=Broyden(tol=1e-6))
        >>> round(solution.value.item(), 5)
        0.73909
    """
    f = ready(f)
    solver, adjoint, failures = solver or Broyden(), adjoint or Implicit(), Failures(on_failure)
    solution = solve_state(f, x0, solver)
    if isinstance(f, Reduced):
        solution = _mark_overflow(f, solution)
    failures(solution, "equilibrium", remedy=_random_remedy(f, solution))
    return attach_gradient(f, solution, solver=solver, adjoint=adjoint, failures=failures)


def solve_state(
    f: Callable[[Any], Any] | EnergyModel, x0: Any, solver: Solver, run: Run | None = None
) -> Solution:
    """The first half of :func:`fixed_point`: the equilibrium, without a graph or a warning.

    Args:
        f: as there, or an energy model's map on rows, for x0's layout.
        x0: as there.
        solver: the solver.
        run: a solve of which the first steps have been taken, to go on with.
    """
    if isinstance(f, EnergyMap):
        pass
    elif _is_energy(f):
        instance("x0", x0, dict, "a dict {layer name: tensor}, as f is an energy model")
        f.check_state(x0)
    elif not callable(f):
        lacks = [name for name in _MEMBERS if not hasattr(f, name)]
        got = f"{type(f).__name__}, which lacks {lacks}"
        raise wrong("f", "a map or an EnergyModel", got, kind=TypeError)
    layout = f.layout if isinstance(f, EnergyMap) else StateLayout(x0)
    if torch._C._are_functorch_transforms_active() and torch.is_grad_enabled():
        raise RuntimeError(
            "fixed_point: expected plain tensors, got those of a torch.func transform, which does "
            "not know what f depends on; use a DEQ, which may be transformed, or torch.autograd"
        )
    flat = layout.flatten(x0).detach()
    row_map = as_rows(f, layout)
    solution = solver.solve(row_map, flat) if run is None else run.resume(row_map)
    if bool(solution.converged.all()):
        return replace(solution, value=layout.unflatten(solution.value))
    if isinstance(row_map, EnergyMap) and solver.fallback_steps:
        fallback = TrustRegion(
            tol=solver.tol, max_steps=solver.fallback_steps, trace=solver.trace, fallback_steps=0
        )
        solution = with_fallback(solution, lambda rows, x: fallback.solve(row_map.select(rows), x))
    lost = solution.status == Status.DIVERGED
    if bool(lost.any()):
        invalid = lost & ~flat.isfinite().all(1)
        status = torch.where(invalid, Status.INVALID.value, solution.status)
        solution = replace(solution, status=status)
    return replace(solution, value=layout.unflatten(solution.value))


@torch.no_grad()
def _random_remedy(f: Callable[[Any], Any] | EnergyModel, solution: Solution) -> str | None:
    """The remedy for a random map, which two evaluations at one state reveal; None for others."""
    if _is_energy(f) or bool(solution.converged.all()):
        return None
    layout = StateLayout(solution.value)
    x = layout.flatten(solution.value).nan_to_num()
    one, other = (layout.flatten(f(layout.unflatten(x))) for _ in range(2))
    # Not rounding, which may differ where sums are taken in another order.
    return None if torch.allclose(one, other, rtol=1e-3, equal_nan=True) else _RANDOM


@torch.no_grad()
def _mark_overflow(reduced: Reduced, solution: Solution) -> Solution:
    """Mark the samples of which an eliminated layer overflows as diverged."""
    if not reduced.hidden:
        return solution
    full = reduced.restore(solution.value)
    hidden = [full[name].isfinite().flatten(1).all(1) for name in reduced.hidden]
    overflows = ~torch.stack(hidden).all(0) & (solution.status != Status.INVALID)
    return replace(
        solution,
        converged=solution.converged & ~overflows,
        status=torch.where(overflows, Status.DIVERGED.value, solution.status),
    )


# Compiled in one piece with what it differentiates, the products it takes would be lost. (The
# public torch.compiler.disable imports the compiler, which takes a second.)
@torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
def attach_gradient(
    f: Callable[[Any], Any] | EnergyModel,
    solution: Solution,
    *,
    solver: Solver,
    adjoint: Adjoint,
    failures: Failures,
    rows: Tensor | None = None,
) -> Solution:
    """The second half: the same value, with its gradient where gradients are enabled.

    With ``rows``, f and the solution's value are of these samples of its batch alone, given by
    index. An energy model's map on rows that has recorded the step at the solution spares its
    evaluation here.
    """
    if not torch.is_grad_enabled():
        return solution
    forget_casts(solution.residual)

    def report(backward: Solution) -> None:
        backward = replace(backward, value=None)
        placed = backward if rows is None else backward.among(rows, solution.status)
        solution.adjoint.append(placed)
        failures(backward, "gradient", remedy=_REMEDY)

    if rows is None and _is_energy(f):
        # An infinity times a gradient of zero is NaN, in the weights that all samples share.
        finite = (solution.status != Status.DIVERGED) & (solution.status != Status.INVALID)
        if not bool(finite.all()):
            rows = finite.nonzero()[:, 0]
            part = replace(solution, value={a: x[rows] for a, x in solution.value.items()})
            part = attach_gradient(
                f.select(rows), part, solver=solver, adjoint=adjoint, failures=failures, rows=rows
            )
            value = {a: x.index_copy(0, rows, part.value[a]) for a, x in solution.value.items()}
            return replace(solution, value=value)
    layout = StateLayout(solution.value)
    x = adjoint.attach(as_rows(f, layout), layout.flatten(solution.value), solver, report)
    return replace(solution, value=layout.unflatten(x))


_RANDOM = (
    "f is random: evaluated twice at the same state it gave two results, as with dropout in "
    "training mode, and so it has no fixed point; draw one mask before the solve and let f use it "
    "in each evaluation, or call eval()"
)
# Of an EnergyModel.
_MEMBERS = (
    "activations",
    "check_state",
    "descends",
    "energy",
    "fields",
    "select",
    "step",
    "update",
)
_REMEDY = (
    "the linear system of the gradient was not solved to tol; allow more max_steps or a larger tol "
    "in Implicit(solver=ConjugateGradient(…)), and see whether the state itself converged "
    "(docs/convergence.md)"
)


def _is_energy(f: object) -> TypeIs[EnergyModel]:
    """Tell if f is an energy model: ours by their class, others by what they have."""
    if isinstance(f, EnergyMap):
        return False
    return isinstance(f, (LayeredEnergy, Reduced, EnergyModel))


def as_rows(f: Callable[[Any], Any] | EnergyModel, layout: StateLayout) -> RowMap | EnergyMap:
    """The map on rows, with its energy if there is one."""
    if isinstance(f, EnergyMap):
        return f
    return EnergyMap(f, layout) if _is_energy(f) else layout.rows(f)
