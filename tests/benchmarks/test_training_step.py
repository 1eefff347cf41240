"""One training step of the 784-512-10 memory: settling to a tolerance against forced iterations.

    pytest tests/benchmarks/test_training_step.py --benchmark-only

The papers run 40 forward and 8 backward iterations whatever the residual. Both variants train the
same memory on the same batches (scikit-learn's digits, enlarged to 28 × 28), side by side; the
ratio of their medians is in ``extra_info``.
"""

import time
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from hamdeq import DEQ, HAM, Anderson, Implicit, Madam

pytest.importorskip("sklearn")


def forced_to(steps: int) -> Anderson:
    """Anderson for exactly so many steps, also where the residual is zero."""
    solver = Anderson(max_steps=steps)
    object.__setattr__(solver, "tol", -1.0)  # refused by the constructor, for good reasons
    return solver


def batches(size: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=28, mode="bilinear").flatten(1)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    whole = [part for part in rows.split(size) if len(part) == size]
    return [(images[part], torch.from_numpy(labels)[part]) for part in whole]


class Training:
    """A memory in training, one step a call."""

    def __init__(self, solver: Anderson, backward: Anderson) -> None:
        torch.manual_seed(0)
        ham = HAM.chain([784, 512, 10], gain=[2.0, 0.3])
        self.deq = DEQ(ham, solver=solver, adjoint=Implicit(solver=backward), on_failure="ignore")
        self.optimizer = Madam(self.deq.parameters(), lr=0.01)
        self.batches = batches()
        self.count = 0

    def __call__(self) -> None:
        images, labels = self.batches[self.count % len(self.batches)]
        self.count += 1
        solution = self.deq({"input": images})
        loss = F.mse_loss(solution.value["output"], F.one_hot(labels, 10).float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.evaluations = solution.n_evals, solution.adjoint[0].n_evals


def test_settling_against_forced_iterations(benchmark):
    settling = Training(Anderson(max_steps=40), Anderson(tol=1e-2, max_steps=40))
    forced = Training(forced_to(40), forced_to(8))
    for _ in range(100):
        settling()
    forced.deq.load_state_dict(settling.deq.state_dict())
    forced.optimizer.load_state_dict(settling.optimizer.state_dict())
    times: dict[str, list[float]] = {"settling": [], "forced": []}

    def pair() -> None:
        # Blocks, as in training: step by step each would find the other's weights in the cache.
        for name, step in (("settling", settling), ("forced", forced)):
            for _ in range(20):
                began = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - began)

    benchmark.pedantic(pair, rounds=15, warmup_rounds=1)
    assert forced.evaluations == (40, 8)
    ratio = median(times["forced"]) / median(times["settling"])
    benchmark.extra_info.update(
        evaluations=settling.evaluations,
        ratio=round(ratio, 2),
        settling_ms=round(1e3 * median(times["settling"]), 2),
        forced_ms=round(1e3 * median(times["forced"]), 2),
    )
    print(f"\nforced / settling: {ratio:.2f}  {benchmark.extra_info}")
