"""Gradients through a few steps of the map, started at the equilibrium."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hamdeq._checks import integer, number
from hamdeq.implicit.base import Adjoint, Report, RowMap
from hamdeq.solvers import Solver

__all__ = ["Phantom", "Unrolled"]


@dataclass(frozen=True)
class _Steps(Adjoint):
    """Gradient through a few steps of the map, started at the equilibrium."""

    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", integer("steps", self.steps, expected="an integer ≥ 1"))

    @abstractmethod
    def step(self, f: RowMap, z: Tensor) -> Tensor:
        """One step."""

    def attach(self, f: RowMap, x: Tensor, solver: Solver, report: Report) -> Tensor:
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

    def step(self, f: RowMap, z: Tensor) -> Tensor:
        return f(z)


@dataclass(frozen=True)
class Phantom(_Steps):
    """Back-propagation through k damped steps x <- x + τ (f(x) − x) at the equilibrium.

    Args:
        steps: k ≥ 1.
        damping: τ in (0, 1].

    Source: Geng et al., "On Training Implicit Models" (2021), equation 6.
    """

    damping: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "damping", number("damping", self.damping, above=0, most=1))

    def step(self, f: RowMap, z: Tensor) -> Tensor:
        return z + self.damping * (f(z) - z)
