"""The plan of an experiment: trained memories, and the settings under which they converge."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hamdeq._checks import nearest, wrong
from hamdeq.deq import DEQ
from hamdeq.experiments.convergence.configuration import memory_of, read
from hamdeq.experiments.series import Series
from hamdeq.solvers import Solver

__all__ = ["SOLVERS", "SPLITTINGS", "Setting", "Source", "adopted", "key", "plan", "solver_class"]

_LONGEST = 100  # bytes; with what is added, a file's name must stay below 255 of them

SOLVERS: tuple[str, ...] = ("picard", "anderson", "broyden", "newton")
SPLITTINGS: dict[str, Literal["even-odd", "sweep"] | None] = {
    "none": None,
    "even-odd": "even-odd",
    "sweep": "sweep",
}


def _path(name: str) -> str:
    return f"hamdeq.{name.capitalize()}" if name in SOLVERS else name


def solver_class(name: str) -> type[Solver]:
    """Import the class of a name of :data:`SOLVERS`, or of a path such as ``package.Class``.

    Raises:
        ValueError: there is no such class of solvers.
    """
    path = _path(name)
    module, _, last = path.rpartition(".")
    expected = f"expected {', '.join(SOLVERS)}, or a class of solvers such as mypackage.MySolver"
    if not module:
        near = nearest(name, SOLVERS)
        raise ValueError(
            f"{expected}, got {name!r}" + (f"; did you mean {near!r}?" if near else "")
        )
    try:
        kind = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{expected}, got {name!r} ({error})") from None
    if not (isinstance(kind, type) and issubclass(kind, Solver)) or inspect.isabstract(kind):
        raise ValueError(
            f"{expected}, got {name!r}, which is no complete subclass of hamdeq.Solver"
        )
    return kind


@dataclass(frozen=True)
class Setting:
    """Solver and splitting with which a memory converges; what is None stays as it was trained.

    Args:
        solver: one of :data:`SOLVERS`, or the path of another class of solvers, such as
            ``mypackage.MySolver``. The solver of the training keeps all its options, such as
            damping; another one takes over ``tol`` and ``max_steps``.
        splitting: one of :data:`SPLITTINGS`.
        tol, max_steps: of the solver.
    """

    solver: str | None = None
    splitting: str | None = None
    tol: float | None = None
    max_steps: int | None = None

    def apply(self, config: dict[str, Any]) -> None:
        """Change the configuration of a run in place."""
        deq = memory_of(config)
        solver: dict[str, Any] = deq.get("solver") or {"class_path": "hamdeq.Broyden"}
        args = dict(solver.get("init_args") or {})
        if self.solver in SOLVERS:
            path = solver["class_path"]
            kind = self.solver.capitalize()
            if not (path.startswith("hamdeq.") and path.endswith(f".{kind}")):
                args = {name: args[name] for name in ("tol", "max_steps") if name in args}
            solver = {"class_path": f"hamdeq.{kind}"}
        given = {"tol": self.tol, "max_steps": self.max_steps}
        args |= {name: value for name, value in given.items() if value is not None}
        deq["solver"] = {**solver, "init_args": args}
        if self.splitting is not None:
            deq["splitting"] = SPLITTINGS[self.splitting]

    def replace_solver(self, deq: DEQ) -> None:
        """Give a memory the solver of this setting, where that is none of :data:`SOLVERS`.

        The configuration of a run that is not trusted may name hamdeq's own classes only, while
        this class is named by whoever measures.
        """
        if self.solver is None or self.solver in SOLVERS:
            return
        kind, trained = solver_class(self.solver), deq.solver
        if type(trained) is not kind:
            deq.solver = kind(tol=trained.tol, max_steps=trained.max_steps)

    def options(self) -> tuple[str, ...]:
        """Return the same for the training's command line."""
        found = []
        if self.solver is not None:
            found.append(f"--model.deq.solver={_path(self.solver)}")
        for name, value in (("tol", self.tol), ("max_steps", self.max_steps)):
            if value is not None:
                found.append(f"--model.deq.solver.{name}={value}")
        if self.splitting is not None:
            found.append(f"--model.deq.splitting={SPLITTINGS[self.splitting] or 'null'}")
        return tuple(found)


@dataclass(frozen=True)
class Source:
    """A trained memory: of a run that a series trains, or of a run that exists.

    Args:
        name: part of the names of its results' files.
        seed: which run of the series.
        series: what trains it; None for a run that exists.
        adopted: the folder of a run that exists.
    """

    name: str
    seed: int = 0
    series: Series | None = None
    adopted: Path | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)

    @property
    def folder(self) -> Path | None:
        """The folder of the run; None until it has been trained."""
        return self.series.run_folder(self.seed) if self.series else self.adopted

    @property
    def identity(self) -> str:
        """Key that tells its memory from others, wherever folders have been moved to."""
        if self.series is not None:
            return f"{self.series.name} {self.series.folder.name} {self.seed}"
        # Not the folder: the run may go on, and its weights change.
        assert self.adopted is not None
        files = (self.adopted / name for name in ("config.yaml", "checkpoints/best.ckpt"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def adopted(text: str, *, trust: bool = False) -> list[Source]:
    """Find the runs of ``NAME=FOLDER``, or of ``FOLDER``, named after what holds its runs.

    Args:
        text: the folder of a run, ``version_N``, or one with such folders anywhere in it. Of
            these, runs that cannot be measured are left out, with a warning.
        trust: adopt runs of modules that are not hamdeq's, too, which may run any code.

    Raises:
        FileNotFoundError: no run is there, or none that has a checkpoint.
        ValueError: a name that no file can have; a run of another module than HAMClassifier.
    """
    # A folder may have = in its name as well.
    name, _, given = ("", "", text) if os.path.isdir(text) else text.partition("=")
    if not given:
        name, given = "", text
    if name:
        _check_name(name)
    folder = Path(given).resolve()
    is_run = (folder / "config.yaml").is_file()
    candidates = [folder] if is_run else sorted(folder.rglob("version_*"))
    runs = [run for run in candidates if (run / "checkpoints/best.ckpt").is_file()]
    if not runs:
        expected = "a folder version_N with config.yaml and checkpoints/best.ckpt, or one of such"
        raise wrong("--adopt", expected, given, kind=FileNotFoundError)
    name = name or (folder.parent if is_run else folder).name
    found, refused = [], []
    for run in runs:
        try:
            read(run / "config.yaml", trust=trust)
        except (ValueError, OSError) as error:
            refused.append(error)
        else:
            found.append(Source(name, adopted=run))
    if not found:
        raise refused[0]
    for error in refused:
        warnings.warn(f"--adopt: a run is left out: {error}", stacklevel=2)
    return found


def _check_name(name: str) -> None:
    short = len(os.fsencode(name)) <= _LONGEST
    if short and name.strip(". ") and name.isprintable() and not set(name) & {"/", "\\"}:
        return
    expected = f"one of at most {_LONGEST} bytes that a file can have, without folders"
    got = repr(name) if short else f"one of {len(name)} characters"
    remedy = "give another one with --adopt NAME=FOLDER, or rename the configuration"
    raise wrong("name", expected, got, remedy)


def plan(
    series: list[Series],
    seeds: list[int],
    settings: list[Setting],
    *,
    adopted: list[Source],
    train_each: bool = False,
) -> list[tuple[Source, Setting]]:
    """List all measurements, in order: every memory under every setting.

    Args:
        series: what is trained.
        seeds: of each series.
        settings: how each memory is to converge.
        adopted: runs that exist.
        train_each: whether a memory is trained anew with every setting, or once, as its
            configuration says.
    """
    names = _names([one.config for one in series])
    pairs: list[tuple[Source, Setting]] = []
    for seed, one, setting in itertools.product(seeds, series, settings):
        options = (*one.options, *setting.options()) if train_each else one.options
        pairs.append((Source(names[one.config], seed, replace(one, options=options)), setting))
    return [*dict.fromkeys([*pairs, *itertools.product(adopted, settings)])]


def _names(configs: list[Path]) -> dict[Path, str]:
    """Name configurations after their files; where two have the same, their folders before it."""
    stems = [config.stem for config in dict.fromkeys(configs)]
    return {
        config: config.stem
        if stems.count(config.stem) == 1
        else f"{config.resolve().parent.name}-{config.stem}"
        for config in configs
    }


def key(source: Source, setting: Setting) -> str:
    """Name the file of a measurement: another name for everything that would change it."""
    short = hashlib.sha256(f"{source.identity} {setting}".encode()).hexdigest()[:10]
    parts = [source.name, setting.solver, setting.splitting, short]
    return "-".join(part for part in parts if part)
