"""The gradient of the implicit function theorem, and its linear system."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq.descent import Descent
from hamdeq.implicit.base import Adjoint, Graph, Map, Report
from hamdeq.solvers import Solution, Solver
from hamdeq.solvers.base import Run, Stopping, norm, relative_residual

__all__ = ["ConjugateGradient", "Implicit"]


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Stopping):
    """Conjugate gradients on the symmetric system of an energy model's gradient.

    With ∂f/∂x = S D (S how fields answer activations, D = ∇²L how activations answer states, both
    symmetric) the system of the backward pass is ``(I − D S) v = c``. In the scalar product
    ⟨a, b⟩ = aᵀ D⁻¹ b, which is never computed, its matrix is symmetric, and at a strict minimum
    of the energy positive definite: there conjugate gradients converge, in n steps at most but
    for rounding, where fixed-point iterations only usually do. A step takes one product with S
    and one with D, as much as one with (∂f/∂x)ᵀ. The residual is carried from step to step, and
    that of the result to rounding; at saddles it is computed anew.

    Args:
        tol: relative residual ‖c + D S v − v‖/‖c + D S v‖ to reach, > 0.
        max_steps: products at most, ≥ 0.

    Source: Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
    """

    @torch.no_grad()
    def solve(self, graph: Graph, c: Tensor) -> Solution:
        """Solve v = c + D S v for v."""
        run, v, w, exact = Run(c), c, torch.zeros_like(c), False
        if self.max_steps == 0:
            return run.solution(self.tol)
        # Each vector a = D b has its companion b at its side, and ⟨a, a′⟩ is aᵀ b′: v = c + D w.
        r_ = graph.coupling(c)
        r = graph.gain(r_)
        p, p_, square = r, r_, _dot(r, r_)
        for count in range(1, self.max_steps + 1):
            size = norm(r)
            left = run.record(v, relative_residual(size, v + r), size, self.tol)
            if not left or count == self.max_steps:
                break
            q_ = p_ - graph.coupling(p)
            q = graph.gain(q_)
            curvature = _dot(p, q_)
            # Samples that have stopped stay where they are.
            moving = run.running[:, None]
            length = torch.where(moving & (curvature != 0), square / curvature, 0.0)
            v = torch.where(moving, v + length * p, run.best)
            w = w + length * p_
            # The residual is carried along. At a saddle, where the curvature may pass through zero
            # and a step be of any length, that leaves it all rounding: there it is computed.
            exact = exact or bool(((length < 0) | (length >= _LONG)).any())
            if exact:
                v = torch.where(moving, c + graph.gain(w), v)
                r_ = graph.coupling(v) - w
                r = graph.gain(r_)
            else:
                r, r_ = r - length * q, r_ - length * q_
            last, square = square, _dot(r, r_)
            turn = torch.where(last == 0, 0.0, square / last)
            p, p_ = r + turn * p, r_ + turn * p_
        return run.solution(self.tol)


# At a minimum a step is as long as this only where ∂f/∂x has eigenvalues within 1/100 of one.
_LONG = 100.0


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Implicit(Adjoint):
    """The exact gradient at the equilibrium, by the implicit function theorem.

    The backward pass solves ``v = (∂f/∂x)ᵀ v + ∂ℓ/∂x*`` and makes one vector-Jacobian product
    with the parameters. Memory does not grow with steps.

    Args:
        solver: for that linear system, a fixed-point solver or, of an energy model,
            :class:`ConjugateGradient`. By default the latter, of a plain map the solver of the
            forward pass, with the forward pass's ``tol`` and ``max_steps``. Its ``tol`` is the
            relative residual of v, and thus the order of the gradient's relative error.

    Raises:
        TypeError: conjugate gradients, and f is not an energy model.
        RuntimeError: in the backward pass, when a second derivative is asked for
            (``create_graph=True``); use :class:`~hamdeq.Unrolled`.

    Source: Bai, Kolter & Koltun, "Deep Equilibrium Models" (2019), theorem 1; Almeida (1987) and
    Pineda (1987), recurrent back-propagation.
    """

    solver: Solver | ConjugateGradient | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver | ConjugateGradient | None):
            raise TypeError(
                "solver: expected a Solver such as Broyden(tol=1e-2), ConjugateGradient(tol=1e-2) "
                f"or None, got {self.solver!r}"
            )

    def attach(self, f: Map | Descent, x: Tensor, solver: Solver, report: Report) -> Tensor:
        graph = Graph(f, x)
        linear = self.solver
        if linear is None and isinstance(f, Descent):
            linear = ConjugateGradient(tol=solver.tol, max_steps=solver.max_steps)
        elif linear is None:
            linear = solver
        if not isinstance(linear, ConjugateGradient):
            return graph.attach(
                x, lambda c: linear.solve(lambda v: graph.transposed(v) + c, c), report
            )
        if not isinstance(f, Descent):
            raise TypeError(
                "ConjugateGradient: expected an energy model, whose gradient has a symmetric "
                f"system, got {type(f).__name__}; use Implicit(solver=Broyden()) for plain maps"
            )
        return graph.attach(x, lambda c: linear.solve(graph, c), report)
