"""A memory of 784-512-10 against a feed-forward network of the same shape.

    pytest tests/benchmarks/test_against_mlp.py --benchmark-only -s

Cells are medians as multiples of the network's, measured in turn in one run, with one thread and
with two: a forward pass without a gradient, for one image, 64 and 10,000 at once, and a training
step at batch 64 with the same optimiser (Madam), of memories that train side by side on the same
batches (scikit-learn's digits, enlarged to 28 × 28). With the gain [2, 0.3] of the configurations
the 100 steps after the first 150 are measured, with the gain 1 of the paper the first 200.
"compiled" is ``DEQ(compiled=…)``. Two more train as the papers do, with 40 evaluations forward and
8 backward whatever the residual: a loop written by hand without a check, and torchdeq's Anderson.
With the gain [2, 0.3] the four memories of ``configs/mnist/ham*.yaml`` train along, under the names
of these files. "floor" is a forward pass written by hand for this memory and Picard iteration, with
the same evaluations and its residuals, and without anything else.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import mean, median

import pytest
import torch
import torch.nn.functional as F
from configurations import configured
from test_training_step import batches
from torch import Tensor, nn

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
    TorchDEQSolver,
)
from hamdeq._compile import Graph
from hamdeq.implicit.fixed_point import as_rows
from hamdeq.solvers.energy_map import StateLayout
from hamdeq.solvers.run import Run

SOLVERS = {"Picard": Picard(), "Anderson": Anderson(), "Broyden": Broyden()}
GAINS = {"gain [2, 0.3]": [2.0, 0.3], "gain 1": 1.0}
# Steps in the graph: as many as most samples need.
COMPILED = {"gain [2, 0.3]": {"Picard": 4, "Anderson": 3, "Broyden": 3}, "gain 1": 8}
CG = Implicit(solver=ConjugateGradient(tol=1e-2))


def rho(x: Tensor) -> Tensor:
    """The activation sigmoid(4x − 2), in one pass over new memory less."""
    return torch.rsub(x, -2.0, alpha=-4.0).sigmoid_()


class Forced(torch.autograd.Function):
    """The equilibrium by 40 even-odd steps, and its gradient by 8, without a look at anything."""

    @staticmethod
    def forward(ctx, drive, w, bias):
        y = drive.new_zeros(len(drive), w.shape[1])
        for _ in range(40):
            h = drive + rho(y) @ w.T
            y = rho(h) @ w + bias
        ctx.save_for_backward(w, h, y)
        return y

    @staticmethod
    def backward(ctx, *grads):
        w, h, y = ctx.saved_tensors
        gy, gh = rho(y), rho(h)
        dy, dh = 4 * gy * (1 - gy), 4 * gh * (1 - gh)
        (c,) = grads
        v = c
        for _ in range(8):
            v = c + dy * ((dh * (v @ w.T)) @ w)
        back = dh * (v @ w.T)
        return back, gh.T @ v + back.T @ gy, v.sum(0)


class Plain(nn.Module):
    """The same memory written by hand."""

    def __init__(self, ham: HAM) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(ham.synapses[i].weight.detach().clone()) for i in (0, 1))
        self.b1, self.b2 = (nn.Parameter(ham.synapses[i].bias.detach().clone()) for i in (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return Forced.apply(torch.addmm(self.b1, rho(x), self.w1), self.w2, self.b2)

    def floor(self, x: Tensor, steps: int) -> Tensor:
        drive = torch.addmm(self.b1, rho(x), self.w1)
        y = (rho(drive) @ self.w2).add_(self.b2)
        for _ in range(steps):
            new = (rho((rho(y) @ self.w2.T).add_(drive)) @ self.w2).add_(self.b2)
            size = torch.linalg.vector_norm(new - y, dim=1)
            if bool((size < 1e-4 * torch.linalg.vector_norm(new, dim=1)).all()):
                break
            y = new
        return torch.addmm(drive, rho(y), self.w2.T)


class Trained:
    """A model in training: its output, and one step a call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = Madam(model.parameters(), lr=0.01)
        self.evaluations: list[int] = []

    def output(self, images: Tensor) -> Tensor:
        if not isinstance(self.model, DEQ):
            return self.model(images)
        solution = self.model({"input": images})
        self.evaluations.append(solution.n_evals)
        return solution.value["output"]

    def step(self, images: Tensor, labels: Tensor) -> None:
        loss = F.mse_loss(self.output(images), F.one_hot(labels, 10).float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def memory(gain: str) -> HAM:
    torch.manual_seed(0)
    return HAM.chain([784, 512, 10], gain=GAINS[gain])


def models(gain: str) -> dict[str, Trained]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(784, 512), nn.Sigmoid(), nn.Linear(512, 10))
    options = {"start": "zeros", "adjoint": CG, "on_failure": "ignore"}
    stock = {"name": "anderson", "tol": 1e-30, "fallback_steps": 0}
    forced = TorchDEQSolver(max_steps=40, **stock)
    adjoint = Implicit(solver=TorchDEQSolver(max_steps=8, **stock))
    steps = COMPILED[gain]
    found: dict[str, nn.Module] = {"network": mlp}
    for name, solver in SOLVERS.items():
        found[name] = DEQ(memory(gain), solver=solver, adjoint=CG, on_failure="ignore")
        first = steps[name] if isinstance(steps, dict) else steps
        found[f"{name}, compiled"] = DEQ(
            memory(gain), solver=solver, adjoint=CG, on_failure="ignore", compiled=first
        )
    found["Newton, linearised"] = DEQ(
        memory(gain), solver=Newton(), start="linearised", adjoint=CG, on_failure="ignore"
    )
    if gain == "gain [2, 0.3]":
        found |= {file: configured(file)[0] for file in ("ham", "ham_deq", "ham_eo", "ham_eo_deq")}
    found["by hand, 40 + 8"] = Plain(memory(gain))
    found["torchdeq, 40 + 8"] = DEQ(memory(gain), solver=forced, **{**options, "adjoint": adjoint})
    return {name: Trained(model) for name, model in found.items()}


def table(
    benchmark, title: str, times: dict[str, list[float]], extra: Callable[[str], str] = lambda _: ""
) -> None:
    """Ratios of medians to the first."""
    first = median(next(iter(times.values())))
    for name, values in times.items():
        cell = f"{median(values) / first:.2f}"
        benchmark.extra_info[name] = cell
        print(
            f"\n| {title} | {name} | {1e3 * median(values):.2f} ms | {cell} |{extra(name)}", end=""
        )


def timed(times: dict[str, list[float]], name: str, call: Callable[[], object]) -> None:
    began = time.perf_counter()
    call()
    times[name].append(time.perf_counter() - began)


@pytest.mark.parametrize("gain", GAINS)
def test_training_step(benchmark, gain, threads):
    trained, data = models(gain), itertools.cycle(batches())
    first, last = (150, 250) if gain == "gain [2, 0.3]" else (0, 200)
    for model in trained.values():  # what is compiled, is compiled at the first call
        model.output(next(data)[0]).sum().backward()
        model.optimizer.zero_grad()
        model.evaluations.clear()
    times: dict[str, list[float]] = defaultdict(list)

    def run() -> None:
        for count in range(last):
            if count == first:
                times.clear()
            images, labels = next(data)
            for name, model in trained.items():
                timed(times, name, lambda m=model, x=images, y=labels: m.step(x, y))

    benchmark.pedantic(run, rounds=1)

    def evaluations(name: str) -> str:
        counts = trained[name].evaluations[first:]
        return f" {mean(counts):.1f} |" if counts else " |"

    table(benchmark, f"step, {gain}, {threads} threads", times, evaluations)


def of_size(size: int) -> list[Tensor]:
    """Batches of images, about as many in all for small sizes."""
    images = torch.cat([images for images, _ in batches()])
    if size > len(images):
        return [images.repeat(1 + size // len(images), 1)[:size]] * 5
    return list(images.split(size))[:100]


@pytest.mark.parametrize("size", [1, 64, 10_000])
@torch.no_grad()
def test_forward(benchmark, size, threads):
    trained = models("gain [2, 0.3]")
    data = of_size(size)
    with torch.enable_grad():
        for images, labels in itertools.islice(itertools.cycle(batches()), 150):
            trained["Picard"].step(images, labels)
    for each in trained.values():
        if isinstance(each.model, DEQ):
            each.model.ham.load_state_dict(trained["Picard"].model.ham.state_dict())
            each.model({"input": data[0]})
    plain, calls = Plain(trained["Picard"].model.ham), {"network": trained["network"].model}
    steps = trained["Picard"].model({"input": data[0]}).n_evals
    calls["floor"] = lambda x: plain.floor(x, steps)
    for name in (*SOLVERS, "Newton, linearised", *(f"{name}, compiled" for name in SOLVERS)):
        calls[name] = trained[name].output
    times: dict[str, list[float]] = defaultdict(list)

    def run() -> None:
        for images in data * (4 if size == 64 else 1):
            for name, call in calls.items():
                timed(times, name, lambda c=call, x=images: c(x))

    benchmark.pedantic(run, rounds=1, warmup_rounds=1)
    table(benchmark, f"forward, batch {size}, {threads} threads", times)


def advance(solver, f, x):
    """Five guarded steps, for a graph."""
    run = Run(solver, f, x)
    run.advance(f, 5)
    return run.x, run.log.best, run.log.lowest, run.log.running, run.log.steps


@torch.no_grad()
@pytest.mark.parametrize("splitting", ["even-odd", None], ids=["even-odd", "synchronous"])
def test_guarded_steps(benchmark, splitting, threads):
    """Five guarded steps against five bare maps, of the memory as it is initialised, from zero."""
    deq = DEQ(memory("gain 1"), splitting=splitting, start="zeros")
    images = batches()[0][0]
    reduced = deq.reduced({"input": images})
    state = reduced.model.zero_state(images, reduced.visible)
    layout = StateLayout(state)
    f, x0 = as_rows(reduced, layout), layout.flatten(state)
    times: dict[str, list[float]] = defaultdict(list)

    def maps() -> None:
        x = x0
        for _ in range(5):
            x = f(x)

    calls: dict[str, Callable[[], object]] = {"five maps": maps}
    for name, solver in SOLVERS.items():
        # Not to be reached by any sample in five steps.
        few = type(solver)(tol=1e-12, max_steps=5, fallback_steps=0)
        calls[name] = lambda s=few: s.solve(f, x0)
        graph = Graph(advance, "")
        calls[f"{name}, compiled"] = lambda g=graph, s=few: g(s, f, x0)
    for call in calls.values():
        call()

    def run() -> None:
        for _ in range(200):
            for name, call in calls.items():
                timed(times, name, call)

    benchmark.pedantic(run, rounds=1)
    table(benchmark, f"five steps, {splitting or 'synchronous'}, {threads} threads", times)
