"""Measuring how a trained memory converges on its test images."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hamdeq.chn import CHNDEQ
from hamdeq.data import InMemoryDataModule
from hamdeq.deq import DEQ
from hamdeq.energy.model import State
from hamdeq.solvers import Anderson, Solver, SuccessiveOutputs, paper_iterations
from hamdeq.training import HAMClassifier

__all__ = ["Measurement", "energy_curve", "measure"]

_ENERGY_SAMPLES = 100
_ENERGY_STEPS = 16
_TRACE_SAMPLES = 1000
_TRACE_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Convergence of the test images.

    Attributes:
        data: the class of the data, such as MNISTDataModule.
        model: HAM or CHN.
        sizes: of its layers, from the input on.
        solver: its class, with its package where that is not hamdeq.
        splitting: how the layers were split.
        tol: the relative residual at which a sample has converged.
        samples: test images.
        batch_size: images of a batch.
        accuracy: share of the images that are classified correctly.
        iterations: mean over images of the first iteration whose relative residual is below tol, or
            of all iterations where there is none.
        paper_iterations: mean over images of the papers' count, the index of the first pair of
            successive outputs of the map that differ by less than tol, counted from 0; NaN of a
            solver that takes no single steps.
        worst: the most iterations of an image.
        not_converged: share of images that did not converge.
        evaluations: mean over batches of the evaluations of the map.
        multiplications: products of weights and activations per image, by PyTorch's count, without
            the product of the clamped input, which is computed once.
        input_multiplications: those of that product.
        milliseconds: median wall-clock time of a batch, input product and start included.
        cpu_milliseconds: the same in processor time, all threads together.
        energies: mean energy of the first images in float64 above the lowest that was found, after
            1, 2, 3, … iterations.
        trace: relative residuals of the first images, ``(iterations, images)``.
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
    paper_iterations: float
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
    """Run a classifier on its test images in batches: timed, counted, then again for pictures.

    Args:
        module: with a trained memory.
        data: whose test split is used.
        batch_size: images of a batch, on which time and evaluations depend.
    """
    deq = module.deq
    # Steps of the fallback would count as the solver's own.
    how: dict[str, Any] = {
        "solver": replace(deq.solver, fallback_steps=0),
        "on_failure": "ignore",
    }
    images, labels = data.split("test")
    image = module.as_input(images)
    steps, counts, converged, right, evaluations, wall, cpu = [], [], [], [], [], [], []
    inputs = total = 0
    for x, y in zip(image.split(batch_size), labels.split(batch_size), strict=True):
        clamped = {module.input: x}
        start, start_cpu = time.perf_counter(), time.process_time()
        solution = deq(clamped, **how)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        steps.append(solution.steps)
        counts.append(_paper_iterations(deq, clamped))
        converged.append(solution.converged)
        right.append(solution.value[module.output].argmax(1) == y)
        evaluations.append(solution.n_evals)
        inputs += _multiplications(deq.reduced, clamped)
        total += _multiplications(deq, clamped, **how)
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
        paper_iterations=float(torch.cat(counts).mean()),
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
    """Name a class, with its package where that is not hamdeq."""
    ours = kind.__module__.partition(".")[0] == "hamdeq"
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def _paper_iterations(deq: DEQ, clamped: State) -> Tensor:
    """Count iterations as the papers do: ``(batch,)``."""
    solver = deq.solver
    if type(solver).solve is not Solver.solve:  # it takes no single steps
        return torch.full((len(next(iter(clamped.values()))),), math.nan, dtype=torch.float64)
    counted = SuccessiveOutputs(solver=solver, tol=solver.tol, max_steps=solver.max_steps)
    return paper_iterations(deq(clamped, solver=counted, on_failure="ignore")).double()


def _multiplications(compute: Callable[..., object], clamped: State, **how: Any) -> int:
    """Count the multiplications of all matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        compute(clamped, **how)
    return counter.get_total_flops() // 2  # a product and its sum are two operations


@torch.no_grad()
def energy_curve(deq: DEQ, clamped: State) -> list[float]:
    """Return mean energies after 1, 2, 3, … iterations, above the lowest that is found.

    In float64, whatever the memory's type: in float32 the energy of an image, in the thousands,
    would hide the last few steps.
    """
    deq = copy.deepcopy(deq).double()
    clamped = {name: x.double() for name, x in clamped.items()}
    tiny = torch.finfo(torch.float64).tiny
    curve = []
    for steps in range(1, _ENERGY_STEPS + 1):
        solver = replace(deq.solver, tol=tiny, max_steps=steps, fallback_steps=0)
        curve.append(deq.energy(deq(clamped, solver=solver, on_failure="ignore").value))
    solver = Anderson(tol=1e-13, max_steps=200)
    curve.append(deq.energy(deq(clamped, solver=solver, on_failure="ignore").value))
    energies = torch.stack(curve)
    return (energies[:-1] - energies.amin(0)).mean(1).tolist()


def _trace(deq: DEQ, clamped: State) -> Tensor:
    """Return the relative residuals of all iterations."""
    image = next(iter(clamped.values()))
    tiny = torch.finfo(image.dtype).tiny  # no residual is below it: all iterations are run
    solver = replace(deq.solver, tol=tiny, max_steps=_TRACE_STEPS, fallback_steps=0)
    trace = deq(clamped, solver=solver, on_failure="ignore").trace[:_TRACE_STEPS]
    missing = _TRACE_STEPS - len(trace)  # it ends earlier where every residual is zero
    return torch.cat([trace, trace.new_zeros(missing, trace.shape[1])])
