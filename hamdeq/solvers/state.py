"""The state of a solve: what is known of each sample, and of the steps it has taken."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hamdeq.solvers.energy_map import EnergyInfo
from hamdeq.solvers.solution import Solution, Status

__all__ = [
    "SampleLog",
    "SampleState",
    "SolverState",
    "Step",
    "all_without_sync",
    "dot",
    "dots",
    "forget_casts",
    "full_precision",
    "less",
    "norm",
    "relative_residual",
    "where_sample",
]


class Step:
    """One evaluation of f, for all samples that are left.

    Attributes:
        f: the map.
        x: where it was evaluated: ``(batch, n)``.
        fx: f(x).
        r: f(x) − x.
        size: ‖r‖: ``(batch,)``.
        residual: ‖r‖/‖f(x)‖: ``(batch,)``.
        info: of a map with an energy, what is known of it at x.
    """

    __slots__ = ("f", "fx", "info", "r", "residual", "size", "x")

    def __init__(
        self, f: Callable[[Tensor], Tensor], x: Tensor, fx: Tensor, info: EnergyInfo | None = None
    ) -> None:
        self.f: Callable[[Tensor], Tensor] = f
        self.x: Tensor = x
        self.fx: Tensor = fx
        self.info: EnergyInfo | None = info
        self.r: Tensor = fx - x
        self.size: Tensor = norm(self.r)
        self.residual: Tensor = relative_residual(self.size, fx)


class SampleState:
    """Tensors with the batch first, of which samples can be dropped."""

    def select(self, rows: Tensor) -> None:
        """Keep some samples, given by index, in every attribute that is a tensor or memory."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, SampleState):
                value.select(rows)


class SolverState(SampleState, ABC):
    """The memory of one running solve: proposes the next state from the last evaluation.

    Tensors among its attributes must have the batch first: of a memory (an energy model) samples
    that have stopped are dropped from them. Override :meth:`select` for anything else.
    """

    def accepts(self, step: Step) -> Tensor | None:
        """Mark the samples that go on from here, and may end here: ``(batch,)``; None for all."""
        return None

    @abstractmethod
    def next(self, step: Step) -> Tensor:
        """The next state: ``(batch, n)``."""


class SampleLog:
    """The best state of each sample so far, and the samples that are still running."""

    def __init__(self, x0: Tensor, *, traced: bool = True) -> None:
        self.best: Tensor = x0
        self.lowest: Tensor = x0.new_full((len(x0),), math.inf)
        self.steps: Tensor = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self.running: Tensor = torch.ones_like(self.steps, dtype=torch.bool)
        self.diverged: Tensor = torch.zeros_like(self.running)
        self.left: int = len(x0)
        # Of the whole batch, as of the last time that samples were dropped, and where these are.
        self.whole: dict[str, Tensor] | None = None
        self.rows: Tensor | None = None
        self.count: int = 0
        self.trace: list[Tensor] | None = [] if traced else None

    def record(
        self,
        x: Tensor,
        residual: Tensor,
        size: Tensor,
        tol: float,
        *,
        accepted: Tensor | None = None,
    ) -> int:
        """Take in an evaluation.

        Args:
            x: where it was.
            residual: its relative residual.
            size: ‖f(x) − x‖.
            tol: relative residual to reach.
            accepted: samples that may end here; None for all.

        Returns:
            how many samples are left.
        """
        # Within a graph nobody knows.
        everyone = self.left == len(self.lowest) and not torch.compiler.is_compiling()
        going = self.running
        if not everyone:  # the others are evaluated at their best state, and change nothing
            residual = torch.where(going, residual, self.lowest)
        # A NaN is not below anything: the best finite state is kept without a test for it.
        better = residual < self.lowest
        if accepted is not None:
            better = better & accepted
        if all_without_sync(better if everyone else better | ~going):  # mostly so
            self.best, self.lowest = x, residual
            stopped = residual < tol
        else:
            self.best = torch.where(better[:, None], x, self.best)
            self.lowest = torch.where(better, residual, self.lowest)
            # Asked of r: the ratio may overflow where f(x) is zero, and all is well.
            unsound = ~(size < math.inf)
            if accepted is not None:
                unsound = unsound & accepted
            stopped = unsound | (self.lowest < tol)
        if not everyone:
            stopped = stopped & going
        self.count += 1
        self.steps = self.steps + going
        if self.trace is not None:
            self.trace.append(self._of_all(residual))
        if torch.compiler.is_compiling():
            self._stop(stopped, tol)
        elif count := int(torch.count_nonzero(stopped)):
            self._stop(stopped, tol)
            self.left -= count
        return self.left

    def _stop(self, stopped: Tensor, tol: float) -> None:
        self.running = self.running & ~stopped
        self.diverged = self.diverged | (stopped & ~(self.lowest < tol))

    def drop(self, rows: Tensor) -> None:
        """Go on with some of the samples, given by index."""
        self.whole, self.rows = self._merged(), rows if self.rows is None else self.rows[rows]
        for name in ("best", "lowest", "steps", "running", "diverged"):
            setattr(self, name, getattr(self, name)[rows])

    def solution(self, tol: float) -> Solution:
        merged = self._merged()
        lowest = merged["lowest"]
        converged = lowest < tol
        status = torch.full_like(merged["steps"], Status.MAX_STEPS.value)
        status.masked_fill_(converged, Status.CONVERGED.value)
        return Solution(
            value=merged["best"],
            residual=lowest,
            steps=merged["steps"],
            converged=converged,
            status=status.masked_fill_(merged["diverged"], Status.DIVERGED.value),
            n_evals=self.count,
            trace=torch.stack(self.trace) if self.trace else lowest.new_empty(0, len(lowest)),
        )

    def _merged(self) -> dict[str, Tensor]:
        present = {name: getattr(self, name) for name in ("best", "lowest", "steps", "diverged")}
        if self.whole is None or self.rows is None:
            return present
        return {name: x.index_copy(0, self.rows, present[name]) for name, x in self.whole.items()}

    def _of_all(self, residual: Tensor) -> Tensor:
        """The residuals of the whole batch, of which some samples may have been dropped."""
        if self.whole is None or self.rows is None:
            return residual
        return self.whole["lowest"].index_copy(0, self.rows, residual)


def where_sample(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``one`` in the marked samples, ``other`` in the rest."""
    if all_without_sync(mask):
        return one
    return torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast: what solvers do with states is not for half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def forget_casts(x: Tensor) -> None:
    """Let autocast cast weights anew where a graph is wanted after a solve without one.

    Casts are cached, and PyTorch 2.10 takes those that were made without a graph.
    """
    if torch.is_autocast_enabled(x.device.type):
        torch.clear_autocast_cache()


def all_without_sync(mask: Tensor) -> bool:
    """Tell if all are marked, as far as one can without waiting for a device."""
    looks = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return looks and bool(mask.all())


def relative_residual(size: Tensor, fx: Tensor) -> Tensor:
    """size/‖f(x)‖ a sample, size being ‖f(x) − x‖; it is 0 where both are 0."""
    scale = norm(fx)
    # Divided by the smallest positive number, a residual that is not zero stays large; divided by
    # a norm that has overflowed, it would vanish: the last term is NaN there, and otherwise zero.
    return size / scale.clamp_min(torch.finfo(fx.dtype).tiny) + (scale - scale)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ a sample: ``(batch, n), (batch, n) -> (batch,)``."""
    return torch.linalg.vecdot(a, b)


def dots(rows: Tensor, x: Tensor) -> Tensor:
    """⟨row, x⟩ of a sample's rows: ``(batch, m, n), (batch, n) -> (batch, m)``."""
    if torch.compiler.is_compiling():  # fused with what is around it
        return (rows * x[:, None]).sum(-1)
    return torch.bmm(rows, x[..., None])[..., 0]


def less(x: Tensor, shares: Tensor, rows: Tensor) -> Tensor:
    """x − Σ_j shares_j row_j: ``(batch, n), (batch, m), (batch, m, n) -> (batch, n)``."""
    if torch.compiler.is_compiling():
        return x - (shares[..., None] * rows).sum(1)
    return torch.baddbmm(x[:, None], shares[:, None], rows, alpha=-1)[:, 0]


def norm(x: Tensor) -> Tensor:
    """Euclidean norm a sample: ``(batch, n) -> (batch,)``."""
    return torch.linalg.vector_norm(x, dim=-1)
