"""Results of a map: measuring them, and keeping them in a file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hamdeq.experiments.hyperparameters.grid import Kernel, measure
from hamdeq.experiments.hyperparameters.heat import HeatMap
from hamdeq.experiments.hyperparameters.protocol import Protocol, random_distance
from hamdeq.training.files import DamagedFileError, write_file

__all__ = ["GOOD", "MEASURES", "Results", "load", "run"]

MEASURES = ("distance", "loss", "recalled", "resting", "silent")
GOOD = 0.1
"""A distance below this share of that of random states is good."""


@dataclass(frozen=True, eq=False)
class Results:
    """Results of a map.

    Args:
        protocol: of the map.
        measures: name -> numbers of :class:`.grid.Outcome`, in the shape of the protocol:
            rates, inverse temperatures, repeats. NaN where a network overflowed.
        seconds: wall-clock time.
        cpu_seconds: time of the processor, which says more where others use it too.
        kernel: ``compiled`` or ``eager``.
    """

    protocol: Protocol
    measures: dict[str, np.ndarray]
    seconds: float
    cpu_seconds: float
    kernel: str

    def mean(self, name: str) -> np.ndarray:
        """Mean over repeats; NaN in cells of which a repeat overflowed."""
        return self.measures[name].mean(-1)

    @property
    def overflows(self) -> np.ndarray:
        """Repeats that overflowed, of each cell."""
        return np.isnan(self.measures["distance"]).sum(-1)

    @property
    def picture(self) -> HeatMap:
        """The numbers that are drawn."""
        p = self.protocol
        return HeatMap(
            rates=p.rates,
            inverse_temperatures=p.inverse_temperatures,
            distance=self.mean("distance"),
            loss=self.mean("loss"),
            recalled=self.mean("recalled"),
        )

    def region(self, share: float = GOOD) -> dict[str, Any]:
        """Return the best cell, and where the distance is below a share of random states'."""
        p, distance = self.protocol, self.mean("distance")
        filled = np.where(np.isnan(distance), np.inf, distance)
        best = np.unravel_index(int(filled.argmin()), filled.shape)
        rows, columns = np.nonzero(filled < share * random_distance(p.size))
        rates = [p.rates[i] for i in rows]
        inverse = [p.inverse_temperatures[i] for i in columns]
        # Several cells are often equally good, at zero.
        ties = np.nonzero((filled == filled[best]).any(0))[0]
        return {
            "best": float(filled[best]),
            "best_rate": p.rates[best[0]],
            "best_inverse_temperature": p.inverse_temperatures[best[1]],
            "ties": [p.inverse_temperatures[ties[0]], p.inverse_temperatures[ties[-1]]],
            "loss": float(self.mean("loss")[best]),
            "recalled": float(self.mean("recalled")[best]),
            "good": len(rows),
            "cells": filled.size,
            "rates": [min(rates), max(rates)] if rates else None,
            "inverse_temperatures": [min(inverse), max(inverse)] if inverse else None,
            "overflows": int(self.overflows.sum()),
        }

    def save(self, folder: Path) -> Path:
        """Write ``NAME.json``."""
        path = folder / f"{self.protocol.name}.json"
        content = {
            "protocol": asdict(self.protocol),
            "axes": ["rates", "inverse_temperatures", "repeats"],
            "measures": {k: _nested(v.tolist()) for k, v in self.measures.items()},
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "kernel": self.kernel,
            "torch": torch.__version__,
        }
        write_file(path, json.dumps(content, indent=1))
        return path


def load(protocol: Protocol, folder: Path) -> Results | None:
    """Load the results of a map; None where it has not been measured.

    Raises:
        DamagedFileError: its file does not hold the results.
    """
    path = folder / f"{protocol.name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measures = {k: np.array(content["measures"][k], dtype=float) for k in MEASURES}
        times = float(content["seconds"]), float(content["cpu_seconds"])
        found = Results(protocol, measures, *times, str(content["kernel"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(path, "the results of a map", error) from None
    shapes = {k: v.shape for k, v in measures.items()}
    if any(shape != protocol.shape for shape in shapes.values()):
        raise DamagedFileError(path, f"numbers in the shape {protocol.shape}", shapes)
    return found


def run(
    protocol: Protocol,
    *,
    compiled: bool = True,
    progress: Callable[[int], Any] | None = None,
) -> Results:
    """Measure a map.

    Args:
        protocol: of the map.
        compiled: whether to compile, where there is a compiler.
        progress: called with the work done since the last call.
    """
    # The compiler keeps a few programs for each function, and here is one for each n.
    torch.compiler.reset()
    kernel, start, cpu = Kernel(compiled), time.perf_counter(), time.process_time()
    each = protocol.work // protocol.count
    found = measure(
        protocol.networks(),
        protocol.training(),
        kernel=kernel,
        progress=None if progress is None else lambda count: progress(count * each),
    )
    measures = {
        name: getattr(found, name).double().reshape(protocol.shape).numpy() for name in MEASURES
    }
    times = time.perf_counter() - start, time.process_time() - cpu
    return Results(protocol, measures, *times, kernel.name)


def _nested(x: Any) -> Any:
    """Put None for NaN, for which JSON has no word."""
    if isinstance(x, list):
        return [_nested(each) for each in x]
    return None if math.isnan(x) else x
