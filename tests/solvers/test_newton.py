"""Newton's method on maps that do not depend on their state, and in inference mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hamdeq import DEQ, HAM, Dense, Neurons, Newton, Picard, Sigmoid, Synapse, fixed_point


class Product(Synapse):
    """Three layers, neuron by neuron, with its field in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 0.4, 4))

    def energy(self, *g: Tensor) -> Tensor:
        return -(g[0] * g[1] * g[2] * self.weight).sum(-1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        a, b = (x for place, x in enumerate(g) if place != to)
        return a * b * self.weight

    def is_linear_in(self, place: int) -> bool:
        return True


@pytest.mark.parametrize("batch", [0, 1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_newton_solves_a_map_that_does_not_depend_on_its_state(batch: int, bias: bool) -> None:
    x = torch.rand(batch, 4)
    deq = DEQ(HAM.chain([4, 5], bias=bias), splitting=None, start="zeros", solver=Newton(tol=1e-6))
    solution = deq({"input": x})
    assert solution.converged.all()
    expected = DEQ(deq.ham)({"input": x}).value["output"]
    torch.testing.assert_close(solution.value["output"], expected)


def test_newton_solves_a_layer_without_synapses() -> None:
    neurons = {name: Neurons(3, Sigmoid()) for name in ("input", "a", "alone")}
    ham = HAM(neurons, [(("input", "a"), Dense(3, 3))])
    init = {"alone": torch.ones(2, 3)}
    for solver in (Newton(), Picard()):
        deq = DEQ(ham, splitting=None, start="zeros", solver=solver)
        solution = deq({"input": torch.rand(2, 3)}, init=init)
        assert solution.converged.all()
        assert not solution.value["alone"].any()


def test_newton_solves_a_plain_map_that_depends_on_parameters_alone() -> None:
    w = torch.rand(3, 2, requires_grad=True)
    solution = fixed_point(lambda x: 2 * w, torch.zeros(3, 2), solver=Newton())
    torch.testing.assert_close(solution.value, 2 * w)


@pytest.mark.parametrize("known", [False, True])
def test_newton_works_in_inference_mode(known: bool) -> None:
    torch.manual_seed(0)
    neurons = {name: Neurons(4, Sigmoid()) for name in "abcd"}
    connections: Any = [(("a", "b", "c"), Product()), (("c", "d"), Dense(4, 4, gain=0.3))]
    deq = DEQ(HAM(neurons, connections), ("a", "d"), splitting=None, solver=Newton(tol=1e-6))
    given = {name: torch.rand(9, 4) for name in "ad"}
    mask = {"d": torch.tensor([True, False, True, False])} if known else None
    expected = deq(given, observed=mask).value
    with torch.inference_mode():
        found = deq(given, observed=mask).value
    torch.testing.assert_close(found, {name: x.detach() for name, x in expected.items()})
