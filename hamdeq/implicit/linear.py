"""The gradient of the implicit function theorem, and its linear system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import instance, integer, wrong
from hamdeq.implicit.base import Adjoint, Graph, Report, RowMap
from hamdeq.solvers import Solution, Solver, with_fallback
from hamdeq.solvers.base import Stopping
from hamdeq.solvers.energy_map import EnergyMap
from hamdeq.solvers.state import SampleLog, norm, relative_residual

__all__ = ["GMRES", "ConjugateGradient", "Implicit", "solve_linear"]


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
        fallback_steps: products of :class:`GMRES` at most, for samples that these leave unsolved.

    Source: Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
    """

    @torch.no_grad()
    def solve(self, graph: Graph, c: Tensor) -> Solution:
        """Solve v = c + D S v for v."""
        run, v, w, exact = SampleLog(c), c, torch.zeros_like(c), False
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
            else:
                r_ = r_ - length * q_
            # Made of its companion, not carried along beside it: where D is nearly singular, the
            # two would drift apart.
            r = graph.gain(r_)
            last, square = square, _dot(r, r_)
            turn = torch.where(last == 0, 0.0, square / last)
            p, p_ = r + turn * p, r_ + turn * p_
        return run.solution(self.tol)


# At a minimum a step is as long as this only where ∂f/∂x has eigenvalues within 1/100 of one.
_LONG = 100.0


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class GMRES(Stopping):
    """Generalised minimal residuals for the linear system of a gradient, v = Jᵀv + c.

    Each cycle builds an orthonormal basis of {r, Ar, A²r, …} with A = 1 − Jᵀ, and adds to v what
    makes the residual r least. Conjugate gradients need symmetry, a minimum of the energy, and a
    scalar product that loses digits where neurons saturate; this method needs none of them. A
    system of n numbers takes n products but for rounding. It keeps ``restart`` vectors, and
    orthogonalises each with all before it.

    Args:
        restart: products in a cycle, ≥ 1; the memory used is as many states a sample.
        tol: relative residual ‖c + Jᵀv − v‖/‖c + Jᵀv‖ to reach, > 0.
        max_steps: products at most, ≥ 0.

    Source: Saad & Schultz, "GMRES: a generalized minimal residual algorithm for solving
    nonsymmetric linear systems" (1986).
    """

    restart: int = 100
    fallback_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "restart", integer("restart", self.restart, least=1))

    @torch.no_grad()
    def solve(
        self, product: Callable[[Tensor], Tensor], c: Tensor, start: Tensor | None = None
    ) -> Solution:
        """Solve v = product(v) + c for v, with product(v) = Jᵀv."""
        v = c if start is None else start
        run = SampleLog(v)
        while run.count < self.max_steps:
            fv = product(v) + c
            r = fv - v
            size = norm(r)
            residual = relative_residual(size, fv)
            left = run.record(v, residual, size, self.tol)
            products = min(self.restart, self.max_steps - run.count, c.shape[1])
            if not left or not products:
                break
            for _ in range(products):  # each is counted; the state changes after the last
                run.record(v, residual, size, self.tol)
            moving = run.running[:, None]
            r = torch.where(moving, r, 0.0)  # a sample that is not finite ends, and no other
            v = torch.where(moving, v + self._correction(product, r, products), v)
        return run.solution(self.tol)

    def _correction(self, product: Callable[[Tensor], Tensor], r: Tensor, steps: int) -> Tensor:
        """Sum of r, Ar, …, A^(steps − 1)r that makes the residual least."""
        size = norm(r)
        basis = r.new_zeros(len(r), steps + 1, r.shape[1])
        # The small problem is solved in float64: its condition may be any.
        images = r.new_zeros(len(r), steps + 1, steps, dtype=torch.float64)
        basis[:, 0] = _unit(r, size)
        for k in range(steps):
            q = basis[:, k]
            image = q - product(q)
            for _ in range(2):  # once more takes out what rounding left
                before = basis[:, : k + 1]
                shares = (before * image[:, None]).sum(-1)
                image = image - (shares[..., None] * before).sum(1)
                images[:, : k + 1, k] += shares
            images[:, k + 1, k] = length = norm(image)
            basis[:, k + 1] = _unit(image, length)
        goal = torch.zeros_like(images[:, :, 0])
        goal[:, 0] = size
        shares = (torch.linalg.pinv(images.nan_to_num()) @ goal[..., None])[..., 0].to(r.dtype)
        return (shares[..., None] * basis[:, :-1]).sum(1)


def _unit(x: Tensor, size: Tensor) -> Tensor:
    """x/‖x‖, zero where x is."""
    return x / torch.where(size > 0, size, 1.0)[:, None]


@dataclass(frozen=True, kw_only=True)
class Implicit(Adjoint):
    """The exact gradient at the equilibrium, by the implicit function theorem.

    The backward pass solves ``v = (∂f/∂x)ᵀ v + ∂ℓ/∂x*`` and makes one vector-Jacobian product
    with the parameters. Memory does not grow with steps.

    Args:
        solver: for that linear system, a fixed-point solver or, of an energy model,
            :class:`ConjugateGradient`. By default the latter, of a plain map the solver of the
            forward pass, with the forward pass's ``tol`` and ``max_steps``. Its ``tol`` is the
            relative residual of v, and thus the order of the gradient's relative error. Samples
            that it leaves unsolved go on with :class:`GMRES`, for its ``fallback_steps``.

    Raises:
        TypeError: conjugate gradients, and f is not an energy model.
        RuntimeError: in the backward pass, when a second derivative is asked for
            (``create_graph=True``); use :class:`~hamdeq.Unrolled`.

    Source: Bai, Kolter & Koltun, "Deep Equilibrium Models" (2019), theorem 1; Almeida (1987) and
    Pineda (1987), recurrent back-propagation.
    """

    linearises = True

    solver: Solver | ConjugateGradient | GMRES | None = None

    def __post_init__(self) -> None:
        if self.solver is not None:
            kinds = (Solver, ConjugateGradient, GMRES)
            instance("solver", self.solver, kinds, remedy="such as Broyden(tol=1e-2), or None")

    def attach(self, f: RowMap | EnergyMap, x: Tensor, solver: Solver, report: Report) -> Tensor:
        linear = self.solver
        if linear is None and isinstance(f, EnergyMap):
            linear = ConjugateGradient(
                tol=solver.tol, max_steps=solver.max_steps, fallback_steps=solver.fallback_steps
            )
        elif linear is None:
            linear = solver
        if isinstance(linear, ConjugateGradient) and not isinstance(f, EnergyMap):
            raise wrong(
                "ConjugateGradient",
                "an energy model, whose gradient has a symmetric system",
                type(f).__name__,
                "use Implicit(solver=Broyden()) for plain maps",
                kind=TypeError,
            )
        graph = Graph(f, x)
        return graph.attach(x, lambda c: solve_linear(linear, graph, c), report)


_FALLBACK_NUMBERS = 2**26


def solve_linear(linear: Solver | ConjugateGradient | GMRES, graph: Graph, c: Tensor) -> Solution:
    """Solve v = (∂f/∂x)ᵀ v + c, with the fallback for samples that are left unsolved."""
    if isinstance(linear, ConjugateGradient):
        solution = linear.solve(graph, c)
    elif isinstance(linear, GMRES):
        return linear.solve(graph.transposed, c)
    else:
        solution = linear.solve(lambda v: graph.transposed(v) + c, c)
    if not linear.fallback_steps:
        return solution

    def more(rows: Tensor, v: Tensor) -> Solution:
        # As many vectors as take no more room than a few hundred megabytes.
        restart = min(100, max(10, _FALLBACK_NUMBERS // max(v.numel(), 1)))
        fallback = GMRES(tol=linear.tol, max_steps=linear.fallback_steps, restart=restart)

        def product(v: Tensor) -> Tensor:
            return graph.transposed(torch.zeros_like(c).index_copy(0, rows, v))[rows]

        return fallback.solve(product, c[rows], v)

    return with_fallback(solution, more)
