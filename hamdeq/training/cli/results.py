"""The result of a run: results.json, and what is printed at the end."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from hamdeq.training.files import DamagedFileError, write_file

__all__ = ["add_results", "read_results", "table", "where"]

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


def where(folder: Path | None) -> str:
    """Which of a run's files there are, and how to upload what wandb has recorded."""
    if folder is None:
        return ""
    names = ["results.json", "residuals.png", "metrics.csv", "config.yaml", "checkpoints"]
    names[2:2] = sorted(path.name for path in folder.glob("recall_*.png"))
    found = ", ".join(name for name in names if (folder / name).exists())
    text = f"  {folder}: {found}\n" if found else ""
    if any(folder.glob("wandb/offline-run-*")):
        text += f"  wandb, offline; to upload: wandb sync {folder}/wandb/offline-run-*\n"
    return text
