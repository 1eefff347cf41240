"""The contract of gradient methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq.deq import DEQ
from hamdeq.energy.ham import HAM
from hamdeq.implicit import Adjoint, fixed_point
from hamdeq.solvers import Anderson
from hamdeq.testing.contract import Contract, normal

__all__ = ["AdjointContract"]

SOLVER = Anderson(tol=1e-13, max_steps=500)  # far below what gradients are compared to


class AdjointContract(Contract):
    """Contract of a gradient method.

    The value is not changed. The gradients of all parameters and inputs are the finite differences
    of the equilibrium, to ``rtol``, in training and in evaluation mode; no sample's gradient
    depends on another sample.

    ``make()`` returns an :class:`~hamdeq.Adjoint`, with a tolerance far below ``rtol``.

    Attributes:
        rtol: how far gradients may be from finite differences, relative to their size. Zero is no
            gradient: of a method that approximates, say how well it does.
        plain_maps: whether it gives gradients of maps that are no energy models.
    """

    rtol: float = 1e-6
    plain_maps: bool = True

    def _models(self) -> dict[str, nn.Module]:
        adjoint = self._made()
        self.claim(isinstance(adjoint, Adjoint), "make() returns an Adjoint")
        torch.manual_seed(0)
        chain = HAM.chain([5, 7, 6, 4], gain=0.5)
        short = HAM.chain([5, 6, 4], gain=0.5)
        models: dict[str, nn.Module] = {
            "memory": _Memory(chain, adjoint),
            "memory that is not split": _Memory(short, adjoint, splitting=None),
        }
        if self.plain_maps:
            models["plain map"] = _Plain(adjoint)
        return {name: model.double() for name, model in models.items()}

    def _loss(self, y: Tensor) -> Tensor:
        """A sum a sample, with different weights for all numbers: ``(batch,)``."""
        weights = torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)
        return (weights * y.sin()).sum(1)

    def _gradients(self, model: nn.Module, x: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of the summed losses of the samples that are finite."""
        finite = x.isfinite().all(1)
        loss = self._loss(model(x)[finite]).sum()
        self.claim(loss.requires_grad, "an equilibrium has a graph")
        grads = torch.autograd.grad(loss, [*leaves], allow_unused=True, materialize_grads=True)
        return [*grads]

    def test_gradients_are_finite_differences(self) -> None:
        """Covers all parameters and the input, in training and in evaluation mode."""
        for name, model in self._models().items():
            x, h = normal(3, 5, seed=7).sigmoid().requires_grad_(), 1e-5
            leaves = [*model.parameters(), x]
            grads = self._gradients(model.train(), x, leaves)
            text = f"the gradient of a {name} is the same in training and in evaluation mode"
            self.close(self._gradients(model.eval(), x, leaves), grads, text)
            # Each along its own sign, so that none can make up for another.
            ways = [grad.sign() + 0.1 * normal(*grad.shape, seed=98) for grad in grads]
            with torch.no_grad():
                start, values = [p.clone() for p in leaves], []
                for sign in (1, -1):
                    for p, at, way in zip(leaves, start, ways, strict=True):
                        p.copy_(at + sign * h * way)
                    values.append(self._loss(model(x)).sum())
                for p, at in zip(leaves, start, strict=True):
                    p.copy_(at)
            self.close(
                torch.stack([(g * way).sum() for g, way in zip(grads, ways, strict=True)]).sum(),
                (values[0] - values[1]) / (2 * h),
                f"the gradient of a {name} is its finite difference",
                rtol=self.rtol,
                atol=1e-9,  # the rounding of two losses, 1e-15/h
            )

    def test_the_value_is_not_changed(self) -> None:
        """The value is the same with a graph and without; without gradients there is no graph."""
        for model in self._models().values():
            x = normal(3, 5, seed=7).sigmoid()
            value = model(x)
            with torch.no_grad():
                plain = model(x)
            self.claim(not plain.requires_grad, "there is no graph under no_grad()")
            text = "the gradient method leaves the value as it is"
            self.close(value, plain, text, rtol=0, atol=0)

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """The gradient of each sample's loss is that which it has alone."""
        for model in self._models().values():
            x = normal(4, 5, seed=7).sigmoid()

            def gradient(rows: Sequence[int], x: Tensor = x, model: nn.Module = model) -> Tensor:
                part = x[list(rows)].requires_grad_()
                return self._gradients(model, part, [part])[0]

            whole = gradient(range(4))
            for rows in ([0], [3, 1]):
                text = "a sample's gradient does not depend on its batch"
                self.close(gradient(rows), whole[rows], text, rtol=1e-9, atol=1e-11)

    def test_lost_samples_leave_the_gradient_of_the_others(self) -> None:
        """A NaN sample of a memory has no gradient, and adds none to the parameters."""
        model = self._models()["memory"]
        x = normal(3, 5, seed=7).sigmoid()
        expected = self._gradients(model, x, [*model.parameters()])
        spoilt = torch.cat([x, x.new_full((1, 5), torch.nan)])
        found = self._gradients(model, spoilt, [*model.parameters()])
        text = "a lost sample leaves the gradient of the others as it is"
        self.close(found, expected, text, rtol=1e-9, atol=1e-11)


class _Memory(nn.Module):
    def __init__(self, ham: HAM, adjoint: Adjoint, **options: Any) -> None:
        super().__init__()
        self.deq = DEQ(ham, solver=SOLVER, adjoint=adjoint, on_failure="ignore", **options)

    def forward(self, x: Tensor) -> Tensor:
        value = self.deq({"input": x}).value
        return torch.cat([layer for name, layer in value.items() if name != "input"], dim=1)


class _Plain(nn.Module):
    """x = tanh(W x + U u + b)."""

    def __init__(self, adjoint: Adjoint) -> None:
        super().__init__()
        self.adjoint = adjoint
        self.inside = nn.Linear(6, 6)
        self.outside = nn.Linear(5, 6, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        def f(x: Tensor) -> Tensor:
            return (0.5 * self.inside(x) + self.outside(u)).tanh()

        return fixed_point(f, u.new_zeros(len(u), 6), solver=SOLVER, adjoint=self.adjoint).value
