"""The factor of even-odd steps: ``python -m hamdeq.experiments.convergence.factor``.

An even-odd step is two synchronous ones, exactly, in the layers that remain. Counted as updates
until the output is near its equilibrium it is therefore about twice as fast. By the published
count the factor is anything from 1.5 to 2.2, since a rule that stops at a small difference of
successive states sees the difference of two steps in one case, and of one in the other, and of
half the layers in one case, and of all in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hamdeq._checks import instance, integer
from hamdeq.deq import DEQ
from hamdeq.energy.model import State
from hamdeq.experiments.convergence.configuration import with_sizes
from hamdeq.experiments.convergence.plan import Source, adopted
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.experiments.series import Progress, Series
from hamdeq.experiments.tables import markdown, mean_and_deviation
from hamdeq.solvers import Anderson, Picard, SuccessiveOutputs, paper_iterations
from hamdeq.training.cli.configurations import configuration
from hamdeq.training.files import write_csv
from hamdeq.training.saving import load_run

__all__ = ["HEADS", "NEAR", "Factor", "factors", "main", "summarise"]

NEAR: tuple[float, ...] = (1e-2, 1e-4, 1e-8)
"""Relative distances of the output to its equilibrium that updates are counted to."""
HEADS: tuple[str, ...] = (
    *("memory", "layers", "sizes", "seed", "count"),
    *("synchronous", "even-odd", "factor", "left out, %"),
)
"""Columns of ``factors.csv``."""


@dataclass(frozen=True)
class Factor:
    """Mean counts of plain iteration by one rule, over the samples that end by it either way.

    Attributes:
        rule: what ends the iteration of a sample.
        synchronous: the count where all layers are updated at once.
        even_odd: the same with even-odd steps.
        left_out: share of the samples that do not end, in one case or the other.
    """

    rule: str
    synchronous: float
    even_odd: float
    left_out: float

    @property
    def factor(self) -> float:
        """The count of synchronous steps over that of even-odd ones."""
        return self.synchronous / self.even_odd


@torch.no_grad()
def factors(
    deq: DEQ, clamped: State, *, output: str = "output", max_steps: int = 400
) -> list[Factor]:
    """Count plain iterations from zeros, in float64, with even-odd steps and without, by each rule.

    Args:
        deq: a memory with an even-odd splitting; its solver does not matter.
        clamped: states of the clamped layers.
        output: the layer whose distance to the equilibrium is looked at.
        max_steps: synchronous updates at most.
    """
    integer("max_steps", max_steps, least=2)
    ham = copy.deepcopy(instance("deq", deq, DEQ).ham).double()
    clamped = {name: x.double() for name, x in clamped.items()}
    counts = {}
    splittings: tuple[Literal["even-odd"] | None, ...] = (None, "even-odd")
    for splitting in splittings:
        memory = DEQ(ham, deq.clamped, splitting, start="zeros", on_failure="ignore")
        plain = Picard(max_steps=max_steps, fallback_steps=0)
        solution = memory(clamped, solver=plain)
        counted = memory(clamped, solver=SuccessiveOutputs(solver=plain, max_steps=max_steps))
        never = torch.tensor(torch.nan, dtype=torch.float64)
        counts[splitting] = {
            "papers' count": torch.where(counted.converged, paper_iterations(counted), never),
            "evaluations": torch.where(solution.converged, solution.steps, never),
        } | _updates(memory, clamped, output, max_steps)
    return [
        _factor(rule, counts[None][rule], counts["even-odd"][rule]) for rule in counts["even-odd"]
    ]


def _factor(rule: str, synchronous: Tensor, even_odd: Tensor) -> Factor:
    both = ~(synchronous.isnan() | even_odd.isnan())
    means = (float(count[both].mean()) for count in (synchronous, even_odd))
    return Factor(rule, *means, left_out=1.0 - float(both.double().mean()))


def _updates(deq: DEQ, clamped: State, output: str, max_steps: int) -> dict[str, Tensor]:
    """Updates until the output is within each of `NEAR` of its equilibrium; NaN where never."""
    tight = Anderson(tol=1e-13, max_steps=500)
    goal = deq(clamped, solver=tight).value[output].flatten(1)
    model = deq.reduced(clamped)
    visible = [name for name in deq.ham.layers if name not in (*deq.clamped, *deq.hidden)]
    x = deq.ham.zero_state(next(iter(clamped.values())), visible)
    counts = {near: torch.full((len(goal),), torch.nan, dtype=torch.float64) for near in NEAR}
    for step in range(1, max_steps + 1):
        x = model.update(x)
        found = model.restore(x)[output].flatten(1)
        distance = (found - goal).norm(dim=1) / goal.norm(dim=1)
        for near, count in counts.items():
            count[count.isnan() & (distance <= near)] = step
        if not any(bool(count.isnan().any()) for count in counts.values()):
            break
    return {f"updates until within {near:g}": count for near, count in counts.items()}


def main(args: Sequence[str] | None = None) -> None:
    """Train memories, or take finished runs, and write ``factors.csv``."""
    parser = Parser(
        "convergence.factor",
        "How much faster even-odd steps are than synchronous ones, by several ways of counting.",
        operands="[CONFIG...]",
        epilog="Every other option, --name=value, goes to the command line of the trainings.",
    )
    add, count = parser.add_argument, checked(int)
    text = "configurations to train"
    add("configs", nargs="*", type=configuration, default=[], metavar="CONFIG", help=text)
    add("--adopt", action="append", default=[], metavar="NAME=FOLDER", help="take finished runs")
    add("--sizes", nargs="+", help="sizes of chains to train, such as 784-512-10")
    add("--seeds", type=count, default=3, help="train with the seeds from 0 to one less than this")
    add("--samples", type=count, default=1000, help="test images at most")
    text = "folder for everything"
    add("--root", type=Path, default=Path("runs/factor"), help=text)
    known, options = parser.parse_split(None if args is None else list(args))
    if not known.configs and not known.adopt:
        parser.error("expected configurations to train, or finished runs by --adopt")
    try:
        sources = [source for text in known.adopt for source in adopted(text)]
        for config, sizes in product(known.configs, known.sizes or [None]):
            every = (*(with_sizes(config, sizes) if sizes else ()), *options)
            series = Series(config, every, known.root, ("--run.wandb=disabled",))
            sources += [Source(config.stem, seed, series) for seed in range(known.seeds)]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows: list[list[str]] = []
    summary: tuple[list[str], list[list[str]]] = ([], [])
    runs = [(source.series, source.seed) for source in sources if source.series is not None]
    path = known.root / "factors.csv"
    with tidy(), Progress(runs) as progress:
        for source in sources:
            progress.doing(f"train and measure {source.name}, seed {source.seed}")
            if source.series is not None:
                source.series.run(source.seed, meanwhile=progress.look)
            assert source.folder is not None
            module, data = load_run(source.folder, trust=source.series is not None)
            image = module.as_input(data.split("test")[0][: known.samples])
            sizes = [_size(module.deq, name) for name in module.deq.ham.layers]
            for one in factors(module.deq, {module.input: image}, output=module.output):
                rows.append(
                    [
                        *(source.name, str(len(sizes)), "-".join(map(str, sizes))),
                        *(str(source.seed), one.rule),
                        *(f"{one.synchronous:.2f}", f"{one.even_odd:.2f}", f"{one.factor:.3f}"),
                        f"{100 * one.left_out:.1f}",
                    ]
                )
            write_csv(path, HEADS, rows)
            summary = summarise(rows)
            write_csv(known.root / "table.csv", *summary)
    print(markdown(*summary), path, sep="\n")


def summarise(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and lines of a table with means ± standard deviations over runs.

    Args:
        rows: of ``factors.csv``, without its heads.
    """
    groups: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for row in rows:
        memory, layers, sizes, _, rule, *_ = row
        groups.setdefault((memory, layers, sizes, rule), []).append(row)
    lines = []
    for (memory, _, sizes, rule), found in groups.items():
        columns = [[float(row[i]) for row in found] for i in range(5, 9)]
        forms = ("{:.2f}", "{:.2f}", "{:.3f}", "{:.1f}")
        numbers = [mean_and_deviation(c, f) for c, f in zip(columns, forms, strict=True)]
        lines.append([memory, sizes, str(len(found)), rule, *numbers])
    return ["memory", "sizes", "runs", *HEADS[4:]], lines


def _size(deq: DEQ, name: str) -> int:
    return torch.Size(deq.ham.layer(name).shape).numel()


if __name__ == "__main__":
    main()
