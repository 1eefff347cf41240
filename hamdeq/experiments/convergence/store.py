"""Measurements on disk: each is one file, there as a whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hamdeq.experiments.convergence.measure import Measurement
from hamdeq.training.run import replace_file

__all__ = ["load", "save", "write"]


def save(path: Path, measurement: Measurement, about: dict[str, Any]) -> None:
    """Write a measurement and what else is known of it, and its residuals beside."""
    numbers = asdict(measurement)
    replace_file(path.with_suffix(".pt"), lambda aside: torch.save(numbers.pop("trace"), aside))
    write(path, json.dumps(numbers | {"about": about}, indent=2) + "\n")


def load(path: Path) -> tuple[Measurement, dict[str, Any]] | None:
    """What :func:`save` wrote; None where it has not, or has written other things before."""
    try:
        numbers = json.loads(path.read_text())
        trace = torch.load(path.with_suffix(".pt"), weights_only=True)
        about = numbers.pop("about")
        return Measurement(**numbers, trace=trace), about
    except (FileNotFoundError, KeyError, TypeError):
        return None


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all, whoever else writes it, or is killed."""
    replace_file(path, lambda aside: aside.write_text(text))
