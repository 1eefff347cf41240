"""DEQ: a memory that settles, as a layer. Energy model + solver + gradient method.

A call goes ``HAM -> clamp -> eliminate -> fixed_point -> restore``: the given layers are held,
the hidden ones eliminated, the rest brought to equilibrium, and the full state put together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hamdeq.clamping import clamp
from hamdeq.ham import HAM
from hamdeq.implicit import Adjoint, Implicit, attach, solve
from hamdeq.layers import State
from hamdeq.solvers import Broyden, Failures, OnFailure, Solution, Solver, Status
from hamdeq.splitting import Reduced, eliminate, two_colouring

__all__ = ["DEQ"]


class DEQ(nn.Module):
    """A hierarchical associative memory as a deep equilibrium model.

    Args:
        ham: the memory.
        clamped: names of the layers that a call gives the states of.
        splitting: ``"even-odd"`` eliminates the wider colour of the free layers, so that a step
            of the solver is two asynchronous half-steps on a smaller state; ``None`` updates all
            free layers at once. Both have the same equilibria.
        solver: default :class:`~hamdeq.Broyden`.
        adjoint: gradient method, default :class:`~hamdeq.Implicit`.
        on_failure: for samples that do not converge: ``"warn"`` (once for this module),
            ``"raise"`` or ``"ignore"``. Their status is in the Solution in any case.

    Raises:
        TypeError: ham is no HAM.
        ValueError: an unknown layer; with even-odd splitting, a graph that has no two colours.

    Example:
        >>> deq = DEQ(HAM.chain([784, 512, 10]))
        >>> solution = deq({"input": torch.rand(64, 784)})
        >>> solution.value["output"].shape
        torch.Size([64, 10])
    """

    def __init__(
        self,
        ham: HAM,
        clamped: Collection[str] = ("input",),
        splitting: Literal["even-odd"] | None = "even-odd",
        *,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        if splitting not in ("even-odd", None):
            raise ValueError(f"splitting: expected 'even-odd' or None, got {splitting!r}")
        if not isinstance(ham, HAM):
            hint = "; use CHNDEQ, or DEQ(chn.to_ham())" if hasattr(ham, "to_ham") else ""
            raise TypeError(f"ham: expected a HAM, got {type(ham).__name__}{hint}")
        self.ham = ham
        self.clamped = (clamped,) if isinstance(clamped, str) else tuple(clamped)
        if not self.clamped:
            raise ValueError("clamped: expected at least one layer, got none")
        ham.check_names(self.clamped)
        self.splitting = splitting
        self.hidden = two_colouring(ham, clamped=self.clamped)[1] if splitting else ()
        self.solver = Broyden() if solver is None else solver
        self.adjoint = Implicit() if adjoint is None else adjoint
        for name, value, kind in (
            ("solver", self.solver, Solver),
            ("adjoint", self.adjoint, Adjoint),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected a hamdeq.{kind.__name__}, got {value!r}")
        self.failures = Failures(on_failure, once=True)

    def forward(self, clamped: State, *, init: State | None = None) -> Solution:
        """Let the memory settle.

        Args:
            clamped: the states of the clamped layers, ``(batch, *shape)``.
            init: initial states, zeros where none is given; another call's ``solution.value`` is
                a warm start. Only the layers that are neither clamped nor eliminated matter.

        Returns:
            a Solution whose ``value`` is the full state. A sample with an infinity or a NaN in
            its given states comes back as NaN with the status ``INVALID``; one that diverges, as
            its best finite state with the status ``DIVERGED``. Both have zero gradient.

        Raises:
            ValueError: a missing or unknown layer, a wrong shape, unequal batches.
            TypeError: a tensor that is not of floating point, or not of the weights' dtype.
        """
        if not isinstance(clamped, dict):
            raise TypeError(
                f"clamped: expected a dict {{layer name: tensor}} of {list(self.clamped)}, got "
                f"{type(clamped).__name__}"
            )
        self.ham.check_state(clamped, self.clamped)
        self._check_dtype(clamped)
        some = next(iter(clamped.values()))
        x0 = self._initial(some, {} if init is None else init)
        valid = _finite(clamped | x0)
        if not bool(valid.all()):
            clamped, x0 = _where(valid, clamped, 0.0), _where(valid, x0, 0.0)
        reduced = self.reduced(clamped)
        solution = solve(reduced, x0, self.solver) if x0 else _at_rest(some)
        solution = self._with_gradient(reduced, clamped, solution, valid)
        self.failures(solution, "equilibrium")
        return solution

    def reduced(self, clamped: State) -> Reduced:
        """The energy model that is brought to equilibrium: clamped, then eliminated."""
        return eliminate(clamp(self.ham, clamped), self.hidden)

    def energy(self, x: State) -> Tensor:
        """Energy of full states, such as a Solution's value: ``(batch,)``."""
        return self.ham.energy(x)

    def _check_dtype(self, clamped: State) -> None:
        weight = next((p for p in self.parameters() if p.dim() > 0), None)
        for name, x in clamped.items():
            autocast = torch.is_autocast_enabled(x.device.type)
            if weight is not None and x.dtype != weight.dtype and not autocast:
                raise TypeError(
                    f"layer {name!r}: expected {weight.dtype}, as the weights, got {x.dtype}; "
                    f"convert the one (x.to({weight.dtype})) or the other (deq.to({x.dtype}))"
                )

    def _with_gradient(
        self, reduced: Reduced, clamped: State, solution: Solution, valid: Tensor
    ) -> Solution:
        """The full state with its gradient, and what is known of samples that have none."""
        alive = valid & (solution.status != Status.DIVERGED)
        lost: State = {}
        if not bool(alive.all()):
            # An infinity times a gradient of zero is NaN, in the weights that all samples share:
            # lost samples leave the graph before it is built, and only then get their value back.
            with torch.no_grad():
                lost = _where(valid, reduced.restore(solution.value) | clamped, torch.nan)
            clamped = _where(alive, clamped, 0.0)
            reduced = self.reduced(clamped)
            solution = replace(
                solution,
                value=_where(alive, solution.value, 0.0),
                status=torch.where(valid, solution.status, Status.INVALID.value),
                converged=solution.converged & valid,
                residual=torch.where(valid, solution.residual, torch.nan),
            )
        if reduced.visible:
            solution = attach(
                reduced,
                solution,
                solver=self.solver,
                adjoint=self.adjoint,
                failures=self.failures,
            )
        value = reduced.restore(solution.value) | clamped
        if lost:
            value = {name: _pick(alive, value[name], lost[name]) for name in value}
        return replace(solution, value={name: value[name] for name in self.ham.layers})

    def _initial(self, some: Tensor, init: State) -> State:
        """Initial states of the visible layers: those given, zeros for the others."""
        self.ham.check_state(init, layers=tuple(init))
        for name, x in init.items():
            if len(x) != len(some):
                raise ValueError(
                    f"init: expected a batch of {len(some)} for {name!r}, got {len(x)}"
                )
        visible = [a for a in self.ham.layers if a not in self.clamped and a not in self.hidden]
        zeros = self.ham.zero_state(some, [name for name in visible if name not in init])
        return {name: zeros[name] if name in zeros else init[name].detach() for name in visible}

    def extra_repr(self) -> str:
        return (
            f"clamped={self.clamped}, splitting={self.splitting!r}, solver={self.solver}, "
            f"adjoint={self.adjoint}"
        )


def _finite(x: State) -> Tensor:
    """Samples without an infinity or a NaN: ``(batch,)``."""
    # A finite sum proves every number finite, in a fraction of the time of looking at each.
    proved = torch.stack([x_a.flatten(1).sum(1).isfinite() for x_a in x.values()]).all(0)
    if bool(proved.all()):
        return proved
    return torch.stack([x_a.isfinite().flatten(1).all(1) for x_a in x.values()]).all(0)


def _where(samples: Tensor, x: State, other: float) -> State:
    """The state in the marked samples, a number in the others."""
    return {name: _pick(samples, x_a, x_a.new_full((), other)) for name, x_a in x.items()}


def _pick(samples: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(samples.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def _at_rest(some: Tensor) -> Solution:
    """Of a memory whose free layers are all eliminated: their minimum is the equilibrium."""
    zeros = torch.zeros(len(some), dtype=torch.long, device=some.device)
    residual = some.new_zeros(len(some))
    return Solution(
        value={},
        residual=residual,
        steps=zeros,
        converged=torch.ones_like(zeros, dtype=torch.bool),
        status=torch.full_like(zeros, Status.CONVERGED.value),
        n_evals=0,
        trace=residual.new_empty(0, len(some)),
    )
