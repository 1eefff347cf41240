"""Ours calls torchdeq's: one of its solvers as a Solver."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchdeq.solver import get_solver

from hamdeq._checks import nearest, require, wrong
from hamdeq.solvers import Solution, Solver, SolverState, Status
from hamdeq.solvers.state import norm, relative_residual

__all__ = ["TorchDEQSolver", "lookup", "refuse_unknown"]

STOCK = ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter")
OURS = ("hamdeq_picard", "hamdeq_anderson", "hamdeq_broyden", "hamdeq_newton")


@dataclass(frozen=True, kw_only=True)
class TorchDEQSolver(Solver):
    """One of torchdeq's solvers. **Its results depend on the batch**: it stops on the worst sample.

    The residual is measured once more, at the state returned. A sample that becomes infinite or
    not a number, or has a singular linear system, keeps its initial state and is ``DIVERGED``.

    Args:
        name: its name in torchdeq, such as ``"anderson"`` or ``"broyden"``.
        options: the solver's own, such as ``{"m": 6, "lam": 1e-8}``.
        tol: relative residual to reach.
        max_steps: torchdeq's ``max_iter``; one more evaluation of f measures the residual.

    Raises:
        ValueError: an unknown name or option, or fewer than three steps of Anderson.
        TypeError: in :meth:`solve`, states in half precision and Anderson.
    """

    name: str = "anderson"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", dict(self.options))
        reserved = {"func", "x0", "max_iter", "tol", "stop_mode", "indexing"}
        own = [
            name
            for name, parameter in inspect.signature(lookup(self.name)).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD and name not in reserved
        ]
        refuse_unknown(f"options of {self.name!r}", self.options, own)
        fits = self.name != "anderson" or self.max_steps >= 3
        expected = "≥ 3, as torchdeq's Anderson returns its initial state after fewer steps"
        require(fits, "max_steps", expected, self.max_steps, "or use hamdeq.Anderson")

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        raise TypeError("torchdeq's solvers have no single steps; call solve")

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Solve x = f(x) from x0; see :meth:`Solver.solve`."""
        fits = self.name != "anderson" or x0.dtype in (torch.float32, torch.float64)
        expected = "float32 or float64, in which PyTorch solves linear systems"
        remedy = "use hamdeq.Anderson, which takes any dtype"
        label = f"TorchDEQSolver({self.name!r})"
        require(fits, label, expected, x0.dtype, remedy, kind=TypeError)
        alive = x0.isfinite().all(1)
        trace: list[Tensor] = []

        def evaluate(x: Tensor) -> Tensor:
            fx = f(x)
            trace.append(relative_residual(norm(fx - x), fx))
            return fx

        x = torch.where(alive[:, None], x0, 0.0)
        value = self._solve_rows(evaluate, x, torch.arange(len(x), device=x.device), alive)
        value = torch.where(alive[:, None], value, x0)
        evaluate(value)
        residual = torch.where(trace[-1].isfinite(), trace[-1], math.inf)
        converged = residual < self.tol
        status = torch.where(alive & residual.isfinite(), Status.MAX_STEPS, Status.DIVERGED)
        return Solution(
            value=value,
            residual=residual,
            steps=torch.full_like(status, len(trace)),
            converged=converged,
            status=torch.where(converged, int(Status.CONVERGED), status),
            n_evals=len(trace),
            trace=torch.stack(trace),
        )

    def _solve_rows(
        self, f: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor, alive: Tensor
    ) -> Tensor:
        """The end states of some samples from x; those that are lost are struck off ``alive``."""
        if not len(rows):
            return x[rows]

        def part(z: Tensor, tau: float = 1.0) -> Tensor:
            fz = f(x.index_copy(0, rows, z))[rows]
            alive[rows] &= fz.isfinite().all(1)
            # A sample that is lost stands still, so that it does not hold up the others.
            fz = torch.where(alive[rows, None], fz, z)
            return fz if tau == 1 else z + tau * (fz - z)

        options = {"max_iter": self.max_steps, "tol": self.tol, **self.options}
        try:
            return lookup(self.name)(part, x[rows], stop_mode="rel", **options)[0]
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            # One singular sample fails its whole batch: narrowed down until it is alone.
            if len(rows) == 1:
                alive[rows] = False
                return x[rows]
            halves = rows.tensor_split(2)
            return torch.cat([self._solve_rows(f, x, half, alive) for half in halves])


def lookup(name: str) -> Callable[..., Any]:
    """Return torchdeq's solver of a name."""
    try:
        return get_solver(name)
    except (AssertionError, KeyError):
        expected = f"one of {(*STOCK, *OURS)}, or a registered name"
        raise wrong("solver", expected, repr(name), _hint(name, (*STOCK, *OURS))) from None


def refuse_unknown(where: str, names: Iterable[str], options: Collection[str]) -> None:
    """Raise for a name that is no option, with the one that is likely meant."""
    for name in names:
        if name not in options:
            raise wrong(where, f"options among {[*options]}", repr(name), _hint(name, options))


def _hint(name: str, names: Iterable[str]) -> str | None:
    near = nearest(name, names)
    return f"did you mean {near!r}?" if near else None
