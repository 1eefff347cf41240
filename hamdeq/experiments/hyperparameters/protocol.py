"""The maps that the papers show, and the settings that are fixed in each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import torch

from hamdeq.experiments.hyperparameters.grid import Networks, Training
from hamdeq.memories import (
    Interaction,
    LeakyRectifiedPolynomial,
    Learning,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
)

__all__ = ["INTERACTIONS", "LEARNING", "Axes", "Protocol", "axes", "papers_maps", "random_distance"]

Formulation = Literal["original", "normalised"]
Grid = Literal["coarse", "fine"]
Axes = tuple[tuple[float, ...], tuple[float, ...]]
"""Learning rates, and inverse temperatures."""

# The interaction vertices of the papers' figures: (formulation, N) -> (both grids, fine alone).
_VERTICES: dict[tuple[Formulation, int], tuple[tuple[int, ...], tuple[int, ...]]] = {
    ("original", 100): ((2, 3, 5, 10, 20, 30), ()),
    ("normalised", 100): ((2, 3, 5, 10, 15, 20, 25, 30), (40, 50, 60, 70, 80, 90, 100)),
    ("normalised", 250): ((2, 3, 5, 10, 20, 30), ()),
}
_STATES = {100: 20, 250: 30}
INTERACTIONS = ("leaky", "rectified", "polynomial")
# Settings of learning and recall, as named in tables where they are not the paper's.
LEARNING = ("decay", "momentum", "exponent", "floor", "unit", "recall_temperature", "std", "dtype")


@dataclass(frozen=True)
class Protocol:
    """One map: every rate with every inverse temperature, several times.

    Args:
        formulation: where the temperature acts.
        grid: a name for the axes.
        size: N.
        states: how many are learned.
        n: interaction vertex.
        rates, inverse_temperatures: the axes.
        interaction: ``leaky``, ``rectified`` or ``polynomial``.
        eps: ε of the leaky function, minus its slope below zero.
        memories: K.
        epochs: steps of learning.
        decay, momentum, exponent, floor: of :class:`~hamdeq.memories.Learning`.
        repeats: draws of states and memories. A draw is the same in all cells.
        std: of the memories' entries to begin with.
        unit: whose largest gradient moves by the rate: see :class:`.grid.Training`.
        recall_temperature: T of recall, likewise.
        dtype: of learning.
        seed: of the draws.
    """

    formulation: Formulation
    grid: Grid
    size: int
    states: int
    n: int
    rates: tuple[float, ...]
    inverse_temperatures: tuple[float, ...]
    interaction: str = "leaky"
    eps: float = 1e-2
    memories: int = 100
    epochs: int = 500
    decay: float = 0.999
    momentum: float = 0.0
    exponent: int = 1
    floor: float = 0.0
    repeats: int = 5
    std: float = 0.1
    unit: Literal["memory", "network", "none"] = "memory"
    recall_temperature: float | None = None
    dtype: Literal["float64", "float32"] = "float64"
    seed: int = 0

    @property
    def name(self) -> str:
        """A name, the same only for the same protocol."""
        told = json.dumps(asdict(self), sort_keys=True)
        code = hashlib.sha256(told.encode()).hexdigest()[:8]
        return f"{self.interaction}-{self.formulation}-N{self.size}-n{self.n}-{self.grid}-{code}"

    @property
    def variant(self) -> str:
        """The settings of learning that are not the paper's, such as ``floor = 1e-30``."""
        usual = {field.name: field.default for field in fields(self)}
        names = [*LEARNING, *["eps"] * (self.interaction == "leaky")]
        given = {name: getattr(self, name) for name in names}
        return ", ".join(
            f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in given.items()
            if value != usual[name]
        )

    @property
    def title(self) -> str:
        """A description of the map for readers."""
        variant = f", {self.variant}" * bool(self.variant)
        return (
            f"{self.formulation}, {self.interaction}, n = {self.n}, N = {self.size}, "
            f"{self.states} states, {self.grid}{variant}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rates, inverse temperatures, repeats: the axes of every result."""
        return len(self.rates), len(self.inverse_temperatures), self.repeats

    @property
    def count(self) -> int:
        """Networks."""
        rates, temperatures, repeats = self.shape
        return rates * temperatures * repeats

    @property
    def work(self) -> int:
        """Similarities to be computed in learning, of which time is a multiple."""
        return self.count * self.epochs * self.states * self.memories * self.size

    def function(self) -> Interaction:
        """Return F.

        Raises:
            ValueError: an n or an ε for which F is not defined.
        """
        if self.interaction == "leaky":
            return LeakyRectifiedPolynomial(self.n, self.eps)
        return {"rectified": RectifiedPolynomial, "polynomial": Polynomial}[self.interaction](
            self.n
        )

    def training(self) -> Training:
        """Return how each cell learns."""
        scaling = Original() if self.formulation == "original" else Normalised()
        learning = Learning(
            decay=self.decay, momentum=self.momentum, exponent=self.exponent, floor=self.floor
        )
        return Training(
            self.function(), scaling, learning, self.epochs, self.unit, self.recall_temperature
        )

    def networks(self) -> Networks:
        """Return all networks, in the order of :attr:`shape`."""
        dtype = getattr(torch, self.dtype)
        draws = [self._draw(repeat) for repeat in range(self.repeats)]
        cells = len(self.rates) * len(self.inverse_temperatures)
        states, memories = (
            torch.stack(each).to(dtype).repeat(cells, 1, 1) for each in zip(*draws, strict=True)
        )
        rates = torch.tensor(self.rates, dtype=torch.float64)
        inverse = torch.tensor(self.inverse_temperatures, dtype=torch.float64)
        return Networks(
            memories,
            states,
            (1 / inverse)[None, :, None].expand(self.shape).flatten(),
            rates[:, None, None].expand(self.shape).flatten(),
        )

    def _draw(self, repeat: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(1000 * self.seed + repeat)
        states = 2.0 * torch.randint(2, (self.states, self.size), generator=g) - 1
        memories = torch.randn(self.memories, self.size, generator=g, dtype=torch.float64)
        return states.double(), self.std * memories


def random_distance(size: int) -> float:
    """Return √(2N), about the distance of two random states of ±1."""
    return (2 * size) ** 0.5


def axes(formulation: Formulation, grid: Grid, size: int, *, full: bool) -> Axes:
    """Return the rates and inverse temperatures of a map.

    The fine axis of the original formulation is that of the normalised one divided by N: for a
    homogeneous F the two maps are then the same networks. Rates go beyond 1, where a memory's
    entries jump from bound to bound: steep functions are learned best there.

    Args:
        full: twice as fine. (The papers do not say how fine their axes are.)
    """
    if grid == "coarse":
        inverse = {
            "original": _logarithmic(-3, 0, 13 if full else 7),
            "normalised": _logarithmic(-1, 0.5, 13 if full else 7),
        }[formulation]
        return _logarithmic(-2, 1, 13 if full else 7), inverse
    scale = 1 if formulation == "normalised" else 1 / size
    steps = range(10, 27, 1 if full else 2)
    inverse = tuple(float(f"{i / 20 * scale:.6g}") for i in steps)
    return _logarithmic(-1, 1, 9 if full else 5), inverse


def _logarithmic(first: float, last: float, count: int) -> tuple[float, ...]:
    exponents = torch.linspace(first, last, count, dtype=torch.float64)
    return tuple(float(f"{10**e:.3g}") for e in exponents.tolist())


def papers_maps(
    formulations: Sequence[Formulation],
    grids: Sequence[Grid],
    sizes: Sequence[int],
    vertices: Sequence[int] | None = None,
) -> list[tuple[Formulation, Grid, int, int, int]]:
    """List formulation, grid, N, states and n of the papers' maps, or of those with other n.

    The papers have no map of the original formulation with N = 250, and none of other sizes: these
    need ``vertices``.
    """
    found = []
    for size in sizes:
        for formulation in formulations:
            for grid in grids:
                both, fine = _VERTICES.get((formulation, size), ((), ()))
                listed = both + (fine if grid == "fine" else ())
                states = _STATES.get(size, max(1, size // 5))
                found += [
                    (formulation, grid, size, states, n)
                    for n in (listed if vertices is None else vertices)
                ]
    return found
