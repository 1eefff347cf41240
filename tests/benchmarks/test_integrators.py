"""Evaluations and exactness of the integrators: the tables of docs/time.md.

pytest tests/benchmarks/test_integrators.py --benchmark-only -s
"""

import pytest
import torch

from hamdeq import DEQ, HAM, Adaptive, Bias, Euler, Identity, Neurons, Newton, clamp, trajectory

METHODS = [Euler(step=1.0), Euler(step=0.1), Adaptive(rtol=1e-4, atol=1e-6), Adaptive()]


@torch.no_grad()
def settle(method):
    torch.manual_seed(0)
    ham = HAM.chain([64, 32, 10], gain=[3.0, 0.3]).double()
    image = {"input": torch.rand(8, 64, dtype=torch.float64)}
    memory = clamp(ham, image)
    x0 = ham.zero_state(image["input"], memory.layers)
    path = trajectory(memory, x0, torch.linspace(0, 30, 31), method=method)
    rest = DEQ(ham, solver=Newton(tol=1e-12))(image).value
    distance = max(float((x - rest[a]).norm() / rest[a].norm()) for a, x in path.final.items())
    return path.n_evals, distance, float(path.energy.diff(dim=0).max())


@torch.no_grad()
def decay(method):
    """A linear layer, whose path is known: x = b + (x0 − b) e^(−t/τ)."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    ham = HAM({"a": Neurons(2, Identity())}, [(("a",), Bias(2, std=1.0))]).double()
    b, x0 = ham.synapses[0].bias, torch.randn(4, 2, dtype=torch.float64)
    times = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
    exact = b + (x0 - b) * torch.exp(-times / 0.7)[:, None, None]
    here = trajectory(ham, {"a": x0}, times, tau=0.7, method=Adaptive(method=method)).states["a"]
    plain = torchdiffeq.odeint(
        lambda _, x: (b - x) / 0.7, x0, times, rtol=1e-6, atol=1e-8, method=method
    )
    return [float((x - exact).abs().max()) for x in (here, plain)]


def test_settling(benchmark):
    print("\n| method | evaluations | distance | largest rise of the energy |\n|---|---|---|---|")
    for method, (count, *cells) in benchmark.pedantic(lambda: [(m, settle(m)) for m in METHODS]):
        print(f"| `{method}` | {count} | " + " | ".join(f"{cell:.0e}" for cell in cells) + " |")


def test_decay(benchmark):
    names = ["dopri5", "dopri8", "bosh3", "adaptive_heun"]
    print("\n| method at rtol 1e-6 | error | of torchdiffeq as it is |\n|---|---|---|")
    for name, cells in benchmark.pedantic(lambda: [(n, decay(n)) for n in names]):
        print(f"| `{name}` | " + " | ".join(f"{cell:.0e}" for cell in cells) + " |")
