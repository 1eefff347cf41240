"""Gradients of equilibria: implicit = unrolled = finite differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hamdeq
from hamdeq import (
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Implicit,
    Phantom,
    Picard,
    Sigmoid,
    Unrolled,
    fixed_point,
)

# Far below the 1e-6 to which gradients are compared.
EXACT = Anderson(tol=1e-13, max_steps=500)
CHAINS = {3: [5, 7, 4], 4: [5, 7, 6, 4], 5: [5, 7, 6, 6, 4]}


def memory(layers: int, splitting: Any = "even-odd", adjoint: Adjoint | None = None) -> DEQ:
    torch.manual_seed(layers)
    ham = HAM.chain(CHAINS[layers], Sigmoid(4.0, 0.5, learnable=True)).double()
    for p in ham.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, std=0.3)
    # Not all of these weights' maps contract where one would have to unroll them.
    with torch.no_grad():
        for _, synapse in ham.connections:
            for p in synapse.parameters():
                p *= 0.6
    return DEQ(ham, splitting=splitting, solver=EXACT, adjoint=adjoint)


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(4, 5, generator=generator, dtype=torch.float64)


def loss(deq: DEQ, x: Tensor) -> Tensor:
    """A sum with different weights for all free numbers of the state."""
    value = deq({"input": x}).value
    flat = torch.cat([value[name] for name in deq.ham.layers if name != "input"], dim=1)
    weights = torch.linspace(-1, 2, flat.numel(), dtype=flat.dtype).reshape(flat.shape)
    return (weights * flat.sin()).sum()


def variables(deq: DEQ, x: Tensor) -> dict[str, Tensor]:
    return {**dict(deq.named_parameters()), "input": x}


def gradients(deq: DEQ) -> dict[str, Tensor]:
    x = inputs().requires_grad_()
    of = variables(deq, x)
    return dict(zip(of, torch.autograd.grad(loss(deq, x), list(of.values())), strict=True))


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the size of b."""
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("layers", CHAINS)
@pytest.mark.parametrize("splitting", ["even-odd", None])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
class TestExact:
    def test_finite_differences(self, layers: int, splitting: str, training: bool) -> None:
        deq = memory(layers, splitting).train(training)
        gradient = gradients(deq)
        assert sum(name.endswith(("log_beta", "input")) for name in gradient) == 2
        x = inputs()
        h = 1e-5
        for name, p in variables(deq, x).items():
            direction = torch.randn_like(p)
            with torch.no_grad():
                p += h * direction
                up = loss(deq, x)
                p -= 2 * h * direction
                down = loss(deq, x)
                p += h * direction
            expected = (up - down) / (2 * h)
            found = (gradient[name] * direction).sum()
            # A slope near zero is known to the rounding of the two losses, about 1e-15/h.
            assert abs(found - expected) <= 1e-6 * max(abs(expected), 1e-3), name

    def test_unrolled(self, layers: int, splitting: str, training: bool) -> None:
        exact = gradients(memory(layers, splitting).train(training))
        unrolled = gradients(memory(layers, splitting, Unrolled(400)).train(training))
        for name, g in exact.items():
            assert difference(unrolled[name], g) < 1e-8, name


@pytest.mark.parametrize(
    "solver",
    [
        Picard(tol=1e-12, max_steps=2000),
        Picard(tol=1e-12, max_steps=2000, damping=0.5),
        Broyden(tol=1e-12, max_steps=500),
        Anderson(tol=1e-12, max_steps=500, history=2),
    ],
    ids=str,
)
def test_backward_solver_is_free(solver: hamdeq.Solver) -> None:
    exact, other = gradients(memory(4)), gradients(memory(4, adjoint=Implicit(solver=solver)))
    for name, g in exact.items():
        assert difference(other[name], g) < 1e-9, name


def test_backward_tolerance_is_the_order_of_the_error() -> None:
    exact = gradients(memory(4))
    rough = gradients(memory(4, adjoint=Implicit(solver=Picard(tol=1e-3))))
    errors = [difference(rough[name], g) for name, g in exact.items()]
    assert 1e-9 < max(errors) < 1e-2


def test_phantom_tends_to_implicit() -> None:
    exact = gradients(memory(3))
    errors = []
    for steps in (1, 5, 20, 200):
        g = gradients(memory(3, adjoint=Phantom(steps, damping=0.5)))
        errors.append(max(difference(g[name], exact[name]) for name in exact))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-8


def test_unrolled_once_is_jacobian_free() -> None:
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return torch.cos(w * x)

    solution = fixed_point(f, torch.zeros(1, 1).double(), solver=EXACT, adjoint=Unrolled(1))
    (found,) = torch.autograd.grad(solution.value.sum(), w)
    x = solution.value.detach()
    (expected,) = torch.autograd.grad(f(x).sum(), w)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "adjoint", [Implicit(), Unrolled(3), Phantom(3)], ids=["implicit", "unrolled", "phantom"]
)
def test_the_graph_changes_no_bit(adjoint: Adjoint) -> None:
    deq = memory(4, adjoint=adjoint)
    with_graph = deq({"input": inputs()}).value["output"]
    with torch.no_grad():
        without = deq({"input": inputs()}).value["output"]
    assert with_graph.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_graph.detach(), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-100, 60])
def test_size_of_the_upstream_gradient_does_not_matter(power: int, dtype: torch.dtype) -> None:
    """About 1e-30 and 1e18: a mean over many samples, or a scaled loss."""
    deq = DEQ(memory(4).ham, solver=Anderson(tol=1e-5)).to(dtype)
    g = []
    for scale in (1.0, 2.0**power):
        x = inputs().to(dtype).requires_grad_()
        solution = deq({"input": x})
        (solution.value["output"].sum() * scale).backward()
        g.append(x.grad / scale)
        assert solution.adjoint[0].converged.all()
    torch.testing.assert_close(g[1], g[0], rtol=1e-6, atol=0.0)


def test_zero_upstream_gradient() -> None:
    deq = memory(3)
    x = inputs().requires_grad_()
    solution = deq({"input": x})
    solution.value["output"][1].sum().backward()
    assert x.grad is not None
    assert x.grad[[0, 2, 3]].abs().max() == 0
    assert x.grad[1].abs().min() > 0
    assert solution.adjoint[0].steps.tolist()[0] == 1


class TestSecondDerivative:
    def f(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cos(w * x)

    @pytest.mark.parametrize("through", ["grad", "backward"])
    def test_implicit_refuses(self, through: str) -> None:
        w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        value = fixed_point(self.f(w), torch.zeros(1, 1).double(), solver=EXACT).value
        derive = {
            "grad": lambda: torch.autograd.grad(value.sum(), w, create_graph=True),
            "backward": lambda: value.sum().backward(create_graph=True),
        }
        with pytest.raises(RuntimeError, match=r"second derivative.*adjoint=Unrolled\(steps\)"):
            derive[through]()

    def test_unrolled_is_right(self) -> None:
        def value(w: Tensor) -> Tensor:
            return fixed_point(
                self.f(w), torch.zeros(1, 2).double(), solver=EXACT, adjoint=Unrolled(200)
            ).value

        # Started at the equilibrium, the steps' graph holds the first derivative at all of them;
        # the second misses nothing once the start's own dependence has died out.
        w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(value, w)
        assert torch.autograd.gradgradcheck(value, w)


def test_backward_twice() -> None:
    deq = memory(4)
    x = inputs().requires_grad_()
    solution = deq({"input": x})
    total = solution.value["output"].sum()
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    (second,) = torch.autograd.grad(total, x)
    assert torch.equal(first, second)
    assert len(solution.adjoint) == 2
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, x)


def saved(adjoint: Adjoint, tol: float) -> tuple[int, int]:
    """Numbers saved for the backward pass, and evaluations of the map."""
    deq = memory(4, adjoint=adjoint)
    deq.solver = Picard(tol=tol, max_steps=1000)
    count = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal count
        count += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        solution = deq({"input": inputs()})
    return count, solution.n_evals


def test_memory_does_not_grow_with_steps() -> None:
    few, many = saved(Implicit(), 1e-2), saved(Implicit(), 1e-12)
    assert many[1] > 2 * few[1]
    assert many[0] == few[0]
    one, five, nine = (saved(Unrolled(k), 1e-2)[0] for k in (1, 5, 9))
    assert nine - five == five - one > 0
    assert few[0] <= one * 1.5


def test_adjoint_statistics() -> None:
    deq = memory(4)
    solution = deq({"input": inputs()})
    assert solution.adjoint == []
    loss_value = solution.value["output"].sin().sum()
    loss_value.backward(retain_graph=True)
    (record,) = solution.adjoint
    assert record.value is None
    assert record.converged.all()
    assert record.steps.shape == record.residual.shape == (4,)
    assert (record.residual < EXACT.tol).all()
    assert record.n_evals == int(record.steps.max()) > 1


class TestBackwardFailure:
    """A backward solve that does not converge is a wrong gradient: as loud as the forward one."""

    def solve(self, **options: Any) -> hamdeq.Solution:
        w = torch.tensor(3.0, requires_grad=True)
        adjoint = Implicit(solver=Picard(max_steps=5, fallback_steps=0))
        # |f'| > 1 at the fixed point: Anderson finds it, Picard's linear system diverges.
        solution = fixed_point(
            lambda z: 0.9 * torch.cos(w * z),
            torch.full((1, 1), 0.4),
            solver=Anderson(tol=1e-5),
            adjoint=adjoint,
            **options,
        )
        assert solution.converged.all()
        return solution

    def test_warns(self) -> None:
        solution = self.solve()
        with pytest.warns(ConvergenceWarning, match="1 of 1"):
            solution.value.sum().backward()

    def test_raises(self) -> None:
        solution = self.solve(on_failure="raise")
        with pytest.raises(ConvergenceError, match="1 of 1"):
            solution.value.sum().backward()

    def test_is_in_the_statistics(self) -> None:
        solution = self.solve(on_failure="ignore")
        solution.value.sum().backward()
        assert not solution.adjoint[0].converged.any()


def test_nothing_to_differentiate() -> None:
    """Without a parameter or input that wants one, there is no graph to keep."""
    solution = fixed_point(torch.cos, torch.zeros(2, 1), solver=Anderson(tol=1e-6))
    assert not solution.value.requires_grad


class TestForms:
    def test_tensor_of_any_shape(self) -> None:
        for shape in [(3,), (3, 2), (3, 2, 4), (3, 1, 2, 2)]:
            x0 = torch.zeros(shape, dtype=torch.float64)
            value = fixed_point(torch.cos, x0, solver=EXACT).value
            assert value.shape == shape
            torch.testing.assert_close(value, torch.full_like(x0, 0.7390851332151607))

    def test_tuple_and_dict(self) -> None:
        w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        a0, b0 = torch.zeros(3, 2).double(), torch.zeros(3, 2, 1).double()

        def f(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return (w * b[..., 0]).cos(), a[..., None].sin()

        as_tuple = fixed_point(lambda x: f(*x), (a0, b0), solver=EXACT).value
        as_dict = fixed_point(
            lambda x: dict(zip("ab", f(x["a"], x["b"]), strict=True)),
            {"a": a0, "b": b0},
            solver=EXACT,
        ).value
        assert isinstance(as_tuple, tuple)
        assert list(as_dict) == ["a", "b"]
        assert [t.shape for t in as_tuple] == [a0.shape, b0.shape]
        a = torch.zeros(3, 2).double()
        for _ in range(200):
            a = (w * a.sin()).cos()
        torch.testing.assert_close(as_tuple[0], a, rtol=1e-11, atol=0.0)
        torch.testing.assert_close(as_dict["b"][..., 0], a.sin(), rtol=1e-11, atol=0.0)
        expected = torch.autograd.grad(a.sum(), w)
        torch.testing.assert_close(torch.autograd.grad(as_tuple[0].sum(), w), expected)
        torch.testing.assert_close(torch.autograd.grad(as_dict["a"].sum(), w), expected)

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x[:, :1],
            lambda x: x[..., None],
            lambda x: x.sum(1),
            lambda x: x[:1],
            lambda x: (x, x),
            lambda x: None,
        ],
        ids=["narrower", "deeper", "summed", "fewer samples", "tuple", "none"],
    )
    def test_map_that_changes_the_form(self, f: Callable[[Tensor], Any]) -> None:
        with pytest.raises((ValueError, TypeError), match=r"^f: expected"):
            fixed_point(f, torch.zeros(3, 2))

    @pytest.mark.parametrize(
        "f",
        [lambda x: {"a": x["a"]}, lambda x: (x["a"], x["b"]), lambda x: x | {"c": x["a"]}],
        ids=["key missing", "tuple", "key too many"],
    )
    def test_map_that_changes_the_keys(self, f: Callable[[Any], Any]) -> None:
        with pytest.raises((ValueError, TypeError), match=r"^f: expected"):
            fixed_point(f, {"a": torch.zeros(3, 2), "b": torch.zeros(3, 1)})

    @pytest.mark.parametrize(
        "x0",
        [
            torch.zeros(2, 2, dtype=torch.long),
            torch.tensor(1.0),
            [1.0, 2.0],
            {"a": torch.zeros(2, 1, dtype=torch.bool)},
        ],
        ids=["integers", "no batch", "numbers", "bools"],
    )
    def test_states_that_are_none(self, x0: Any) -> None:
        with pytest.raises(TypeError, match=r"x0: expected floating-point tensors \(batch"):
            fixed_point(torch.cos, x0)

    @pytest.mark.parametrize(
        "x0",
        [(), {}, (torch.zeros(2, 1), torch.zeros(3, 1))],
        ids=["no tensor", "no layer", "unequal batches"],
    )
    def test_states_that_do_not_fit(self, x0: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=r"^x0: expected"):
            fixed_point(lambda x: x, x0)

    def test_mixed_dtypes(self) -> None:
        with pytest.raises((ValueError, TypeError), match=r"^x0: expected .*dtype"):
            fixed_point(lambda x: x, (torch.zeros(2, 1), torch.zeros(2, 1).double()))

    def test_initial_state_is_not_changed(self) -> None:
        x0 = torch.zeros(2, 1, requires_grad=True)
        solution = fixed_point(torch.cos, x0)
        assert x0.tolist() == [[0.0]] * 2
        assert x0.requires_grad
        assert not solution.residual.requires_grad


class TestFailure:
    f = staticmethod(lambda x: 3 - x)  # a cycle of two for Picard

    def solve(self, on_failure: Any) -> hamdeq.Solution:
        x0 = torch.tensor([[1.0], [1.5], [0.0]])
        return fixed_point(self.f, x0, solver=Picard(max_steps=5), on_failure=on_failure)

    def test_warn(self) -> None:
        with pytest.warns(ConvergenceWarning, match=r"2 of 3 samples: .*Picard") as record:
            solution = self.solve("warn")
        assert solution.converged.tolist() == [False, True, False]
        # It points to the caller.
        assert record[0].filename == __file__

    def test_raise(self) -> None:
        with pytest.raises(ConvergenceError, match=r"2 of 3 samples: .*max_steps"):
            self.solve("raise")

    def test_ignore(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not self.solve("ignore").converged.all()

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match="on_failure: expected 'warn', 'raise' or 'ignore'"):
            self.solve("explode")

    def test_unknown_is_refused_even_when_all_converge(self) -> None:
        with pytest.raises(ValueError, match="on_failure"):
            fixed_point(torch.cos, torch.zeros(1, 1), on_failure="explode")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Unrolled(0), "steps: expected an integer ≥ 1, got 0"),
        (lambda: Unrolled(1.5), "steps"),  # type: ignore[arg-type]
        (lambda: Phantom(0), "steps"),
        (lambda: Phantom(1, damping=0.0), "damping"),
        (lambda: Phantom(1, damping=1.5), "damping"),
    ],
)
def test_bad_adjoints(make: Callable[[], Adjoint], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


class TestEnergyModels:
    """What ``fixed_point`` refuses of an energy model's state."""

    @staticmethod
    def energy() -> hamdeq.Reduced:
        torch.manual_seed(0)
        held = {"input": torch.rand(4, 6)}
        return hamdeq.eliminate(hamdeq.clamp(HAM.chain([6, 5, 3]), held), ["hidden1"])

    @pytest.mark.parametrize(
        ("x0", "error", "match"),
        [
            (torch.zeros(4, 3), TypeError, r"expected a dict \{layer name: tensor\}"),
            ({"outpt": torch.zeros(4, 3)}, ValueError, "unknown layer 'outpt'"),
            (
                {"output": torch.zeros(4, 3), "input": torch.zeros(4, 6)},
                ValueError,
                "unknown layer 'input'",
            ),
            (
                {"output": torch.zeros(4, 3), "hidden1": torch.zeros(4, 5)},
                ValueError,
                r"expected the layers \['output'\]",
            ),
            ({"output": torch.zeros(4, 2)}, ValueError, r"expected shape \(batch, 3\)"),
            ({"output": torch.zeros(8, 3)}, ValueError, "expected a batch of 4"),
        ],
    )
    def test_states(self, x0: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            fixed_point(self.energy(), x0)

    def test_what_is_no_map(self) -> None:
        class Half:
            def update(self, x: Any) -> Any:
                return x

        with pytest.raises(TypeError, match=r"Half, which lacks \['activations'"):
            fixed_point(Half(), {"a": torch.zeros(1, 1)})  # type: ignore[arg-type]

    def test_an_invalid_initial_state_is_called_so(self) -> None:
        x0 = torch.tensor([[0.0], [float("nan")]])
        solution = fixed_point(torch.cos, x0, on_failure="ignore")
        assert solution.status.tolist() == [hamdeq.Status.CONVERGED, hamdeq.Status.INVALID]
