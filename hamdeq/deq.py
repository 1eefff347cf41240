"""DEQ: a memory that settles, as a layer. Energy model + solver + gradient method.

A call goes ``HAM -> clamp -> eliminate -> fixed_point -> restore``: the given layers are held,
the hidden ones eliminated, the rest brought to equilibrium, and the full state put together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hamdeq._recorded import Recorded
from hamdeq.elimination.colouring import colouring, two_colouring
from hamdeq.elimination.eliminate import Reduced, eliminate
from hamdeq.energy.clamping import Clamped, check_masks, clamp
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import State
from hamdeq.energy.prepared import Prepared
from hamdeq.energy.starting import forward_sweep
from hamdeq.implicit import Adjoint, Implicit, attach_gradient, solve_state, transforms
from hamdeq.solvers import Broyden, Failures, OnFailure, Solution, Solver, Status

__all__ = ["DEQ", "Given"]


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

    Under :mod:`torch.func` a DEQ has ``grad``, ``vjp``, ``jacrev`` and ``vmap`` of a call and of
    ``functional_call``, and so per-sample gradients; first derivatives in reverse mode alone.

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
        self, clamped: State, *, observed: State | None = None, init: State | None = None
    ) -> Solution:
        """Let the memory settle.

        Args:
            clamped: the states of the clamped layers, ``(batch, *shape)``.
            observed: of those that are clamped in part, such as half an image, which neurons are:
                boolean, of the layer's shape or with a batch. The others settle, and their given
                states do not matter.
            init: initial states of some layers, instead of those of ``start``; another call's
                ``solution.value`` is a warm start. Only the layers that are neither clamped nor
                eliminated matter.

        Returns:
            a Solution whose ``value`` is the full state, in tensors of its own. A sample is
            ``CONVERGED`` only if all of its layers are finite. One with an infinity or a NaN in
            its given states has the status ``INVALID`` and comes back as NaN. One that diverges,
            or of which a layer overflows, has the status ``DIVERGED`` and comes back as its best
            finite state (the initial one, if no other was), or as NaN if some layer of that
            overflows. Both have zero gradient and leave the other samples as they are.

        Raises:
            ValueError: a missing or unknown layer, a wrong shape, unequal batches; nothing that
                is left to settle; a layer clamped in part whose neurons are coupled, or which with
                even-odd splitting closes an odd cycle; tensors on the meta device, or not on the
                weights' device.
            TypeError: a tensor that is not of floating point, or not of the weights' dtype; a
                mask that is not boolean.
        """
        given = self._checked(clamped, observed, {} if init is None else init)
        if transforms.are_active():
            return transforms.solve_below(
                self,
                given,
                self.ham.layers,
                solve=self._found,
                value=self._again,
                failures=self.failures,
            )
        solution, _, _ = self._settled(given)
        self.failures(solution, "equilibrium")
        return solution

    def reduced(self, clamped: State, observed: State | None = None) -> Reduced:
        """The energy model that is brought to equilibrium: clamped, then eliminated."""
        return self._reduce(clamp(self.ham, clamped, observed))

    def energy(self, x: State) -> Tensor:
        """Energy of full states, such as a Solution's value: ``(batch,)``.

        Samples that are not finite have the energy NaN; neither they nor those whose energy
        overflows have a gradient.
        """
        self.ham.check_state(x)
        if transforms.are_active():  # where no number can be looked at
            return self._energy(x)
        finite = _finite(*x.values())
        rows = _rows(finite)
        energy = self._energy(x if rows is None else _selected(x, rows))
        kept = _rows(energy.isfinite())
        if kept is not None:
            tried = torch.arange(len(finite), device=finite.device) if rows is None else rows
            overflown, rows = _filled(energy.detach(), tried, len(finite)), tried[kept]
            return _filled(self._energy(_selected(x, rows)), rows, len(finite), overflown)
        return energy if rows is None else _filled(energy, rows, len(finite))

    def _energy(self, x: State) -> Tensor:
        return self.ham.energy(x)

    def _checked(self, clamped: State, observed: State | None, init: State) -> Given:
        """The arguments of a call, refused unless they fit the memory."""
        if not isinstance(clamped, dict):
            raise TypeError(
                f"clamped: expected a dict {{layer name: tensor}} of {list(self.clamped)}, got "
                f"{type(clamped).__name__}"
            )
        self.ham.check_state(clamped, self.clamped)
        self._check_tensors(clamped)
        observed = check_masks(self.ham, clamped, observed)
        held = tuple(name for name in clamped if name not in observed)
        free = [name for name in self.ham.layers if name not in held]
        if not free:
            raise ValueError(
                f"clamped: expected at least one layer to settle, got all of {list(clamped)} "
                "clamped; leave one out, or clamp it in part (observed=…)"
            )
        batch = len(next(iter(clamped.values())))
        self.ham.check_state(init, layers=tuple(init))
        for name, x in init.items():
            if len(x) != batch:
                raise ValueError(f"init: expected a batch of {batch} for {name!r}, got {len(x)}")
        hidden, _ = self._parting(held)
        visible = {a: init[a].detach() for a in free if a in init and a not in hidden}
        # What is given for neurons that are to settle has no say, not even if it is NaN.
        clamped = clamped | {a: torch.where(m, clamped[a], 0.0) for a, m in observed.items()}
        start = {
            a: torch.where(observed[a], 0.0, x) if a in observed else x for a, x in visible.items()
        }
        return Given(clamped, observed, start)

    def _check_tensors(self, clamped: State) -> None:
        """Refuse numbers that the weights cannot be multiplied with."""
        weight = next((p for p in self.parameters() if p.dim() > 0), None)
        for name, x in clamped.items():
            if x.is_meta or (weight is not None and weight.is_meta):
                raise ValueError(
                    f"layer {name!r}: expected states and weights that have values, got "
                    f"{'states' if x.is_meta else 'weights'} on the meta device, where nothing "
                    "can settle; deq.to_empty(device='cpu') gives weights room for values"
                )
            if weight is not None and x.device != weight.device:
                raise ValueError(
                    f"layer {name!r}: expected states on {weight.device}, as the weights, got "
                    f"{x.device}; move the one (x.to('{weight.device}')) or the other "
                    f"(deq.to('{x.device}'))"
                )
            autocast = torch.is_autocast_enabled(x.device.type)
            if weight is not None and x.dtype != weight.dtype and not autocast:
                raise TypeError(
                    f"layer {name!r}: expected {weight.dtype}, as the weights, got {x.dtype}; "
                    f"convert the one (x.to({weight.dtype})) or the other (deq.to({x.dtype}))"
                )

    @torch.no_grad()
    def _found(self, given: Given) -> tuple[Solution, State]:
        """The full state at equilibrium, and the visible layers, without a graph."""
        solution, visible, rows = self._settled(given)
        if rows is not None:
            batch = len(solution.status)
            visible = {a: _filled(x, rows, batch) for a, x in visible.items()}
        return solution, visible

    def _again(self, given: Given, solution: Solution, visible: State) -> State:
        """The full state with its gradient, from what :meth:`_found` has found."""
        lost = (solution.status == Status.DIVERGED) | (solution.status == Status.INVALID)
        rows = _rows(~lost)
        if rows is not None:
            given, visible = given.select(rows), _selected(visible, rows)
        reduced = self._reduce(self._clamp(given, self.ham.prepared()))
        value = self._value(given, reduced, replace(solution, value=visible), rows)
        if rows is not None:
            value = {a: _filled(x, rows, len(lost)) for a, x in value.items()}
        return value

    def _settled(self, given: Given) -> tuple[Solution, State, Tensor | None]:
        """The full state at equilibrium, with its gradient.

        Returns:
            the Solution; the visible layers of the samples that are not lost; which these are, by
            index, None for all.

        An infinity times a gradient of zero is NaN, in the weights that all samples share: lost
        samples do not enter the graph, and get their value in the end.
        """
        valid = given.finite()
        rows, part = _rows(valid), given
        if rows is not None:
            part = given.select(rows)
        ham = self.ham.prepared()
        model = self._clamp(part, ham)
        reduced = self._reduce(model)
        x0 = self._initial(model, part.init)
        solution = solve_state(reduced, x0, self.solver) if x0 else _at_rest(part.some)
        if rows is not None:
            solution = solution.among(rows, torch.where(valid, 0, Status.INVALID.value))
        value = self._value(part, reduced, solution, rows)
        status = solution.status if rows is None else solution.status[rows]
        finite = _finite(*(x for a, x in value.items() if a not in model.clamped))
        alive = finite & (status != Status.DIVERGED)
        lost: State = {}
        if not bool(alive.all()):
            tried = torch.arange(len(valid), device=valid.device) if rows is None else rows
            lost = {
                a: _filled(_where(finite, x.detach(), torch.nan), tried, len(valid))
                for a, x in value.items()
            }
            solution = replace(
                solution,
                value=_selected(solution.value, alive),
                status=solution.status.index_fill(0, tried[~alive], Status.DIVERGED.value),
                converged=solution.converged.index_fill(0, tried[~alive], False),
                residual=solution.residual.index_fill(0, tried[~finite], torch.nan),
            )
            rows = tried[alive]
            part = given.select(rows)
            value = self._value(part, self._reduce(self._clamp(part, ham)), solution, rows)
        if rows is not None:
            value = {a: _filled(x, rows, len(valid), lost.get(a)) for a, x in value.items()}
        return replace(solution, value=value), solution.value, rows

    def _value(
        self, given: Given, reduced: Reduced, solution: Solution, rows: Tensor | None
    ) -> State:
        """The full state, with its gradient, where the visible layers are in equilibrium."""
        if reduced.visible:
            solution = attach_gradient(
                reduced,
                solution,
                solver=self.solver,
                adjoint=self.adjoint,
                failures=self.failures,
                rows=rows,
            )
        return self._full(given, reduced, solution.value)

    def _clamp(self, given: Given, ham: Prepared) -> Clamped:
        return Clamped(ham, given.clamped, given.observed)

    def _reduce(self, model: Clamped) -> Reduced:
        hidden, colours = self._parting(tuple(model.clamped))
        return eliminate(model, hidden, colours=colours)

    def _full(self, given: Given, reduced: Reduced, x: State) -> State:
        """The state of all layers, of which the visible ones are given."""
        assert isinstance(reduced.model, Clamped)
        return reduced.model.full(reduced.restore(x))

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

    @torch.no_grad()
    def _initial(self, model: Clamped, init: State) -> State:
        """Initial states of the visible layers: those given, then those of ``start``."""
        hidden, _ = self._parting(tuple(model.clamped))
        visible = [name for name in model.layers if name not in hidden]
        missing = [name for name in visible if name not in init]
        if missing and self.start == "forward":
            x = forward_sweep(model)
            # Where a pass overflows, settling from zero may still do.
            finite = _finite(*x.values())
            x = {a: _where(finite, x_a, 0.0) for a, x_a in x.items()}
        else:
            x = self.ham.zero_state(next(iter((model.clamped | model.partial).values())), missing)
        x = {name: init[name] if name in init else x[name] for name in visible}
        return {
            a: torch.where(model.observed[a], 0.0, x[a]) if a in model.observed else x[a] for a in x
        }

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


@dataclass(frozen=True)
class Given:
    """The arguments of a call.

    Attributes:
        clamped: states of the clamped layers, zero where they are not observed.
        observed: of those that are clamped in part, which neurons are.
        init: initial states of some of the visible layers, zero where they are observed.
    """

    clamped: State
    observed: State
    init: State

    @property
    def some(self) -> Tensor:
        """A state, for its batch, dtype and device."""
        return next(iter(self.clamped.values()))

    def finite(self) -> Tensor:
        """Samples without an infinity or a NaN: ``(batch,)``."""
        return _finite(*self.clamped.values(), *self.init.values())

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.clamped.values(), *self.observed.values(), *self.init.values()]

    def replaced(self, tensors: Sequence[Tensor]) -> Given:
        """The same with other tensors, in the order of :meth:`tensors`."""
        left = iter(tensors)
        return Given(
            *({a: next(left) for a in x} for x in (self.clamped, self.observed, self.init))
        )

    def select(self, rows: Tensor) -> Given:
        """Some of the samples, given by index."""
        return Given(*(_selected(x, rows) for x in (self.clamped, self.observed, self.init)))


def _selected(x: State, rows: Tensor) -> State:
    return {name: x_a[rows] for name, x_a in x.items()}


def _finite(*tensors: Tensor) -> Tensor:
    """Samples without an infinity or a NaN: ``(batch,)``."""
    # A finite sum proves every number finite, in a fraction of the time of looking at each.
    proved = torch.stack([x.flatten(1).sum(1).isfinite() for x in tensors]).all(0)
    if bool(proved.all()):
        return proved
    return torch.stack([x.isfinite().flatten(1).all(1) for x in tensors]).all(0)


def _rows(samples: Tensor) -> Tensor | None:
    """The marked samples by index; None for all."""
    return None if bool(samples.all()) else samples.nonzero()[:, 0]


def _where(samples: Tensor, x: Tensor, other: float) -> Tensor:
    """The state in the marked samples, a number in the others."""
    return torch.where(samples.reshape(-1, *[1] * (x.dim() - 1)), x, other)


def _filled(x: Tensor, rows: Tensor, batch: int, others: Tensor | None = None) -> Tensor:
    """x in some rows of a batch, in the rest NaN or what is given."""
    if others is None:
        others = x.new_full((batch, *x.shape[1:]), torch.nan)
    return others.index_copy(0, rows, x)


def _at_rest(some: Tensor) -> Solution:
    """Solution of a memory without visible layers: the minimum of the hidden ones."""
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
