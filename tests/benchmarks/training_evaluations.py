"""Evaluations of the map that a training step takes, with accuracy and time.

    OMP_NUM_THREADS=1 python tests/benchmarks/training_evaluations.py

The 784-512-10 memory on MNIST, batch 64, even-odd splitting, Madam, gradients to 1e-2 by conjugate
gradients. For each seed and gain the variants train side by side, on the same batches in the same
order, from the same weights. An evaluation counts for the batch as a whole, so that a batch waits
for its worst sample; the gradient takes one of its own where the last one of the solve cannot serve
it. Written to docs/data/: training_evaluations.csv, solvers and initial states at the default
tolerance, and training_tolerances.csv, tolerances. Accuracy is that on the 10,000 test images, of
equilibria to 1e-4; time that of a processor.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    Broyden,
    ConjugateGradient,
    Implicit,
    Madam,
    Newton,
    Picard,
    Solver,
)
from hamdeq.data import MNISTDataModule
from hamdeq.solvers.energy_map import EnergyMap, Recorded

FOLDER = Path(__file__).parents[2] / "docs" / "data"
GAINS: dict[str, Any] = {"[2, 0.3]": [2.0, 0.3], "1": 1.0}
FIRST = 100
LOOSER, TOLERANCE = 1e-2, 1e-4


@dataclass
class Variant:
    """A way to train.

    Attributes:
        solver: of the forward pass.
        start: the initial state.
        warm: start from each sample's equilibrium of the last epoch instead, once there is one.
        tol: the tolerance at a share, from 0 to 1, of the training.
    """

    solver: Solver
    start: str = "forward"
    warm: bool = False
    tol: Callable[[float], float] | None = None


STARTS: dict[str, Variant] = {
    "Picard": Variant(Picard(max_steps=500)),
    "Anderson": Variant(Anderson()),
    "Broyden": Variant(Broyden()),
    "Broyden, last epoch's equilibrium": Variant(Broyden(), warm=True),
    "Broyden, linearised start": Variant(Broyden(), "linearised"),
    "Newton": Variant(Newton()),
    "Newton, last epoch's equilibrium": Variant(Newton(), warm=True),
    "Newton, linearised start": Variant(Newton(), "linearised"),
}
TOLERANCES: dict[str, dict[str, Variant]] = {
    f"{tol:.0e}": {
        "Broyden": Variant(Broyden(tol=tol)),
        "Newton, linearised start": Variant(Newton(tol=tol), "linearised"),
    }
    for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
}


def tightening(share: float) -> float:
    """From the looser tolerance to the other, by equal factors."""
    return LOOSER * (TOLERANCE / LOOSER) ** share


TOLERANCES["1e-02 to 1e-04"] = {
    "Broyden": Variant(Broyden(), tol=tightening),
    "Newton, linearised start": Variant(Newton(), "linearised", tol=tightening),
}


class Counting:
    """Counts the evaluations that gradients take besides those of the solve."""

    evaluations = 0
    recorded = EnergyMap.recorded

    @classmethod
    def begin(cls) -> None:
        def recorded(self: EnergyMap, x: Tensor) -> Recorded | None:
            found = cls.recorded(self, x)
            cls.evaluations += found is None
            return found

        EnergyMap.recorded = recorded  # type: ignore[method-assign]


@dataclass
class Log:
    """What the steps of one training took, and what came of it."""

    evaluations: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    accuracy: float = math.nan


class Training:
    """One memory in training."""

    def __init__(self, variant: Variant, gain: Any, seed: int, images: int) -> None:
        torch.manual_seed(seed)
        self.variant = variant
        self.deq = DEQ(
            HAM.chain([784, 512, 10], gain=gain),
            solver=variant.solver,
            adjoint=Implicit(solver=ConjugateGradient(tol=1e-2)),
            start=variant.start,  # type: ignore[arg-type]
            on_failure="ignore",
        )
        self.optimizer = Madam(self.deq.parameters(), lr=0.01)
        self.log = Log()
        self.last = torch.full((images, 10), math.nan)

    def step(self, rows: Tensor, images: Tensor, labels: Tensor, share: float) -> None:
        began = time.process_time()
        variant, init = self.variant, None
        if variant.warm and not bool((last := self.last[rows]).isnan().any()):
            init = {"output": last}
        solver = variant.solver
        solver = solver if variant.tol is None else replace(solver, tol=variant.tol(share))
        Counting.evaluations = 0
        solution = self.deq({"input": images}, init=init, solver=solver)
        output = solution.value["output"]
        loss = F.mse_loss(output, F.one_hot(labels, 10).float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.last[rows] = output.detach()
        self.log.seconds.append(time.process_time() - began)
        self.log.evaluations.append(solution.n_evals + Counting.evaluations)
        self.log.products.append(solution.adjoint[0].n_evals)
        self.log.lost += int((~solution.converged).sum())

    @torch.no_grad()
    def test(self, images: Tensor, labels: Tensor) -> None:
        right = 0
        for x, y in zip(images.split(1000), labels.split(1000), strict=True):
            solution = self.deq({"input": x}, solver=Broyden())
            right += int((solution.value["output"].argmax(1) == y).sum())
        self.log.accuracy = right / len(labels)


def train(
    variants: dict[str, Variant], gain: Any, seed: int, epochs: int, images: int
) -> dict[str, Log]:
    data = MNISTDataModule(val_size=0)
    (x, y), test = data.split("train"), data.split("test")
    x, y = x[:images], y[:images]
    trainings = {name: Training(v, gain, seed, len(x)) for name, v in variants.items()}
    order = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(x) / 64)
    done = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(64):
            for training in trainings.values():
                training.step(rows, x[rows], y[rows], done / max(1, steps - 1))
            done += 1
    for training in trainings.values():
        training.test(*test)
    return {name: training.log for name, training in trainings.items()}


def spread(values: list[float], digits: int) -> str:
    """The mean, and in brackets the least and the largest."""
    least, largest = (f"{end(values):.{digits}f}" for end in (min, max))
    between = "" if least == largest else f" ({least} to {largest})"
    return f"{mean(values):.{digits}f}{between}"


def cells(logs: list[Log]) -> dict[str, str]:
    """One row of the table, from one training a seed."""
    return {
        "evaluations a step": spread([mean(log.evaluations) for log in logs], 2),
        f"in the first {FIRST} steps": spread([mean(log.evaluations[:FIRST]) for log in logs], 2),
        "backward products": f"{mean(mean(log.products) for log in logs):.2f}",
        "test accuracy (%)": spread([100 * log.accuracy for log in logs], 2),
        "time of a step (ms)": f"{1e3 * median(median(log.seconds) for log in logs):.1f}",
    }


def write(name: str, rows: list[dict[str, str]]) -> None:
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / name).open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tolerances", action="store_true", help="the second table alone")
    arguments = parser.parse_args()
    Counting.begin()
    rows: list[dict[str, str]] = []
    for gain_name, gain in GAINS.items():
        if arguments.tolerances:
            variants = {
                (tol, name): each for tol, some in TOLERANCES.items() for name, each in some.items()
            }
        else:
            variants = {("", name): each for name, each in STARTS.items()}
        logs: dict[tuple[str, str], list[Log]] = {key: [] for key in variants}
        flat: Any = variants
        for seed in range(arguments.seeds):
            for key, log in train(flat, gain, seed, arguments.epochs, arguments.images).items():
                logs[key].append(log)  # type: ignore[index]
            print(
                gain_name, seed, {key: cells([each[-1]]) for key, each in logs.items()}, flush=True
            )
        for (tol, name), each in logs.items():
            begin = {"gain": gain_name} | ({"tolerance": tol} if tol else {})
            rows.append(begin | {"solver": name, "seeds": str(arguments.seeds)} | cells(each))
            assert not sum(log.lost for log in each), name
        write(
            "training_tolerances.csv" if arguments.tolerances else "training_evaluations.csv", rows
        )


if __name__ == "__main__":
    main()
