"""How a trained memory settles on its test images."""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hamdeq.chn import CHNDEQ
from hamdeq.data import InMemoryDataModule
from hamdeq.deq import DEQ
from hamdeq.layers import State
from hamdeq.solvers import Failures, Newton
from hamdeq.training import HAMClassifier

__all__ = ["Measurement", "measure"]

_ENERGY_SAMPLES = 100
_ENERGY_STEPS = 16
_TRACE_SAMPLES = 1000
_TRACE_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How the test images settled.

    Attributes:
        model: HAM or CHN.
        sizes: of its layers, from the input on.
        solver, splitting: how it settled.
        tol: the relative residual at which a sample has settled.
        samples: test images.
        batch_size: of those that settle at once.
        accuracy: share of the images whose class was found.
        iterations: mean over images of the first whose relative residual is below tol; of images
            that never get there, the number of their iterations.
        worst: the most iterations that an image took.
        not_converged: share of images that did not get there.
        evaluations: mean over batches of how often the map was evaluated for a batch.
        multiplications: with weights, for an image, by PyTorch's count for the first batch: of all
            that settling does but the product of the held input, which is computed once.
        input_multiplications: those of that product.
        milliseconds: median time in which a batch settles, input product and start included.
        energies: of the first images in float64, mean energy above the lowest that was found,
            after 0, 1, 2, … iterations.
        trace: relative residuals of the first images, ``(iterations, images)``; not kept in files.
    """

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
    energies: list[float]
    trace: Tensor = field(repr=False)


@torch.no_grad()
def measure(
    module: HAMClassifier, data: InMemoryDataModule, *, batch_size: int = 64
) -> Measurement:
    """Let a classifier's test images settle, once, in batches; then again for pictures.

    Args:
        module: with a trained memory.
        data: whose test split is used.
        batch_size: images that settle at once, which time and evaluations depend on.
    """
    deq = module.deq
    deq.failures = Failures("ignore")
    images, labels = data.split("test")
    image = module.as_input(images)
    steps, converged, right, evaluations, seconds = [], [], [], [], []
    for x, y in zip(image.split(batch_size), labels.split(batch_size), strict=True):
        start = time.perf_counter()
        solution = deq({module.input: x})
        seconds.append(time.perf_counter() - start)
        steps.append(solution.steps)
        converged.append(solution.converged)
        right.append(solution.value[module.output].argmax(1) == y)
        evaluations.append(solution.n_evals)
    first = image[:batch_size]
    inputs, total = _multiplications(deq, {module.input: first})
    return Measurement(
        model="CHN" if isinstance(deq, CHNDEQ) else "HAM",
        sizes=[math.prod(deq.ham.layer(name).shape) for name in deq.ham.layers],
        solver=type(deq.solver).__name__,
        splitting=deq.splitting or "none",
        tol=deq.solver.tol,
        samples=len(image),
        batch_size=batch_size,
        accuracy=float(torch.cat(right).double().mean()),
        iterations=float(torch.cat(steps).double().mean()),
        worst=int(torch.cat(steps).max()),
        not_converged=1.0 - float(torch.cat(converged).double().mean()),
        evaluations=statistics.mean(evaluations),
        multiplications=(total - inputs) / len(first),
        input_multiplications=inputs / len(first),
        milliseconds=1e3 * statistics.median(seconds),
        energies=_energies(deq, {module.input: image[:_ENERGY_SAMPLES]}),
        trace=_trace(deq, {module.input: image[:_TRACE_SAMPLES]}),
    )


def _multiplications(deq: DEQ, clamped: State) -> tuple[int, int]:
    """Products of weights and activities: of the held layers alone, and of all."""
    found = []
    for settle in (deq.reduced, deq):
        with FlopCounterMode(display=False) as counter:
            settle(clamped)
        found.append(counter.get_total_flops() // 2)  # a product and its sum are two operations
    return found[0], found[1]


def _energies(deq: DEQ, clamped: State) -> list[float]:
    """Mean energies after 0, 1, 2, … iterations, above the lowest that is found."""
    # In float32 the energy of an image, in the thousands, would hide its last few steps.
    deq = copy.deepcopy(deq).double()
    clamped = {name: x.double() for name, x in clamped.items()}
    tiny = torch.finfo(torch.float64).tiny
    curve = []
    for steps in range(1, _ENERGY_STEPS + 1):
        deq.solver = replace(deq.solver, tol=tiny, max_steps=steps)
        curve.append(deq.energy(deq(clamped).value))
    deq.solver = Newton(tol=1e-12, max_steps=200)
    curve.append(deq.energy(deq(clamped).value))
    energies = torch.stack(curve)
    return (energies[:-1] - energies.amin(0)).mean(1).tolist()


def _trace(deq: DEQ, clamped: State) -> Tensor:
    """Relative residuals in every iteration, whatever they are."""
    solver = deq.solver
    image = next(iter(clamped.values()))
    tiny = torch.finfo(image.dtype).tiny  # no residual is below it: all iterations are run
    deq.solver = replace(solver, tol=tiny, max_steps=_TRACE_STEPS)
    try:
        trace = deq(clamped).trace[:_TRACE_STEPS]
    finally:
        deq.solver = solver
    missing = _TRACE_STEPS - len(trace)  # where every residual is zero it ends earlier
    return torch.cat([trace, trace.new_zeros(missing, trace.shape[1])])
