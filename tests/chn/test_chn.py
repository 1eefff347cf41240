"""The continuous Hopfield network: its neurons, and its identity with a hierarchical memory."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import Refusal, assert_refused
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from hamdeq import (
    CHN,
    CHNDEQ,
    DEQ,
    HAM,
    Anderson,
    BengioFischer,
    Bias,
    Broyden,
    ConjugateGradient,
    Dense,
    EnergyModel,
    EquilibriumPropagation,
    Exp,
    Identity,
    Implicit,
    InnerIterations,
    Lagrangian,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    Spherical,
    Status,
    Tanh,
    Unrolled,
)
from hamdeq.lagrangians.base import total
from hamdeq.testing import LagrangianContract

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


class Asinh(Lagrangian):
    """A user's neurons without a closed form of ρ′: ρ = asinh, ς(s) = s√(1 + s²)."""

    def forward(self, x: Tensor) -> Tensor:
        return total(x * torch.asinh(x) - torch.sqrt(1 + x * x))


class NoLogSlope(Lagrangian):
    """A user's sigmoid, of which automatic differentiation knows the slope only up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return total(nn.functional.softplus(x, threshold=40.0))


class Square(Lagrangian):
    """ρ = s√(¼ + s²): ρ′ grows like 2|s|, and ς ends at ±½."""

    def forward(self, x: Tensor) -> Tensor:
        return total((0.25 + x * x) ** 1.5) / 3


NEURONS = {
    "Sigmoid(4, 0.5)": lambda: Sigmoid(4.0, 0.5),
    "Sigmoid": lambda: Sigmoid(),
    "Sigmoid(2, -0.5)": lambda: Sigmoid(2.0, -0.5),
    "Tanh": lambda: Tanh(),
    "Identity": lambda: Identity(),
    "Asinh": lambda: Asinh(),
    "learnable Sigmoid": lambda: Sigmoid(2.0, 0.25, learnable=True),
    "learnable Tanh": lambda: Tanh(0.7, learnable=True),
}


class TestNeurons(LagrangianContract):
    @pytest.fixture(autouse=True, params=NEURONS.values(), ids=NEURONS.keys())
    def kind(self, request):
        self.make = lambda: BengioFischer(request.param())


class TestChangeOfVariables:
    RHO = [Sigmoid(4.0, 0.5), Sigmoid(4.0, 0.75), Sigmoid(0.1), Tanh(), Tanh(30.0), Identity()]

    @pytest.mark.parametrize("rho", [*RHO, Asinh()], ids=repr)
    @settings(max_examples=10, deadline=None)  # of hundreds of numbers together
    @given(st.lists(st.floats(-1e100, 1e100), min_size=20, max_size=60))
    def test_there_and_back_in_u(self, rho: Lagrangian, u: list[float]) -> None:
        self.check(BengioFischer(rho), torch.tensor(u, dtype=torch.float64))

    @pytest.mark.parametrize("dtype", EPS)
    @pytest.mark.parametrize("rho", RHO, ids=repr)
    def test_over_the_whole_range(self, rho: Lagrangian, dtype: torch.dtype) -> None:
        top = 300 if dtype == torch.float64 else 37
        u = torch.logspace(-top, top, 5001, dtype=torch.float64)
        self.check(BengioFischer(rho), torch.cat([-u, u]).to(dtype))

    def check(self, neurons: BengioFischer, u: Tensor) -> None:
        s = neurons.from_ham(u)
        assert (s * u >= 0).all()
        back = neurons.to_ham(s)
        # A unit in the last place of s is d ln ς/d ln s of them in u.
        s.requires_grad_()
        (slope,) = torch.autograd.grad(neurons.to_ham(s).sum(), s)
        condition = (slope * s / u).detach().nan_to_num(1.0).clamp_min(1.0)
        normal = u.abs() > 1e-290
        error = ((back - u) / u).abs()[normal]
        assert (error <= 64 * EPS[u.dtype] * condition[normal]).all()

    @pytest.mark.parametrize("rho", RHO, ids=repr)
    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.floats(-20, 20), min_size=30, max_size=80))
    def test_there_and_back_in_s(self, rho: Lagrangian, s: list[float]) -> None:
        neurons = BengioFischer(rho)
        given = torch.tensor(s, dtype=torch.float64)
        u = neurons.to_ham(given)
        given = torch.where(u.abs() < 1e300, given, neurons.from_ham(u))  # it ends there
        # Of a nearly flat ς the inverse is ill-conditioned: Sigmoid(4, 0.75) comes down to 0.03.
        torch.testing.assert_close(neurons.from_ham(u), given, rtol=1e-12, atol=1e-300)

    @pytest.mark.parametrize("dtype", EPS)
    @pytest.mark.parametrize("rho", RHO, ids=repr)
    def test_extremes(self, rho: Lagrangian, dtype: torch.dtype) -> None:
        neurons = BengioFischer(rho)
        u = torch.tensor([1e30, -1e30, 0.0, 1e-38, -1e-44], dtype=dtype).requires_grad_()
        for f in (neurons.from_ham, neurons.activation):
            y = f(u)
            assert y.isfinite().all()
            assert y.dtype == dtype
            assert torch.autograd.grad(y.sum(), u)[0].isfinite().all()
        assert neurons.from_ham(u)[2] == 0
        for f in (neurons.energy, neurons):
            x = u[2:].detach()[:, None].requires_grad_()
            assert torch.autograd.grad(f(x).sum(), x)[0].isfinite().all()
        s = torch.tensor([1e4, -1e4, 0.0], dtype=dtype).requires_grad_()
        v = neurons.to_ham(s)
        assert v.isfinite().all()
        assert torch.autograd.grad(v.sum(), s)[0].isfinite().all()
        torch.testing.assert_close(neurons.activation(v), rho.activation(s))

    def test_what_is_not_finite(self) -> None:
        neurons = BengioFischer(Sigmoid(4.0, 0.5))
        u = torch.tensor([torch.inf, -torch.inf, torch.nan])
        assert neurons.from_ham(u).isfinite().tolist() == [True, True, False]
        torch.testing.assert_close(neurons.activation(u)[:2], torch.tensor([1.0, 0.0]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        neurons = BengioFischer(Tanh())
        u = torch.linspace(-50, 50, 101)
        found = neurons.from_ham(u.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), neurons.from_ham(u), rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("rho", [*RHO, Sigmoid(2.0, 0.5, learnable=True)], ids=repr)
    def test_derivatives(self, rho: Lagrangian) -> None:
        neurons = BengioFischer(copy.deepcopy(rho).double())
        u = torch.tensor([-30.0, -2.0, -0.1, 0.02, 0.7, 5.0, 300.0]).double().requires_grad_()
        s = neurons.from_ham(u)
        (slope,) = torch.autograd.grad(s.sum(), u, create_graph=True)
        fixed = s.detach().requires_grad_()
        (forth,) = torch.autograd.grad(neurons.to_ham(fixed).sum(), fixed)
        torch.testing.assert_close(slope * forth, torch.ones_like(u), rtol=1e-10, atol=0)
        u = torch.tensor([-3.0, -0.2, 0.3, 2.0, 9.0]).double().requires_grad_()
        assert gradcheck(neurons.from_ham, (u,))
        assert gradgradcheck(neurons.from_ham, (u,))

    def test_a_changed_parameter_is_noticed(self) -> None:
        rho = Sigmoid(2.0, 0.5, learnable=True).double()
        neurons = BengioFischer(rho)
        u = torch.linspace(-5, 5, 11).double()
        with torch.no_grad():
            neurons.from_ham(u)
            rho.log_beta.fill_(1.5)
            s = neurons.from_ham(u)
            torch.testing.assert_close(neurons.to_ham(s), u, rtol=1e-13, atol=0)
            # β·center = 3.3: two states s would have the same u.
            rho.log_beta.fill_(1.9)
            with pytest.raises(ValueError, match="does not increase at s = 0"):
                neurons.from_ham(u)

    @pytest.mark.parametrize(
        ("rho", "match"),
        [
            (ReLU(), r"expected ρ′\(s\) > 0 everywhere, got 0 at s = -"),
            (RePU(3), r"RePU\(n=3\) goes to 0.5, not to infinity"),
            (Exp(), r"Exp\(beta=1\) does not increase at s = 1.00"),
            (Exp(0.5), r"does not increase at s = [12]\.\d"),
            (Sigmoid(4.0, 1.0), r"does not increase at s = 0.2.*\|beta·center\| < 3"),
            (Sigmoid(4.0, -1.0), r"does not increase at s = -0.2"),
            (Sigmoid(1.0, 3.06), "does not increase at s = 1.[67]"),
            (Sigmoid(1.0, 3.0485), "increases too little"),
            (Square(), "goes to -?0.5, not to infinity"),
            (NoLogSlope(), r"at s = 3\d.*give it a method log_slope"),
            (Softmax(), "expected an elementwise activation, got Softmax.* and 1 to it alone"),
            (LayerNorm(), "expected an elementwise activation, got LayerNorm"),
            (Spherical(), "expected an elementwise activation, got Spherical"),
        ],
        ids=repr,
    )
    def test_what_has_no_inverse_is_refused(self, rho: Lagrangian, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            BengioFischer(rho)
        with pytest.raises(ValueError, match=r"layer 'a': rho: "):
            CHN({"a": Neurons(3, rho)}, [])

    def test_the_limit_of_sigmoids(self) -> None:
        # −y tanh((y − γ)/2) < 1 for all y, at y = √3 last: γ < √3 + ln(2 + √3) = 3.0490.
        BengioFischer(Sigmoid(1.0, 3.04))
        BengioFischer(Sigmoid(0.01, -304.0))
        with pytest.raises(ValueError, match="does not increase"):
            BengioFischer(Sigmoid(1.0, 3.05))


# ----------------------------------------------------------------------------- networks


def chain(*sizes: int, gain: float = 0.5, seed: int = 0, **options: Any) -> CHN:
    torch.manual_seed(seed)
    return CHN.chain(sizes or (5, 7, 6, 4), gain=gain, **options).double()


def images(batch: int = 4, n: int = 5) -> Tensor:
    return torch.rand(batch, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def states(chn: CHN, batch: int = 6, scale: float = 1.0, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale
        * torch.randn(batch, *chn.ham.layer(name).shape, generator=generator, dtype=torch.float64)
        for name in chn.layers
    }


@pytest.fixture(scope="module")
def digits() -> tuple[CHN, Tensor]:
    """A network trained for a few dozen steps on handwritten digits, in float64, and digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    x = torch.as_tensor(pixels / 16, dtype=torch.float32)
    y = nn.functional.one_hot(torch.as_tensor(labels)).float()
    torch.manual_seed(0)
    deq = CHNDEQ(CHN.chain([64, 32, 16, 10], gain=[2.0, 0.5, 0.5]), on_failure="ignore")
    optimiser = torch.optim.Adam(deq.parameters(), lr=3e-3)
    losses = []
    for step in range(20):
        rows = torch.arange(64) + 40 * step
        loss = (deq({"input": x[rows]}).value["output"] - y[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    return deq.chn.double(), x[:100].double()


def networks(digits: tuple[CHN, Tensor]) -> dict[str, tuple[CHN, Tensor]]:
    return {
        "trained": digits,
        "random": (chain(), images()),
        "tanh": (chain(5, 8, 6, rho=Tanh(1.5), gain=0.4), images()),
        "linear": (chain(5, 8, 6, rho=Identity(), gain=0.5), images()),
    }


NAMES = ["trained", "random", "tanh", "linear"]
EXACT = Implicit(solver=ConjugateGradient(tol=1e-12, max_steps=500))


class Settled(NamedTuple):
    """A network with inputs, and the equilibrium and gradients of the memory that it is."""

    chn: CHN
    x: Tensor
    ham: HAM
    u: dict[str, Tensor]
    gradients: list[Tensor]


def gradients(output: Tensor, ham: HAM, x: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((weight * output**2).sum(), [*ham.parameters(), x]))


@pytest.fixture(scope="module", params=NAMES)
def settled(request: pytest.FixtureRequest, digits: tuple[CHN, Tensor]) -> Settled:
    chn, x = networks(digits)[request.param]
    x, ham = x.clone().requires_grad_(), chn.to_ham()
    reference = DEQ(ham, solver=Broyden(tol=1e-13, max_steps=500), adjoint=EXACT)
    u = reference(chn.to_ham_state({"input": x})).value
    expected = gradients(chn.from_ham_state(u)["output"], ham, x)
    return Settled(chn, x, ham, {a: x_a.detach() for a, x_a in u.items()}, expected)


class TestIdentityWithHAM:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
    def test_energies_are_equal(self, digits: Any, name: str, scale: float) -> None:
        chn, _ = networks(digits)[name]
        s = states(chn, scale=scale)
        u = chn.to_ham_state(s)
        torch.testing.assert_close(chn.to_ham().energy(u), chn.energy(s), rtol=1e-10, atol=1e-10)
        for layer, x in chn.from_ham_state(u).items():
            torch.testing.assert_close(x, s[layer], rtol=1e-12, atol=1e-12)

    def test_energy_is_the_formula(self) -> None:
        chn = chain(5, 4)
        s = states(chn)
        (_, dense), (_, bias) = chn.connections
        rho = {name: torch.sigmoid(4 * x - 2) for name, x in s.items()}
        weight, b = dense.weight, bias.bias
        expected = 0.5 * (s["input"].square().sum(1) + s["output"].square().sum(1))
        expected = expected - ((rho["input"] @ weight) * rho["output"]).sum(1) - rho["output"] @ b
        torch.testing.assert_close(chn.energy(s), expected)

    def test_update_is_a_step_down_the_gradient(self) -> None:
        chn = chain()
        s = {name: x.requires_grad_() for name, x in states(chn).items()}
        slopes = torch.autograd.grad(chn.energy(s).sum(), list(s.values()))
        update = chn.update(s)
        for (name, x), slope in zip(s.items(), slopes, strict=True):
            torch.testing.assert_close(update[name], x - slope, rtol=1e-12, atol=1e-12)
        assert torch.equal(chn.update(s, clamped=["input"])["input"], s["input"])

    @pytest.mark.parametrize(
        ("splitting", "solver"),
        [
            ("even-odd", Anderson),
            ("even-odd", Broyden),
            ("even-odd", Newton),
            (None, Anderson),
            (None, Broyden),
        ],
    )
    def test_equilibria_and_gradients_are_equal(
        self, settled: Settled, splitting: Any, solver: Any
    ) -> None:
        chn, x, ham, u, expected = settled
        s = chn.from_ham_state(u)
        start: Any = "linearised" if solver is not Anderson else "forward"
        solver = solver(tol=1e-12, max_steps=2000)
        deq = CHNDEQ(chn, splitting=splitting, solver=solver, start=start)
        deq.adjoint = EXACT
        solution = deq({"input": x})
        assert solution.converged.all()
        assert tuple(solution.value) == chn.layers
        for layer in chn.layers:
            torch.testing.assert_close(solution.value[layer], s[layer], rtol=1e-8, atol=1e-8)
        found = gradients(solution.value["output"], ham, x)
        for gradient, other in zip(found, expected, strict=True):
            scale = other.abs().max().item()
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-8 * scale)
        torch.testing.assert_close(deq.energy(solution.value), ham.energy(u), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_gradients_are_finite_differences(self, digits: Any, splitting: Any) -> None:
        chn, x = digits
        chn, x = copy.deepcopy(chn), x[:3]
        adjoint = Implicit(solver=ConjugateGradient(tol=1e-12, max_steps=500))
        solver = Broyden(tol=1e-13, max_steps=1000)
        deq = CHNDEQ(chn, splitting=splitting, solver=solver, adjoint=adjoint)

        def loss() -> Tensor:
            value = deq({"input": x}).value
            return (value["output"] ** 3).sum() + value["hidden1"].square().sum()

        parameters = list(chn.parameters())
        gradients = torch.autograd.grad(loss(), parameters)
        # One direction through all parameters: an error in any of them shows.
        directions = [torch.randn_like(p) / p.numel() ** 0.5 for p in parameters]
        h, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, direction in zip(parameters, directions, strict=True):
                    p += sign * h * direction
                values.append(loss())
                for p, direction in zip(parameters, directions, strict=True):
                    p -= sign * h * direction
        pairs = zip(gradients, directions, strict=True)
        found = torch.stack([(gradient * direction).sum() for gradient, direction in pairs]).sum()
        torch.testing.assert_close(found, (values[0] - values[1]) / (2 * h), rtol=1e-6, atol=1e-8)

    def test_a_learnable_beta_learns(self) -> None:
        rho = Sigmoid(3.0, 0.4, learnable=True)
        chn = chain(rho=rho)
        grads = {}
        for splitting in ("even-odd", None):
            solver = Broyden(tol=1e-12, max_steps=500)
            deq = CHNDEQ(chn, splitting=splitting, solver=solver)  # type: ignore[arg-type]
            loss = deq({"input": images()}).value["output"].square().sum()
            grads[splitting] = torch.autograd.grad(loss, rho.log_beta)[0]
        torch.testing.assert_close(grads["even-odd"], grads[None], rtol=1e-7, atol=0)
        h, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                rho.log_beta += sign * h
                values.append(deq({"input": images()}).value["output"].square().sum())
                rho.log_beta -= sign * h
        expected = (values[0] - values[1]) / (2 * h)
        torch.testing.assert_close(grads[None], expected, rtol=1e-5, atol=0)

    def test_training_one_trains_the_other(self) -> None:
        chn = chain()
        ham, s = chn.to_ham(), states(chn)
        before = ham.energy(chn.to_ham_state(s)).detach()
        assert {id(p) for p in chn.parameters()} == {id(p) for p in ham.parameters()}
        with torch.no_grad():
            for p in chn.parameters():
                p += 0.1
        assert not torch.allclose(ham.energy(chn.to_ham_state(s)), before)


class TestSteps:
    @pytest.mark.parametrize("name", NAMES)
    def test_exact_even_odd_steps_never_raise_the_energy(self, digits: Any, name: str) -> None:
        chn, _ = networks(digits)[name]
        chn = copy.deepcopy(chn)
        with torch.no_grad():  # strong enough that steps at once would not converge
            for p in chn.parameters():
                p *= 2.0 if name != "linear" else 1.0
        s = states(chn, batch=50, scale=2.0)
        energy = [chn.energy(s)]
        for _ in range(30):
            s = chn.alternate(s)
            energy.append(chn.energy(s))
        change = torch.stack(energy).diff(dim=0)
        assert (change <= 1e-12 * energy[0].abs().max()).all()
        assert (change < -1e-3).any()

    def test_they_are_those_of_the_ham(self) -> None:
        chn = chain()
        s = states(chn)
        deq = CHNDEQ(chn)
        reduced = deq.reduced(chn.to_ham_state({"input": s["input"]}))
        u = {name: chn.to_ham_state(s)[name] for name in reduced.visible}
        expected = chn.from_ham_state(reduced.update(u))
        found = chn.alternate(s)
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, rtol=1e-12, atol=1e-12)

    def test_inner_iterations_come_to_the_exact_minimum(self) -> None:
        chn = chain()
        s = states(chn)
        exact = chn.minimise(s, ["hidden1", "output"])
        ten = chn.minimise(s, ["hidden1", "output"], inner=InnerIterations())
        many = chn.minimise(s, ["hidden1", "output"], inner=InnerIterations(steps=200))
        assert torch.equal(exact["hidden2"], s["hidden2"])
        for name in ("hidden1", "output"):
            assert (ten[name] - exact[name]).norm() < 0.1 * (s[name] - exact[name]).norm()
            torch.testing.assert_close(many[name], exact[name], rtol=1e-9, atol=1e-9)

    def test_inner_iterations_end_at_the_equilibrium(self, digits: Any) -> None:
        chn, x = digits
        x = x[:10]
        expected = CHNDEQ(chn, solver=Broyden(tol=1e-12))({"input": x}).value
        s = chn.zero_state(x) | {"input": x}
        for _ in range(60):
            s = chn.alternate(s, inner=InnerIterations(steps=30, damping=0.2))
        for name in chn.layers:
            torch.testing.assert_close(s[name], expected[name], rtol=1e-6, atol=1e-6)

    def test_half_damped_inner_iterations_need_states_below_one(self) -> None:
        """At s = ρ′(s) I they multiply an error by ½(1 + s ρ″/ρ′), which is −1.02 at s = 1."""
        (rho,) = {chain().ham.layer("output").lagrangian}
        for target, settles in ((0.9, True), (1.1, False)):
            field = rho.to_ham(torch.tensor([target], dtype=torch.float64))  # type: ignore[union-attr, operator]
            bias = Bias(1)
            bias.bias = torch.nn.Parameter(field)
            chn = CHN({"a": Neurons(1, rho.rho)}, [(("a",), bias)])  # type: ignore[union-attr, arg-type]
            start = {"a": torch.tensor([[target + 1e-3]], dtype=torch.float64)}
            found = chn.minimise(start, ["a"], inner=InnerIterations(steps=200))["a"]
            assert (abs(found.item() - target) < 1e-6) == settles
            exact = chn.minimise(start, ["a"])["a"]
            assert exact.item() == pytest.approx(target, rel=1e-12)


class TestCHNDEQ:
    @pytest.mark.parametrize(("splitting", "damping"), [("even-odd", 1.0), (None, 0.2)])
    def test_plain_iteration_converges_on_a_trained_network(
        self, digits: Any, splitting: Any, damping: float
    ) -> None:
        chn, x = digits
        solver = Picard(damping=damping, tol=1e-9, max_steps=1000)
        deq = CHNDEQ(chn, splitting=splitting, solver=solver, on_failure="ignore")
        solution = deq({"input": x})
        settled = solution.converged
        assert settled.double().mean() > 0.95  # one sample has a nearly flat minimum
        after = chn.update(solution.value, clamped=["input"])
        for name in chn.layers:
            found, expected = after[name][settled], solution.value[name][settled]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    def test_other_gradient_methods(self) -> None:
        chn = chain()
        found = []
        for adjoint in (Implicit(), Unrolled(200), EquilibriumPropagation(beta=1e-3)):
            for splitting in ("even-odd", None):
                deq = CHNDEQ(chn, splitting=splitting, adjoint=adjoint)  # type: ignore[arg-type]
                deq.solver = Broyden(tol=1e-11, max_steps=500)
                loss = deq({"input": images()}).value["output"].square().sum()
                found.append(torch.autograd.grad(loss, chn.connections[0][1].weight)[0])  # type: ignore[arg-type]
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("solver", [Anderson, Broyden])
    def test_without_splitting_accelerated_solvers_go_downhill(self, solver: Any) -> None:
        deq = CHNDEQ(chain(gain=1.5), splitting=None)
        reduced = deq.reduced({"input": images()})
        assert isinstance(reduced, EnergyModel)
        x = {n: v for n, v in states(deq.chn, 4).items() if n != "input"}
        full = x | {"input": images()}
        torch.testing.assert_close(
            reduced.energy(x) + 0.5 * images().square().sum(1) - _constant(reduced),
            deq.energy(full),
        )
        energy = []
        for steps in (1, 24):
            deq.solver = solver(tol=1e-12, max_steps=steps)
            deq.failures.on_failure = "ignore"
            with torch.no_grad():
                energy.append(deq.energy(deq({"input": images()}, init=x).value))
        # The state returned is the one of least residual, accepted on the way down.
        assert (energy[-1] <= energy[0] + 1e-12).all()

    def test_conjugate_gradients_serve_without_splitting(self) -> None:
        """∂f/∂s = diag(ρ″ I) + ρ′ S ρ′ is symmetric."""
        deq = CHNDEQ(chain(), splitting=None)
        reduced = deq.reduced({"input": images(1)})
        x = {n: v for n, v in states(deq.chn, 1).items() if n != "input"}
        sizes = [v.numel() for v in x.values()]

        def f(flat: Tensor) -> Tensor:
            parts = dict(zip(x, (p[None] for p in flat.split(sizes)), strict=True))
            return torch.cat([v.flatten() for v in reduced.update(parts).values()])

        jacobian = torch.autograd.functional.jacobian(f, torch.cat([v[0] for v in x.values()]))
        torch.testing.assert_close(jacobian, jacobian.T)

    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_lost_samples(self, splitting: Any) -> None:
        deq = CHNDEQ(chain(), splitting=splitting, on_failure="ignore")
        clean = deq({"input": images()})
        x = images()
        x[1, 2], x[2, 0] = torch.nan, torch.inf
        x.requires_grad_()
        solution = deq({"input": x})
        assert solution.status.tolist() == [0, Status.INVALID, Status.INVALID, 0]
        for name, value in solution.value.items():
            assert value[1:3].isnan().all()
            torch.testing.assert_close(value[[0, 3]], clean.value[name][[0, 3]])
        solution.value["output"][[0, 3]].sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in deq.parameters() if p.grad is not None)

    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_a_warm_start(self, splitting: Any) -> None:
        deq = CHNDEQ(chain(), splitting=splitting)
        first = deq({"input": images()})
        again = deq({"input": images()}, init=first.value)
        assert first.steps.min() > 1
        assert again.steps.tolist() == [1] * 4
        assert torch.equal(first.value["input"], images())

    def test_inputs_far_out(self) -> None:
        """ς(100) overflows; a CHN's ρ(100) does not."""
        deq = CHNDEQ(CHN.chain([5, 4, 3]))
        x = torch.tensor([[100.0, -100.0, 1.0, 0.0, 30.0]])
        found = deq({"input": x}).value
        near = deq({"input": x.clamp(-20, 20)}).value
        assert torch.equal(found["input"], x)
        torch.testing.assert_close(found["output"], near["output"])

    def test_copies_share_within_themselves(self) -> None:
        deq = CHNDEQ(chain())
        for twin in (copy.deepcopy(deq), pickle.loads(pickle.dumps(deq))):
            assert twin.chn.to_ham() is twin.ham
            assert twin.ham is not deq.ham
            twin.load_state_dict(DEQ(deq.ham).state_dict())
            for name, x in deq({"input": images()}).value.items():
                assert torch.equal(twin({"input": images()}).value[name], x)


def triangle() -> CHN:
    neurons = {name: Neurons(4, Tanh()) for name in ("input", "a", "b", "c")}
    pairs = [("input", "a"), ("a", "b"), ("b", "c"), ("c", "a")]
    return CHN(neurons, [(pair, Dense(4, 4, gain=0.3)) for pair in pairs])


RHO = r"a Lagrangian whose activation is ρ, such as hamdeq\.Sigmoid\(4\.0, 0\.5\)"
ARGUMENTS: list[tuple[Callable[[], Any], Refusal]] = [
    (lambda: BengioFischer("tanh"), (TypeError, "rho", RHO, "got str")),  # type: ignore[arg-type]
    (lambda: BengioFischer(BengioFischer(Tanh())), (TypeError, "rho", RHO, "got BengioFischer")),
    (lambda: InnerIterations(steps=0), (ValueError, "steps", "an integer ≥ 1", "got 0")),
    *(
        (lambda h=h: InnerIterations(damping=h),
         (ValueError, "damping", "a finite number > 0 and ≤ 1", f"got {h}"))
        for h in (0, 2, math.nan)
    ),
    (lambda: InnerIterations(damping="1"),  # type: ignore[arg-type]
     (TypeError, "damping", "a finite number > 0 and ≤ 1", "got str")),
    (lambda: CHN({"a": 3}, []),  # type: ignore[dict-item]
     (TypeError, "layer 'a'", r"Neurons\(shape, lagrangian\)", "got int")),
    (lambda: CHNDEQ(HAM.chain([3, 2])),  # type: ignore[arg-type]
     (TypeError, "chn", "a CHN", "got HAM; use DEQ for a HAM")),
    (lambda: CHNDEQ(3), (TypeError, "chn", "a CHN", "got int$")),  # type: ignore[arg-type]
    (lambda: DEQ(chain()),  # type: ignore[arg-type]
     (TypeError, "ham", "a HAM", r"got CHN; use CHNDEQ, or DEQ\(chn")),
    (lambda: CHNDEQ(chain(), splitting=None)(
        {"input": images()}, observed={"output": torch.ones(3, dtype=torch.bool)}),
     (ValueError, "observed", "none with splitting=None",
      r"got \['output'\]; for layers clamped in part use splitting='even-odd'")),
    (lambda: CHNDEQ(chain())(images()), (TypeError, "clamped", "a dict", "")),  # type: ignore[arg-type]
    (lambda: CHNDEQ(chain())({"input": images(n=6)}),
     (ValueError, "layer 'input'", r"shape \(batch, 5\)", r"got \(4, 6\)")),
    (lambda: chain().energy({"input": images()}),
     (ValueError, "state", r"the layers \['input'", r"got \['input'\]")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "refusal"), ARGUMENTS)
def test_an_argument_is_refused(call: Callable[[], Any], refusal: Refusal) -> None:
    assert_refused(refusal, call)


def test_graphs_without_the_layers_asked_for_are_refused() -> None:
    chn = chain()
    with pytest.raises(ValueError, match="without a synapse among themselves"):
        chn.minimise(states(chn), ["hidden1", "hidden2"])
    with pytest.raises(ValueError, match="unknown layer 'hidden3'"):
        chn.update(states(chn), clamped=["hidden3"])
    with pytest.raises(ValueError, match="unknown layer 'images'"):
        CHNDEQ(chn, ["images"])
    with pytest.raises(ValueError, match="cycle of odd length"):
        CHNDEQ(triangle())
    assert CHNDEQ(triangle(), splitting=None)({"input": torch.rand(3, 4)}).converged.all()


def _constant(reduced: Any) -> Tensor:
    return sum(reduced.model.constant_terms().values())


@pytest.mark.slow
def test_trains_as_a_classifier() -> None:
    L = pytest.importorskip("lightning")
    from hamdeq.data import DigitsDataModule
    from hamdeq.training import HAMClassifier
    from hamdeq.training.callbacks import ConvergenceMonitor

    torch.manual_seed(0)
    for splitting in ("even-odd", None):
        module = HAMClassifier(
            CHNDEQ(CHN.chain([64, 16, 10], gain=[2.0, 0.3]), splitting=splitting)
        )
        trainer = L.Trainer(
            max_epochs=1,
            limit_train_batches=3,
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ConvergenceMonitor()],
            num_sanity_val_steps=0,
            limit_val_batches=1,
        )
        trainer.fit(module, DigitsDataModule(batch_size=64))
        assert trainer.callback_metrics["val/not_converged"] == 0
        assert trainer.callback_metrics["val/energy"].isfinite()
