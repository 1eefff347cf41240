"""Recall: flip binary neurons until the state is stable, or by chance at a temperature.

A neuron takes the sign of its field, the energy with it at −1 less that with it at +1, and +1 where
both are equal. One at a time, each flip lowers the energy, or raises a neuron at equal energy: the
state converges. All at once, states may enter a cycle. At a temperature states never settle; after
many updates their distribution is Boltzmann's.

States are ±1; :func:`states_from_bits` and :func:`bits_from_states` convert from and to {0, 1}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hamdeq._checks import boolean, instance, integer, number, wrong
from hamdeq._recorded import Recorded
from hamdeq.solvers import Failures, OnFailure, Solution, Status

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Asynchronous",
    "BinaryMemory",
    "Glauber",
    "Synchronous",
    "Updates",
    "Walk",
    "bits_from_states",
    "check_states",
    "signs",
    "states_from_bits",
]


class _Placed(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...


def signs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """+1 where x ≥ 0, −1 below: ``sign`` with sign(0) = +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(dtype)


def states_from_bits(bits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """States ±1 of bits {0, 1}: ξ = 2 · bit − 1, of any shape.

    Only states are converted. A network with neurons V ∈ {0, 1} that fire where Σⱼ Wᵢⱼ Vⱼ exceeds a
    threshold Uᵢ is the one with ξ = 2V − 1 and sign(0) = +1 where Uᵢ = ½ Σⱼ Wᵢⱼ, but for ties.

    Args:
        bits: booleans or numbers that are 0 or 1.
        dtype: of the states; default torch's default dtype.

    Raises:
        TypeError: not a tensor.
        ValueError: numbers other than 0 and 1.

    Example:
        >>> states_from_bits(torch.tensor([[1, 0, 1]]))
        tensor([[ 1., -1.,  1.]])
    """
    instance("bits", bits, Tensor, "a tensor of 0 and 1")
    if bits.dtype != torch.bool and not bits.is_meta:
        other = bits[(bits != 0) & (bits != 1)]
        if other.numel():
            bad = other.flatten()[0].item()
            remedy = "these are states already" if bad == -1 else "compare with a threshold first"
            raise wrong("bits", "0 and 1", f"{bad:g} among them", remedy)
    return 2 * bits.to(torch.get_default_dtype() if dtype is None else dtype) - 1


def bits_from_states(states: Tensor) -> Tensor:
    """Bits {0, 1} of states ±1, int64 of the same shape: 1 where ξ = +1.

    Raises:
        TypeError: not a tensor.
        ValueError: numbers other than ±1.
    """
    instance("states", states, Tensor, "a tensor of ±1")
    if states.dtype == torch.bool:
        raise wrong("states", "±1", "booleans", "these are bits already; use .long()")
    other = states[states.abs() != 1]
    if other.numel():
        remedy = "these are bits already" if other.flatten()[0] == 0 else None
        raise wrong("states", "±1", f"{other.flatten()[0].item():g} among them", remedy)
    return (states > 0).long()


def check_states(name: str, x: Any, size: int, like: _Placed, *, binary: bool = True) -> None:
    """Check that states are ``(batch, size)``, ±1, with the dtype and device of ``like``.

    All that is wrong is named at once. With ``binary=False`` any finite numbers will do.

    Raises:
        TypeError: not a tensor.
        ValueError: anything else.
    """
    instance(name, x, Tensor, f"a tensor (batch, {size})")
    problems = []
    if x.dim() != 2:
        remedy = "; give one state as x[None]" if x.dim() == 1 else "; flatten them to (batch, N)"
        problems.append(f"expected shape (batch, {size}), got {tuple(x.shape)}{remedy}")
    elif x.shape[1] != size:
        problems.append(f"expected {size} neurons, got {x.shape[1]}")
    if x.dtype != like.dtype:
        problems.append(f"expected the memory's {like.dtype}, got {x.dtype}; use .to(memory.dtype)")
    if x.device != like.device:
        problems.append(
            f"expected the memory's device {like.device}, got {x.device}; use .to(memory.device)"
        )
    if not x.is_meta and x.dtype != torch.bool:
        fine = x.abs() == 1 if binary else x.isfinite()
        if not bool(fine.all()):
            bad = x[~fine].flatten()[0].item()
            kind = "±1" if binary else "finite numbers"
            remedy = "; bits become states by states_from_bits(x)" if bad == 0 and binary else ""
            problems.append(f"expected {kind}, got {bad:g} among them{remedy}")
    if problems:
        raise ValueError(f"{name}: " + "; ".join(problems))


class Walk(Protocol):
    """A batch of states, updated one neuron at a time."""

    def field(self, neuron: int) -> Tensor:
        """The field on a neuron, up to a positive factor for each sample: ``(batch,)``."""
        ...

    def turn(self, neuron: int, change: Tensor) -> None:
        """Add a change, 0 or ±2 for each sample, to a neuron: ``(batch,)``."""
        ...


class BinaryMemory(Recorded, nn.Module, ABC):
    """A memory with binary neurons: an energy of ±1, and the field on each neuron."""

    size: int
    # The parameter or buffer with a row for each pattern that has been stored.
    _stored: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the memory, and of its states."""
        return getattr(self, self._stored).dtype

    @property
    def device(self) -> torch.device:
        """The device of the memory, and of its states."""
        return getattr(self, self._stored).device

    @abstractmethod
    def store(self, states: Tensor) -> Self:
        """Keep further states, ``(count, N)`` of ±1; returns itself."""

    @abstractmethod
    def energy(self, states: Tensor) -> Tensor:
        """Energy of each state: ``(batch, N) -> (batch,)``."""

    @abstractmethod
    def fields(self, states: Tensor) -> Tensor:
        """½[E(ξᵢ = −1) − E(ξᵢ = +1)] up to a positive factor for each sample: ``(batch, N)``."""

    @abstractmethod
    def _walk(self, states: Tensor, *, scaled: bool = False) -> Walk:
        """The states, for updates of one neuron at a time.

        Args:
            states: ``(batch, N)``.
            scaled: whether a neuron's field has to be E(ξᵢ = −1) − E(ξᵢ = +1) itself.
        """

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # As many patterns as there are in the file, whatever there are here.
        given, own = state_dict.get(prefix + self._stored), getattr(self, self._stored)
        # (A parameter of the right shape is kept: optimisers know it.)
        if (
            isinstance(given, Tensor)
            and given.shape[1:] == own.shape[1:]
            and given.shape != own.shape
        ):
            empty = own.detach().new_empty(given.shape)
            if isinstance(own, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=own.requires_grad)
            setattr(self, self._stored, empty)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def recall(
        self,
        probes: Tensor,
        *,
        clamped: Tensor | None = None,
        updates: Updates | None = None,
        max_steps: int = 100,
        on_failure: OnFailure = "warn",
    ) -> Solution:
        """Flip neurons until the state is stable.

        Args:
            probes: states to start from, ``(batch, N)`` of ±1.
            clamped: True for neurons that keep their state, ``(N,)`` or ``(batch, N)``.
            updates: :class:`Asynchronous` (default), :class:`Synchronous`, or :class:`Glauber` at
                a temperature, which always makes ``max_steps`` updates.
            max_steps: updates of all neurons, at most.
            on_failure: for samples that do not converge: warn, raise or ignore. At a temperature
                none is expected to, and only an overflow is a failure.

        Returns:
            A :class:`~hamdeq.Solution`. Its ``value`` is ``(batch, N)``; ``steps`` the updates of
            all neurons until nothing changed, the last of which found that; ``residual`` 2√(n/N)
            for n neurons that disagree with their field, and ``trace`` the same of those that
            flipped. A sample that came back to an earlier state has the status ``CYCLE`` and a
            state of the cycle; one whose energy overflows has ``OVERFLOW`` and the state before.

        Raises:
            ValueError: probes that do not fit the memory, or are not ±1.
            ConvergenceError: with ``on_failure="raise"``.
        """
        check_states("probes", probes, self.size, self)
        mask = _mask(clamped, probes)
        max_steps = integer("max_steps", max_steps)
        updates = Asynchronous() if updates is None else updates
        instance("updates", updates, Updates, "Asynchronous() or Synchronous(), or Glauber(T)")
        failures = Failures(on_failure)
        with torch.no_grad():
            solution = updates.run(self, probes, mask, max_steps)
        judged = solution
        if not updates.settles:
            judged = replace(solution, converged=solution.status != Status.OVERFLOW.value)
        failures(judged, "recall", remedy=_REMEDY)
        return solution


_REMEDY = "neurons were still flipping after max_steps updates of all of them; allow more"


class Updates(ABC):
    """An order in which neurons are updated, and how each decides."""

    settles: ClassVar[bool] = True
    """True where states are expected to converge."""

    @abstractmethod
    def run(self, memory: BinaryMemory, x: Tensor, clamped: Tensor, max_steps: int) -> Solution:
        """Update until nothing changes."""


@dataclass(frozen=True, eq=False)
class Asynchronous(Updates):
    """One neuron after the other: the energy never rises, and the state converges.

    Args:
        order: the neurons in the order of their updates, each at least once; None for a new random
            order in every step, the same for all samples.
        seed: of the random orders.
    """

    order: Tensor | None = None
    seed: int = 0

    def run(self, memory: BinaryMemory, x: Tensor, clamped: Tensor, max_steps: int) -> Solution:
        log = _Log(memory, x, clamped)

        def decide(neuron: int, field: Tensor) -> Tensor:
            return field >= 0

        for order in _orders(self.order, self.seed, memory.size):
            if not log.running(max_steps):
                break
            log.add(*_sweep(memory._walk(log.state), log, order, decide))
        return log.solution()


@dataclass(frozen=True, eq=False)
class Glauber(Updates):
    """Stochastic updates at a temperature, one neuron after the other.

        P(ξᵢ = +1) = 1 / (1 + exp(−[E(ξᵢ = −1) − E(ξᵢ = +1)] / T))

    States do not settle: recall makes ``max_steps`` updates of all neurons. The distribution of
    states then tends to Boltzmann's, P(ξ) ∝ exp(−E(ξ)/T), whatever the order. As T → 0 the updates
    become those of :class:`Asynchronous` with the same order and seed, but for neurons without a
    field, which are ±1 with probability ½.

    For the classical network E(−1) − E(+1) is 2 Σⱼ Wᵢⱼ ξⱼ. Hebb's rule has no factor 1/N here, so
    that a temperature of the textbooks, with W = Σ ξξᵀ/N, is T/N. With few patterns and many
    neurons the overlap m of the state with a pattern that it retrieves solves m = tanh(m N/T).

    Args:
        temperature: T > 0, in units of the memory's energy. (The temperature of a dense memory's
            scaling is another one, and has its part in that energy.)
        order: the neurons in the order of their updates, as of :class:`Asynchronous`.
        seed: of the random orders, and of the decisions. Samples of a batch decide independently;
            the same seed, batch and probes give the same states.

    Source: Glauber, "Time-dependent statistics of the Ising model" (1963); for networks: Amit,
    Gutfreund & Sompolinsky, "Spin-glass models of neural networks" (1985).
    """

    settles: ClassVar[bool] = False

    temperature: float
    order: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        remedy = "Asynchronous() is the limit of T = 0"
        t = number("temperature", self.temperature, above=0, remedy=remedy)
        object.__setattr__(self, "temperature", t)

    def run(self, memory: BinaryMemory, x: Tensor, clamped: Tensor, max_steps: int) -> Solution:
        log = _Log(memory, x, clamped)
        # Decisions by another sequence than that of the orders.
        generator = torch.Generator().manual_seed((self.seed + _OTHER) % 2**63)
        for order in _orders(self.order, self.seed, memory.size):
            if not log.running(max_steps):
                break
            drawn = torch.rand(*x.shape, dtype=torch.float64, generator=generator).to(x.device)
            drawn = drawn[log.rows]

            def decide(neuron: int, field: Tensor, drawn: Tensor = drawn) -> Tensor:
                return drawn[:, neuron] < torch.sigmoid(field.double() / self.temperature)

            walk = memory._walk(log.state, scaled=True)
            log.add(*_sweep(walk, log, order, decide), settles=False)
        return log.solution()


_OTHER = 0x9E3779B97F4A7C15


def _orders(given: Tensor | None, seed: int, size: int) -> Iterator[list[int]]:
    """The order that is given, again and again, or random ones."""
    order = None if given is None else _neurons(given, size)
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(size, generator=generator).tolist() if order is None else order


def _sweep(
    walk: Walk, log: _Log, order: list[int], decide: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Update neurons one after the other; return the states, and which samples overflowed.

    ``decide`` is called with a neuron and the field on it, and says where it is to be +1.
    """
    new, free = log.state.clone(), ~log.clamped
    lost = torch.zeros(len(new), dtype=torch.bool, device=new.device)
    for i in order:
        field = walk.field(i)
        lost |= field.isnan()
        wanted = torch.where(decide(i, field), 1.0, -1.0).to(new.dtype)
        change = torch.where(free[:, i], wanted - new[:, i], 0.0)
        if bool(change.any()):
            walk.turn(i, change)
            new[:, i] += change
    return new, lost


@dataclass(frozen=True)
class Synchronous(Updates):
    """All neurons at once: fast, but the state may enter a cycle, which is reported."""

    def run(self, memory: BinaryMemory, x: Tensor, clamped: Tensor, max_steps: int) -> Solution:
        log = _Log(memory, x, clamped)
        while log.running(max_steps):
            fields = memory.fields(log.state)
            new = torch.where(log.clamped, log.state, signs(fields, x.dtype))
            log.add(new, fields.isnan().any(1), follows=True)
        return log.solution()


@dataclass(eq=False)
class _Log:
    """The samples of a recall: those that still change, and how the others ended."""

    memory: BinaryMemory
    x: Tensor
    mask: Tensor
    count: int = 0
    trace: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.x)
        self.value = self.x.clone()
        self.steps = torch.zeros(n, dtype=torch.int64, device=self.x.device)
        self.status = torch.full_like(self.steps, Status.MAX_STEPS.value)
        self.rows = torch.arange(n, device=self.x.device)
        self.state, self.clamped = self.x, self.mask
        # Brent's search for a cycle: a state of the past, renewed at powers of two.
        self.past, self.renewal = self.x, 1

    def running(self, max_steps: int) -> bool:
        """True while samples still change, and steps are left."""
        return len(self.rows) > 0 and self.count < max_steps

    def add(
        self, new: Tensor, lost: Tensor, *, follows: bool = False, settles: bool = True
    ) -> None:
        """Add a step.

        Args:
            new: states after it.
            lost: samples that overflowed.
            follows: whether each state is a function of the one before alone.
            settles: whether a sample in which nothing changed has converged.
        """
        self.count += 1
        new = torch.where(lost[:, None], self.state, new)
        turned = (new != self.state).sum(1)
        row = self.x.new_zeros(len(self.x))
        row[self.rows] = _residual(turned, self.x)
        self.trace.append(row)
        self.value[self.rows] = new
        self.steps[self.rows] = self.count
        rests = (turned == 0) & ~lost if settles else torch.zeros_like(lost)
        cycles = (new == self.past).all(1) & ~rests if follows else torch.zeros_like(rests)
        self.status[self.rows[rests]] = Status.CONVERGED.value
        self.status[self.rows[cycles]] = Status.CYCLE.value
        self.status[self.rows[lost]] = Status.OVERFLOW.value
        if self.count == self.renewal:
            self.past, self.renewal = new, 2 * self.renewal
        left = ~(rests | cycles | lost)
        self.rows, self.state, self.clamped = self.rows[left], new[left], self.clamped[left]
        self.past = self.past[left]

    def solution(self) -> Solution:
        residual = self.x.new_zeros(len(self.x))
        rows = (self.status != Status.CONVERGED.value).nonzero()[:, 0]
        if len(rows):
            x = self.value[rows]
            fields = self.memory.fields(x)
            wanted = torch.where(self.mask[rows], x, signs(fields, x.dtype))
            residual[rows] = _residual((wanted != x).sum(1), x)
            still = rows[(residual[rows] == 0) & (self.status[rows] == Status.MAX_STEPS.value)]
            self.status[still] = Status.CONVERGED.value  # stable since the last of max_steps
            residual[rows[fields.isnan().any(1)]] = torch.nan
        trace = torch.stack(self.trace) if self.trace else self.x.new_zeros(0, len(self.x))
        stopped = torch.arange(len(trace), device=self.x.device)[:, None] >= self.steps
        return Solution(
            value=self.value,
            residual=residual,
            steps=self.steps,
            converged=self.status == Status.CONVERGED.value,
            status=self.status,
            n_evals=self.count,
            trace=torch.where(stopped, residual, trace),
        )


def _residual(turned: Tensor, x: Tensor) -> Tensor:
    """‖f(x) − x‖/‖f(x)‖ where n of N signs differ: 2√(n/N)."""
    return 2.0 * (turned.to(x.dtype) / max(x.shape[1], 1)).sqrt()


def _mask(clamped: Tensor | None, x: Tensor) -> Tensor:
    """Mask of the clamped neurons of each sample."""
    if clamped is None:
        return torch.zeros_like(x, dtype=torch.bool)
    boolean("clamped", clamped, "use mask.bool()")
    if tuple(clamped.shape) not in (tuple(x.shape), (x.shape[1],)):
        expected = f"shape ({x.shape[1]},) or {tuple(x.shape)}"
        raise wrong("clamped", expected, tuple(clamped.shape))
    return clamped.to(x.device).expand_as(x)


def _neurons(order: Tensor, size: int) -> list[int]:
    neurons = [int(i) for i in order]
    if set(neurons) != set(range(size)):
        expected = f"each of the neurons 0 to {size - 1} at least once"
        raise wrong("order", expected, f"{len(set(neurons))} of them in {len(neurons)} places")
    return neurons
