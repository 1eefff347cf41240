"""Measurements in wandb: each is a run, in a group of its experiment."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hamdeq.experiments.convergence.measure import Measurement
from hamdeq.plots import residual_histogram

__all__ = ["Tracking", "track"]


@dataclass(frozen=True)
class Tracking:
    """Destination of logged measurements: wandb's mode, project and group."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    group: str


def track(
    key: str, measured: Measurement, about: dict[str, Any], *, tracking: Tracking, folder: Path
) -> None:
    """Log a measurement, its residuals and its energies.

    A measurement that was interrupted and is taken again is logged to the same run, by its id.
    """
    if tracking.mode == "disabled":
        return
    import wandb

    # The agent of a sweep has named the run already.
    named = "WANDB_SWEEP_ID" in os.environ
    run_id = None if named else hashlib.sha256(f"{tracking.group} {key}".encode()).hexdigest()[:16]
    numbers = dict(vars(measured))
    trace, energies = numbers.pop("trace"), numbers.pop("energies")
    settings = ("data", "model", "sizes", "solver", "splitting", "tol", "batch_size")
    folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=tracking.project,
        group=tracking.group,
        name=key,
        id=run_id,
        mode=tracking.mode,
        dir=folder,
        config=about | {name: numbers.pop(name) for name in settings},
        resume="allow" if run_id and tracking.mode == "online" else None,
        settings=wandb.Settings(silent=True),
    ) as run:
        for energy in energies:
            run.log({"energy above minimum": energy})
        figure = residual_histogram(trace, tol=measured.tol)
        run.log({"residuals": wandb.Image(figure)})
        run.summary.update(numbers)
