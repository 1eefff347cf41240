"""Madam against PyTorch's fused Adam, and its rule written operation by operation, in one run.

pytest tests/benchmarks/test_optim_speed.py --benchmark-only -s
"""

import statistics
import time

import pytest
import torch
from torch import nn

from hamdeq.optim import Madam


class OperationByOperation:
    """One torch call per operation of the rule, each with a new tensor for its result."""

    def __init__(self, w, lr=0.01, p_scale=1024.0, g_bound=10.0, decay=0.999):
        self.w, self.lr, self.g_bound, self.decay = w, lr, g_bound, decay
        self.v, self.t = torch.zeros_like(w), 0
        self.bound = p_scale * w.square().mean().sqrt()

    @torch.no_grad()
    def step(self):
        g = self.w.grad
        self.t += 1
        self.v = self.decay * self.v + (1 - self.decay) * g**2
        v_hat = self.v / (1 - self.decay**self.t)
        ratio = torch.where(v_hat > 0, g / v_hat.sqrt(), 0.0)
        ratio = torch.clamp(ratio, -self.g_bound, self.g_bound)
        w = self.w * torch.exp(-self.lr * torch.sign(self.w) * ratio)
        self.w.copy_(torch.clamp(w, -self.bound, self.bound))


def medians(steps, rounds):
    """Median time of each step, measured in turn."""
    times = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(784, 512), (512,)], ids=["784x512", "512"])
def test_madam_step(benchmark, shape, threads):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def parameter():
        w = nn.Parameter(0.05 * torch.randn(shape))
        w.grad = 1e-3 * torch.randn(shape)
        return w

    steps = {
        "Adam, fused": torch.optim.Adam([parameter()], fused=True).step,
        "Madam": Madam([parameter()]).step,
        "Madam, compiled": Madam([parameter()], compiled=True).step,
        "operation by operation": OperationByOperation(parameter()).step,
    }
    result = benchmark.pedantic(lambda: medians(steps, rounds=200), rounds=1)
    torch.set_num_threads(before)
    for name, seconds in result.items():
        ratio = f"{seconds / result['Adam, fused']:.2f}"
        benchmark.extra_info[name] = ratio
        print(
            f"\n| {shape}, {threads} threads | {name} | {1e3 * seconds:.3f} ms | {ratio} |", end=""
        )
