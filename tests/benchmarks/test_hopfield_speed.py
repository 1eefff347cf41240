"""Hopfield layers against the same computation written by hand: time, and memory.

    pytest tests/benchmarks/test_hopfield_speed.py --benchmark-only -s

Batch 8, sequence 512, width 512, 8 heads, without norms. By hand means the same projections with
one ``scaled_dot_product_attention`` for each update and one for the read-out. Both sides take turns
within one run; printed are the ratio of their medians, and the quartiles of the ratio of each turn.
Memory is the most that PyTorch's allocator gives out at once in a forward and backward pass, and
thus without what the system's allocator keeps of memory that was freed.
"""

import statistics
import time
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from hamdeq import ConjugateGradient, Implicit, Picard
from hamdeq.nn import Hopfield

BATCH, LENGTH, WIDTH, HEADS = 8, 512, 512, 8
NO_NORMS = {
    f"normalize_{name}{part}": False
    for name in ("stored_pattern", "state_pattern", "pattern_projection")
    for part in ("", "_affine")
}


def layer(steps: int | None, **options) -> Hopfield:
    torch.manual_seed(0)
    return Hopfield(WIDTH, num_heads=HEADS, update_steps_max=steps, **NO_NORMS, **options)


def by_hand(module: Hopfield, steps: int):
    core = module.association_core

    def forward(x: torch.Tensor) -> torch.Tensor:
        projected = F.linear(x, core.in_proj_weight, core.in_proj_bias)
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in projected.chunk(3, -1)
        )
        for _ in range(steps):
            q = F.scaled_dot_product_attention(q, k, k)
        found = F.scaled_dot_product_attention(q, k, v)
        return core.out_proj(found.transpose(1, 2).flatten(2))

    return forward


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("steps", [0, 3])
def test_time(benchmark, steps, backward):
    module = layer(steps)
    sides = {"layer": module, "by hand": by_hand(module, steps)}
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=backward)
    times: dict[str, list[float]] = {name: [] for name in sides}
    torch.testing.assert_close(sides["layer"](x), sides["by hand"](x))

    def turn() -> None:
        # Each side goes first in every other turn.
        order = list(sides.items())[:: 1 if len(times["layer"]) % 2 else -1]
        for name, call in order:
            began = time.perf_counter()
            with torch.set_grad_enabled(backward):
                y = call(x)
                if backward:
                    y.sum().backward()
            times[name].append(time.perf_counter() - began)
            module.zero_grad()
            x.grad = None

    benchmark.pedantic(turn, rounds=30, warmup_rounds=3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    each = [a / b for a, b in zip(times["layer"], times["by hand"], strict=True)]
    low, _, high = statistics.quantiles(each)
    ratio = medians["layer"] / medians["by hand"]
    cells = f"{1e3 * medians['layer']:.1f} ms | {1e3 * medians['by hand']:.1f} ms"
    benchmark.extra_info["ratio"] = ratio
    text = f"{cells} | {ratio:.3f} | {low:.3f} to {high:.3f}"
    print(f"\n| {steps} steps, {'both' if backward else 'forward'} | {text} |", end="")


def peak(module: Hopfield) -> float:
    """MiB that PyTorch's allocator gives out at most in a forward and backward pass."""
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    module(torch.randn(1, 8, WIDTH)).sum().backward()  # the gradients of the parameters
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        module(x).sum().backward()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**20


def settling(steps: int) -> Hopfield:
    """One that updates so often, as its tolerance is never reached; its gradient has the usual."""
    adjoint = Implicit(solver=ConjugateGradient(tol=1e-4))
    solver = Picard(tol=1e-30, max_steps=steps, fallback_steps=0)
    return layer(None, solver=solver, adjoint=adjoint, on_failure="ignore")


def test_memory(benchmark):
    cases = {f"converged, {n} steps": lambda n=n: settling(n) for n in (1, 10, 100)}
    cases |= {f"unrolled, {n} steps": lambda n=n: layer(n) for n in (0, 1, 10)}

    def measured() -> dict[str, float]:
        return {name: peak(build()) for name, build in cases.items()}

    found = benchmark.pedantic(measured, rounds=1)
    least = found["converged, 1 steps"]
    for name, mib in found.items():
        benchmark.extra_info[name] = mib
        print(f"\n| {name} | {mib:.0f} MiB | {mib / least:.2f} |", end="")
