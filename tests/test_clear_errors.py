"""What a user's own Lagrangian, synapse or map does wrong is named, with a remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hamdeq import (
    DEQ,
    HAM,
    ConvergenceWarning,
    Dense,
    Identity,
    Lagrangian,
    Neurons,
    Picard,
    Synapse,
    Tanh,
    fixed_point,
)
from hamdeq.torchdeq_bridge import TorchDEQSolver


class Summed(Lagrangian):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum()


class PerNeuron(Lagrangian):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square()


class ClosedPerNeuron(PerNeuron):
    def activation(self, x: Tensor) -> Tensor:
        return x


class Narrow(Identity):
    def activation(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", [Summed, PerNeuron, ClosedPerNeuron, Narrow])
def test_a_lagrangian_of_another_shape_is_named(kind: type[Lagrangian]) -> None:
    ham = HAM(
        {"input": Neurons(3, Identity()), "a": Neurons(4, kind()), "b": Neurons(2, Tanh())},
        [(("input", "a"), Dense(3, 4)), (("a", "b"), Dense(4, 2))],
    )
    shape = r"\(5, 4\)" if kind is Narrow else r"\(5,\)"
    for use in (
        lambda: DEQ(ham)({"input": torch.rand(5, 3)}),
        lambda: ham.energy(ham.zero_state(torch.zeros(5, 1))),
    ):
        with pytest.raises(
            ValueError, match=rf"{kind.__name__}: expected .* of shape {shape}, got"
        ):
            use()


class Mean(Synapse):
    """A synapse whose energy is right, and whose results are then cut."""

    def __init__(self, energy: Any = None, field: Any = None) -> None:
        super().__init__()
        self.cut = energy, field

    def energy(self, *g: Tensor) -> Tensor:
        energy = -g[0].sum(-1) * g[1].sum(-1)
        return energy if self.cut[0] is None else self.cut[0](energy)

    def field(self, to: int, *g: Tensor) -> Tensor:
        if self.cut[1] is None:
            return super().field(to, *g)
        return self.cut[1](super().field(to, *g))

    def is_linear_in(self, place: int) -> bool:
        return True


@pytest.mark.parametrize(
    ("synapse", "message"),
    [
        (Mean(energy=torch.sum), "expected one number a sample"),
        (Mean(energy=lambda e: e[:, None]), "expected one number a sample"),
        (Mean(field=lambda f: f[:, :1]), r"Mean: expected a field on its layer \d, of shape"),
        (Mean(field=lambda f: f.sum(0)), r"Mean: expected a field on its layer \d, of shape"),
    ],
)
def test_a_synapse_of_another_shape_is_named(synapse: Synapse, message: str) -> None:
    ham = HAM(
        {"input": Neurons(3, Identity()), "b": Neurons(4, Tanh())}, [(("input", "b"), synapse)]
    )
    with pytest.raises(ValueError, match=message):
        DEQ(ham)({"input": torch.rand(5, 3)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_anderson_of_torchdeq_says_which_dtypes_it_takes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"expected float32 or float64.*use hamdeq\.Anderson"):
        TorchDEQSolver(name="anderson").solve(torch.cos, torch.zeros(2, 3, dtype=dtype))


def test_a_map_with_dropout_is_said_to_be_random() -> None:
    torch.manual_seed(0)
    linear, solver = nn.Linear(8, 8), Picard(max_steps=20)
    with pytest.warns(ConvergenceWarning, match="f is random.*draw one mask before the solve"):
        fixed_point(
            lambda x: nn.functional.dropout(linear(x), 0.5), torch.zeros(2, 8), solver=solver
        )
    mask = nn.functional.dropout(torch.ones(2, 8), 0.5)
    assert fixed_point(lambda x: mask * linear(x) / 4, torch.zeros(2, 8)).converged.all()
    with pytest.warns(ConvergenceWarning) as found:
        fixed_point(lambda x: 1 - 2 * x, torch.zeros(2, 8), solver=solver)
    assert "random" not in str(found[0].message)
