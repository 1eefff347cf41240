"""A training step against the sum of its parts, each alone.

    pytest tests/benchmarks/test_sum_of_parts.py --benchmark-only -s

The parts are what no implementation can leave out: the products that clamp the input, forward and
backward; the start; as many bare maps as the solve took evaluations, the last with its derivatives;
as many products with (∂f/∂x)ᵀ as the backward solve took; the hidden layers; and the optimiser's
step. Step and parts are measured in turn in one run, at batch 64, after 30 steps of training on
scikit-learn's digits, enlarged to 28 × 28.
"""

import itertools
import time
from collections import defaultdict
from statistics import mean, median

import pytest
import torch
import torch.nn.functional as F
from configurations import configured
from test_training_step import batches

from hamdeq import clamp, eliminate
from hamdeq.energy.clamping import forward_sweep

ROUNDS = 40


@pytest.mark.parametrize("name", ["ham_eo_deq", "deep5", "deep7", "wide", "conv"])
def test_training_step(benchmark, name, threads):
    torch.manual_seed(0)
    deq, optimizer = configured(name)
    shape = deq.ham.layer("input").shape
    data = itertools.cycle([(x.reshape(-1, *shape), y) for x, y in batches()])
    rounds: list[dict[str, float]] = []
    evaluations: list[int] = []

    def timed(part: str, call):
        began = time.perf_counter()
        result = call()
        rounds[-1][part] += time.perf_counter() - began
        return result

    def step(images, target):
        solution = deq({"input": images}, on_failure="ignore")
        optimizer.zero_grad()
        F.mse_loss(solution.value["output"], target).backward()
        optimizer.step()
        return solution

    def parts(images, target, solution):
        model = timed("clamp", lambda: clamp(deq.ham, {"input": images}))
        reduced = eliminate(model, deq.hidden)
        if deq.start == "forward":
            with torch.no_grad():
                timed("start", lambda: forward_sweep(model))
        x = {a: solution.value[a].detach().requires_grad_() for a in reduced.visible}
        with torch.no_grad():
            for _ in range(solution.n_evals - 1):
                timed("map", lambda: reduced.update(x))
            timed("hidden layers", lambda: reduced.restore(x))
        fx = timed("map with a graph", lambda: reduced.update(x))
        images_, leaves = list(fx.values()), list(x.values())
        v = [torch.randn_like(y) for y in images_]
        for _ in range(solution.adjoint[0].n_evals):
            timed(
                "product",
                lambda: torch.autograd.grad(
                    images_, leaves, v, retain_graph=True, materialize_grads=True
                ),
            )
        optimizer.zero_grad()
        timed("derivatives", lambda: torch.autograd.backward(images_, v))
        timed("optimiser", optimizer.step)

    def run() -> None:
        for _ in range(30 + ROUNDS):
            images, labels = next(data)
            target = F.one_hot(labels, 10).float()
            rounds.append(defaultdict(float))
            solution = timed("step", lambda x=images, y=target: step(x, y))
            evaluations.append(solution.n_evals)
            weights = [p.detach().clone() for p in deq.parameters()]
            parts(images, target, solution)
            with torch.no_grad():  # the parts have no say in the training
                for p, weight in zip(deq.parameters(), weights, strict=True):
                    p.copy_(weight)

    benchmark.pedantic(run, rounds=1)
    last = rounds[30:]
    shares = {part: median(r[part] for r in last) for part in last[0] if part != "step"}
    whole = median(r["step"] for r in last)
    ratio = whole / median(sum(r.values()) - r["step"] for r in last)
    benchmark.extra_info["ratio"] = f"{ratio:.2f}"
    detail = ", ".join(f"{part} {1e3 * share:.2f}" for part, share in shares.items())
    print(
        f"\n| {name}, {threads} threads | {1e3 * whole:.1f} ms | {mean(evaluations[30:]):.1f} | "
        f"{ratio:.2f} | {detail} |",
        end="",
    )
