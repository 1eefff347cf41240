"""Many dense associative memories at once, each with a temperature and a learning rate of its own.

A search for hyperparameters measures every pair of temperature and rate, several times. The
networks learn by the rule of :class:`~hamdeq.memories.Learning`, from the gradient of
:func:`~hamdeq.memories.flips.loss_and_gradient`, as many at a time as stay in a core's cache; then
the states that they have learned are recalled.

Shapes: G networks, with K memories, M states and N neurons each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hamdeq._checks import integer, number, one_of, wrong
from hamdeq.memories import flips
from hamdeq.memories.dense import Learning
from hamdeq.memories.fields import fields as binary_fields
from hamdeq.memories.interactions import Factors, Interaction, Scaling
from hamdeq.memories.recall import signs
from hamdeq.optim.normalised import normalised

__all__ = ["Kernel", "Networks", "Outcome", "Training", "measure", "relax"]


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks to learn.

    Args:
        memories: to begin with, ``(G, K, N)``.
        states: to be learned, ±1, ``(G, M, N)``.
        temperatures: T > 0, ``(G,)``.
        rates: of the first epoch, > 0, ``(G,)``.

    Raises:
        ValueError: shapes or dtypes that do not fit, or numbers that are not positive.
    """

    memories: Tensor
    states: Tensor
    temperatures: Tensor
    rates: Tensor

    def __post_init__(self) -> None:
        shape, states = tuple(self.memories.shape), tuple(self.states.shape)
        if len(shape) != 3 or 0 in shape:
            raise wrong("memories", "(G, K, N), none of them 0", shape)
        count, _, size = shape
        if len(states) != 3 or states[::2] != (count, size) or states[1] == 0:
            raise wrong("states", f"({count}, M, {size})", states)
        if self.states.dtype != self.memories.dtype:
            raise wrong("states", f"the memories' {self.memories.dtype}", self.states.dtype)
        if not bool((self.states.abs() == 1).all()):
            raise wrong(
                "states", "±1", "other numbers", "bits become states by states_from_bits(x)"
            )
        for name in ("temperatures", "rates"):
            given = getattr(self, name)
            if tuple(given.shape) != (count,):
                raise wrong(name, f"({count},)", tuple(given.shape))
            if not bool((given.isfinite() & (given > 0)).all()):
                raise wrong(name, "finite numbers > 0", f"{given.min():g}")

    def __len__(self) -> int:
        return len(self.memories)

    def __getitem__(self, rows: Tensor) -> Networks:
        return Networks(*(getattr(self, each.name)[rows] for each in fields(self)))

    @property
    def work(self) -> int:
        """Similarities of turned neurons of one network: M · K · N."""
        return self.states.shape[1] * self.memories[0].numel()


@dataclass(frozen=True)
class Training:
    """Training of the networks, each at its own temperature and rate.

    Args:
        interaction: F.
        scaling: where the temperature acts; its own T does not count.
        learning: decay, momentum, error exponent and floor; its own rate does not count.
        epochs: steps, each on all states at once.
        unit: whose largest gradient moves by the rate: each ``memory``'s, as the paper has it,
            that of the whole ``network``, or ``none``, the plain gradient of the mean error.
        recall_temperature: T of recall; None for that of learning. (The authors of the paper
            recall with the scale 1/N, which is 1 here.)

    Raises:
        ValueError: a schedule of temperatures, an unknown unit, epochs below 0, or a temperature
            that is not positive.
    """

    interaction: Interaction
    scaling: Scaling
    learning: Learning = field(default_factory=Learning)
    epochs: int = 500
    unit: Literal["memory", "network", "none"] = "memory"
    recall_temperature: float | None = None

    def __post_init__(self) -> None:
        if self.learning.temperatures is not None:
            remedy = "each network has a temperature of its own"
            got = self.learning.temperatures
            raise wrong("learning", "no schedule of temperatures", got, remedy)
        one_of("unit", self.unit, ("memory", "network", "none"))
        if self.recall_temperature is not None:
            number("recall_temperature", self.recall_temperature, above=0)
        object.__setattr__(self, "epochs", integer("epochs", self.epochs, least=0))

    def factors(self, networks: Networks) -> Factors:
        """The factors of each network, ``(G, 1, 1)``; infinite where T⁻ⁿ overflows."""
        pairs = []
        for t in networks.temperatures.tolist():
            try:
                pairs.append(
                    self.scaling.at(t).factors(networks.memories.shape[-1], self.interaction)
                )
            except OverflowError:
                pairs.append(Factors(1.0, torch.inf))
        both = torch.tensor(pairs, dtype=torch.float64).to(networks.memories)
        return Factors(both[:, 0, None, None], both[:, 1, None, None])  # type: ignore[arg-type]


# Similarities in a chunk of networks: the compiled kernel holds one array of them.
_CHUNK = 2**20


class Kernel:
    """Loss and gradient of a chunk, compiled where there is a compiler.

    Args:
        compiled: whether to compile; it takes some ten seconds for each interaction function and
            shape, and needs a C++ compiler. If it fails, a warning says why, and the plain program
            is used.

    Attributes:
        name: ``compiled`` or ``eager``, what ran last.
    """

    def __init__(self, compiled: bool = True) -> None:
        self.name = "compiled" if compiled else "eager"
        self._program: Callable[..., flips.Parts] | None = None
        if compiled:
            self._program = torch.compile(flips.error_of_block, dynamic=False, fullgraph=True)

    def networks(self, work: int) -> int:
        """Return the number of networks of a chunk, of so many similarities each."""
        return max(1, _CHUNK // work) if self._program else 1

    def __call__(
        self,
        memories: Tensor,
        states: Tensor,
        interaction: Interaction,
        factors: Factors,
        exponent: int,
    ) -> flips.Parts:
        given = (memories, states, states, interaction, factors, exponent)
        if self._program is not None:
            try:
                return self._program(*given, slice(None))
            except Exception as error:
                # The compiler's errors have no common class; if the plain program fails as well,
                # it says so itself.
                self._program, self.name = None, "eager"
                first = str(error).strip().splitlines()[:1] or [type(error).__name__]
                warnings.warn(
                    f"compiling failed, and networks learn several times as slowly: {first[0]}; "
                    "install a C++ compiler, or ask for Kernel(compiled=False)",
                    stacklevel=2,
                )
        return flips.loss_and_gradient(*given)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Results of each network, ``(G,)``.

    Args:
        distance: mean Euclidean distance of the states from those that recall ends with.
        loss: mean of (ξ − C)^2m over states and neurons: 1 where nothing is predicted.
        recalled: share of the states that are recalled without an error.
        resting: share of the states whose recall converges.
        silent: share of the memories without a gradient in the first epoch: all of its entries
            are zero or, with a floor, below that.
        overflow: whether F or its gradient overflowed; the other numbers are NaN then.
    """

    distance: Tensor
    loss: Tensor
    recalled: Tensor
    resting: Tensor
    silent: Tensor
    overflow: Tensor


@torch.no_grad()
def measure(
    networks: Networks,
    training: Training,
    *,
    max_steps: int = 100,
    kernel: Kernel | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Outcome:
    """Train the networks on their states, and recall these.

    Args:
        networks: to learn; they are not changed.
        training: how.
        max_steps: of recall, in which all neurons are updated at once.
        kernel: of the gradient; compiled by default.
        progress: called with the number of networks measured since the last call.
    """
    kernel = Kernel() if kernel is None else kernel
    parts = []
    start = 0
    while start < len(networks):
        count = kernel.networks(networks.work)
        rows = torch.arange(start, start + count, device=networks.memories.device)
        # All chunks are of one size, so that it is compiled once: the last is filled up.
        chunk = networks[rows.clamp(max=len(networks) - 1)]
        chunk, loss, silent, lost = _learn(chunk, training, kernel)
        real = torch.arange(min(count, len(networks) - start), device=rows.device)
        parts.append(
            _recalled(chunk[real], training, loss[real], silent[real], lost[real], max_steps)
        )
        start += len(real)
        if progress is not None:
            progress(len(real))
    names = [each.name for each in fields(Outcome)]
    return Outcome(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _learn(
    networks: Networks, training: Training, kernel: Kernel
) -> tuple[Networks, Tensor, Tensor, Tensor]:
    """Return the networks after the last epoch; their losses, silent memories, and overflows."""
    learning, states = training.learning, networks.states
    memories, factors = networks.memories.clone(), training.factors(networks)
    rates = networks.rates.to(memories)[:, None, None]
    velocity = torch.zeros_like(memories)
    count, size = len(networks), states[0].numel()
    silent, lost = memories.new_zeros(count), torch.zeros(count, dtype=torch.bool).to(states.device)
    loss = memories.new_zeros(count)
    for epoch in range(training.epochs + 1):
        loss, gradient, _ = kernel(
            memories, states, training.interaction, factors, learning.exponent
        )
        # One number that is not finite makes the sum so.
        lost |= ~(loss + gradient.sum((-2, -1))).isfinite()
        if epoch == 0:
            largest = gradient.abs().amax(-1)
            silent = (largest <= learning.floor).to(memories.dtype).mean(-1)
        if epoch == training.epochs:
            break
        velocity = gradient.add_(velocity, alpha=learning.momentum)
        if training.unit == "none":
            step = velocity / size
        else:
            axes = 2 if training.unit == "memory" else 1
            step = normalised(velocity, axes, floor=learning.floor)
        memories -= (rates * learning.decay**epoch) * step
        memories.clamp_(-1.0, 1.0)
    return replace(networks, memories=memories), loss / size, silent, lost


def _recalled(
    networks: Networks,
    training: Training,
    loss: Tensor,
    silent: Tensor,
    lost: Tensor,
    max_steps: int,
) -> Outcome:
    found, rests, overflown = relax(networks, training, max_steps)
    states, overflow = networks.states, lost | overflown

    def known(x: Tensor) -> Tensor:
        return torch.where(overflow, torch.nan, x)

    return Outcome(
        distance=known((found - states).norm(dim=-1).mean(-1)),
        loss=known(loss),
        recalled=known((found == states).all(-1).to(states.dtype).mean(-1)),
        resting=known(rests.to(states.dtype).mean(-1)),
        silent=known(silent),
        overflow=overflow,
    )


def relax(
    networks: Networks, training: Training, max_steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Update all neurons at once, ``max_steps`` times, as the paper does.

    Returns:
        The states ``(G, M, N)``, which of them have converged ``(G, M)``, and the networks whose
        fields overflow ``(G,)``.
    """
    if training.recall_temperature is not None:
        same = torch.full_like(networks.temperatures, training.recall_temperature)
        networks = replace(networks, temperatures=same)
    inner: Any = training.factors(networks).inner
    gauged = training.scaling.is_gauged
    value, before = networks.states.clone(), networks.states
    rests = torch.zeros(value.shape[:2], dtype=torch.bool, device=value.device)
    overflow = torch.zeros(len(value), dtype=torch.bool, device=value.device)
    moving = torch.arange(len(value), device=value.device)
    for step in range(1, max_steps + 1):
        now, then = value[moving], before
        found = binary_fields(
            networks.memories[moving], now, training.interaction, inner[moving], gauged=gauged
        )
        new = signs(found, now.dtype)
        overflow[moving] = found.isnan().flatten(1).any(1)
        rests[moving] = (new == now).all(-1)
        # Updates of all neurons at once mostly end in a fixed point or in a cycle of two states,
        # from which the state after the last step follows.
        periodic = (new == then).flatten(1).all(1) & (step > 1)
        ends = now if (max_steps - step) % 2 else new
        value[moving] = torch.where(periodic[:, None, None], ends, new)
        left = ~(periodic | rests[moving].all(1) | overflow[moving])
        moving, before = moving[left], now[left]
        if not len(moving):
            break
    return value, rests, overflow
