"""Retrieval to convergence: every state pattern converges by itself, with an implicit gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hamdeq.elimination.attention import Retrieval, folded, shared, unfolded
from hamdeq.elimination.cover import Cover
from hamdeq.energy.model import Evaluation, State
from hamdeq.implicit import Adjoint, attach_gradient, solve_state
from hamdeq.solvers import Failures, Solution, Solver, Status

__all__ = ["Rows", "settle"]


# Traced by the compiler, a solver breaks up into a graph for each thing that it looks at, and these
# are made anew for each number of rows that it is left with: here is one break. (The public
# torch.compiler.disable imports the compiler, which takes a second.)
@torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
def settle(
    memory: Retrieval, x: Tensor, *, solver: Solver, adjoint: Adjoint, failures: Failures
) -> Solution:
    """State patterns brought to their equilibrium.

    Args:
        memory: the stored patterns ``(N, H, S, d)``; N may be 1.
        x: initial state patterns ``(N, H, L, d)``.
        solver: its ``tol`` is the relative residual ‖f(x) − x‖/‖f(x)‖ of each state pattern.
        adjoint: gradient method.
        failures: what to do about state patterns that do not converge.

    Returns:
        a Solution whose ``value`` is ``(N, H, L, d)``, with ``residual``, ``steps``, ``converged``
        and ``status`` of shape ``(N, H, L)`` and ``trace`` of ``(n_evals, …)``. A state pattern
        that is not finite, or one of whose stored patterns is not, comes back as NaN, with the
        status ``INVALID``.
    """
    if shared(memory.stored, x):
        one = settle(memory.folded(x), folded(x), solver=solver, adjoint=adjoint, failures=failures)
        return _unfolded(one, len(x))
    (n, heads, count, d), size = x.shape, memory.stored.shape[-2]
    # ½‖x‖² − ℓ(βKx)/β is, but for a factor β, ½‖y‖² − ℓ(√β K y) of y = √β x. Half precision cannot
    # resolve a residual of 1e-4.
    dtype = torch.promote_types(x.dtype, torch.float32)
    root = torch.as_tensor(memory.beta, dtype=dtype, device=x.device).sqrt()
    y, stored = root * x.to(dtype), memory.stored.to(dtype)
    whole = stored.detach().isfinite().all(-1).all(-1)[..., None]
    valid = y.detach().isfinite().all(-1) & whole
    y = torch.where(valid[..., None], y, 0.0)
    stored = torch.where(whole[..., None], stored, 0.0)
    gains = None
    if root.dim() > 1 and root.shape[-2] > 1:
        gains = root.expand(n, heads, count, 1).reshape(-1, 1)
    else:  # the same for all state patterns of a head: a factor of the stored patterns
        stored = root * stored
    stored = stored.expand(n, -1, -1, -1).reshape(n * heads, 1, size, d)
    mask = memory.mask and memory.mask.flat(n, heads)
    rows = Rows(Retrieval(stored, memory.lagrangian, mask=mask), count, gains=gains)
    start = {"state": y.detach().reshape(-1, d)}
    solution = solve_state(rows, start, solver)
    solution = attach_gradient(rows, solution, solver=solver, adjoint=adjoint, failures=failures)
    if y.requires_grad:
        # The equilibrium does not depend on where the update began: the gradient is zero, and
        # given as such to those who wait for one (DistributedDataParallel does).
        value = solution.value["state"] + 0.0 * y.reshape(-1, d)
        solution = replace(solution, value={"state": value})
    solution = _shaped(solution, root, valid, x)
    failures(solution, "retrieval", remedy=_REMEDY)
    return solution


_REMEDY = (
    "the relative residual stayed above tol for max_steps updates; allow more or a larger tol "
    "(solver=Picard(max_steps=500, tol=1e-3)), use solver=Anderson(), or a larger β, at which "
    "patterns are retrieved in fewer updates (docs/convergence.md)"
)


def _shaped(solution: Solution, root: Tensor, valid: Tensor, x: Tensor) -> Solution:
    """The solution of the rows as one of the state patterns x."""
    value = solution.value["state"].reshape(x.shape) / root
    each = valid.shape
    return replace(
        solution,
        value=torch.where(valid[..., None], value, torch.nan).to(x.dtype),
        residual=torch.where(valid, solution.residual.reshape(each), torch.nan),
        steps=solution.steps.reshape(each),
        converged=solution.converged.reshape(each) & valid,
        status=torch.where(valid, solution.status.reshape(each), Status.INVALID.value),
        trace=solution.trace.reshape(len(solution.trace), *each),
    )


def _unfolded(solution: Solution, samples: int) -> Solution:
    names = ("value", "residual", "steps", "converged", "status")
    parts = {name: unfolded(getattr(solution, name), samples) for name in names}
    trace = solution.trace[:, 0].unflatten(2, (samples, -1)).transpose(1, 2)
    return replace(solution, **parts, trace=trace)


class Rows:
    """State patterns as independent samples: the energy model that a solver brings to rest.

    This is ``Retrieval`` on rows. Its methods are written out: as a ``LayeredEnergy`` of a linear
    layer, with the memories as its synapse, a step takes 18 to 22 % more time.

    Args:
        memory: stored patterns ``(B, 1, S, d)`` at β = 1; a mask has as many leading axes.
        count: L, the state patterns that there is room for at each of the B.
        slots: where each row lies among these B · L places; None for all, in order.
        gains: a factor of the stored patterns for each row ``(rows, 1)``, its √β.

    Shape:
        The state is ``{"state": (rows, d)}``.
    """

    # A step minimises over the memories and then over the state.
    descends = True

    def __init__(
        self,
        memory: Retrieval,
        count: int,
        slots: Tensor | None = None,
        gains: Tensor | None = None,
    ) -> None:
        self.memory = memory
        self.count = count
        self.slots = slots
        self.gains = gains

    def check_state(self, x: State) -> None:
        """Nothing to refuse: the model is made for its states."""

    def update(self, x: State) -> State:
        return {"state": self._gained(self._rows(self.memory.update(self._gained_places(x))))}

    def activations(self, x: State) -> State:
        return x

    def fields(self, g: State) -> State:
        return self.update(g)

    def energy(self, x: State) -> Tensor:
        return self._terms(x).sum(0)

    def step(self, x: State) -> Evaluation:
        fresh = self.update(x)
        return Evaluation(x, fresh, fresh, True, lambda: self._terms(x))

    def select(self, rows: Tensor) -> Rows:
        """The rows given by index, ascending, with the stored patterns that they need."""
        slots = rows if self.slots is None else self.slots[rows]
        kept, block = (slots // self.count).unique(return_inverse=True)
        sizes = torch.bincount(block, minlength=len(kept))
        count = int(sizes.max()) if len(rows) else 0
        rank = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[block]
        moved = block * count + rank

        def carry(part: Tensor) -> Tensor:
            if part.shape[-2] == 1:
                return part if len(part) == 1 else part[kept]
            each = part.expand(len(self.memory.stored), *part.shape[1:]).flatten(0, 2)[slots]
            places = each.new_zeros(len(kept) * count, each.shape[-1])
            return places.index_copy(0, moved, each).reshape(len(kept), 1, count, each.shape[-1])

        mask = self.memory.mask
        mask = mask and Cover(*map(carry, mask.parts), extra=mask.extra)
        memory = Retrieval(self.memory.stored[kept], self.memory.lagrangian, mask=mask)
        gains = None if self.gains is None else self.gains[rows]
        return Rows(memory, count, moved, gains)

    def _terms(self, x: State) -> Tensor:
        quadratic = 0.5 * (x["state"] * x["state"]).sum(-1)
        potential = self.memory.potential(self._gained_places(x))
        return torch.stack([quadratic, -self._rows(potential[..., None])[:, 0]])

    def _gained(self, x: Tensor) -> Tensor:
        return x if self.gains is None else self.gains * x

    def _gained_places(self, x: State) -> Tensor:
        return self._places(self._gained(x["state"]))

    def _places(self, x: Tensor) -> Tensor:
        """The rows where the stored patterns expect them: ``(rows, d) -> (B, 1, L, d)``."""
        blocks = len(self.memory.stored)
        if self.slots is not None:
            x = x.new_zeros(blocks * self.count, x.shape[1]).index_copy(0, self.slots, x)
        return x.reshape(blocks, 1, self.count, x.shape[1])

    def _rows(self, places: Tensor) -> Tensor:
        rows = places.flatten(0, 2)
        return rows if self.slots is None else rows[self.slots]
