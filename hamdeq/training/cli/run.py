"""The run folder: where a run's configuration, metrics, checkpoints and pictures lie.

    <root>/version_0/config.yaml, metrics.csv, checkpoints/, results.json, residuals.png, wandb/

A resumed run goes on in its own folder, and no row of its metrics is lost.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from hamdeq.training.files import append_text, write_file

__all__ = [
    "MetricsFile",
    "check_wandb",
    "new_folder",
    "newest_checkpoint",
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


def newest_checkpoint(root: str | Path, name: str = "last") -> Path:
    """The newest ``last.ckpt`` of the runs under root, or ``best.ckpt``.

    Raises:
        FileNotFoundError: no run under root has one.
    """
    found = Path(root).glob(f"version_*/checkpoints/{name}.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise FileNotFoundError(
            f"no checkpoint: expected {Path(root)}/version_*/checkpoints/{name}.ckpt; "
            "a run writes it at the end of its first epoch; give another folder with --run.root"
        )
    return newest


class MetricsFile(Logger):
    """Logs to ``metrics.csv``: one row each time that something is logged, on disk at once.

    A file that is there is continued, but for rows after ``resume_step``: those epochs were cut
    off by an interruption and will be run again. They leave the file with the first new row, so
    that a checkpoint that is refused before costs nothing. A final test of the same step that is
    run again takes the place of the one before.

    Rows that cannot be read are left out, with a warning, and the file with them is kept as
    ``metrics.csv.damaged``. A last row that a kill cut off is left out in silence.

    Args:
        folder: the run folder.
        resume_step: the global step at which the run goes on, None for a new run.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None) -> None:
        super().__init__()
        self.folder: Path = Path(folder)
        self.path: Path = self.folder / "metrics.csv"
        self._resume_step = resume_step
        self._rows: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._stale = self._damaged = False
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        # Bytes that are no text, as a power cut may leave them, spoil their own line alone.
        text = self.path.read_text(encoding="utf-8", errors="replace").replace("\0", "\ufffd")
        *lines, cut = text.split("\n")
        head, *table = [next(csv.reader([line]), []) for line in lines] or [[]]
        valid = "step" in head and "\ufffd" not in lines[0]
        rows = [
            dict(zip(head, cells, strict=True))
            for cells, line in zip(table, lines[1:], strict=True)
            if valid and len(cells) == len(head) and "\ufffd" not in line
        ]
        rows = [row for row in rows if row["step"].isdecimal()]
        self._damaged = not valid or len(rows) < len(table)
        if self._damaged:
            got = f"{len(table) - len(rows)} others" if valid else "no header with a step"
            rank_zero_warn(
                f"{self.path}: expected rows of metrics, got {got}; {len(rows)} rows stay, and the "
                f"file as it was is kept as {self.path.name}.damaged"
            )
        last = math.inf if self._resume_step is None else self._resume_step
        self._rows = [row for row in rows if int(row["step"]) <= last]
        self._columns = head if rows else []
        self._stale = self._damaged or bool(cut) or len(self._rows) < len(rows)

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
        self._leave_out_earlier_test(row)
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if new or self._stale or len(self._rows) == 1:
            self._rewrite()
        else:
            append_text(self.path, self._csv([row]))

    def _leave_out_earlier_test(self, new: dict[str, Any]) -> None:
        """Leave out the final test of this step that was interrupted after its row was written."""
        tests = [name for name in new if name.startswith("test/")]
        if not tests or self._resume_step is None or new["step"] != self._resume_step:
            return
        others = [
            row
            for row in self._rows
            if int(row["step"]) != self._resume_step or not any(row.get(name) for name in tests)
        ]
        self._stale |= len(others) < len(self._rows)
        self._rows = others

    def _csv(self, rows: list[dict[str, Any]], *, header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _rewrite(self) -> None:
        if self._damaged:
            write_file(self.path.with_name("metrics.csv.damaged"), self.path.read_bytes())
        write_file(self.path, self._csv(self._rows, header=True))
        self._stale = self._damaged = False


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


def check_wandb() -> None:
    """Log in to wandb; on a terminal it asks for the key where there is none.

    Raises:
        ValueError: there is no key, and nobody to ask.
    """
    import wandb
    from wandb.errors import Error

    try:
        wandb.login()
    except Error as error:
        raise ValueError(
            "wandb online: expected an API key of wandb, got none; run `wandb login`, or set "
            f"WANDB_API_KEY, or record offline ({' '.join(str(error).split())})"
        ) from None
