"""An experiment: everything planned is trained, then measured, each once."""

from __future__ import annotations

import platform
import warnings
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from hamdeq.experiments.convergence.measure import Measurement, measure
from hamdeq.experiments.convergence.plan import Setting, Source, key
from hamdeq.experiments.convergence.report import Row, csv_of, draw, summarise
from hamdeq.experiments.convergence.store import load, save
from hamdeq.experiments.convergence.tracking import Tracking, track
from hamdeq.experiments.series import Progress, claim
from hamdeq.experiments.tables import markdown
from hamdeq.training.files import DamagedFileError, described, write_csv, write_file
from hamdeq.training.saving import load_run

__all__ = ["Experiment"]


@dataclass
class Experiment:
    """A plan, carried out in a folder that keeps what has been done.

    Several processes may run the same experiment in the same folder: each takes what no other has
    taken. One that is killed loses its measurement in progress, and the last epoch of a training.

    Args:
        plan: what is to be measured.
        root: the folder.
        tracking: where measurements are logged.
        batch_size: images of a batch.
        data_root: folder of the data, where it is another one than a run was trained with.
        with_published: whether published figures stand in the table.
        trust: whether adopted runs may be of any classes; those that it trains always may.
    """

    plan: list[tuple[Source, Setting]]
    root: Path
    tracking: Tracking
    batch_size: int = 64
    data_root: str | None = None
    with_published: bool = False
    trust: bool = False
    _paths: dict[tuple[Source, Setting], Path] = field(init=False)
    _failed: dict[Source | Path, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        folder = self.root / "measurements"
        names = {pair: f"{key(*pair)}-{self.batch_size}.json" for pair in self.plan}
        self._paths = {pair: folder / name for pair, name in names.items()}

    @property
    def failures(self) -> list[str]:
        """Reasons why some trainings and measurements failed. The others are done all the same."""
        return [*self._failed.values()]

    def run(self) -> None:
        """Train and measure what has not been."""
        sources = dict.fromkeys(source for source, _ in self.plan)
        runs = [(source.series, source.seed) for source in sources if source.series]
        with Progress(runs, self._paths.values()) as progress:
            # First what no other process does, then what others have not finished or have lost.
            for wait in (False, True):
                for source in sources:
                    if self._trained(source, progress, wait=wait):
                        for setting in (setting for of, setting in self.plan if of == source):
                            self._measure(source, setting, progress, wait=wait)

    def report(self) -> str:
        """Draw the pictures, write ``table.md`` and ``measurements.csv``; return the table."""
        draw(self.root / "pictures", self._rows())
        return self._write_tables()

    def _write_tables(self) -> str:
        rows = self._rows()
        heads, lines = summarise(rows, with_published=self.with_published)
        text = markdown(heads, lines)
        write_file(self.root / "table.md", text)
        write_csv(self.root / "table.csv", heads, lines)
        write_file(self.root / "measurements.csv", csv_of(rows))
        return text

    def _rows(self) -> list[Row]:
        """All that has been measured so far, by whatever process."""
        found = [(pair[0].name, path, _loaded(path)) for pair, path in self._paths.items()]
        return [Row(name, path.stem, *one) for name, path, one in found if one is not None]

    def _trained(self, source: Source, progress: Progress, *, wait: bool) -> bool:
        """Train, unless that has been done; return whether it has."""
        if source.series is not None and source.folder is None and source not in self._failed:
            progress.doing(f"train {source.name}, seed {source.seed}")
            try:
                source.series.run(source.seed, wait=wait, meanwhile=progress.look)
            except (RuntimeError, OSError) as error:
                self._failed[source] = _described(error)
        return source.folder is not None

    def _measure(self, source: Source, setting: Setting, progress: Progress, *, wait: bool) -> None:
        path = self._paths[source, setting]
        if path in self._failed or _loaded(path) is not None:
            return
        progress.doing(f"measure {path.stem}")
        with claim(path.with_suffix(".lock"), wait=wait, meanwhile=progress.look) as lock:
            if lock is None or _loaded(path, tell=True) is not None:
                return
            try:
                self._take(source, setting, path)
            except Exception as error:
                # Such as a splitting that this memory cannot have, or damaged weights, for which
                # PyTorch and others raise errors of any kind.
                self._failed[path] = f"{path.stem}: {_described(error)}"
        progress.look()

    def _take(self, source: Source, setting: Setting, path: Path) -> None:
        """Measure, log and keep."""
        folder = source.folder
        assert folder is not None

        def change(config: dict[str, Any]) -> None:
            setting.apply(config)
            if self.data_root is not None:
                config["data"].setdefault("init_args", {})["root"] = self.data_root

        trust = self.trust or source.series is not None
        module, data = load_run(folder, change=change, trust=trust)
        setting.replace_solver(module.deq)
        measured = measure(module, data, batch_size=self.batch_size)
        about = _about(folder)
        track(path.stem, measured, about, tracking=self.tracking, folder=self.root)
        save(path, measured, about)
        self._write_tables()


def _loaded(path: Path, *, tell: bool = False) -> tuple[Measurement, dict[str, Any]] | None:
    """Load a measurement; None where there is none, or a damaged one."""
    try:
        return load(path)
    except DamagedFileError as error:
        if tell:
            warnings.warn(f"{error}; it is measured again", stacklevel=2)
        return None


def _described(error: Exception) -> str:
    if isinstance(error, OSError):
        return described(error)
    if isinstance(error, ValueError | TypeError | RuntimeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _about(folder: Path) -> dict[str, Any]:
    """Return of which run a measurement is, when and where."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return {
        "run": str(folder),
        "seed": config.get("seed_everything"),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
