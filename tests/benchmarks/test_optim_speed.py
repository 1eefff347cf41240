"""Madam against its rule written operation by operation, in one run."""

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


def seconds(step, rounds):
    step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.parametrize("shape", [(784, 512), (512,)], ids=["784x512", "512"])
def test_madam_step(benchmark, shape):
    torch.manual_seed(0)
    w = nn.Parameter(0.05 * torch.randn(shape))
    w.grad = 1e-3 * torch.randn(shape)
    plain = OperationByOperation(nn.Parameter(w.detach().clone()))
    plain.w.grad = w.grad.clone()
    optimizer = Madam([w])
    reference = seconds(plain.step, rounds=100)
    benchmark.pedantic(optimizer.step, rounds=100, iterations=1, warmup_rounds=5)
    here = seconds(optimizer.step, rounds=100)
    benchmark.extra_info["operation_by_operation_ms"] = 1e3 * reference
    benchmark.extra_info["madam_ms"] = 1e3 * here
    benchmark.extra_info["ratio"] = reference / here
