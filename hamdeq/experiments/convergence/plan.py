"""What is to be measured: trained memories, and the settings under which they settle."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hamdeq.experiments.series import Series

__all__ = ["SOLVERS", "SPLITTINGS", "Plan", "Setting", "Source", "with_sizes"]

SOLVERS = {"picard": "Picard", "anderson": "Anderson", "broyden": "Broyden", "newton": "Newton"}
SPLITTINGS = {"none": None, "even-odd": "even-odd", "sweep": "sweep"}


@dataclass(frozen=True)
class Setting:
    """How a memory is to settle; what is None stays as it was trained.

    Args:
        solver: one of :data:`SOLVERS`.
        splitting: one of :data:`SPLITTINGS`.
        tol, max_steps: of the solver.
    """

    solver: str | None = None
    splitting: str | None = None
    tol: float | None = None
    max_steps: int | None = None

    def apply(self, config: dict[str, Any]) -> None:
        """Change the configuration of a run, in place, so that its memory settles like this."""
        deq = config["model"]["init_args"]["deq"]["init_args"]
        given = {"tol": self.tol, "max_steps": self.max_steps}
        given = {name: value for name, value in given.items() if value is not None}
        if self.solver is not None:
            before = (deq.get("solver") or {}).get("init_args") or {}
            kept = {name: before[name] for name in ("tol", "max_steps") if name in before}
            deq["solver"] = {"class_path": f"hamdeq.{SOLVERS[self.solver]}", "init_args": kept}
        if given:
            solver: dict[str, Any] = deq.get("solver") or {"class_path": "hamdeq.Broyden"}
            deq["solver"] = {**solver, "init_args": {**(solver.get("init_args") or {}), **given}}
        if self.splitting is not None:
            deq["splitting"] = SPLITTINGS[self.splitting]

    def options(self) -> tuple[str, ...]:
        """The same for the training's command line."""
        found = []
        if self.solver is not None:
            found.append(f"--model.deq.solver=hamdeq.{SOLVERS[self.solver]}")
        for name, value in (("tol", self.tol), ("max_steps", self.max_steps)):
            if value is not None:
                found.append(f"--model.deq.solver.{name}={value}")
        if self.splitting is not None:
            found.append(f"--model.deq.splitting={SPLITTINGS[self.splitting] or 'null'}")
        return tuple(found)


@dataclass(frozen=True)
class Source:
    """Where a trained memory comes from: a series, which trains it, or a run that there is.

    Args:
        name: what its results are called.
        seed: which run of the series; None of a run that there is, whose configuration tells.
        series: what trains it.
        adopted: the folder of the run.
    """

    name: str
    seed: int | None = None
    series: Series | None = None
    adopted: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of the run, None as long as it has not been trained."""
        if self.series is None:
            return self.adopted
        assert self.seed is not None
        return self.series.run_folder(self.seed)

    @property
    def identity(self) -> str:
        """What tells its memory from others."""
        if self.series is None:
            return str(self.adopted)
        return f"{self.series.folder} {self.seed}"


@dataclass(frozen=True)
class Plan:
    """All pairs of a source and a setting.

    Args:
        pairs: in the order in which they are measured.
    """

    pairs: tuple[tuple[Source, Setting], ...]

    @classmethod
    def of(
        cls,
        series: list[Series],
        seeds: list[int],
        settings: list[Setting],
        *,
        adopted: list[Source],
        train_each: bool = False,
    ) -> Plan:
        """Every series with every seed, and every run that there is, under every setting.

        Args:
            series: what is trained.
            seeds: of each.
            settings: how each memory is to settle.
            adopted: runs that there are.
            train_each: whether a memory is trained anew for every setting, with that setting, or
                once, as its configuration says.
        """
        pairs: list[tuple[Source, Setting]] = []
        for seed, one, setting in itertools.product(seeds, series, settings):
            options = (*one.options, *setting.options()) if train_each else one.options
            trained = Series(one.config, options, one.root)
            pairs.append((Source(one.config.stem, seed, trained), setting))
        pairs += itertools.product(adopted, settings)
        return cls(tuple(pairs))

    def __iter__(self) -> Iterator[tuple[Source, Setting]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def trainings(self) -> list[Source]:
        """The sources that are trained, each once."""
        return [*dict.fromkeys(source for source, _ in self.pairs if source.series)]


def key(source: Source, setting: Setting) -> str:
    """A name for the file of a measurement, another one for everything that would change it."""
    short = hashlib.sha256(f"{source.identity} {setting}".encode()).hexdigest()[:10]
    parts = [source.name, setting.solver, setting.splitting, short]
    return "-".join(part for part in parts if part)


def with_sizes(config: Path, sizes: str) -> tuple[str, ...]:
    """The options that give a chain other sizes, such as ``784-512-10``.

    A list of gains, one for each synapse, is cut, or goes on with its last.

    Raises:
        ValueError: what are no sizes; a configuration of what is no chain.
    """
    try:
        numbers = [int(size) for size in sizes.split("-")]
    except ValueError:
        raise ValueError(
            f"--sizes: expected numbers of neurons such as 784-512-10, got {sizes!r}"
        ) from None
    deq = yaml.safe_load(config.read_text())["model"]["deq"]["init_args"]
    kind = "chn" if "chn" in deq else "ham"
    chain = deq[kind].get("init_args") or {}
    if "sizes" not in chain:
        raise ValueError(f"--sizes: expected configurations of chains, got {config} without sizes")
    options = [f"--model.deq.{kind}.sizes={numbers}"]
    gain = chain.get("gain")
    if isinstance(gain, list):
        gain = [*gain, *[gain[-1]] * len(numbers)][: len(numbers) - 1]
        options.append(f"--model.deq.{kind}.gain={gain}")
    return tuple(options)
