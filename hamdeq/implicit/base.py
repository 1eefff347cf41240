"""The base of gradient methods: a graph for an equilibrium that was solved for without one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hamdeq.solvers import Solution, Solver
from hamdeq.solvers.energy_map import Derivatives, EnergyMap, transposed_product

__all__ = ["Adjoint", "Graph", "Report", "RowMap"]

RowMap = Callable[[Tensor], Tensor]
Report = Callable[[Solution], None]


class Adjoint(ABC):
    """A gradient method: how an equilibrium found without a graph gets its gradient.

    Attributes:
        linearises: whether it takes one evaluation at the equilibrium, so that the last one of
            the solve can serve.
    """

    # No ClassVar, of which the command line makes that no argument of a subclass has a type.
    linearises: bool = False

    @abstractmethod
    def attach(self, f: RowMap | EnergyMap, x: Tensor, solver: Solver, report: Report) -> Tensor:
        """A tensor equal to x, to the last bit, with a graph to what f depends on, if anything.

        Args:
            f: the map, ``(batch, n) -> (batch, n)``; of an energy model, its
                :class:`~hamdeq.solvers.energy_map.EnergyMap`.
            x: its fixed point, ``(batch, n)``, without a graph.
            solver: the solver that found it.
            report: to be called in each backward pass that solves a system, with its solution.
        """


class Graph(Derivatives):
    """The graph of one evaluation f(x), at which products with derivatives are taken.

    Of an energy model f is two maps, activations g(x) and fields I(g), and ∂f/∂x = S D with
    S = ∂I/∂g and D = ∂g/∂x, both symmetric.
    """

    def __init__(self, f: RowMap | EnergyMap, x: Tensor) -> None:
        if isinstance(f, EnergyMap):
            super().__init__(f, x)
        else:
            self.x: Tensor = x.detach().requires_grad_()
            self.fx: Tensor = f(self.x)

    def transposed(self, v: Tensor) -> Tensor:
        """(∂f/∂x)ᵀ v."""
        return transposed_product(self.fx, self.x, v)

    def attach(self, x: Tensor, solve: Callable[[Tensor], Solution], report: Report) -> Tensor:
        """x with this graph, into which a gradient goes by way of ``solve``."""
        return _Attach.apply(self.fx, x, solve, report) if self._leads_beyond() else x

    def _leads_beyond(self) -> bool:
        """Tell if the graph leads to anything but x, so that a gradient has a use."""
        seen, stack = set(), [self.fx.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and leaf is not self.x:
                return True
            stack.extend(parent for parent, _ in node.next_functions)
        return False


class _Attach(torch.autograd.Function):
    """Forward: x. Backward: what ``solve`` makes of the gradient, sent into f(x; θ)."""

    @staticmethod
    def forward(
        ctx: Any, fx: Tensor, x: Tensor, solve: Callable[[Tensor], Solution], report: Report
    ) -> Tensor:
        ctx.solve, ctx.report = solve, report
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
        solution = ctx.solve(grad / torch.where(scale > 0, scale, 1.0))
        value = solution.value * scale
        ctx.report(solution)
        return value, None, None, None
