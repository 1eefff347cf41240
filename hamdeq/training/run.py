"""The run folder: where a run's configuration, metrics, checkpoints and pictures lie.

    <root>/version_0/config.yaml, metrics.csv, checkpoints/, results.json, residuals.png, wandb/

A resumed run goes on in its own folder, and no row of its metrics is lost.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = [
    "MetricsFile",
    "checkpoint_step",
    "last_checkpoint",
    "new_folder",
    "replace_file",
    "wandb_logger",
]


def new_folder(root: str | Path) -> Path:
    """A new folder ``version_N`` under root, N counting up.

    Raises:
        OSError: root cannot be written to.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"expected a folder that can be written, got {error.strerror!r}; give --run.root"
        raise OSError(error.errno, remedy, str(root)) from None
    taken = [int(p.name[8:]) for p in root.glob("version_*") if p.name[8:].isdigit()]
    number = max(taken, default=-1) + 1
    while True:
        folder = root / f"version_{number}"
        try:  # Another run may take the number first.
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file as a whole or not at all, whoever else writes it, or is killed.

    Args:
        path: the file; its folder is made where there is none.
        write: writes the file whose path it is given, which then takes the place of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(aside)
    os.replace(aside, path)


def last_checkpoint(root: str | Path) -> Path:
    """The newest ``last.ckpt`` of the runs under root.

    Raises:
        FileNotFoundError: no run under root has one.
    """
    found = Path(root).glob("version_*/checkpoints/last.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise FileNotFoundError(
            f"no checkpoint to resume from: expected {Path(root)}/version_*/checkpoints/last.ckpt; "
            "a run writes it at the end of its first epoch; give another folder with --run.root"
        )
    return newest


class MetricsFile(Logger):
    """Logs to ``metrics.csv``: one row each time that something is logged, on disk at once.

    A file that is there is continued, but for rows after ``resume_step``: those epochs were cut
    off by an interruption and will be run again. They leave the file with the first new row, so
    that a checkpoint that is refused before costs nothing.

    Args:
        folder: the run folder.
        resume_step: the global step at which the run goes on, None for a new run.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None) -> None:
        super().__init__()
        self.folder: Path = Path(folder)
        self.path: Path = self.folder / "metrics.csv"
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._stale = False
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self._rows = [
                row for row in rows if resume_step is None or int(row["step"]) <= resume_step
            ]
            self._columns = list(rows[0]) if rows else []
            self._stale = len(self._rows) < len(rows)

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": len(self._rows) if step is None else step} | metrics
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if new or self._stale or len(self._rows) == 1:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        replace_file(self.path, lambda aside: aside.write_text(text.getvalue(), newline=""))
        self._stale = False


def wandb_logger(folder: Path, *, project: str, online: bool) -> WandbLogger:
    """wandb's logger in the run folder; a resumed run keeps its id."""
    runs = sorted(folder.glob("wandb/*run-*"))
    run_id = runs[-1].name.rsplit("-", 1)[-1].removesuffix(".wandb") if runs else None
    if not online:
        # The run's own last lines say where its files are and how to upload them.
        os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        name=f"{folder.parent.name}/{folder.name}",
        # Absolute: the process that writes may have been started in another folder.
        save_dir=folder.resolve(),
        project=project,
        id=run_id,
        offline=not online,
        resume="allow" if run_id and online else None,
    )
    # Lightning always hands over this argument, of which wandb always warns.
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)
    return logger


def checkpoint_step(path: str | Path) -> int:
    """The global step at which a checkpoint was written."""
    return int(torch.load(path, weights_only=True, map_location="cpu")["global_step"])
