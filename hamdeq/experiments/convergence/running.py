"""An experiment: everything planned is trained, then measured, each once."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from hamdeq.experiments.claim import claim
from hamdeq.experiments.convergence.measure import measure
from hamdeq.experiments.convergence.pictures import draw
from hamdeq.experiments.convergence.plan import Plan, Setting, Source, key
from hamdeq.experiments.convergence.progress import Progress
from hamdeq.experiments.convergence.report import Row, csv_of, table
from hamdeq.experiments.convergence.store import load, save, write
from hamdeq.experiments.convergence.tracking import Tracking, track
from hamdeq.training.hints import innermost
from hamdeq.training.load import load_run

__all__ = ["Experiment"]


@dataclass
class Experiment:
    """A plan, carried out in a folder that keeps what has been done.

    Several processes may run the same experiment in the same folder: each takes what no other has
    taken. One that is killed loses what it was measuring, and of a training the last epoch.

    Args:
        plan: what is to be measured.
        root: the folder.
        tracking: where measurements are logged.
        batch_size: images that settle at once.
        data_root: folder of the data, where it is another one than a run was trained with.
        with_published: whether published figures stand in the table.
        trust: whether adopted runs may be of any classes; those that it trains always may.
    """

    plan: Plan
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
        """Why some trainings and measurements failed. The others are done all the same."""
        return [*self._failed.values()]

    def run(self) -> None:
        """Train and measure what has not been."""
        with Progress(self.plan.trainings, [*self._paths.values()]) as progress:
            # First what no other process does, then what others have not finished or have lost.
            for wait in (False, True):
                for source in dict.fromkeys(source for source, _ in self.plan):
                    if self._trained(source, progress, wait=wait):
                        for setting in self.plan.settings(source):
                            self._measure(source, setting, progress, wait=wait)

    def report(self) -> str:
        """Draw the pictures, write ``table.md`` and ``measurements.csv``; return the table."""
        draw(self.root / "pictures", self._rows())
        return self._write_tables()

    def _write_tables(self) -> str:
        rows = self._rows()
        text = table(rows, with_published=self.with_published)
        write(self.root / "table.md", text)
        write(self.root / "measurements.csv", csv_of(rows))
        return text

    def _rows(self) -> list[Row]:
        """All that has been measured so far, by whatever process."""
        found = [(pair[0].name, path, load(path)) for pair, path in self._paths.items()]
        return [Row(name, path.stem, *one) for name, path, one in found if one is not None]

    def _trained(self, source: Source, progress: Progress, *, wait: bool) -> bool:
        """Train, unless that has been done; whether it has."""
        if source.series is not None and source.folder is None and source not in self._failed:
            assert source.seed is not None
            progress.doing(f"train {source.name}, seed {source.seed}")
            try:
                source.series.run(source.seed, wait=wait, meanwhile=progress.look)
            except RuntimeError as error:
                self._failed[source] = str(error)
        return source.folder is not None

    def _measure(self, source: Source, setting: Setting, progress: Progress, *, wait: bool) -> None:
        path = self._paths[source, setting]
        if load(path) is not None or path in self._failed:
            return
        progress.doing(f"measure {path.stem}")
        with claim(path.with_suffix(".lock"), wait=wait, meanwhile=progress.look) as lock:
            if lock is None or load(path) is not None:
                return
            try:
                self._take(source, setting, path)
            except (ValueError, TypeError, RuntimeError) as error:
                # Such as a splitting or a solver that this memory cannot have.
                self._failed[path] = f"{path.stem}: {innermost(error)}"
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
        measured = measure(module, data, batch_size=self.batch_size)
        about = _about(folder)
        track(path.stem, measured, about, tracking=self.tracking, folder=self.root)
        save(path, measured, about)
        self._write_tables()


def _about(folder: Path) -> dict[str, Any]:
    """When, where and of which run."""
    return {
        "run": str(folder),
        "seed": yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"],
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
