"""DEQ: an associative memory as a layer. Energy model + solver + gradient method.

A call is one pass: check the arguments, clamp the given layers, eliminate the hidden ones, solve
for the equilibrium of the rest, attach its gradient, and restore the full state. Samples that are
lost on the way, because a number is not finite, are left out of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hamdeq._checks import instance, integer, one_of, wrong
from hamdeq._compile import Graph, graph_of
from hamdeq._recorded import Recorded
from hamdeq.elimination.colouring import colouring, two_colouring
from hamdeq.elimination.eliminate import eliminate
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.clamping import Clamped, check_masks, clamp, forward_sweep
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import LayeredEnergy, State
from hamdeq.implicit import Adjoint, Implicit, attach_gradient, solve_state, transforms
from hamdeq.solvers import Broyden, Failures, OnFailure, Solution, Solver, Status
from hamdeq.solvers.energy_map import EnergyMap, StateLayout
from hamdeq.solvers.newton import linearised_start
from hamdeq.solvers.run import Run
from hamdeq.solvers.state import forget_casts

__all__ = ["DEQ", "FixedSteps", "Inputs"]


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
        start: the initial state: ``"forward"``, one pass outwards from the clamped layers, as
            through a feed-forward network, which costs half an even-odd step; ``"linearised"``, the
            equilibrium of the memory with its fields linearised where no neuron is active, which
            costs a step of :class:`~hamdeq.Newton` more, is for small states as that is, and
            spares at least a step; or ``"zeros"``.
        on_failure: for samples that do not converge: ``"warn"`` (once for this module),
            ``"raise"`` or ``"ignore"``. Their status is in the Solution in any case.
        compiled: steps that Picard iteration, Anderson's and Broyden's method begin with in one
            graph, compiled by :func:`torch.compile`, as many as most samples need; 0 for none. The
            other steps are taken one by one. The first call takes some ten seconds, and a C++
            compiler, without which a warning says so and all steps are taken one by one. Inside of
            a compiled module it is 4, unless another number is given.

    Raises:
        TypeError: ham is no HAM.
        ValueError: an unknown layer; with even-odd splitting, a graph that has no two colours.

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
        start: Literal["forward", "linearised", "zeros"] = "forward",
        on_failure: OnFailure = "warn",
        compiled: int = 0,
    ) -> None:
        super().__init__()
        self.splitting = one_of("splitting", splitting, ("even-odd", "sweep", None))
        self.start = one_of("start", start, ("forward", "linearised", "zeros"))
        remedy = "use CHNDEQ, or DEQ(chn.to_ham())" if hasattr(ham, "to_ham") else None
        self.ham: HAM = instance("ham", ham, HAM, remedy=remedy)
        self.clamped: tuple[str, ...] = (clamped,) if isinstance(clamped, str) else tuple(clamped)
        if not self.clamped:
            raise wrong("clamped", "at least one layer", "none")
        ham.check_names(self.clamped)
        self._splits: dict[tuple[str, ...], _Split] = {}
        self.hidden: tuple[str, ...] = self._split(self.clamped)[0]
        solver = Broyden() if solver is None else solver
        self.solver: Solver = instance("solver", solver, Solver)
        adjoint = Implicit() if adjoint is None else adjoint
        self.adjoint: Adjoint = instance("adjoint", adjoint, Adjoint)
        self.failures: Failures = Failures(on_failure, once=True)
        self.compiled: int = integer("compiled", compiled, least=0)

    def constructor_arguments(self) -> dict[str, Any]:
        now = {
            "solver": self.solver,
            "adjoint": self.adjoint,
            "on_failure": self.failures.on_failure,
            "compiled": self.compiled,
        }
        return super().constructor_arguments() | now

    def forward(
        self,
        clamped: State,
        *,
        observed: State | None = None,
        init: State | None = None,
        solver: Solver | None = None,
        on_failure: OnFailure | None = None,
    ) -> Solution:
        """Find the equilibrium of every sample.

        Args:
            clamped: the states of the clamped layers, ``(batch, *shape)``.
            observed: of those that are clamped in part, such as half an image, which neurons are:
                boolean, of the layer's shape or with a batch. The others are free, and their given
                states do not matter.
            init: initial states of some layers, instead of those of ``start``; another call's
                ``solution.value`` is a warm start. Only the layers that are neither clamped nor
                eliminated matter.
            solver: for this call, instead of the module's.
            on_failure: for this call, instead of the module's; ``"warn"`` then warns every time.

        Returns:
            a Solution whose ``value`` is the full state, in tensors of its own. A sample is
            ``CONVERGED`` only if all of its layers are finite. One with an infinity or a NaN in
            its given states has the status ``INVALID`` and comes back as NaN. One that diverges,
            or of which a layer overflows, has the status ``DIVERGED`` and comes back as its best
            finite state (the initial one, if no other was), or as NaN if some layer of that
            overflows. Both have zero gradient and leave the other samples as they are.

        Raises:
            ConvergenceError: samples did not converge and ``on_failure="raise"``.
            ValueError: a missing or unknown layer, a wrong shape, unequal batches; no free layer;
                a layer clamped in part whose neurons are coupled, or which with even-odd splitting
                closes an odd cycle; tensors on the meta device, or not on the weights' device.
            TypeError: a tensor that is not of floating point, or not of the weights' dtype; a
                mask that is not boolean.
        """
        solver = self.solver if solver is None else instance("solver", solver, Solver)
        failures = self.failures if on_failure is None else Failures(on_failure)
        inputs = self._checked(clamped, observed, {} if init is None else init)
        if transforms.are_active():
            return transforms.solve_below(
                self,
                inputs,
                self.ham.layers,
                solve=lambda inputs: self._solve(inputs, solver),
                value=lambda inputs, solution, visible: self._attach(
                    inputs, solution, visible, solver, failures
                ),
                failures=failures,
            )
        steps = self.compiled or _STEPS * torch.compiler.is_compiling()
        return self._call(inputs, solver, failures, steps)

    # What a compiler can make one graph of, this method has compiled. (The public
    # torch.compiler.disable imports the compiler, which takes a second.)
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _call(self, inputs: Inputs, solver: Solver, failures: Failures, steps: int) -> Solution:
        """A call with arguments that have been checked."""
        solved = self._equilibrium(inputs, solver, steps)
        solution, visible, reduced, f, rows, value = solved
        if rows is None and bool(solution.converged.all()):
            # Mostly so: what the call returns tells as well if all layers are finite.
            if torch.is_grad_enabled():
                value = self._attach(inputs, solution, visible, solver, failures, reduced, f)
            if value is not None and self._finite_layers(inputs, value) is None:
                return replace(solution, value=value)
        solution, visible = self._restored(inputs, solved)
        failures(solution, "equilibrium")
        if not torch.is_grad_enabled():
            return solution
        value = self._attach(inputs, solution, visible, solver, failures, reduced, f)
        return replace(solution, value=value)

    def reduced(self, clamped: State, observed: State | None = None) -> Reduced:
        """The energy model that is solved: clamped, then eliminated."""
        return self._reduce(clamp(self.ham, clamped, observed))

    def energy(self, x: State) -> Tensor:
        """Energy of full states, such as a Solution's value: ``(batch,)``.

        Samples that are not finite have the energy NaN; neither they nor those whose energy
        overflows have a gradient.
        """
        self.ham.check_state(x)
        if transforms.are_active():  # where no number can be looked at
            return self._energy(x)
        finite, batch = _finite(*x.values()), len(next(iter(x.values())))
        rows = None if finite is None else finite.nonzero()[:, 0]
        energy = self._energy(x if rows is None else _selected(x, rows))
        kept = _finite(energy[:, None])
        if kept is None:
            return energy if rows is None else _placed(energy, rows, batch)
        tried = torch.arange(batch, device=kept.device) if rows is None else rows
        overflown, rows = _placed(energy.detach(), tried, batch), tried[kept]
        return overflown.index_copy(0, rows, self._energy(_selected(x, rows)))

    def _energy(self, x: State) -> Tensor:
        return self.ham.energy(x)

    def _checked(self, clamped: State, observed: State | None, init: State) -> Inputs:
        """The arguments of a call, refused unless they fit the memory."""
        instance("clamped", clamped, dict, f"a dict {{layer name: tensor}} of {list(self.clamped)}")
        self.ham.check_state(clamped, self.clamped)
        self._check_tensors(clamped)
        observed = check_masks(self.ham, clamped, observed)
        whole = tuple(name for name in clamped if name not in observed)
        if len(whole) == len(self.ham.layers):
            raise wrong(
                "clamped",
                "at least one free layer",
                f"all of {list(clamped)} clamped",
                "leave one out, or clamp it in part (observed=…)",
            )
        batch = len(next(iter(clamped.values())))
        self.ham.check_state(init, layers=tuple(init))
        for name, x in init.items():
            if len(x) != batch:
                raise wrong("init", f"a batch of {batch} for {name!r}", len(x))
        hidden, _ = self._split(whole)
        start = {a: x.detach() for a, x in init.items() if a not in (*whole, *hidden)}
        # States given for neurons that are not observed do not matter, not even if they are NaN;
        # nor do initial states of those that are.
        clamped = clamped | {a: torch.where(m, clamped[a], 0.0) for a, m in observed.items()}
        start |= {a: torch.where(m, 0.0, start[a]) for a, m in observed.items() if a in start}
        return Inputs(clamped, observed, start)

    def _check_tensors(self, clamped: State) -> None:
        """Refuse numbers that the weights cannot be multiplied with."""
        weight = next((p for s in self.ham.synapses for p in s.parameters() if p.dim() > 0), None)
        for name, x in clamped.items():
            layer = f"layer {name!r}"
            if x.is_meta or (weight is not None and weight.is_meta):
                raise wrong(
                    layer,
                    "states and weights that have values",
                    f"{'states' if x.is_meta else 'weights'} on the meta device",
                    "deq.to_empty(device='cpu') gives weights room for values",
                )
            if weight is None:
                continue
            if x.device != weight.device:
                raise wrong(
                    layer,
                    f"states on {weight.device}, as the weights",
                    x.device,
                    f"move the one (x.to('{weight.device}')) or the other (deq.to('{x.device}'))",
                )
            if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise wrong(
                    layer,
                    f"{weight.dtype}, as the weights",
                    x.dtype,
                    f"convert the one (x.to({weight.dtype})) or the other (deq.to({x.dtype}))",
                    kind=TypeError,
                )

    def _solve(self, inputs: Inputs, solver: Solver) -> tuple[Solution, State]:
        """The Solution without a graph, its value the full state; the visible layers' states."""
        return self._restored(inputs, self._equilibrium(inputs, solver))

    def _equilibrium(self, inputs: Inputs, solver: Solver, steps: int = 0) -> _Solved:
        """Find the equilibrium of every valid sample, the first steps, if any, in one graph."""
        valid = _finite(*inputs.clamped.values(), *inputs.init.values())
        rows = None if valid is None else valid.nonzero()[:, 0]
        inputs = inputs if rows is None else inputs.select(rows)
        graph = self._graph(inputs, solver, steps) if rows is None else None
        clamps = graph is None or torch.is_grad_enabled()
        model = self._clamp(inputs, self.ham.prepared()) if clamps else None
        with torch.no_grad():
            run, x0, value = None, None, None
            begun = None
            if graph is not None:
                # A graph of the compiler's takes no tensor that has a graph of its own.
                given = None if model is None else model.detach()
                known = inputs.detach()
                _mark_batch(*known, *(() if given is None else given.states()))
                begun = graph(self, known, given, solver, steps)
            if begun is not None:
                run, x0, value = begun
                if not run.look():
                    reduced = None if model is None else self._reduce(model)
                    return _Solved(run.log.solution(solver.tol), x0, reduced, None, rows, value)
        if model is None:
            model = self._clamp(inputs, self.ham.prepared())
        reduced = self._reduce(model)
        # Under autocast a weight that was cast without a graph would be used again.
        records = self.adjoint.linearises and torch.is_grad_enabled() and not _is_cast(inputs)
        with torch.no_grad():
            x0 = self._initial(model, inputs.init) if x0 is None else x0
            if not x0:
                return _Solved(_nothing_to_solve(inputs), x0, reduced, None, rows, None)
            f = EnergyMap(reduced, StateLayout(x0), records=records)
            solution = solve_state(f, x0, solver, run)
        return _Solved(solution, solution.value, reduced, f, rows, None)

    def _first_steps(
        self, inputs: Inputs, model: Clamped | None, solver: Solver, steps: int
    ) -> tuple[Run, State, State | None]:
        """Take steps without a look at any number, so that all of it is one graph.

        Args:
            inputs: of the call.
            model: the clamped memory; None to clamp it here, and restore the full state as well.
            solver: the solver.
            steps: how many.

        Returns:
            the solve so far, and the best states of the visible layers and of all.
        """
        clamped = self._clamp(inputs, self.ham.prepared()) if model is None else model
        reduced = self._reduce(clamped)
        x0 = self._initial(clamped, inputs.init)
        layout = StateLayout(x0)
        f = EnergyMap(reduced, layout)
        run = Run(solver, f, layout.join(x0.values()))
        run.advance(f, steps)
        visible = layout.unflatten(run.log.best)
        return run, visible, self._full(inputs, reduced, visible) if model is None else None

    def _graph(self, inputs: Inputs, solver: Solver, steps: int) -> Graph | None:
        """:meth:`_first_steps` compiled, where that is wanted and possible."""
        if not 0 < steps <= solver.max_steps or not solver.traceable:
            return None
        if self.start == "linearised":  # which looks at numbers
            return None
        x = next(iter(inputs.clamped.values()))
        whole = tuple(name for name in inputs.clamped if name not in inputs.observed)
        solved_for = len(self.ham.layers) - len(whole) - len(self._split(whole)[0])
        if not solved_for or not len(x) or _is_cast(inputs):
            return None
        return graph_of(self, solver, type(self)._first_steps, _REMEDY)

    @torch.no_grad()
    def _restored(self, inputs: Inputs, solved: _Solved) -> tuple[Solution, State]:
        """The Solution of all samples, its value the full state; the visible layers' states."""
        solution, visible, reduced, _, rows, value = solved
        batch = len(next(iter(inputs.clamped.values())))
        if value is None:
            assert reduced is not None
            part = inputs if rows is None else inputs.select(rows)
            value = self._full(part, reduced, visible)
        finite = self._finite_layers(inputs, value)
        if finite is not None:
            value = {name: _where(finite, x, torch.nan) for name, x in value.items()}
            solution = replace(
                solution,
                status=torch.where(finite, solution.status, Status.DIVERGED.value),
                converged=solution.converged & finite,
                residual=torch.where(finite, solution.residual, torch.nan),
            )
        if rows is not None:
            status = rows.new_full((batch,), Status.INVALID.value).index_fill(0, rows, 0)
            solution = solution.among(rows, status)
            value, visible = _among(rows, batch, value), _among(rows, batch, visible)
        return replace(solution, value=value), visible

    def _finite_layers(self, inputs: Inputs, value: State) -> Tensor | None:
        """Samples of which all layers are finite that are not wholly clamped; None for all."""
        whole = inputs.clamped.keys() - inputs.observed.keys()
        return _finite(*(x for name, x in value.items() if name not in whole))

    def _attach(
        self,
        inputs: Inputs,
        solution: Solution,
        visible: State,
        solver: Solver,
        failures: Failures,
        reduced: Reduced | None = None,
        f: EnergyMap | None = None,
    ) -> State:
        """The full state with its gradient, from what :meth:`_solve` returned."""
        forget_casts(solution.residual)
        diverged = solution.status == Status.DIVERGED
        lost, rows = diverged | (solution.status == Status.INVALID), None
        if bool(lost.any()):
            rows = (~lost).nonzero()[:, 0]
            inputs, visible = inputs.select(rows), _selected(visible, rows)
        if reduced is None:
            reduced = self._reduce(self._clamp(inputs, self.ham.prepared()))
        elif bool(diverged.any()):
            # Clamped anew: an infinity times a gradient of zero is NaN, in weights that all samples
            # share, so nothing of a sample that overflows may be in the graph.
            reduced, f = self._reduce(self._clamp(inputs, _clamped(reduced).ham)), None
        if visible:
            visible = attach_gradient(
                reduced if f is None else f,
                replace(solution, value=visible),
                solver=solver,
                adjoint=self.adjoint,
                failures=failures,
                rows=rows,
            ).value
        value = self._full(inputs, reduced, visible)
        return value if rows is None else _among(rows, len(diverged), value, solution.value)

    def _clamp(self, inputs: Inputs, ham: LayeredEnergy) -> Clamped:
        return Clamped(ham, inputs.clamped, inputs.observed)

    def _reduce(self, model: Clamped) -> Reduced:
        hidden, colours = self._split(tuple(model.clamped))
        return eliminate(model, hidden, colours=colours)

    def _full(self, inputs: Inputs, reduced: Reduced, x: State) -> State:
        """The state of all layers, from that of the visible ones."""
        return _clamped(reduced).full(reduced.restore(x))

    def _split(self, clamped: tuple[str, ...]) -> _Split:
        """The layers to eliminate, and the colours of the others, for wholly clamped layers."""
        if clamped not in self._splits:
            if self.splitting == "even-odd":
                split = two_colouring(self.ham, clamped=clamped)[1], None
            elif self.splitting == "sweep":
                hidden, *colours = colouring(self.ham, clamped=clamped)
                split = hidden, tuple(colours)
            else:
                split = (), None
            self._splits[clamped] = split
        return self._splits[clamped]

    @torch.no_grad()
    def _initial(self, model: Clamped, init: State) -> State:
        """Initial states of the visible layers: those given, then those of ``start``."""
        hidden, _ = self._split(tuple(model.clamped))
        visible = [name for name in model.layers if name not in hidden]
        missing = [name for name in visible if name not in init]
        if missing and self.start != "zeros":
            x = (
                forward_sweep(model)
                if self.start == "forward"
                else self._linearised(model, visible)
            )
            # Where a pass overflows, the solve may still converge from zero.
            finite = _finite(*x.values())
            if finite is not None:
                x = {name: _where(finite, state, 0.0) for name, state in x.items()}
        else:
            x = _zeros(model, missing)
        x = {name: init[name] if name in init else x[name] for name in visible}
        masks = model.observed
        return {a: torch.where(masks[a], 0.0, x[a]) if a in masks else x[a] for a in visible}

    def _linearised(self, model: Clamped, visible: list[str]) -> State:
        hidden, _ = self._split(tuple(model.clamped))
        return linearised_start(eliminate(model, hidden), _zeros(model, visible))

    def extra_repr(self) -> str:
        eliminated = ", ".join(self.hidden) or "nothing"
        return (
            f"clamped={self.clamped}\n"
            f"splitting={self.splitting!r}, which eliminates {eliminated}\n"
            f"solver={self.solver}\n"
            f"adjoint={self.adjoint}\n"
            f"start={self.start!r}"
        )


_STEPS = 4
_REMEDY = (
    "all steps are taken one by one; install a C++ compiler, use synapses and Lagrangians with "
    "fields and activations in closed form, or ask for DEQ(compiled=0)"
)


class FixedSteps(nn.Module):
    """A DEQ with a fixed number of steps, for inference: one graph, for :func:`torch.export`.

    A sample keeps its best state once it has converged; nothing tells which samples have.

    Args:
        deq: the memory, with a solver whose steps can be traced: Picard iteration, Anderson's or
            Broyden's method.
        steps: how many.

    Raises:
        TypeError: deq is no DEQ.
        ValueError: no steps, or a solver that cannot be traced.
    """

    def __init__(self, deq: DEQ, steps: int) -> None:
        super().__init__()
        self.deq: DEQ = instance("deq", deq, DEQ)
        self.steps: int = integer("steps", steps, least=1)
        if not deq.solver.traceable:
            got = type(deq.solver).__name__
            raise wrong("deq", "the solver Picard, Anderson or Broyden", got)
        if deq.start == "linearised":
            raise wrong("deq", "the start 'forward' or 'zeros'", repr(deq.start))

    @torch.no_grad()
    def forward(self, clamped: State) -> State:
        """The state of all layers after the steps, without a gradient."""
        deq = self.deq
        inputs = deq._checked(clamped, None, {})
        _, _, value = deq._first_steps(inputs, None, deq.solver, self.steps)
        assert value is not None
        return value


_Split = tuple[tuple[str, ...], tuple[tuple[str, ...], ...] | None]


class _Solved(NamedTuple):
    """The result of a solve, of the valid samples.

    Attributes:
        solution: its value the visible layers' states.
        visible: these.
        reduced: the energy, with a graph where gradients are enabled; None where not needed.
        f: its map on rows, with the last step of the solve.
        rows: the valid samples by index; None for all.
        value: the full state, if it has been restored.
    """

    solution: Solution
    visible: State
    reduced: Reduced | None
    f: EnergyMap | None
    rows: Tensor | None
    value: State | None


class Inputs(NamedTuple):
    """The tensors of a call, each with the batch first.

    Attributes:
        clamped: states of the clamped layers, zero where they are not observed.
        observed: of those that are clamped in part, which neurons are.
        init: initial states of some of the visible layers, zero where they are observed.
    """

    clamped: State
    observed: State
    init: State

    def select(self, rows: Tensor) -> Inputs:
        """Some of the samples, given by index."""
        return Inputs(*(_selected(x, rows) for x in self))

    def detach(self) -> Inputs:
        """The same tensors without their graphs."""
        return Inputs(*({name: x.detach() for name, x in part.items()} for part in self))


def _is_cast(inputs: Inputs) -> bool:
    """Tell if autocast is on."""
    return torch.is_autocast_enabled(next(iter(inputs.clamped.values())).device.type)


def _mark_batch(*states: State) -> None:
    """Let a compiler make one graph for batches of any size."""
    for x in (x for state in states for x in state.values()):
        torch._dynamo.maybe_mark_dynamic(x, 0)


def _clamped(reduced: Reduced) -> Clamped:
    assert isinstance(reduced.model, Clamped)
    return reduced.model


def _zeros(model: Clamped, layers: Collection[str]) -> State:
    return model.zero_state(next(iter((model.clamped | model.partial).values())), layers)


def _selected(x: State, rows: Tensor) -> State:
    return {name: state[rows] for name, state in x.items()}


def _among(rows: Tensor, batch: int, x: State, others: State | None = None) -> State:
    """States of some samples as those of a batch, whose other samples are NaN or as given."""
    return {
        name: (
            state.new_full((batch, *state.shape[1:]), torch.nan) if others is None else others[name]
        ).index_copy(0, rows, state)
        for name, state in x.items()
    }


def _placed(x: Tensor, rows: Tensor, batch: int) -> Tensor:
    """One number a sample, of some samples of a batch; of the others NaN."""
    return x.new_full((batch,), torch.nan).index_copy(0, rows, x)


def _finite(*tensors: Tensor) -> Tensor | None:
    """Samples without an infinity or a NaN, ``(batch,)``; None for all."""
    if torch.compiler.is_compiling():  # without a look at any number
        return torch.stack([x.isfinite().flatten(1).all(1) for x in tensors]).all(0)
    # A finite sum proves every number finite, in a fraction of the time of looking at each.
    sums = [x.detach().sum() for x in tensors]
    if not sums or math.isfinite(float(sums[0] if len(sums) == 1 else torch.stack(sums).sum())):
        return None
    finite = torch.stack([x.isfinite().flatten(1).all(1) for x in tensors]).all(0)
    return None if bool(finite.all()) else finite


def _where(samples: Tensor, x: Tensor, other: float) -> Tensor:
    """The state in the marked samples, a number in the others."""
    return torch.where(samples.reshape(-1, *[1] * (x.dim() - 1)), x, other)


def _nothing_to_solve(inputs: Inputs) -> Solution:
    """The Solution where all free layers are eliminated: their minimum in closed form."""
    like = next(iter(inputs.clamped.values()))
    zeros = torch.zeros(len(like), dtype=torch.long, device=like.device)
    return Solution(
        value={},
        residual=like.new_zeros(len(like)),
        steps=zeros,
        converged=torch.ones_like(zeros, dtype=torch.bool),
        status=torch.full_like(zeros, Status.CONVERGED.value),
        n_evals=0,
        trace=like.new_empty(0, len(like)),
    )
