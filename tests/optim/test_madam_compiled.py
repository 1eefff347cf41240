"""Madam(compiled=True): the same rule as one kernel."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hamdeq._compile
from hamdeq import Madam

pytestmark = pytest.mark.compile


def parameters(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    shapes = ((300, 100), (170, 100), (20, 10), (10,))
    return [nn.Parameter(0.1 * torch.randn(shape)) for shape in shapes]


def trained(optimizer: Madam, weights: list[nn.Parameter], steps: int = 6) -> list[Tensor]:
    torch.manual_seed(1)
    for step in range(steps):
        for w in weights:
            w.grad = 10.0 ** -(3 * step) * torch.randn_like(w)
            w.grad.view(-1)[::3] = 0.0
        optimizer.step()
    return [w.detach().clone() for w in weights]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        found.append(module)
        return module.forward

    traced = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(hamdeq._compile.torch, "compile", traced)
    torch._dynamo.reset()
    return found


def test_compiled_it_makes_the_same_steps_in_one_graph_for_all_sizes(graphs: list[Any]) -> None:
    plain, compiled = parameters(), parameters()
    schedule = {"lr": 0.02, "g_bound": 2.0}
    expected = trained(Madam(plain, **schedule), plain)
    result = trained(Madam(compiled, compiled=True, **schedule), compiled)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0.0)
    assert len(graphs) == 1


def test_without_a_compiler_it_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(hamdeq._compile.torch, "compile", lambda *args, **options: broken)
    plain, compiled = parameters(), parameters()
    expected = trained(Madam(plain), plain)
    with pytest.warns(UserWarning, match="compiling failed: no compiler here; Madam goes on"):
        result = trained(Madam(compiled, compiled=True), compiled)
    torch.testing.assert_close(result, expected, rtol=0.0, atol=0.0)


def test_a_copy_goes_on_alike(graphs: list[Any]) -> None:
    weights = parameters()
    optimizer = Madam(weights, compiled=True)
    trained(optimizer, weights, steps=2)
    others = copy.deepcopy(weights)
    other = Madam(others)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert "compiled" not in optimizer.state_dict()["param_groups"][0]
    result, expected = trained(optimizer, weights, steps=3), trained(other, others, steps=3)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0.0)
