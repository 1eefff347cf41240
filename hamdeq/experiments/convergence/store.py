"""Measurements on disk: each is one file, there as a whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from hamdeq.experiments.convergence.measure import Measurement

__all__ = ["load", "save"]


def save(path: Path, measurement: Measurement, about: dict[str, Any]) -> None:
    """Write a measurement and what else is known of it, and its residuals beside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = asdict(measurement)
    _replace(path.with_suffix(".pt"), lambda aside: torch.save(numbers.pop("trace"), aside))
    text = json.dumps(numbers | {"about": about}, indent=2) + "\n"
    _replace(path, lambda aside: aside.write_text(text))


def load(path: Path) -> tuple[Measurement, dict[str, Any]] | None:
    """What :func:`save` wrote; None where it has not."""
    if not path.exists():
        return None
    numbers = json.loads(path.read_text())
    known = {each.name for each in fields(Measurement)}
    trace = torch.load(path.with_suffix(".pt"), weights_only=True)
    measured = Measurement(**{name: numbers[name] for name in known - {"trace"}}, trace=trace)
    return measured, numbers["about"]


def _replace(path: Path, write: Any) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(aside)
    os.replace(aside, path)
