"""The second budget of a solve, for samples that have not converged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hamdeq.solvers.solution import Solution, Status

__all__ = ["with_fallback"]


def with_fallback(solution: Solution, more: Callable[[Tensor, Tensor], Solution]) -> Solution:
    """Go on with the samples that have not converged, from their best finite state.

    Args:
        solution: the result of the first budget, its value ``(batch, n)``.
        more: the second: it takes the indices of the samples left and their states, and returns
            their solution.

    Returns:
        the result of both. Samples that ``more`` has converged have the status ``FALLBACK``;
        ``steps`` and ``n_evals`` are sums, and the trace goes on.
    """
    if bool(solution.converged.all()):
        return solution
    # Of a sample whose first evaluation was not finite nothing is known to go on from.
    known = solution.residual.isfinite() | (solution.status == Status.MAX_STEPS.value)
    left = ~solution.converged & known & solution.value.isfinite().all(1)
    rows = left.nonzero()[:, 0]
    if not len(rows):
        return solution
    second = more(rows, solution.value[rows])
    better = second.residual < solution.residual[rows]
    value = torch.where(better[:, None], second.value, solution.value[rows])
    residual = torch.where(better, second.residual, solution.residual[rows])
    status = torch.where(second.converged, Status.FALLBACK.value, second.status)
    trace = solution.residual.expand(len(second.trace), -1).index_copy(1, rows, second.trace)
    return replace(
        solution,
        value=solution.value.index_copy(0, rows, value),
        residual=solution.residual.index_copy(0, rows, residual),
        steps=solution.steps.index_add(0, rows, second.steps),
        converged=solution.converged.index_copy(0, rows, second.converged),
        status=solution.status.index_copy(0, rows, status),
        n_evals=solution.n_evals + second.n_evals,
        trace=torch.cat([solution.trace, trace]),
    )
