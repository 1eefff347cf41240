"""The safeguard that accelerated solvers share: never lose what plain steps would keep.

Extrapolation finds its way quickly near an equilibrium, and anywhere but there it may go astray.
What tells is the energy, where the map has one, and otherwise the residual.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import integer, number
from hamdeq.solvers.base import Solver
from hamdeq.solvers.energy_map import EnergyInfo, EnergyMap
from hamdeq.solvers.state import (
    SampleState,
    SolverState,
    Step,
    all_without_sync,
    dot,
    norm,
    where_sample,
)

__all__ = ["Extrapolation", "Safeguarded"]


@dataclass(frozen=True, kw_only=True)
class Safeguarded(Solver):
    """A solver that extrapolates, under a safeguard.

    **Of an energy model the energy never rises** (beyond rounding): a sample moves to its
    extrapolated state only where the energy falls, by a fixed share of what a plain step promises.
    Otherwise it takes the plain step x <- f(x), which with even-odd splitting always goes
    downhill; without splitting, a step towards f(x) that is halved until it does.

    On any other map a sample gets a strike when its relative residual grows beyond ``growth``
    times the lowest since its last strike, or when that lowest has not improved for ``patience``
    steps. It then takes plain steps from where it is, two after the first strike, twice as many
    after each further one: where plain iteration settles from any state, acceleration can delay a
    sample but not keep it from settling.

    Args:
        growth: how far a sample's relative residual may rise, as a factor > 1.
        patience: steps without a lower residual, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.
    """

    growth: float = 4.0
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        patience = integer("patience", self.patience, expected="an integer ≥ 1")
        object.__setattr__(self, "patience", patience)
        number("growth", self.growth, above=1)

    @abstractmethod
    def extrapolation(self, x0: Tensor) -> Extrapolation:
        """A fresh memory of past steps."""

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        ahead = self.extrapolation(x0)
        if isinstance(f, EnergyMap):
            return _ByEnergy(ahead, x0)
        return _ByResidual(ahead, x0, self.growth, self.patience)


class Extrapolation(SampleState):
    """What an accelerated solver remembers, and makes of it.

    Attributes:
        shortens: whether, after a state that was turned down, the next is sought half as far from
            the plain step: so where the direction is exact and only the distance too long.
    """

    shortens = False

    @abstractmethod
    def __call__(self, step: Step) -> Tensor | None:
        """The next state, if all goes well; None for a plain step, as where there is no past."""


class _ByResidual(SolverState):
    """Plain steps, for a while, where the residual grows or stagnates."""

    def __init__(self, ahead: Extrapolation, x0: Tensor, growth: float, patience: int) -> None:
        self.ahead, self.growth, self.patience = ahead, growth, patience
        self.reference = x0.new_full((len(x0),), math.inf)
        self.stale = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        self.strikes = torch.zeros_like(self.stale)
        self.rest = torch.zeros_like(self.stale)
        self.calm = False

    def next(self, step: Step) -> Tensor:
        x = self.ahead(step)
        x = step.fx if x is None else x
        return where_sample(self._fine(step.residual, norm(x).isfinite()), x, step.fx)

    def _fine(self, residual: Tensor, finite: Tensor) -> Tensor:
        """Which samples need no plain step now: ``(batch,)``."""
        lower = residual < self.reference
        if self.calm and all_without_sync(lower & finite):  # mostly so: there are no books to keep
            self.reference = residual
            self.stale = torch.zeros_like(self.stale)
            return finite
        self.stale = torch.where(lower, 0, self.stale + 1)
        # Written so that a NaN counts against the sample.
        low = residual <= self.growth * torch.minimum(self.reference, residual)
        fine = low & finite & (self.stale <= self.patience)
        resting = self.rest > 0
        # What plain steps lead to, however far it is, is where acceleration starts anew.
        self.reference = torch.where(resting, residual, torch.minimum(self.reference, residual))
        strike = ~(resting | fine)
        self.strikes = self.strikes + strike
        self.rest = torch.where(strike, 2**self.strikes, self.rest - 1).clamp_min(0)
        plain = strike | resting
        self.stale = torch.where(plain, 0, self.stale)
        self.calm = all_without_sync(self.rest == 0)
        return ~plain


# The share of ⟨r, dg⟩, along a plain step, by which the energy must fall; that step itself lowers
# it by about half. Every positive share below that makes the limits equilibria.
_SHARE = 0.1
# Rounding of a sum of energy terms, in units of the last place of their size.
_ROUNDING = 16.0


class _ByEnergy(SolverState):
    """Downhill from a base, the last state accepted; plain steps where nothing else goes there.

    With g = ∇L(x) and the force p = I(g) − x the slope of the energy is dE = −⟨p, dg⟩. A plain step
    by r = f(x) − x promises to lower it by about half of ⟨r, g(f(x)) − g(x)⟩, which is never
    negative. The force is r, but where f updates one layer after another.
    """

    def __init__(self, ahead: Extrapolation, x0: Tensor) -> None:
        self.ahead = ahead
        self.x = self.fx = self.r = self.g = self.force = x0
        # Of the base: what yields its energy and Lagrangian, and these once asked for.
        self.info: EnergyInfo | None = None
        self.energy: Tensor | None = None
        self.lagrangian: Tensor | None = None
        # Whether a bound has been enough so far, in place of the energy.
        self.bounded = True
        self.accepted = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        self.plain = self.accepted
        # Of a plain step, where a whole one may go uphill.
        self.length = x0.new_ones(len(x0))
        # How far from the plain step to the extrapolated one to go.
        self.reach = x0.new_ones(len(x0))
        # Whether what comes next is certain to be accepted; whether all was that came last.
        self.certain = self.whole = True

    def accepts(self, step: Step) -> Tensor | None:
        f, info = _energetic(step)
        force = step.r if info.at_once else info.fields - step.x
        if self.certain:
            self._go_on(info)
            self.accepted = torch.ones_like(self.accepted)
        else:
            self._compare(f, step, force, info)
        here = {"x": step.x, "fx": step.fx, "r": step.r, "g": info.g}
        if not info.at_once:
            here["force"] = force
        self.whole = self.certain or all_without_sync(self.accepted)
        for name, value in here.items():
            last = getattr(self, name)
            setattr(self, name, value if self.whole else where_sample(self.accepted, value, last))
        if info.at_once:
            self.force = self.r
        return None if self.whole else self.accepted

    def _go_on(self, info: EnergyInfo) -> None:
        """Take a state as the base of all samples, its energy to be computed when it is needed."""
        self.energy = self.lagrangian = None
        self.info = info
        if torch.compiler.is_compiling():  # nothing but tensors leaves a graph
            self._energy()
            self.bounded, self.info = False, None

    def _compare(self, f: EnergyMap, step: Step, force: Tensor, info: EnergyInfo) -> None:
        """Accept the samples whose energy has fallen as it should."""
        g = info.g
        dg = g - self.g
        # Near an equilibrium the difference of two energies is all rounding; their slope is not.
        along = dot(force + self.force, dg).mul_(-0.5)
        # A step that is not whole promises what the slope at its start does.
        ahead, whole = (self.r, f.activations(self.fx) - self.g) if f.certain else (self.force, dg)
        goal = dot(ahead, whole).clamp_min_(0.0).mul_(-_SHARE)
        # Written so that a NaN is not accepted.
        if self.bounded and info.lagrangian is not None:
            # What is subtracted from L* in the energy is convex, and lies above its tangent at the
            # base: a bound of the change without the hidden layers.
            before, now = self._lagrangian(), info.lagrangian()
            parts = (before, -now, dot(g, step.x - self.x), -dot(self.r, dg))
            fallen = _change(torch.stack(parts), along) <= goal
            if all_without_sync(fallen | self.plain):
                self.accepted = torch.ones_like(self.accepted)
                self._adapt(f, fallen)
                self._go_on(info)
                self.lagrangian = now
                return
            self.bounded = False
        terms, before = info.terms(), self._energy()
        energy = terms.sum(0)
        fallen = _change(terms, along, energy - before) <= goal
        self.accepted = fallen | self.plain if f.certain else fallen
        self._adapt(f, fallen)
        self.energy = where_sample(self.accepted, energy, before)

    def _adapt(self, f: EnergyMap, fallen: Tensor) -> None:
        """Go further where the energy has fallen, and less far where it has not."""
        if not f.certain:
            self.length = torch.where(self.plain, _adapted(self.length, fallen), self.length)
        if self.ahead.shortens:
            self.reach = torch.where(self.plain, self.reach, _adapted(self.reach, fallen))

    def next(self, step: Step) -> Tensor:
        f, _ = _energetic(step)
        x = self.ahead(step)
        self.certain = f.certain and x is None
        if x is None:
            self.plain = torch.ones_like(self.accepted)
            return step.fx
        if self.ahead.shortens:
            x = torch.lerp(step.fx, x, self.reach[:, None])
        finite = norm(x) < math.inf
        if self.whole and all_without_sync(finite):
            self.plain = torch.zeros_like(self.plain)
            return x
        self.plain = ~(self.accepted & finite)
        downhill = self.fx if f.certain else self.x + self.length[:, None] * self.force
        return where_sample(~self.plain, x, downhill)

    def select(self, rows: Tensor) -> None:
        if self.info is not None:
            self._energy()
        self.bounded, self.info, self.lagrangian = False, None, None
        super().select(rows)

    def _energy(self) -> Tensor:
        """Of the base."""
        if self.energy is None:
            assert self.info is not None
            self.energy = self.info.terms().sum(0)
        return self.energy

    def _lagrangian(self) -> Tensor:
        """Σ_A L_A(x_A) of the base, while all samples have been accepted."""
        if self.lagrangian is None:
            assert self.info is not None
            assert self.info.lagrangian is not None
            self.lagrangian = self.info.lagrangian()
        return self.lagrangian


def _change(terms: Tensor, along: Tensor, change: Tensor | None = None) -> Tensor:
    """The change of the energy: the sum of its terms, or what is given, but where it is rounding.

    Args:
        terms: of which sizes tell what rounding leaves: ``(terms, batch)``.
        along: the change by the slopes at both ends.
        change: the change as a difference.
    """
    change = terms.sum(0) if change is None else change
    rounding = _ROUNDING * torch.finfo(terms.dtype).eps * terms.abs().sum(0)
    return torch.where(change.abs() > rounding, change, along)


def _adapted(length: Tensor, fallen: Tensor) -> Tensor:
    """Twice the length, up to one, where the energy has fallen, and half of it elsewhere."""
    return torch.where(fallen, 2 * length, length / 2).clamp_max(1.0)


def _energetic(step: Step) -> tuple[EnergyMap, EnergyInfo]:
    """The map with an energy that was evaluated, and what is known of it."""
    assert isinstance(step.f, EnergyMap)
    assert step.info is not None
    return step.f, step.info
