"""The public contracts: right objects pass, and a fault breaks the claim that names it."""

from __future__ import annotations

import re
import unittest
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hamdeq import (
    HAM,
    Anderson,
    Bias,
    ConjugateGradient,
    Dense,
    EquilibriumPropagation,
    Identity,
    Implicit,
    Lagrangian,
    Neurons,
    Phantom,
    Picard,
    Reduced,
    ReLU,
    Sigmoid,
    Softmax,
    Solver,
    Synapse,
    Tanh,
    Unrolled,
    clamp,
    eliminate,
)
from hamdeq.implicit import Adjoint
from hamdeq.lagrangians.base import Tempered, total
from hamdeq.solvers import SolverState
from hamdeq.solvers.state import Step
from hamdeq.testing import (
    AdjointContract,
    Contract,
    EnergyModelContract,
    LagrangianContract,
    MapContract,
    SolverContract,
    SynapseContract,
    normal,
)

# ------------------------------------------------------------------------- what is right


class Cubic(Lagrangian):
    """A user's Lagrangian with nothing but L(x) = Σ (a² + x²)^(3/2)/3, a learned."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return total((self.a**2 + x * x) ** 1.5) / 3


class TestLagrangian(LagrangianContract):
    make = Cubic


class TestByUnittest(LagrangianContract, unittest.TestCase):
    def make(self) -> Lagrangian:
        return Sigmoid(4.0, 0.5)


class Third(Synapse):
    """A user's synapse with nothing but its energy, E = −Σ T_ijk aᵢ bⱼ cₖ."""

    shapes = ((2,), (3,), (4,))

    def __init__(self) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(2, 3, 4))

    def energy(self, *g: Tensor) -> Tensor:
        return -torch.einsum("ijk,bi,bj,bk->b", self.tensor, *g)

    def is_linear_in(self, place: int) -> bool:
        return True


class TestSynapse(SynapseContract):
    make = Third


class TestMap(MapContract):
    def make(self) -> Synapse:
        return Dense(4, 3)


SMOOTH = {
    "input": Neurons(3, Identity()),
    "a": Neurons(4, Softmax(2.0)),
    "b": Neurons(3, Sigmoid()),
    "c": Neurons(2, Tanh(0.7)),
}
CHAIN = [(("input", "a"), (3, 4)), (("a", "b"), (4, 3)), (("b", "c"), (3, 2))]


def memory() -> HAM:
    connections: Any = [(pair, Dense(*sizes)) for pair, sizes in CHAIN]
    return HAM(SMOOTH, [*connections, (("b",), Bias(3, std=1.0))]).double()


def clamped(**observed: Tensor) -> Any:
    ham = memory()
    return clamp(ham, {"input": normal(4, 3), "c": normal(4, 2)}, observed or None)


def attention() -> Any:
    layers = {"query": Neurons(3, Identity()), "memories": Neurons(9, Softmax(2.0))}
    ham = HAM(layers, [(("query", "memories"), Dense(3, 9, gain=3.0))]).double()
    return eliminate(ham, ["memories"])


PART = torch.tensor([True, False])
MODELS = {
    "ham": memory,
    "clamped": lambda: clamped(),
    "in part": lambda: clamped(c=PART),
    "eliminated": lambda: eliminate(clamped(c=PART), ["a", "c"]),
    "in closed form": lambda: eliminate(clamped(), ["b"]),
    "attention": attention,
    "in turn": lambda: eliminate(clamped(c=PART), ["a"], colours=[["b"], ["c"]]),
}


class TestEnergyModels(EnergyModelContract):
    @pytest.fixture(autouse=True, params=MODELS.values(), ids=list(MODELS))
    def kind(self, request: pytest.FixtureRequest) -> None:
        self.make = request.param


class TestSolver(SolverContract):
    make = Picard


ADJOINTS: dict[str, tuple[Adjoint, float, bool]] = {
    "implicit": (Implicit(solver=Anderson(tol=1e-13, max_steps=500)), 1e-6, True),
    "conjugate": (Implicit(solver=ConjugateGradient(tol=1e-13)), 1e-6, False),
    "unrolled": (Unrolled(50), 1e-6, True),
    "phantom": (Phantom(80), 1e-6, True),
    "propagation": (EquilibriumPropagation(beta=1e-3), 1e-4, False),
}


class TestAdjoints(AdjointContract):
    @pytest.fixture(autouse=True, params=ADJOINTS.values(), ids=list(ADJOINTS))
    def kind(self, request: pytest.FixtureRequest) -> None:
        adjoint, self.rtol, self.plain_maps = request.param
        self.make = lambda: adjoint


# ------------------------------------------------------------------------- what is wrong


class Scaled(Cubic):
    def activation(self, x: Tensor) -> Tensor:
        return 1.01 * super().activation(x)


class Concave(Lagrangian):
    def forward(self, x: Tensor) -> Tensor:
        return total(x.cos())


class OffByTwo(ReLU):
    def energy(self, x: Tensor) -> Tensor:
        return 2 * super().energy(x)


class Detached(Tempered):
    def __init__(self) -> None:
        super().__init__(0.7, learnable=True)

    def forward(self, x: Tensor) -> Tensor:
        return total((self.beta.detach() * x).cosh()) / self.beta


class Overflowing(Lagrangian):
    def forward(self, x: Tensor) -> Tensor:
        return total(x.exp().log1p())


class Centred(Lagrangian):
    """The mean is that of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return total((x - x.detach().mean(0)) ** 2) / 2


class Flipped(Dense):
    def field(self, to: int, *g: Tensor) -> Tensor:
        return -super().field(to, *g)


class Shared(Dense):
    def energy(self, *g: Tensor) -> Tensor:
        return super().energy(*g).mean().expand(len(g[0]))


class Curved(Third):
    def energy(self, *g: Tensor) -> Tensor:
        return super().energy(*g) + (g[2] ** 2).sum(-1)


class Frozen(Dense):
    def energy(self, *g: Tensor) -> Tensor:
        return -((g[0] @ self.weight.detach()) * g[1]).sum(-1)


class Uphill:
    """A model whose update has the wrong sign, and which says that it descends."""

    descends = True

    def __init__(self, model: Any = None) -> None:
        self.model = clamped() if model is None else model
        self.visible = self.model.layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def fields(self, g: Any) -> Any:
        return {a: -field for a, field in self.model.fields(g).items()}

    def update(self, x: Any) -> Any:
        return self.fields(self.activations(x))


class HalfCoupled(Reduced):
    """A reduced energy that says that its fields answer half as strongly."""

    def step(self, x: Any) -> Any:
        here = super().step(x)
        coupling = here.coupling
        assert coupling is not None
        return replace(here, coupling=lambda: coupling() / 2)


@dataclass(frozen=True, kw_only=True)
class OfTheBatch(Solver):
    """Its steps have the length of the batch's mean residual."""

    def start(self, f: Any, x0: Tensor) -> SolverState:
        class State(SolverState):
            def next(self, step: Step) -> Tensor:
                return step.x + step.r / (1 + step.residual.mean())

        return State()


@dataclass(frozen=True, kw_only=True)
class Boasting(Picard):
    """Says that a hundredth of its residual is left."""

    def solve(self, f: Any, x0: Tensor) -> Any:
        solution = super().solve(f, x0)
        return replace(solution, residual=solution.residual / 100)


class NoGradient(Adjoint):
    def attach(self, f: Any, x: Tensor, solver: Any, report: Any) -> Tensor:
        return x


class OneStep(Unrolled):
    """One step, sold as the whole gradient."""

    def __init__(self) -> None:
        super().__init__(1)


class Moved(Implicit):
    def attach(self, f: Any, x: Tensor, solver: Any, report: Any) -> Tensor:
        return super().attach(f, x, solver, report) * (1 + 1e-9)


class Hasty(SolverContract):
    max_steps = 20


WRONG: list[tuple[type[Contract], Any, str]] = [
    (LagrangianContract, Scaled, "activation(x) is the gradient of L"),
    (LagrangianContract, Concave, "L is convex"),
    (LagrangianContract, OffByTwo, "energy(x) is ⟨x, g⟩ − L(x)"),
    (LagrangianContract, Detached, "L has the finite difference in log_beta as"),
    (LagrangianContract, Overflowing, "is the same in float32 and float64"),
    (LagrangianContract, Centred, "L of a sample does not depend on its batch"),
    (SynapseContract, lambda: Flipped(4, 3), "field 0 is minus the gradient of the energy"),
    (SynapseContract, lambda: Shared(4, 3), "energy of a sample does not depend on its batch"),
    (SynapseContract, Curved, "the energy is linear in place 0, as is_linear_in says"),
    (SynapseContract, lambda: Frozen(4, 3), "energy has a gradient to the parameters"),
    (EnergyModelContract, Uphill, "is ∇²L (x − field)"),
    (EnergyModelContract, Uphill, "no update raises the energy, as descends says"),
    (EnergyModelContract, lambda: HalfCoupled(clamped(), ["b"]), "coupling yields ∂I/∂g"),
    (SolverContract, OfTheBatch, "a sample's result does not depend on its batch"),
    (SolverContract, Boasting, "the residual is that of the value"),
    (Hasty, lambda: Picard(damping=1e-3), "every sample of the linear map converges"),
    (AdjointContract, NoGradient, "the gradient of a memory is its finite difference"),
    (AdjointContract, OneStep, "the gradient of a memory is its finite difference"),
    (AdjointContract, Moved, "the gradient method leaves the value as it is"),
]


@pytest.mark.parametrize(("contract", "make", "claim"), WRONG, ids=[claim for _, _, claim in WRONG])
def test_a_fault_breaks_the_claim_that_names_it(
    contract: type[Contract], make: Any, claim: str
) -> None:
    mine = type("TestMine", (contract,), {"make": lambda self: make()})()
    with pytest.raises(AssertionError) as found:
        mine.verify()
    assert re.search(rf"TestMine: expected that .*{re.escape(claim)}", str(found.value))


def test_a_contract_without_an_object_says_what_is_missing() -> None:
    with pytest.raises(AssertionError, match=r"expected a method make\(\), which returns"):
        SynapseContract().verify()
    with pytest.raises(NotImplementedError, match=r"LagrangianContract: expected a method make"):
        LagrangianContract().make()
