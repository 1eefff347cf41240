"""Equilibria as differentiable functions: ``fixed_point`` and its gradient methods.

At x* = f(x*; θ) the implicit function theorem gives ``dx*/dθ = (I − ∂f/∂x)⁻¹ ∂f/∂θ``. A solver
finds x* without a graph; a gradient method (*adjoint*) then attaches the graph. The two choices
are independent of each other.
"""

from hamdeq.implicit.base import Adjoint
from hamdeq.implicit.fixed_point import attach_gradient, fixed_point, solve_state
from hamdeq.implicit.linear import GMRES, ConjugateGradient, Implicit
from hamdeq.implicit.propagation import EquilibriumPropagation
from hamdeq.implicit.unrolled import Phantom, Unrolled

__all__ = [
    "GMRES",
    "Adjoint",
    "ConjugateGradient",
    "EquilibriumPropagation",
    "Implicit",
    "Phantom",
    "Unrolled",
    "attach_gradient",
    "fixed_point",
    "solve_state",
]
