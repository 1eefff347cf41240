"""fixed_point of plain maps: forms of the state, failures, gradients, and refusals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hamdeq import (
    HAM,
    Adjoint,
    Anderson,
    ConjugateGradient,
    ConvergenceError,
    ConvergenceWarning,
    EquilibriumPropagation,
    Implicit,
    Newton,
    Phantom,
    Picard,
    Solution,
    Solver,
    Status,
    Unrolled,
    clamp,
    eliminate,
    fixed_point,
)
from hamdeq.implicit import GMRES

EXACT = Anderson(tol=1e-13, max_steps=500)


def parameter(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def test_a_tensor_of_any_shape_keeps_it() -> None:
    for shape in [(3,), (3, 2), (3, 1, 2, 2)]:
        x0 = torch.zeros(shape, dtype=torch.float64)
        value = fixed_point(torch.cos, x0, solver=EXACT).value
        assert value.shape == shape
        assert not value.requires_grad  # nothing wants a gradient
        torch.testing.assert_close(value, torch.full_like(x0, 0.7390851332151607))


def test_a_tuple_and_a_dict_have_the_value_and_gradient_of_a_plain_iteration() -> None:
    w = parameter(0.5)
    a0, b0 = torch.zeros(3, 2).double(), torch.zeros(3, 2, 1).double()

    def f(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return (w * b[..., 0]).cos(), a[..., None].sin()

    def f_of_dict(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip("ab", f(x["a"], x["b"]), strict=True))

    as_tuple = fixed_point(lambda x: f(*x), (a0, b0), solver=EXACT).value
    as_dict = fixed_point(f_of_dict, {"a": a0, "b": b0}, solver=EXACT).value
    assert isinstance(as_tuple, tuple)
    assert list(as_dict) == ["a", "b"]
    assert [t.shape for t in as_tuple] == [a0.shape, b0.shape]
    a = a0
    for _ in range(200):
        a = (w * a.sin()).cos()
    torch.testing.assert_close(as_tuple[0], a, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(as_dict["b"][..., 0], a.sin(), rtol=1e-11, atol=0.0)
    expected = torch.autograd.grad(a.sum(), w)
    torch.testing.assert_close(torch.autograd.grad(as_tuple[0].sum(), w), expected)
    torch.testing.assert_close(torch.autograd.grad(as_dict["a"].sum(), w), expected)


def test_the_initial_state_is_not_changed_and_gets_no_gradient() -> None:
    x0 = torch.zeros(2, 1, requires_grad=True)
    solution = fixed_point(torch.cos, x0)
    assert x0.tolist() == [[0.0]] * 2
    assert not solution.value.requires_grad
    assert not solution.residual.requires_grad


def test_an_initial_state_that_is_not_finite_is_invalid() -> None:
    solution = fixed_point(torch.cos, torch.tensor([[0.0], [math.nan]]), on_failure="ignore")
    assert solution.status.tolist() == [Status.CONVERGED, Status.INVALID]


# -------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("solver", [Picard(tol=1e-10), Anderson(tol=1e-10), Newton(tol=1e-10)])
def test_a_plain_map_takes_the_forward_solver_for_its_gradient(solver: Solver) -> None:
    # Picard needs a contraction; what the others solve forward they solve backward.
    slope = -0.6 if isinstance(solver, Picard) else -3.0
    w, steps = parameter(slope), []
    for adjoint in (Implicit(), Implicit(solver=solver)):
        x0 = torch.zeros(1, 1, dtype=torch.float64)
        solution = fixed_point(lambda x: w * x + 1, x0, solver=solver, adjoint=adjoint)
        (found,) = torch.autograd.grad(solution.value.sum(), w)
        torch.testing.assert_close(found.item(), 1 / (1 - slope) ** 2, rtol=1e-8, atol=0.0)
        steps.append(int(solution.adjoint[0].steps))
    assert steps[0] == steps[1]


def cosine(w: Tensor, adjoint: Adjoint | None = None, n: int = 1) -> Solution:
    x0 = torch.zeros(1, n).double()
    return fixed_point(lambda x: torch.cos(w * x), x0, solver=EXACT, adjoint=adjoint)


@pytest.mark.parametrize(("adjoint", "share"), [(Unrolled(1), 1.0), (Phantom(1, 0.3), 0.3)])
def test_one_step_is_the_jacobian_free_gradient_and_damped_a_share_of_it(
    adjoint: Adjoint, share: float
) -> None:
    w = parameter(0.8)
    x0 = torch.zeros(1, 1).double()
    # Of a parameter that acts beside x the damped step takes nothing else.
    value = fixed_point(lambda x: 0.5 * x.cos() + w, x0, solver=EXACT, adjoint=adjoint).value
    assert torch.autograd.grad(value.sum(), w)[0].item() == pytest.approx(share)
    value = cosine(w, Unrolled(1)).value
    (expected,) = torch.autograd.grad(torch.cos(w * value.detach()).sum(), w)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), w)[0], expected)


def test_a_second_derivative_is_right_unrolled_and_refused_otherwise() -> None:
    w = parameter(0.8)
    # The second derivative misses nothing once the start's own dependence has died out.
    assert torch.autograd.gradcheck(lambda w: cosine(w, Unrolled(200), n=2).value, w)
    assert torch.autograd.gradgradcheck(lambda w: cosine(w, Unrolled(200), n=2).value, w)
    for derive in (
        lambda y: torch.autograd.grad(y, w, create_graph=True),
        lambda y: y.backward(create_graph=True),
    ):
        with pytest.raises(RuntimeError, match=r"second derivative.*adjoint=Unrolled\(steps\)"):
            derive(cosine(w).value.sum())


def test_a_gradient_that_does_not_converge_is_as_loud_as_a_solve_that_does_not() -> None:
    w = torch.tensor(3.0, requires_grad=True)
    # |f'| > 1 at the fixed point: Anderson finds it, Picard's linear system diverges.
    adjoint = Implicit(solver=Picard(max_steps=5, fallback_steps=0))
    x0, solver = torch.full((1, 1), 0.4), Anderson(tol=1e-5)

    def solve(on_failure: Any) -> Solution:
        solution = fixed_point(
            lambda z: 0.9 * torch.cos(w * z),
            x0,
            solver=solver,
            adjoint=adjoint,
            on_failure=on_failure,
        )
        assert solution.converged.all()
        return solution

    with pytest.warns(ConvergenceWarning, match="gradient not reached by 1 of 1"):
        solve("warn").value.sum().backward()
    with pytest.raises(ConvergenceError, match="gradient not reached by 1 of 1"):
        solve("raise").value.sum().backward()
    solution = solve("ignore")
    solution.value.sum().backward()
    assert not solution.adjoint[0].converged.any()


# --------------------------------------------------------------------------- failures


def cycle(on_failure: Any) -> Solution:
    """3 − x is a cycle of two for Picard."""
    x0 = torch.tensor([[1.0], [1.5], [0.0]])
    return fixed_point(lambda x: 3 - x, x0, solver=Picard(max_steps=5), on_failure=on_failure)


def test_on_failure_warns_at_the_callers_line_raises_or_is_silent() -> None:
    with pytest.warns(ConvergenceWarning, match=r"2 of 3 samples: .*Picard") as record:
        solution = cycle("warn")
    assert solution.converged.tolist() == [False, True, False]
    assert record[0].filename == __file__
    with pytest.raises(ConvergenceError, match=r"2 of 3 samples: .*max_steps"):
        cycle("raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cycle("ignore").converged.all()


# --------------------------------------------------------------------------- refusals


def reduced() -> Any:
    torch.manual_seed(0)
    return eliminate(clamp(HAM.chain([6, 5, 3]), {"input": torch.rand(4, 6)}), ["hidden1"])


class Half:
    def update(self, x: Any) -> Any:
        return x


ZEROS, PAIR = torch.zeros(3, 2), {"a": torch.zeros(3, 2), "b": torch.zeros(3, 1)}
CG, EP = Implicit(solver=ConjugateGradient()), EquilibriumPropagation()
# The call, and how its message begins or what it contains.
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    *(
        (lambda f=f: fixed_point(f, ZEROS), (ValueError, TypeError), "^f: expected")
        for f in (
            lambda x: x[:, :1],
            lambda x: x[..., None],
            lambda x: x.sum(1),
            lambda x: x[:1],
            lambda x: (x, x),
            lambda x: None,
        )
    ),
    *(
        (lambda f=f: fixed_point(f, PAIR), (ValueError, TypeError), "^f: expected")
        for f in (
            lambda x: {"a": x["a"]},
            lambda x: (x["a"], x["b"]),
            lambda x: x | {"c": x["a"]},
        )
    ),
    *(
        (lambda x0=x0: fixed_point(torch.cos, x0), TypeError, r"^x0: expected floating-point")
        for x0 in (
            torch.zeros(2, 2, dtype=torch.long),
            torch.tensor(1.0),
            [1.0, 2.0],
            {"a": torch.zeros(2, 1, dtype=torch.bool)},
        )
    ),
    *(
        (lambda x0=x0: fixed_point(lambda x: x, x0), (ValueError, TypeError), f"^x0: expected{m}")
        for x0, m in (
            ((), ""),
            ({}, ""),
            ((torch.zeros(2, 1), torch.zeros(3, 1)), ""),
            ((torch.zeros(2, 1), torch.zeros(2, 1).double()), ".*dtype"),
        )
    ),
    *(
        (lambda x0=x0: fixed_point(reduced(), x0), error, match)
        for x0, error, match in (
            (torch.zeros(4, 3), TypeError, r"^x0: expected a dict \{layer name: tensor\}"),
            ({"outpt": torch.zeros(4, 3)}, ValueError, "'outpt'"),
            ({"output": torch.zeros(4, 3), "input": torch.zeros(4, 6)}, ValueError, "'input'"),
            (
                {"output": torch.zeros(4, 3), "hidden1": torch.zeros(4, 5)},
                ValueError,
                r"expected the layers \['output'\]",
            ),
            ({"output": torch.zeros(4, 2)}, ValueError, r"expected shape \(batch, 3\)"),
            ({"output": torch.zeros(8, 3)}, ValueError, "expected a batch of 4"),
        )
    ),
    (
        lambda: fixed_point(Half(), {"a": torch.zeros(1, 1)}),  # type: ignore[arg-type]
        TypeError,
        r"^f: expected a map or an EnergyModel, got Half, which lacks \['activations'",
    ),
    (
        lambda: fixed_point(torch.cos, ZEROS, on_failure="explode"),  # type: ignore[arg-type]
        ValueError,
        "^on_failure: expected 'warn', 'raise' or 'ignore', got 'explode'",
    ),
    (
        lambda: fixed_point(torch.cos, ZEROS, adjoint=CG),
        TypeError,
        r"^ConjugateGradient: expected an energy model.*use Implicit\(solver=Broyden",
    ),
    (
        lambda: fixed_point(torch.cos, ZEROS, adjoint=EP),
        TypeError,
        r"^EquilibriumPropagation: expected an energy model.*use Implicit\(\)",
    ),
    (lambda: Unrolled(0), ValueError, "^steps: expected an integer ≥ 1, got 0"),
    (lambda: Unrolled(1.5), ValueError, "^steps: expected an integer ≥ 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: Phantom(0), ValueError, "^steps: expected"),
    (lambda: Phantom(1, damping=0.0), ValueError, "^damping: expected a finite number > 0 and ≤ 1"),
    (lambda: Phantom(1, damping=1.5), ValueError, "^damping: .*got 1.5"),
    (lambda: GMRES(restart=0), ValueError, "^restart: expected"),
    *(
        (lambda kind=kind: kind(solver="cg"), TypeError, "^solver: expected a Solver.*got str")
        for kind in (Implicit, EquilibriumPropagation)
    ),
    *(
        (
            lambda kind=kind, name=name, value=value: kind(**{name: value}),
            ValueError,
            rf"^{name}: expected .*, got {value}",
        )
        for kind, name, values in (
            (ConjugateGradient, "tol", (0.0, -1e-4, math.nan, math.inf)),
            (ConjugateGradient, "max_steps", (-1, 2.5)),
            (EquilibriumPropagation, "beta", (0.0, -1.0, math.nan, math.inf)),
        )
        for value in values
    ),
    (lambda: ConjugateGradient(tolerance=1e-3), TypeError, "tolerance"),  # type: ignore[call-arg]
]


@pytest.mark.parametrize(("call", "error", "match"), REFUSED)
def test_a_wrong_argument_is_refused(call: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        call()
