"""Measurements on disk: a file each, and another one for the residuals."""

from __future__ import annotations

import io
import json
import types
import typing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hamdeq.experiments.convergence.measure import Measurement
from hamdeq.training.files import DamagedFileError, write_file

__all__ = ["load", "save"]


def save(path: Path, measurement: Measurement, about: dict[str, Any]) -> None:
    """Write a measurement and what is known about it, and its residuals beside it."""
    numbers = asdict(measurement)
    trace = io.BytesIO()
    torch.save(numbers.pop("trace"), trace)
    write_file(path.with_suffix(".pt"), trace.getbuffer())
    write_file(path, json.dumps(numbers | {"about": about}, indent=2) + "\n")


def load(path: Path) -> tuple[Measurement, dict[str, Any]] | None:
    """Read what :func:`save` wrote; None where there is no file, or one of another version.

    Raises:
        DamagedFileError: the file holds no measurement, or the one beside it no residuals.
    """
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedFileError(path, "a measurement in JSON", error) from None
    if not isinstance(numbers, dict) or not isinstance(about := numbers.pop("about", {}), dict):
        raise DamagedFileError(path, "a measurement in JSON", type(numbers).__name__)
    kinds = {k: v for k, v in typing.get_type_hints(Measurement).items() if k != "trace"}
    if numbers.keys() != kinds.keys():  # of another version of hamdeq
        return None
    for name, kind in kinds.items():
        if not _is(numbers[name], kind):
            expected = getattr(kind, "__name__", kind)
            raise DamagedFileError(path, f"{name} as {expected}", repr(numbers[name])[:80])
    beside = path.with_suffix(".pt")
    try:
        trace = torch.load(beside, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load raises errors of many kinds
        raise DamagedFileError(beside, "residuals", type(error).__name__) from None
    if not isinstance(trace, Tensor) or trace.ndim != 2:
        raise DamagedFileError(beside, "residuals", type(trace).__name__)
    return Measurement(**numbers, trace=trace), about


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.GenericAlias):  # a list
        (each,) = typing.get_args(kind)
        return isinstance(value, list) and all(_is(x, each) for x in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not isinstance(value, bool)
