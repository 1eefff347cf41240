"""DEQ: a memory that settles, as a layer. Energy model + solver + gradient method.

A call goes ``HAM -> clamp -> eliminate -> fixed_point -> restore``: the given layers are held,
the hidden ones eliminated, the rest brought to equilibrium, and the full state put together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hamdeq._recorded import Recorded
from hamdeq.clamping import Clamped, clamp
from hamdeq.colouring import colouring, two_colouring
from hamdeq.ham import HAM
from hamdeq.implicit import Adjoint, Implicit, attach, solve
from hamdeq.layers import State
from hamdeq.solvers import Broyden, Failures, OnFailure, Solution, Solver, Status
from hamdeq.splitting import Reduced, eliminate
from hamdeq.starting import forward_sweep

__all__ = ["DEQ"]


class DEQ(Recorded, nn.Module):
    """A hierarchical associative memory as a deep equilibrium model.

    Args:
        ham: the memory.
        clamped: names of the layers that a call gives the states of.
        splitting: ``"even-odd"`` eliminates the wider colour of the free layers, so that a step
            of the solver is two asynchronous half-steps on a smaller state; ``"sweep"`` does so
            for graphs of any number of colours, of which a step updates one after another;
            ``None`` updates all free layers at once. All have the same equilibria.
        solver: default :class:`~hamdeq.Broyden`.
        adjoint: gradient method, default :class:`~hamdeq.Implicit`.
        start: where to start settling from: ``"forward"``, one pass outwards from the clamped
            layers, as through a feed-forward network, which costs half an even-odd step; or
            ``"zeros"``.
        on_failure: for samples that do not converge: ``"warn"`` (once for this module),
            ``"raise"`` or ``"ignore"``. Their status is in the Solution in any case.

    Raises:
        TypeError: ham is no HAM.
        ValueError: an unknown layer; no layer left to settle; with even-odd splitting, a graph
            that has no two colours.

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
        splitting: Literal["even-odd", "sweep"] | None = "even-odd",
        *,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        start: Literal["forward", "zeros"] = "forward",
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        if splitting not in ("even-odd", "sweep", None):
            raise ValueError(f"splitting: expected 'even-odd', 'sweep' or None, got {splitting!r}")
        if start not in ("forward", "zeros"):
            raise ValueError(f"start: expected 'forward' or 'zeros', got {start!r}")
        if not isinstance(ham, HAM):
            hint = "; use CHNDEQ, or DEQ(chn.to_ham())" if hasattr(ham, "to_ham") else ""
            raise TypeError(f"ham: expected a HAM, got {type(ham).__name__}{hint}")
        self.ham = ham
        self.clamped: tuple[str, ...] = (clamped,) if isinstance(clamped, str) else tuple(clamped)
        if not self.clamped:
            raise ValueError("clamped: expected at least one layer, got none")
        ham.check_names(self.clamped)
        self.splitting = splitting
        self.start = start
        self._partings: dict[tuple[str, ...], _Parting] = {}
        self.hidden: tuple[str, ...] = self._parting(self.clamped)[0]
        self.solver: Solver = Broyden() if solver is None else solver
        self.adjoint: Adjoint = Implicit() if adjoint is None else adjoint
        for name, value, kind in (
            ("solver", self.solver, Solver),
            ("adjoint", self.adjoint, Adjoint),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected a hamdeq.{kind.__name__}, got {value!r}")
        self.failures: Failures = Failures(on_failure, once=True)

    def constructor_arguments(self) -> dict[str, Any]:
        now = {
            "solver": self.solver,
            "adjoint": self.adjoint,
            "on_failure": self.failures.on_failure,
        }
        return super().constructor_arguments() | now

    def forward(
        self, clamped: State, *, known: State | None = None, init: State | None = None
    ) -> Solution:
        """Let the memory settle.

        Args:
            clamped: the states of the clamped layers, ``(batch, *shape)``.
            known: of those that are clamped in part, such as half an image, which neurons are:
                boolean, of the layer's shape or with a batch. The others settle, and their given
                states do not matter.
            init: initial states of some layers, instead of those of ``start``; another call's
                ``solution.value`` is a warm start. Only the layers that are neither clamped nor
                eliminated matter.

        Returns:
            a Solution whose ``value`` is the full state. A sample with an infinity or a NaN in
            its given states comes back as NaN with the status ``INVALID``; one that diverges, as
            its best finite state with the status ``DIVERGED``. Both have zero gradient.

        Raises:
            ValueError: a missing or unknown layer, a wrong shape, unequal batches; nothing that
                is left to settle; a layer clamped in part whose neurons are coupled, or which with
                even-odd splitting closes an odd cycle.
            TypeError: a tensor that is not of floating point, or not of the weights' dtype; a
                mask that is not boolean.
        """
        if not isinstance(clamped, dict):
            raise TypeError(
                f"clamped: expected a dict {{layer name: tensor}} of {list(self.clamped)}, got "
                f"{type(clamped).__name__}"
            )
        self.ham.check_state(clamped, self.clamped)
        self._check_dtype(clamped)
        model = clamp(self.ham, clamped, known)
        if not model.layers:
            raise ValueError(
                f"clamped: expected at least one layer to settle, got all of {list(clamped)} "
                "clamped; leave one out, or clamp it in part (known=…)"
            )
        clamped = model.held | model.partly
        x0 = self._initial(model, {} if init is None else init)
        valid = _finite(clamped | x0)
        if not bool(valid.all()):
            clamped, x0 = _where(valid, clamped, 0.0), _where(valid, x0, 0.0)
            model = clamp(self.ham, clamped, model.known)
        reduced = self._reduce(model)
        solution = solve(reduced, x0, self.solver) if x0 else _at_rest(next(iter(clamped.values())))
        solution = self._with_gradient(reduced, clamped, solution, valid)
        self.failures(solution, "equilibrium")
        return solution

    def reduced(self, clamped: State, known: State | None = None) -> Reduced:
        """The energy model that is brought to equilibrium: clamped, then eliminated."""
        return self._reduce(clamp(self.ham, clamped, known))

    def _reduce(self, model: Clamped) -> Reduced:
        hidden, colours = self._parting(tuple(model.held))
        return eliminate(model, hidden, colours=colours)

    def _parting(self, held: tuple[str, ...]) -> _Parting:
        """The layers to eliminate, and the colours of the others, where some are wholly held."""
        if held not in self._partings:
            if self.splitting == "even-odd":
                parting = two_colouring(self.ham, clamped=held)[1], None
            elif self.splitting == "sweep":
                hidden, *colours = colouring(self.ham, clamped=held)
                parting = hidden, tuple(colours)
            else:
                parting = (), None
            self._partings[held] = parting
        return self._partings[held]

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
                lost = _where(valid, _full(reduced, solution.value), torch.nan)
            known = _clamped(reduced).known
            reduced = self._reduce(clamp(self.ham, _where(alive, clamped, 0.0), known))
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
        value = _full(reduced, solution.value)
        if lost:
            value = {name: _pick(alive, value[name], lost[name]) for name in value}
        return replace(solution, value=value)

    @torch.no_grad()
    def _initial(self, model: Clamped, init: State) -> State:
        """Initial states of the visible layers: those given, then those of ``start``."""
        self.ham.check_state(init, layers=tuple(init))
        some = next(iter((model.held | model.partly).values()))
        for name, x in init.items():
            if len(x) != len(some):
                raise ValueError(
                    f"init: expected a batch of {len(some)} for {name!r}, got {len(x)}"
                )
        hidden, _ = self._parting(tuple(model.held))
        visible = [name for name in model.layers if name not in hidden]
        missing = [name for name in visible if name not in init]
        if missing and self.start == "forward":
            x = forward_sweep(model)
            # Where a pass overflows, settling from zero may still do.
            x = _where(_finite(x), x, 0.0)
        else:
            x = self.ham.zero_state(some, missing)
        x = {name: x[name] if name in missing else init[name].detach() for name in visible}
        return {a: torch.where(model.known[a], 0.0, x[a]) if a in model.known else x[a] for a in x}

    def extra_repr(self) -> str:
        eliminated = ", ".join(self.hidden) or "nothing"
        return (
            f"clamped={self.clamped}\n"
            f"splitting={self.splitting!r}, which eliminates {eliminated}\n"
            f"solver={self.solver}\n"
            f"adjoint={self.adjoint}\n"
            f"start={self.start!r}"
        )


_Parting = tuple[tuple[str, ...], tuple[tuple[str, ...], ...] | None]


def _clamped(reduced: Reduced) -> Clamped:
    assert isinstance(reduced.model, Clamped)
    return reduced.model


def _full(reduced: Reduced, x: State) -> State:
    """The state of all layers, of which some of the free ones are given."""
    return _clamped(reduced).full(reduced.restore(x))


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
