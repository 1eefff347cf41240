"""Equilibrium propagation: the gradient from two nudged equilibria."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hamdeq._checks import instance, number, wrong
from hamdeq.implicit.base import Adjoint, Graph, Report, RowMap
from hamdeq.solvers import Solution, Solver
from hamdeq.solvers.energy_map import EnergyMap

__all__ = ["EquilibriumPropagation"]


@dataclass(frozen=True, kw_only=True)
class EquilibriumPropagation(Adjoint):
    """The gradient of an energy model's equilibrium by nudging it both ways.

    Adding ±β⟨c, x⟩ to the Lagrangians, with c = ∂ℓ/∂x* scaled to a largest entry of one, changes
    the activations to g(x) ± βc. Solved from the free equilibrium for both nudged
    ones, the difference of their activations, ``v = (g⁺ − g⁻)/2β``, replaces the solution of
    the implicit gradient's linear system, with an error of order β². The parameters' gradient is
    v times the derivative of the fields at the free equilibrium; the contrastive rule, which takes
    the energy's derivative at both nudged equilibria instead, is the same up to order β².

    Args:
        beta: strength of the nudge β > 0, in units of the activations.
        solver: default the one of the forward pass, with β times its ``tol``, but not below what
            rounding allows.

    Raises:
        TypeError: f is not an energy model.
        RuntimeError: in the backward pass, when a second derivative is asked for.

    Source: Scellier & Bengio, "Equilibrium Propagation" (2017); Laborieux et al., "Scaling
    Equilibrium Propagation to Deep ConvNets by Drastically Reducing its Gradient Estimator Bias"
    (2021), for the two-sided nudge.
    """

    linearises = True

    beta: float = 0.1
    solver: Solver | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", number("beta", self.beta, above=0))
        if self.solver is not None:
            instance("solver", self.solver, Solver, remedy="such as Picard(tol=1e-6), or None")

    def attach(self, f: RowMap | EnergyMap, x: Tensor, solver: Solver, report: Report) -> Tensor:
        if not isinstance(f, EnergyMap):
            raise wrong(
                "EquilibriumPropagation",
                "an energy model",
                type(f).__name__,
                "use Implicit() for plain maps",
                kind=TypeError,
            )
        tol = max(self.beta * solver.tol, 10 * torch.finfo(x.dtype).eps)
        nudging = self.solver or replace(solver, tol=tol)

        def solve(c: Tensor) -> Solution:
            with torch.no_grad():
                more = nudging.solve(lambda x: f.fields(f.activations(x) + self.beta * c), x)
                less = nudging.solve(lambda x: f.fields(f.activations(x) - self.beta * c), x)
                moved = f.activations(more.value) - f.activations(less.value)
            return _both(more, less, c + moved / (2 * self.beta))

        return Graph(f, x).attach(x, solve, report)


def _both(one: Solution, other: Solution, value: Tensor) -> Solution:
    """Two solves as one: the sum of their steps, the worse of their ends."""
    return Solution(
        value=value,
        residual=torch.maximum(one.residual, other.residual),
        steps=one.steps + other.steps,
        converged=one.converged & other.converged,
        status=torch.maximum(one.status, other.status),
        n_evals=one.n_evals + other.n_evals,
        trace=torch.cat([one.trace, other.trace]),
    )
