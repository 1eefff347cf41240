"""Maps in wandb: a run for each, in a group for each search."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from hamdeq.experiments.hyperparameters.results import MEASURES, Results

__all__ = ["Mode", "log"]

Mode = Literal["offline", "online", "disabled"]


def log(results: Results, picture: Path, folder: Path, *, project: str, mode: Mode) -> None:
    """Log a map, unless that has been done: its protocol, its best cell, all cells, its figure."""
    protocol = results.protocol
    marker = folder / "logged" / protocol.name
    if mode == "disabled" or marker.exists():
        return
    import wandb

    # Its own lines would tear the progress bar apart.
    os.environ.setdefault("WANDB_SILENT", "true")
    run = wandb.init(
        project=project,
        group=f"hyperparameters/{folder.resolve().name}",
        name=protocol.name,
        dir=str(folder.resolve()),
        mode=mode,
        config=asdict(protocol),
    )
    cells = wandb.Table(columns=["rate", "inverse_temperature", *MEASURES, "overflows"])
    means = {name: results.mean(name) for name in MEASURES}
    for i, rate in enumerate(protocol.rates):
        for j, inverse in enumerate(protocol.inverse_temperatures):
            values = [float(means[name][i, j]) for name in MEASURES]
            cells.add_data(rate, inverse, *values, int(results.overflows[i, j]))
    run.log({"map": wandb.Image(str(picture)), "cells": cells})
    run.summary.update({**results.region(), "seconds": results.seconds, "kernel": results.kernel})
    run.finish()
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
