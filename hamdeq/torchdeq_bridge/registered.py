"""torchdeq calls ours: solvers registered under a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torchdeq.solver import register_solver
from torchdeq.solver.stat import SolverStat

from hamdeq._checks import instance, require
from hamdeq.solvers import Anderson, Broyden, Newton, Picard, Solution, Solver, SolverState
from hamdeq.solvers.state import norm
from hamdeq.torchdeq_bridge.stock import OURS, STOCK, TorchDEQSolver, refuse_unknown

__all__ = ["Observed", "Registered", "configured", "refuse_absolute", "register"]


def register(name: str, solver: Solver) -> None:
    """Give torchdeq a configured solver under a name, for its ``f_solver`` and ``b_solver``.

    The only way to options for torchdeq's backward solver:
    ``register("mine", Anderson(history=8))`` and
    ``get_deq(ift=True, b_solver="mine", b_stop_mode="rel")``. Tolerance and steps are torchdeq's
    own keys, ``f_tol``, ``f_max_iter``, ``b_tol`` and ``b_max_iter``.

    Raises:
        TypeError: not a Solver.
        ValueError: a name of torchdeq's own, or a ``tol`` or ``max_steps`` that it would override.
    """
    instance("solver", solver, Solver, "a Solver such as Anderson(history=8)")
    require(name not in STOCK, "name", f"another than torchdeq's own {STOCK}", repr(name))
    require(
        (solver.tol, solver.max_steps) == (Solver.tol, Solver.max_steps),
        "solver",
        "the default tol and max_steps, as torchdeq would override others",
        f"{solver.tol} and {solver.max_steps}",
        "give torchdeq f_tol and f_max_iter, b_tol and b_max_iter",
    )
    register_solver(name, Registered(solver))


@dataclass(frozen=True)
class Registered:
    """A solver with the signature that torchdeq calls."""

    solver: Solver

    def __call__(
        self,
        func: Callable[[Tensor], Tensor],
        x0: Tensor,
        max_iter: float = 50,
        tol: float = 1e-3,
        stop_mode: str = "rel",
        indexing: Sequence[float] | None = None,
        **options: Any,
    ) -> tuple[Tensor, list[Tensor], SolverStat]:
        refuse_absolute(stop_mode)
        solver = configured(self.solver, tol=tol, max_steps=int(max_iter), **options)
        x = x0.flatten(1) if x0.dim() > 1 else x0.reshape(-1, 1)

        def f(x: Tensor) -> Tensor:
            return func(x.reshape(x0.shape)).reshape(x.shape)

        def state(step: float) -> Tensor:
            if step >= solution.n_evals:
                return solution.value.reshape(x0.shape)
            return replace(solver, max_steps=int(step)).solve(f, x).value.reshape(x0.shape)

        log: list[SolverStat] = []
        solution = Observed(solver=solver, write=log.append).solve(f, x)
        # One state for each entry, reached or not: torchdeq pairs them with its gradients, and
        # drops the last, which is the implicit one, when there are fewer.
        return solution.value.reshape(x0.shape), [state(step) for step in indexing or ()], log[0]


@dataclass(frozen=True, kw_only=True)
class Observed(Solver):
    """A solver that also hands its statistics, in torchdeq's form, to ``write``."""

    solver: Solver
    write: Callable[[SolverStat], Any]

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        return self.solver.start(f, x0)

    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        sizes: list[Tensor] = []

        def measured(x: Tensor) -> Tensor:
            fx = f(x)
            if not torch.is_grad_enabled():  # else it is Newton's method that differentiates f
                sizes.append(norm(fx - x))
            return fx

        solution = self.solver.solve(measured, x0)
        # A column before the first evaluation, for states of which the residual is not known.
        unknown = solution.residual.new_full((len(x0),), math.inf)
        absolute = torch.stack([unknown, *sizes], dim=1)
        relative = torch.stack([unknown, *solution.trace], dim=1)
        nstep = (relative == solution.residual[:, None]).int().argmax(dim=1, keepdim=True)
        self.write(
            SolverStat(
                abs_lowest=absolute.gather(1, nstep)[:, 0],
                rel_lowest=solution.residual,
                abs_trace=absolute[:, 1:],
                rel_trace=relative[:, 1:],
                nstep=nstep[:, 0].to(x0.dtype),
                status=solution.status,
            )
        )
        return solution


def configured(solver: Solver, **options: Any) -> Solver:
    """The solver with some of its options changed."""
    own = {f.name for f in fields(solver)}
    if isinstance(solver, TorchDEQSolver):
        theirs = {name: options.pop(name) for name in options.keys() - own}
        return replace(solver, **options, options={**solver.options, **theirs})
    refuse_unknown(type(solver).__name__, options, own)
    return replace(solver, **options)


def refuse_absolute(stop_mode: str) -> None:
    """Raise for a stop mode other than the relative one."""
    expected = "'rel', as hamdeq stops on the relative residual"
    remedy = "use f_stop_mode='rel', b_stop_mode='rel', which are not torchdeq's defaults"
    require(stop_mode == "rel", "stop_mode", expected, repr(stop_mode), remedy)


for _name, _solver in zip(OURS, (Picard(), Anderson(), Broyden(), Newton()), strict=True):
    register(_name, _solver)
