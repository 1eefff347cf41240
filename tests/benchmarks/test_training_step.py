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

NEVER = torch.finfo(torch.float32).tiny  # no residual but zero is below it


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
        state = self.deq({"input": images}).value["output"]
        loss = F.mse_loss(state, F.one_hot(labels, 10).float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def test_settling_against_forced_iterations(benchmark):
    settling = Training(Anderson(max_steps=40), Anderson(tol=1e-2, max_steps=40))
    forced = Training(Anderson(tol=NEVER, max_steps=40), Anderson(tol=NEVER, max_steps=8))
    for _ in range(100):
        settling()
    forced.deq.load_state_dict(settling.deq.state_dict())
    forced.optimizer.load_state_dict(settling.optimizer.state_dict())
    times: dict[str, list[float]] = {"settling": [], "forced": []}

    def pair() -> None:
        for name, step in (("settling", settling), ("forced", forced)):
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)

    benchmark.pedantic(pair, rounds=200, warmup_rounds=10)
    ratio = median(times["forced"]) / median(times["settling"])
    benchmark.extra_info.update(
        ratio=round(ratio, 2),
        settling_ms=round(1e3 * median(times["settling"]), 2),
        forced_ms=round(1e3 * median(times["forced"]), 2),
    )
    print(f"\nforced / settling: {ratio:.2f}  {benchmark.extra_info}")
