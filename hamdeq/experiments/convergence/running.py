"""An experiment: everything planned is trained, then measured, each once."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from hamdeq.experiments.claim import claim
from hamdeq.experiments.convergence.measure import measure
from hamdeq.experiments.convergence.pictures import draw
from hamdeq.experiments.convergence.plan import Plan, Setting, Source, key
from hamdeq.experiments.convergence.report import Row, table, write_csv
from hamdeq.experiments.convergence.store import load, save
from hamdeq.experiments.convergence.tracking import track
from hamdeq.training.load import load_run

__all__ = ["Experiment", "Tracking"]


@dataclass(frozen=True)
class Tracking:
    """Where measurements are logged: wandb's mode, project and group."""

    mode: str
    project: str
    group: str


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
    """

    plan: Plan
    root: Path
    tracking: Tracking
    batch_size: int = 64
    rows: list[Row] = field(default_factory=list, init=False)
    _counted: set[Path] = field(default_factory=set, init=False)

    def run(self) -> None:
        """Train and measure what has not been.

        Raises:
            RuntimeError: a training failed.
        """
        trainings = self.plan.trainings
        total = sum(_epochs(source) for source in trainings) + len(self.plan)
        with tqdm(total=total, unit="epoch", smoothing=0) as bar:
            advances = {source: _upto(bar, _epochs(source)) for source in trainings}
            # First what no other process does, then what others have not finished or have lost.
            for wait in (False, True):
                for source, advance in advances.items():
                    bar.set_description(f"train {source.name}, seed {source.seed}")
                    _train(source, advance, wait=wait)
                    for other, setting in self.plan:
                        if other == source and source.folder is not None:
                            self._measure(source, setting, bar, wait=wait)
            for source, setting in self.plan:
                self._measure(source, setting, bar, wait=True)
        self.rows = [self._row(source, setting) for source, setting in self.plan]

    def report(self, *, with_published: bool = False) -> str:
        """Write ``table.md``, ``measurements.csv`` and the pictures; return the table."""
        text = table(self.rows, with_published=with_published)
        (self.root / "table.md").write_text(text)
        write_csv(self.root / "measurements.csv", self.rows)
        draw(self.root / "pictures", self.rows)
        return text

    def _path(self, source: Source, setting: Setting) -> Path:
        name = key(source, setting)
        return self.root / "measurements" / f"{name}-{self.batch_size}.json"

    def _measure(self, source: Source, setting: Setting, bar: tqdm[Any], *, wait: bool) -> None:
        path = self._path(source, setting)
        if path in self._counted:
            return
        bar.set_description(f"measure {path.stem}")
        with claim(path.with_suffix(".lock"), wait=wait) as lock:
            if lock is None:
                return
            if load(path) is None:
                folder = source.folder
                assert folder is not None
                module, data = load_run(folder, change=setting.apply)
                measured = measure(module, data, batch_size=self.batch_size)
                about = _about(folder)
                if self.tracking.mode != "disabled":
                    track(path.stem, measured, about, folder=self.root, **vars(self.tracking))
                save(path, measured, about)
        self._counted.add(path)
        bar.update()

    def _row(self, source: Source, setting: Setting) -> Row:
        found = load(self._path(source, setting))
        assert found is not None
        return source.name, *found


def _train(source: Source, advance: Callable[[int], None], *, wait: bool) -> None:
    assert source.series is not None
    assert source.seed is not None
    if source.series.run(source.seed, on_epoch=advance, wait=wait) is not None:
        advance(_epochs(source))


def _upto(bar: tqdm[Any], most: int) -> Callable[[int], None]:
    """What moves the bar on to a number of epochs of a training, at most those it has."""
    done = 0

    def advance(epochs: int) -> None:
        nonlocal done
        new = min(epochs, most) - done
        bar.update(new)
        done += new

    return advance


def _epochs(source: Source) -> int:
    """The epochs of a training, by its options and its configuration; at least 1."""
    assert source.series is not None
    for option in reversed(source.series.options):
        if option.startswith("--trainer.max_epochs="):
            return max(int(option.partition("=")[2]), 1)
    trainer = yaml.safe_load(source.series.config.read_text()).get("trainer") or {}
    return max(int(trainer.get("max_epochs") or 1), 1)


def _about(folder: Path) -> dict[str, Any]:
    """When, where and of which run."""
    return {
        "run": str(folder),
        "seed": yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"],
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
