"""The cost of a memory that grows: ``python -m hamdeq.experiments.cost``.

Chains of layers grow in depth, at a fixed width, or in one synapse, at a fixed depth. Measured are
one even-odd update and one synchronous update of all free layers, and a training step, that is the
equilibrium, the loss and the gradient, with a fixed number of evaluations in both directions: the
tolerance is the smallest positive number, which no residual reaches in so few.

- Time is processor time, which goes on only while this program runs, whatever else the machine
  does: medians of rounds in each of which every memory has its turn.
- Memory is the most that PyTorch's allocator has given out at once during a training step, from
  its profiler's record of each allocation, and the weights, which were there before. The resident
  size of the process would contain what the allocator keeps, and PyTorch itself.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from hamdeq import DEQ, HAM, Anderson, ConjugateGradient, Implicit, Tanh
from hamdeq.experiments.cost.picture import cost_curves, growth
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.training.files import save_figure, write_csv
from hamdeq.training.progress import Progress

__all__ = ["Chain", "main", "measure", "peak_memory"]

_SHORTEST = 0.02  # seconds that are timed at a stretch, some thousand ticks of the clock
_AXES = {
    "depth": "synapses between free layers",
    "width": "weights between free layers",
}


@dataclass(frozen=True)
class Chain:
    """A chain of layers, the first of which is clamped.

    Attributes:
        sizes: neurons of each layer.
    """

    sizes: tuple[int, ...]

    @property
    def synapses(self) -> int:
        """Number of synapses between free layers; an update uses each twice."""
        return len(self.sizes) - 2

    @property
    def weights(self) -> int:
        """Number of weights of these synapses."""
        return sum(a * b for a, b in zip(self.sizes[1:], self.sizes[2:], strict=False))

    def jobs(self, batch: int, evaluations: int) -> dict[str, Callable[[], object]]:
        """Return what is measured: ``even_odd``, ``synchronous``, and a training ``step``."""
        torch.manual_seed(0)
        ham = HAM.chain(self.sizes, Tanh(), gain=0.25)
        fixed = {
            "tol": torch.finfo(torch.float32).tiny,
            "max_steps": evaluations,
            "fallback_steps": 0,
        }
        deq = DEQ(
            ham,
            solver=Anderson(**fixed),
            adjoint=Implicit(solver=ConjugateGradient(**fixed)),
            on_failure="ignore",
        )
        image = {"input": torch.rand(batch, self.sizes[0])}

        def update(deq: DEQ) -> Callable[[], object]:
            with torch.no_grad():
                memory = deq.reduced(image)
            x = {name: torch.rand(batch, *ham.layer(name).shape) for name in memory.visible}
            return torch.no_grad()(lambda: memory.update(x))

        def step() -> None:
            solution = deq(image)
            solution.value["output"].square().mean().backward()
            counts = solution.n_evals, solution.adjoint[0].n_evals
            deq.zero_grad()
            if counts != (evaluations, evaluations):
                raise RuntimeError(f"expected {evaluations} evaluations each way, got {counts}")

        return {
            "even_odd": update(deq),
            "synchronous": update(DEQ(ham, splitting=None)),
            "step": step,
        }


def peak_memory(run: Callable[[], object]) -> int:
    """Return the most bytes that a call allocates at once on the CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profile.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event["args"]["Ev Idx"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def _seconds(run: Callable[[], object], number: int) -> float:
    began = time.process_time()
    for _ in range(number):
        run()
    return (time.process_time() - began) / number


def measure(
    chains: Sequence[Chain], *, batch: int, evaluations: int, repeats: int
) -> list[dict[str, float]]:
    """Return median seconds of each job, and ``peak``, bytes of a step and the weights."""
    jobs = [chain.jobs(batch, evaluations) for chain in chains]
    found: list[dict[str, float]] = []
    # Drawn only between measurements, as drawing takes the processor time that is measured.
    counts: list[dict[str, int]] = []
    times: list[dict[str, list[float]]] = [{name: [] for name in each} for each in jobs]
    with Progress(len(chains) * (repeats + 1), description="cost", steady=False) as bar:
        for chain, each in zip(chains, jobs, strict=True):
            for run in each.values():
                run()
            first = {name: _seconds(run, 1) for name, run in each.items()}
            counts.append({name: max(1, math.ceil(_SHORTEST / t)) for name, t in first.items()})
            whole = chain.weights + chain.sizes[0] * chain.sizes[1] + sum(chain.sizes[1:])
            found.append({"peak": 4 * whole + peak_memory(each["step"])})
            bar.advance()
        for _ in range(repeats):
            for each, count, seconds in zip(jobs, counts, times, strict=True):
                for name, run in each.items():
                    if count[name] > 1:
                        run()  # so that the caches hold its data, not those of the others
                    seconds[name].append(_seconds(run, count[name]))
                bar.advance()
    for row, seconds in zip(found, times, strict=True):
        row.update({name: median(values) for name, values in seconds.items()})
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Measure chains that grow, and write ``cost.csv`` and ``cost.png``."""
    parser = Parser(
        "cost", "Time and memory of updates and training steps of chains of layers that grow."
    )
    add, count = parser.add_argument, checked(int)
    depths, widths = [3, 5, 9, 17, 33], [64, 128, 256, 512, 1024, 2048, 4096]
    add("--depths", type=checked(int, least=3), nargs="+", default=depths, help="numbers of layers")
    add(
        "--width",
        type=count,
        default=256,
        help="neurons of each layer of chains that grow in depth",
    )
    wide = "neurons of two neighbouring layers out of five; the others have --narrow"
    add("--widths", type=count, nargs="+", default=widths, help=wide)
    add("--narrow", type=count, default=64, help="neurons of the other three layers")
    add("--batch", type=count, default=64, help="samples of a batch")
    add("--evaluations", type=count, default=8, help="evaluations of a training step, each way")
    add("--repeats", type=count, default=7, help="rounds, of which the median is taken")
    add("--out", type=Path, default=Path("runs/cost"), help="folder for the results")
    options = parser.parse_args(args)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # of the profiler, which reports on every run
    thin = options.narrow
    chains = [("depth", Chain((options.width,) * depth)) for depth in options.depths]
    chains += [("width", Chain((thin, thin, width, width, thin))) for width in options.widths]
    with tidy():
        options.out.mkdir(parents=True, exist_ok=True)
        found = measure(
            [chain for _, chain in chains],
            batch=options.batch,
            evaluations=options.evaluations,
            repeats=options.repeats,
        )
        _report(chains, found, options.out)


def _report(
    chains: Sequence[tuple[str, Chain]], found: Sequence[dict[str, float]], out: Path
) -> None:
    """Write ``cost.csv`` and ``cost.png``, and print the powers of growth."""
    names = ("even_odd", "synchronous", "step", "peak")
    rows = [
        [grows, "-".join(map(str, c.sizes)), c.synapses, c.weights, *(row[name] for name in names)]
        for (grows, c), row in zip(chains, found, strict=True)
    ]
    write_csv(out / "cost.csv", ["grows", "sizes", "synapses", "weights", *names], rows)

    def curves(grows: str, labels: dict[str, str]) -> dict[str, dict[int, float]]:
        of = [(c, row) for (kind, c), row in zip(chains, found, strict=True) if kind == grows]
        return {
            label: {c.synapses if grows == "depth" else c.weights: row[name] for c, row in of}
            for name, label in labels.items()
        }

    timed = {
        "step": "training step",
        "synchronous": "synchronous update",
        "even_odd": "even-odd update",
    }
    times = {axis: curves(grows, timed) for grows, axis in _AXES.items()}
    memory = {axis: curves(grows, {"peak": "training step"}) for grows, axis in _AXES.items()}
    save_figure(cost_curves(times, memory), out / "cost.png")
    for axis in times:
        powers = {**times[axis], "memory": memory[axis]["training step"]}
        print(f"{axis}: " + ", ".join(f"{name} {growth(c):.2f}" for name, c in powers.items()))
    print(f"{out}: cost.csv, cost.png")
