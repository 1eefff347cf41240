"""Results of a run: metrics.csv, results.json, and the table that is printed at the end."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from hamdeq.training.files import DamagedFileError, append_text, write_file

__all__ = ["MetricsFile", "add_results", "list_files", "read_results", "table"]

_FORMATS = {
    "accuracy": ("{stage} accuracy", "{:.2%}"),
    "f1": ("{stage} F1", "{:.4f}"),
    "r2": ("{stage} R²", "{:.4f}"),
    "mae": ("{stage} mean absolute error", "{:.4g}"),
    "auc": ("{stage} AUC", "{:.4f}"),
    "pixel_error": ("{stage} pixel error", "{:.4f}"),
    "mean_image_error": ("pixel error of the mean image", "{:.4f}"),
    "loss": ("{stage} loss", "{:.4g}"),
    "iterations": ("mean iterations", "{:.2f}"),
    "paper_iterations": ("as the papers count", "{:.2f}"),
    "not_converged": ("not converged", "{:.2%}"),
    "residual": ("mean residual", "{:.1e}"),
    "energy": ("mean energy", "{:.4g}"),
    "fit_seconds": ("time of the fit", "{:.1f} s"),
}
_STAGES = {"val": "validation", "test": "test"}


def read_results(path: Path) -> dict[str, float]:
    """Read results.json.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it does not hold numbers by name.
    """
    expected = "numbers by name in JSON"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(path, expected, error) from None
    if not isinstance(results, dict):
        raise DamagedFileError(path, expected, type(results).__name__)
    for name, value in results.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise DamagedFileError(path, expected, f"{repr(value)[:80]} as {name}")
    return results


def add_results(folder: Path, results: dict[str, float]) -> None:
    """Write results.json; what only an earlier command measured, the time of the fit, stays.

    Of a damaged file nothing stays, and a warning names it.
    """
    path = folder / "results.json"
    try:
        before = read_results(path)
    except FileNotFoundError:
        before = {}
    except DamagedFileError as error:
        warnings.warn(f"{error}; it is written anew", stacklevel=2)
        before = {}
    write_file(path, json.dumps(before | results, indent=2) + "\n")


def table(results: dict[str, float]) -> str:
    """Metrics ``"stage/name"`` of one stage as lines of text, empty where there are none."""
    rows = []
    for name, (label, form) in _FORMATS.items():
        for key, value in results.items():
            stage, _, last = key.rpartition("/")
            if last == name:
                rows.append((label.format(stage=_STAGES.get(stage, stage)), form.format(value)))
    if not rows:
        return ""
    wide = max(len(label) for label, _ in rows)
    rule = "  " + "─" * (wide + 12)
    lines = [f"  {label:<{wide}}  {value:>10}" for label, value in rows]
    return "\n".join(["", rule, *lines, rule, ""])


def list_files(folder: Path | None) -> str:
    """List the files of a run, and say how to upload what wandb has recorded."""
    if folder is None:
        return ""
    names = ["results.json", "residuals.png", "metrics.csv", "config.yaml", "checkpoints"]
    names[2:2] = sorted(path.name for path in folder.glob("recall_*.png"))
    found = ", ".join(name for name in names if (folder / name).exists())
    text = f"  {folder}: {found}\n" if found else ""
    if any(folder.glob("wandb/offline-run-*")):
        text += f"  wandb, offline; to upload: wandb sync {folder}/wandb/offline-run-*\n"
    return text


class MetricsFile(Logger):
    """Logs to ``metrics.csv``: one row each time that something is logged, on disk at once.

    A file that is there is continued, but for rows after ``resume_step``: those epochs were cut
    off and will be run again. They leave the file with the first new row: a checkpoint that is
    refused before costs nothing. A final test that is run again takes the place of the one before.

    Rows that cannot be read are left out, with a warning, and the file is kept as
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
