"""How a trained memory settles on its test images."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hamdeq.chn import CHNDEQ
from hamdeq.data import InMemoryDataModule
from hamdeq.deq import DEQ
from hamdeq.energy.model import State
from hamdeq.solvers import Anderson, Failures
from hamdeq.training import HAMClassifier

__all__ = ["Measurement", "energy_curve", "measure"]

_ENERGY_SAMPLES = 100
_ENERGY_STEPS = 16
_TRACE_SAMPLES = 1000
_TRACE_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How the test images settled.

    Attributes:
        data: the class of the data, such as MNISTDataModule.
        model: HAM or CHN.
        sizes: of its layers, from the input on.
        solver: its class, with its package where that is not hamdeq.
        splitting: how the layers were split.
        tol: the relative residual at which a sample has settled.
        samples: test images.
        batch_size: of those that settle at once.
        accuracy: share of the images whose class was found.
        iterations: mean over images of the first whose relative residual is below tol; of images
            that never get there, the number of their iterations.
        worst: the most iterations that an image took.
        not_converged: share of images that did not get there.
        evaluations: mean over batches of how often the map was evaluated for a batch.
        multiplications: mean over images of the products of weights and activities by which one
            settles, by PyTorch's count: of all that is computed for its batch but the product of
            the held input, which is computed once.
        input_multiplications: those of that product.
        milliseconds: median time in which a batch settles, input product and start included.
        cpu_milliseconds: the same of the processor, all threads together, whatever else it does.
        energies: of the first images in float64, mean energy above the lowest that was found,
            after 1, 2, 3, … iterations.
        trace: relative residuals of the first images, ``(iterations, images)``; not kept in files.
    """

    data: str
    model: str
    sizes: list[int]
    solver: str
    splitting: str
    tol: float
    samples: int
    batch_size: int
    accuracy: float
    iterations: float
    worst: int
    not_converged: float
    evaluations: float
    multiplications: float
    input_multiplications: float
    milliseconds: float
    cpu_milliseconds: float
    energies: list[float]
    trace: Tensor = field(repr=False)


@torch.no_grad()
def measure(
    module: HAMClassifier, data: InMemoryDataModule, *, batch_size: int = 64
) -> Measurement:
    """Let a classifier's test images settle, in batches: timed, counted, then again for pictures.

    Args:
        module: with a trained memory.
        data: whose test split is used.
        batch_size: images that settle at once, which time and evaluations depend on.
    """
    deq = module.deq
    deq.failures = Failures("ignore")
    deq.solver = replace(deq.solver, fallback_steps=0)  # which would count as the solver's own
    images, labels = data.split("test")
    image = module.as_input(images)
    steps, converged, right, evaluations, wall, cpu = [], [], [], [], [], []
    inputs = total = 0
    for x, y in zip(image.split(batch_size), labels.split(batch_size), strict=True):
        clamped = {module.input: x}
        start, start_cpu = time.perf_counter(), time.process_time()
        solution = deq(clamped)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        steps.append(solution.steps)
        converged.append(solution.converged)
        right.append(solution.value[module.output].argmax(1) == y)
        evaluations.append(solution.n_evals)
        inputs += _multiplications(deq.reduced, clamped)
        total += _multiplications(deq, clamped)
    return Measurement(
        data=type(data).__name__,
        model="CHN" if isinstance(deq, CHNDEQ) else "HAM",
        sizes=[math.prod(deq.ham.layer(name).shape) for name in deq.ham.layers],
        solver=_name(type(deq.solver)),
        splitting=deq.splitting or "none",
        tol=deq.solver.tol,
        samples=len(image),
        batch_size=batch_size,
        accuracy=float(torch.cat(right).double().mean()),
        iterations=float(torch.cat(steps).double().mean()),
        worst=int(torch.cat(steps).max()),
        not_converged=1.0 - float(torch.cat(converged).double().mean()),
        evaluations=statistics.mean(evaluations),
        multiplications=(total - inputs) / len(image),
        input_multiplications=inputs / len(image),
        milliseconds=1e3 * statistics.median(wall),
        cpu_milliseconds=1e3 * statistics.median(cpu),
        energies=energy_curve(deq, {module.input: image[:_ENERGY_SAMPLES]}),
        trace=_trace(deq, {module.input: image[:_TRACE_SAMPLES]}),
    )


def _name(kind: type) -> str:
    """A class's name, with its package where that is not hamdeq."""
    ours = kind.__module__.partition(".")[0] == "hamdeq"
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def _multiplications(compute: Callable[[State], object], clamped: State) -> int:
    """Those of all matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        compute(clamped)
    return counter.get_total_flops() // 2  # a product and its sum are two operations


@torch.no_grad()
def energy_curve(deq: DEQ, clamped: State) -> list[float]:
    """Mean energies after 1, 2, 3, … iterations, above the lowest that is found.

    In float64, whatever the memory's type: in float32 the energy of an image, in the thousands,
    would hide its last few steps.
    """
    deq = copy.deepcopy(deq).double()
    clamped = {name: x.double() for name, x in clamped.items()}
    tiny = torch.finfo(torch.float64).tiny
    curve = []
    for steps in range(1, _ENERGY_STEPS + 1):
        deq.solver = replace(deq.solver, tol=tiny, max_steps=steps, fallback_steps=0)
        curve.append(deq.energy(deq(clamped).value))
    deq.solver = Anderson(tol=1e-13, max_steps=200)
    curve.append(deq.energy(deq(clamped).value))
    energies = torch.stack(curve)
    return (energies[:-1] - energies.amin(0)).mean(1).tolist()


def _trace(deq: DEQ, clamped: State) -> Tensor:
    """Relative residuals in every iteration, whatever they are."""
    solver = deq.solver
    image = next(iter(clamped.values()))
    tiny = torch.finfo(image.dtype).tiny  # no residual is below it: all iterations are run
    deq.solver = replace(solver, tol=tiny, max_steps=_TRACE_STEPS, fallback_steps=0)
    try:
        trace = deq(clamped).trace[:_TRACE_STEPS]
    finally:
        deq.solver = solver
    missing = _TRACE_STEPS - len(trace)  # where every residual is zero it ends earlier
    return torch.cat([trace, trace.new_zeros(missing, trace.shape[1])])
