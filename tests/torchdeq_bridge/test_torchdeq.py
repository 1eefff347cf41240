"""torchdeq: its traps, shown on its own solvers and engine, and what the bridge makes of them."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusals import Refusal, assert_refused
from torch import Tensor, nn

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    Broyden,
    ConvergenceWarning,
    Implicit,
    Newton,
    Picard,
    Status,
    fixed_point,
)
from hamdeq.torchdeq_bridge import HamdeqCore, TorchDEQSolver, register

with warnings.catch_warnings():
    # Invalid escapes in its docstrings, of which Python warns when it compiles them.
    warnings.simplefilter("ignore")
    import torchdeq
    from torchdeq.solver import get_solver

STOCK = ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter")
OURS = ("hamdeq_picard", "hamdeq_anderson", "hamdeq_broyden", "hamdeq_newton")
REL = {"f_stop_mode": "rel", "b_stop_mode": "rel"}
TIGHT = {"f_tol": 1e-11, "b_tol": 1e-11, "f_max_iter": 300, "b_max_iter": 300}
Map = Callable[[Tensor], Tensor]


def problem(batch: int = 5, n: int = 6) -> tuple[Tensor, Tensor, Map]:
    """A contraction z = tanh(zA) + b that is differentiable in A."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    a = (0.9 * a / torch.linalg.matrix_norm(a, 2)).requires_grad_()
    b = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    return a, torch.zeros_like(b), lambda z: torch.tanh(z @ a) + b


def unrolled(f: Map, z: Tensor, steps: int = 400) -> Tensor:
    for _ in range(steps):
        z = f(z)
    return z


def slope(z: Tensor, w: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(z.sin().sum(), w, **options)[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


STOP_MODE = (
    ValueError,
    "stop_mode",
    "'rel', as hamdeq stops on the relative residual",
    "got 'abs'; use f_stop_mode='rel', b_stop_mode='rel'",
)
CORE = r"get_deq\(core='hamdeq'\)"


def unknown(where: str, name: str, near: str | None = None) -> Refusal:
    rest = f"got '{name}'" + (f"; did you mean '{near}'" if near else "")
    return ValueError, where, "options among", rest


class TestRegisteredSolvers:
    @pytest.mark.parametrize("core", ["sliced", "indexing"])
    @pytest.mark.parametrize("b_solver", OURS[:-1])
    @pytest.mark.parametrize("f_solver", OURS)
    def test_by_name_in_the_stock_engine(self, core: str, f_solver: str, b_solver: str) -> None:
        a, z0, f = problem()
        engine = torchdeq.get_deq(
            core=core, f_solver=f_solver, b_solver=b_solver, ift=True, **REL, **TIGHT
        )
        log: list[Any] = []
        (z,), info = engine(f, z0, backward_writer=log.append)
        expected = unrolled(f, z0)
        torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
        assert relative(slope(z, a), slope(expected, a)) < 1e-9
        assert (info["status"] == Status.CONVERGED).all()
        assert (log[0]["rel_lowest"] < 1e-11).all()

    def test_newton_cannot_differentiate_the_stock_engines_backward_map(self) -> None:
        _, z0, f = problem()
        newton = {"f_solver": "hamdeq_newton", "b_solver": "hamdeq_newton"}
        z = torchdeq.get_deq(ift=True, **newton, **REL)(f, z0)[0][-1]
        with pytest.raises(TypeError, match=r"autograd can differentiate.*Broyden"):
            z.sum().backward()

    @pytest.mark.parametrize("name", OURS)
    @pytest.mark.parametrize("max_iter", [1, 2, 4, 200])
    def test_statistics_are_true(self, name: str, max_iter: int) -> None:
        _, z0, f = problem()
        with torch.no_grad():
            z, _, info = get_solver(name)(f, z0, max_iter, 1e-8)
            r, size = (f(z) - z).norm(dim=1), f(z).norm(dim=1)
        torch.testing.assert_close(info["abs_lowest"], r, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(info["rel_lowest"], r / size, rtol=1e-12, atol=0.0)
        assert info["abs_trace"].shape == info["rel_trace"].shape
        assert info["rel_trace"].shape[1] <= max_iter
        for i, step in enumerate(info["nstep"].int().tolist()):
            assert info["rel_trace"][i, step - 1] == info["rel_lowest"][i]
            assert info["abs_trace"][i, step - 1] == info["abs_lowest"][i]
        reached = info["rel_lowest"] < 1e-8
        assert reached.all() == (max_iter == 200)
        assert (info["status"] == torch.where(reached, Status.CONVERGED, Status.MAX_STEPS)).all()
        assert info["nstep"].mean() > 0  # as its users write it: a float

    @pytest.mark.parametrize("name", OURS)
    def test_agrees_with_hamdeq(self, name: str) -> None:
        _, z0, f = problem()
        solver = {"p": Picard, "a": Anderson, "b": Broyden, "n": Newton}[name[7]](
            tol=1e-6, max_steps=90
        )
        expected = solver.solve(f, z0)
        with torch.no_grad():
            z, _, info = get_solver(name)(f, x0=z0, max_iter=90, tol=1e-6, stop_mode="rel")
        assert torch.equal(z, expected.value)
        assert info["nstep"].int().tolist() == expected.steps.tolist()

    @pytest.mark.parametrize("name", OURS)
    @pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (2, 1, 3, 2), ()])
    def test_shapes(self, name: str, shape: tuple[int, ...]) -> None:
        seen = set()

        def f(z: Tensor) -> Tensor:
            seen.add(z.shape)
            return z.cos()

        z0 = torch.zeros(shape, dtype=torch.float64)
        z, _, info = get_solver(name)(f, z0, tol=1e-10)
        assert z.shape == shape
        assert seen == {shape}
        assert info["nstep"].shape == (shape[0] if shape else 1,)
        torch.testing.assert_close(z, torch.full_like(z0, 0.7390851332151607))

    @pytest.mark.parametrize("name", OURS)
    def test_one_state_for_each_index(self, name: str) -> None:
        _, z0, f = problem()
        states = {}
        for last in (1, 2, 5, 60):
            states[last] = get_solver(name)(f, z0, last, 1e-8)[0]
        _, found, _ = get_solver(name)(f, z0, 60, 1e-8, indexing=[1, 2, 5, 60])
        assert len(found) == 4
        for state, expected in zip(found, states.values(), strict=True):
            assert torch.equal(state, expected)

    @pytest.mark.parametrize("name", OURS)
    def test_refusals(self, name: str) -> None:
        solver = get_solver(name)
        z0 = torch.zeros(2, 1)
        own = {"hamdeq_picard": "damping", "hamdeq_newton": "growth"}.get(name, "history")
        kind = name.removeprefix("hamdeq_").title()
        for refusal, call in (
            (STOP_MODE, lambda: solver(torch.cos, z0, 10, 1e-3, "abs")),
            # Stopping on the absolute residual is torchdeq's default.
            (STOP_MODE, lambda: torchdeq.get_deq(f_solver=name)(torch.cos, z0)),
            (unknown(kind, f"{own}s", own), lambda: solver(torch.cos, z0, **{f"{own}s": 3})),
            (unknown(kind, "tau"), lambda: solver(torch.cos, z0, tau=0.5)),
        ):
            assert_refused(refusal, call)

    def test_options_for_a_call(self) -> None:
        _, z0, f = problem()
        for history in (1, 4):
            z, _, _ = get_solver("hamdeq_anderson")(f, z0, 50, 1e-6, history=history)
            expected = Anderson(history=history, tol=1e-6, max_steps=50).solve(f, z0)
            assert torch.equal(z, expected.value)


class TestRegister:
    def test_configured_solver(self) -> None:
        register("my own", Picard(damping=0.25))
        a, z0, f = problem()
        engine = torchdeq.get_deq(ift=True, f_solver="my own", b_solver="my own", **REL, **TIGHT)
        log: list[Any] = []
        (z,), info = engine(f, z0, backward_writer=log.append)
        expected = Picard(damping=0.25, tol=1e-11, max_steps=300).solve(f, z0)
        assert info["nstep"].int().tolist() == expected.steps.tolist()
        assert relative(slope(z, a), slope(unrolled(f, z0), a)) < 1e-8
        # Damped: many more steps than without.
        assert (log[0]["nstep"] > 60).all()

    @pytest.mark.parametrize(
        ("name", "solver", "refusal"),
        [
            ("anderson", Anderson(), (ValueError, "name", "another than torchdeq's own", "")),
            ("mine", torch.cos, (TypeError, "solver", "a Solver such as Anderson", "got builtin")),
            ("mine", Picard, (TypeError, "solver", "a Solver such as", "got the class Picard")),
            *(
                ("mine", solver, (ValueError, "solver", "the default tol and max_steps", "f_tol"))
                for solver in (Anderson(tol=1e-9), Anderson(max_steps=7))
            ),
        ],
    )
    def test_refusals(self, name: str, solver: Any, refusal: Refusal) -> None:
        assert_refused(refusal, lambda: register(name, solver))


class TestStockSolversHere:
    """TorchDEQSolver."""

    @pytest.mark.parametrize("name", STOCK)
    def test_finds_the_fixed_point(self, name: str) -> None:
        _, z0, f = problem()
        with torch.no_grad():
            result = TorchDEQSolver(name=name, tol=1e-8, max_steps=300).solve(f, z0)
            expected = unrolled(f, z0)
            fx = f(result.value)
        assert result.converged.all()
        torch.testing.assert_close(result.value, expected, rtol=1e-6, atol=1e-6)
        residual = (fx - result.value).norm(dim=1) / fx.norm(dim=1)
        assert torch.equal(result.residual, residual)
        assert result.trace.shape == (result.n_evals, 5)
        assert (result.steps == result.n_evals).all()

    @pytest.mark.parametrize("name", STOCK)
    def test_in_a_memory(self, name: str) -> None:
        torch.manual_seed(0)
        ham = HAM.chain([5, 7, 6, 4]).double()
        with torch.no_grad():
            for p in ham.parameters():
                p *= 0.6
        x = torch.rand(4, 5, dtype=torch.float64)
        outputs = []
        # Not tighter, for the sake of torchdeq's Anderson: its regularisation is absolute.
        for solver in (TorchDEQSolver(name=name, tol=1e-6, max_steps=500), Anderson(tol=1e-12)):
            given = x.clone().requires_grad_()
            output = DEQ(ham, solver=solver)({"input": given}).value["output"]
            output.sum().backward()
            outputs.append((output, given.grad))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)

    def test_residual_is_measured_at_the_returned_state(self) -> None:
        """Trap: the residual that torchdeq reports is that of the state before."""
        _, z0, f = problem()
        with torch.no_grad():
            z, _, info = get_solver("fixed_point_iter")(f, z0, 5, 1e-8, "rel")
            true = (f(z) - z).norm(dim=1) / f(z).norm(dim=1)
            assert (info["rel_lowest"] > 1.2 * true).all()
            result = TorchDEQSolver(name="fixed_point_iter", tol=1e-8, max_steps=5).solve(f, z0)
        assert torch.equal(result.value, z)
        assert torch.equal(result.residual, true)

    def drifting(self, x: Tensor) -> Tensor:
        """Solvable samples but for the third, the residuals of which are all the same."""
        return torch.where(torch.arange(len(x))[:, None] == 2, x + 1e4, x.cos())

    def test_singular_systems(self) -> None:
        """Trap: parallel residuals raise, and one sample ends the whole batch."""
        x0 = torch.zeros(7, 3)
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            get_solver("anderson")(self.drifting, x0, 50, 1e-5, "rel")
        good = [0, 1, 3, 4, 5, 6]
        stock = TorchDEQSolver(name="anderson", tol=1e-5).solve(self.drifting, x0)
        for result in (stock, Anderson(tol=1e-5).solve(self.drifting, x0)):
            assert result.converged[good].all()
            torch.testing.assert_close(
                result.value[good], torch.full((6, 3), 0.7390851), rtol=1e-4, atol=0.0
            )
            assert not result.converged[2]
        assert stock.status[2] == Status.DIVERGED
        assert stock.value[2].tolist() == [0.0] * 3

    def broken(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 2, torch.nan, x.cos())

    @pytest.mark.parametrize("name", STOCK)
    def test_samples_that_are_no_numbers(self, name: str) -> None:
        """Trap: a NaN keeps the whole batch running, and its sample loses its state."""
        x0, good = torch.full((4, 3), 0.5), [0, 1, 3]
        calls = [0, 0]

        def count(which: int, f: Map) -> Map:
            def counting(x: Tensor, tau: float = 1.0) -> Tensor:
                calls[which] += 1
                return f(x)

            return counting

        z, _, _ = get_solver(name)(
            count(0, self.broken), x0, max_iter=60, tol=1e-5, stop_mode="rel"
        )
        assert z[2].isnan().all()
        solver = TorchDEQSolver(name=name, tol=1e-5, max_steps=60)
        result = solver.solve(count(1, self.broken), x0)
        assert result.status.tolist() == [0, 0, Status.DIVERGED, 0]
        assert torch.equal(result.value[2], x0[2])
        assert (result.value[good] - 0.7390851).abs().max() < 1e-4
        assert calls[0] >= 60
        assert name == "simple_fixed_point_iter" or calls[1] < 40
        # The others are as they would be without it.
        alone = solver.solve(torch.cos, x0[good])
        assert torch.equal(result.value[good], alone.value)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_initial_states_that_are_no_numbers(self, bad: float) -> None:
        x0 = torch.zeros(3, 2)
        x0[1] = bad
        result = TorchDEQSolver(tol=1e-5).solve(torch.cos, x0)
        assert result.status.tolist() == [0, Status.DIVERGED, 0]
        assert result.value[1].tolist() == pytest.approx([bad] * 2, nan_ok=True)
        assert result.residual[1].isinf()

    def test_too_few_steps_of_anderson(self) -> None:
        """Trap: with two steps or fewer torchdeq's Anderson returns the initial state."""
        x0 = torch.full((2, 3), 0.25)
        for steps in (1, 2):
            assert torch.equal(get_solver("anderson")(torch.cos, x0, max_iter=steps)[0], x0)
            refusal = (ValueError, "max_steps", "≥ 3", f"got {steps}; or use hamdeq.Anderson")
            assert_refused(refusal, lambda n=steps: TorchDEQSolver(max_steps=n))
        assert not torch.equal(Anderson(max_steps=2).solve(torch.cos, x0).value, x0)
        assert not torch.equal(TorchDEQSolver(max_steps=3).solve(torch.cos, x0).value, x0)

    def test_limited_memory_of_broyden(self) -> None:
        """Trap: LBFGS_thres loses samples to NaN."""
        torch.manual_seed(0)
        a = torch.randn(2, 2)
        a *= 0.9 / torch.linalg.matrix_norm(a, 2)
        b = torch.randn(8, 2)

        def f(x: Tensor) -> Tensor:
            return torch.tanh(x @ a) + b

        x0 = torch.zeros(8, 2)
        stock, _, _ = get_solver("broyden")(f, x0, 50, 1e-6, "rel", LBFGS_thres=1)
        assert stock.isnan().any()
        options = {"LBFGS_thres": 1}
        result = TorchDEQSolver(name="broyden", options=options, tol=1e-6, max_steps=50).solve(
            f, x0
        )
        assert result.value.isfinite().all()
        assert Broyden(history=1, tol=1e-6).solve(f, x0).converged.all()

    def test_empty_batch(self) -> None:
        for name in STOCK:
            result = TorchDEQSolver(name=name).solve(torch.cos, torch.zeros(0, 3))
            assert result.value.shape == (0, 3)
            assert result.steps.shape == (0,)

    def test_options(self) -> None:
        _, z0, f = problem()
        for lam in (1e-4, 1e-10):
            solver = TorchDEQSolver(name="anderson", options={"m": 4, "lam": lam}, tol=1e-8)
            z = get_solver("anderson")(f, z0, 100, 1e-8, "rel", m=4, lam=lam)[0]
            assert torch.equal(solver.solve(f, z0).value, z)

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            ({"options": {"lamb": 1e-8}}, unknown("options of 'anderson'", "lamb", "lam")),
            ({"options": {"stop_mode": "abs"}}, unknown("options of 'anderson'", "stop_mode")),
            (
                {"name": "andersen"},
                (ValueError, "solver", "one of", "got 'andersen'; did you mean 'anderson'"),
            ),
            ({"tol": 0.0}, (ValueError, "tol", "a finite number > 0", "got 0.0")),
        ],
    )
    def test_refusals(self, arguments: dict[str, Any], refusal: Refusal) -> None:
        assert_refused(refusal, lambda: TorchDEQSolver(**arguments))

    def test_any_option_is_swallowed(self) -> None:
        """Trap: torchdeq itself takes any option in silence."""
        get_solver("anderson")(torch.cos, torch.zeros(1, 1), lamb=1e-8)

    def test_is_a_value(self) -> None:
        options = {"m": 4}
        solver = TorchDEQSolver(options=options, tol=1e-6)
        options["m"] = 5
        assert solver.options == {"m": 4}
        assert pickle.loads(pickle.dumps(solver)) == solver
        assert solver != dataclasses.replace(solver, options={})
        assert hash(solver) == hash(copy.deepcopy(solver))
        assert "name='anderson', options={'m': 4}" in repr(solver)
        with pytest.raises(TypeError, match="call solve"):
            solver.start(torch.cos, torch.zeros(1, 1))

    def test_as_the_backward_solver(self) -> None:
        a, z0, f = problem()
        for name in STOCK[:3]:
            adjoint = Implicit(solver=TorchDEQSolver(name=name, tol=1e-9, max_steps=300))
            z = fixed_point(f, z0, solver=Anderson(tol=1e-12), adjoint=adjoint).value
            assert relative(slope(z, a), slope(unrolled(f, z0), a)) < 1e-7


class TestTraps:
    """The stock engine's traps, and core="hamdeq" in the same place."""

    def test_unknown_keys(self) -> None:
        stock = torchdeq.get_deq(stop_mode="rel", tol=1e-9, f_tolerance=1e-9)
        assert (stock.f_stop_mode, stock.f_tol) == ("abs", 1e-3)
        for key, near in (("stop_mode", "f_stop_mode"), ("max_iter", "f_max_iter")):
            refusal = unknown(CORE, key, near)
            assert_refused(refusal, lambda key=key: torchdeq.get_deq(core="hamdeq", **{key: 1}))

    def test_defaults_stop_on_the_absolute_residual(self) -> None:
        """Small states are called converged before a step is made."""

        def f(z: Tensor) -> Tensor:
            return 0.9 * z + 1e-5

        z0, expected = torch.zeros(1, 1).double(), 1e-4
        (stock,), _ = torchdeq.get_deq()(f, z0)
        assert stock.item() < 0.5 * expected
        (ours,), info = torchdeq.get_deq(core="hamdeq", f_tol=1e-6)(f, z0)
        assert ours.item() == pytest.approx(expected, rel=1e-4)
        assert info["rel_lowest"].item() < 1e-6

    def test_default_gradient_is_a_single_step(self) -> None:
        a, z0, f = problem()
        exact = slope(unrolled(f, z0), a)
        (stock,), _ = torchdeq.get_deq(f_tol=1e-10, f_max_iter=200)(f, z0)
        assert relative(slope(stock, a), exact) > 0.1
        (ours,), _ = torchdeq.get_deq(core="hamdeq", f_tol=1e-10)(f, z0)
        assert relative(slope(ours, a), exact) < 1e-8

    def test_evaluation_mode_has_no_gradient(self) -> None:
        a, z0, f = problem()
        (stock,), _ = torchdeq.get_deq(ift=True).eval()(f, z0)
        assert not stock.requires_grad
        engine = torchdeq.get_deq(core="hamdeq", f_tol=1e-10)
        found = []
        for training in (True, False):
            (z,), _ = engine.train(training)(f, z0)
            found.append(slope(z, a))
        assert relative(found[0], slope(unrolled(f, z0), a)) < 1e-8
        assert torch.equal(found[0], found[1])
        with torch.no_grad():
            assert not engine(f, z0)[0][0].requires_grad

    def test_small_upstream_gradients(self) -> None:
        """The absolute b_tol takes a small gradient for a converged one."""
        a, z0, f = problem()
        exact = slope(unrolled(f, z0), a)
        for core, b_solver in (("sliced", "fixed_point_iter"), ("hamdeq", "hamdeq_anderson")):
            engine = torchdeq.get_deq(
                core=core, ift=True, f_solver=b_solver, b_solver=b_solver, f_max_iter=300,
                f_tol=1e-9, b_tol=1e-8,
            )  # fmt: skip
            (z,), _ = engine(f, z0)
            error = relative(torch.autograd.grad((1e-10 * z).sin().sum(), a)[0] * 1e10,
                             torch.autograd.grad(unrolled(f, z0).sum(), a)[0])  # fmt: skip
            assert error > 0.1 if core == "sliced" else error < 1e-6
        assert exact.norm() > 0.1

    def test_second_derivative(self) -> None:
        w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        z0 = torch.zeros(1, 1, dtype=torch.float64)

        def f(z: Tensor) -> Tensor:
            return torch.cos(w * z)

        def second(z: Tensor) -> Tensor:
            (first,) = torch.autograd.grad(z.sum(), w, create_graph=True)
            return torch.autograd.grad(first, w)[0]

        exact = second(unrolled(f, z0))
        stock = torchdeq.get_deq(ift=True, f_tol=1e-12, b_tol=1e-12, f_max_iter=300, b_max_iter=300)
        assert relative(second(stock(f, z0)[0][0]), exact) > 0.5
        (ours,), _ = torchdeq.get_deq(core="hamdeq", f_tol=1e-12)(f, z0)
        with pytest.raises(RuntimeError, match="second derivative"):
            second(ours)

    def test_second_backward_through_the_hook(self) -> None:
        """hook_ift removes its hook in the first pass: a second one has another gradient."""
        a, z0, f = problem()

        def twice(**options: Any) -> tuple[Tensor, Tensor]:
            (z,), _ = torchdeq.get_deq(**options, **TIGHT)(f, z0)
            return slope(z, a, retain_graph=True), slope(z, a)

        first, second = twice(hook_ift=True)
        assert relative(second, first) > 0.1
        first, second = twice(core="hamdeq")
        assert torch.equal(second, first)
        refusal = (ValueError, "hook_ift", "False", "got True")
        assert_refused(refusal, lambda: twice(core="hamdeq", hook_ift=True))

    def test_early_stop_drops_the_implicit_gradient(self) -> None:
        """The indexing core pairs states with gradients, and its solvers return too few."""
        a, z0, f = problem()
        exact = slope(unrolled(f, z0), a)
        found = {}
        for solver in ("fixed_point_iter", "hamdeq_picard"):
            engine = torchdeq.get_deq(
                core="indexing", n_states=3, ift=True, f_solver=solver, b_solver=solver,
                f_tol=1e-9, b_tol=1e-9, f_max_iter=600, b_max_iter=300, **REL,
            )  # fmt: skip
            found[solver] = engine(f, z0)[0]
        assert len(found["fixed_point_iter"]) < 3
        assert relative(slope(found["fixed_point_iter"][-1], a), exact) > 0.1
        assert len(found["hamdeq_picard"]) == 3
        assert relative(slope(found["hamdeq_picard"][-1], a), exact) < 1e-7

    @pytest.mark.parametrize("name", ["anderson", "broyden", "fixed_point_iter"])
    def test_stops_on_the_worst_sample(self, name: str) -> None:
        """The same sample comes out differently beside a slow one."""
        rate = torch.tensor([[0.3], [0.99]], dtype=torch.float64)
        x0 = torch.zeros(2, 3, dtype=torch.float64)
        ours = "hamdeq_picard" if name == "fixed_point_iter" else f"hamdeq_{name}"
        # Nonlinear, so that no solver is exact after a few steps.
        both = lambda z: rate * torch.sin(z) + 1  # noqa: E731
        alone = lambda z: rate[:1] * torch.sin(z) + 1  # noqa: E731
        for solver, differs in ((name, True), (ours, False)):
            z, _, _ = get_solver(solver)(both, x0, 40, 1e-3, "rel")
            z1, _, _ = get_solver(solver)(alone, x0[:1], 40, 1e-3, "rel")
            assert torch.equal(z[:1], z1) is not differs

    def test_absolute_regularisation_of_anderson(self) -> None:
        """λ = 1e-4 is added to squared residuals: with small ones, acceleration is averaging."""
        torch.manual_seed(0)
        basis = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64))[0]
        a = basis @ torch.diag(torch.linspace(-0.95, 0.95, 10, dtype=torch.float64)) @ basis.T
        b = torch.randn(4, 10, dtype=torch.float64)
        calls = {}
        for name in ("anderson", "hamdeq_anderson"):

            def f(z: Tensor, name: str = name) -> Tensor:
                calls[name] = calls.get(name, 0) + 1
                return z @ a + b

            _, _, info = get_solver(name)(f, torch.zeros_like(b), 1000, 1e-8, "rel")
            assert (info["rel_lowest"] < 1e-8).all()
        assert calls["anderson"] > 5 * calls["hamdeq_anderson"]

    def test_never_warns(self) -> None:
        def f(z: Tensor) -> Tensor:
            return 3 - z

        z0 = torch.ones(2, 1)
        torchdeq.get_deq(f_max_iter=5)(f, z0)  # the suite turns warnings into errors
        with pytest.warns(ConvergenceWarning, match="2 of 2 samples"):
            torchdeq.get_deq(core="hamdeq", f_solver="hamdeq_picard", f_max_iter=5)(f, z0)
        quiet = torchdeq.get_deq(
            core="hamdeq", f_solver="hamdeq_picard", f_max_iter=5, on_failure="ignore"
        )
        assert quiet(f, z0)[1]["status"].tolist() == [Status.MAX_STEPS] * 2

    def test_configuration_is_changed(self) -> None:
        config: dict[str, Any] = {"f_tol": 1e-5}
        torchdeq.get_deq(config, f_max_iter=7)
        assert config == {"f_tol": 1e-5, "f_max_iter": 7}
        # That is get_deq's own doing, whatever the core; the core itself leaves it alone.
        config = {"f_tol": 1e-5}
        engine = HamdeqCore(config, f_max_iter=7)
        assert config == {"f_tol": 1e-5}
        assert (engine.f_solver.tol, engine.f_solver.max_steps) == (1e-5, 7)
        torchdeq.get_deq(config | {"core": "hamdeq"})
        config["f_tol"] = 1.0
        assert engine.f_solver.tol == 1e-5

    def test_pickle_and_copy(self) -> None:
        with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
            pickle.dumps(torchdeq.get_deq(ift=True))
        a, z0, f = problem()
        engine = torchdeq.get_deq(core="hamdeq", f_solver="hamdeq_broyden", b_solver="anderson")
        (z,), _ = engine(f, z0)
        for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
            (again,), _ = other(f, z0)
            assert torch.equal(again, z)
            assert torch.equal(slope(again, a), slope(engine(f, z0)[0][0], a))

    def test_spectral_radius_of_two_colours(self) -> None:
        """Eigenvalues ±0.6: the power method's quotient depends on where it starts."""
        jacobian = torch.tensor([[0.0, 0.9], [0.4, 0.0]], dtype=torch.float64)

        def f(z: Tensor) -> Tensor:
            return z @ jacobian + 1

        z0 = torch.zeros(3, 2, dtype=torch.float64)
        torch.manual_seed(0)
        stock = torchdeq.get_deq(f_max_iter=80).eval()
        wrong = stock(f, z0, sradius_mode=True)[1]["sradius"]
        assert (wrong - 0.6).abs().max() > 0.05
        ours = torchdeq.get_deq(core="hamdeq").eval()
        right = ours(f, z0, sradius_mode=True)[1]["sradius"]
        torch.testing.assert_close(right, torch.full_like(right, 0.6))
        # Of two tensors, the same.
        (z,), info = ours(
            lambda a, b: (0.4 * b + 1, 0.9 * a + 1), [z0[:, :1], z0[:, 1:]], sradius_mode=True
        )
        torch.testing.assert_close(info["sradius"], right)
        assert [t.shape for t in z] == [(3, 1), (3, 1)]

    def test_options_of_the_forward_solver(self) -> None:
        _, z0, f = problem()
        stock = torchdeq.get_deq()
        with pytest.raises(TypeError, match="multiple values"):
            stock(f, z0, solver_kwargs={"tol": 1e-8})
        stock(f, z0, solver_kwargs={"lamb": 3})  # swallowed
        ours = torchdeq.get_deq(core="hamdeq")
        _, info = ours(f, z0, solver_kwargs={"tol": 1e-9, "history": 2, "f_max_iter": 77})
        expected = Anderson(tol=1e-9, history=2, max_steps=77).solve(f, z0)
        assert info["nstep"].int().tolist() == expected.steps.tolist()
        refusal = unknown("Anderson", "lamb")
        assert_refused(refusal, lambda: ours(f, z0, solver_kwargs={"lamb": 3}))
        stock_solver = torchdeq.get_deq(core="hamdeq", f_solver="anderson")
        _, info = stock_solver(f, z0, solver_kwargs={"lam": 1e-9})
        assert (info["status"] == Status.CONVERGED).all()
        refusal = unknown("options of 'anderson'", "lamb", "lam")
        assert_refused(refusal, lambda: stock_solver(f, z0, solver_kwargs={"lamb": 3}))

    @pytest.mark.subprocess
    def test_import_in_a_strict_interpreter(self, tmp_path: Any) -> None:
        """torchdeq's docstrings warn when compiled for the first time; importing us does not."""

        # torch comes first, compiled already and with its own affairs.
        code = f"""
import sys, torch, warnings
before = {{*sys.modules}}
warnings.simplefilter("error")
for module in ("torchdeq", "hamdeq.torchdeq_bridge"):
    sys.pycache_prefix = {str(tmp_path)!r} + "/" + module
    try:
        __import__(module)
    except SyntaxError:
        print(module)
    for name in {{*sys.modules}} - before:
        del sys.modules[name]
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("torchdeq\n", "")


class TestCore:
    @pytest.mark.parametrize("f_solver", [*OURS, *STOCK[:3], Anderson(history=3)], ids=str)
    def test_gradient(self, f_solver: Any) -> None:
        a, z0, f = problem()
        engine = torchdeq.get_deq(core="hamdeq", f_solver=f_solver, **TIGHT)
        log: list[Any] = []
        (z,), info = engine(f, z0, backward_writer=log.append)
        expected = unrolled(f, z0)
        torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
        assert log == []
        assert relative(slope(z, a), slope(expected, a)) < 1e-9
        (record,) = log
        assert (record["rel_lowest"] < 1e-11).all()
        assert (record["nstep"] > 1).all()
        assert (info["status"] == Status.CONVERGED).all()

    @pytest.mark.parametrize("given", [{"ift": False}, {"grad": 1}, {"tau": 1.0}, {"grad": [1]}])
    def test_phantom_gradient(self, given: dict[str, Any]) -> None:
        a, z0, f = problem()
        engine = torchdeq.get_deq(core="hamdeq", f_tol=1e-12, **given)
        stock = torchdeq.get_deq(f_tol=1e-12, f_max_iter=400)
        torch.testing.assert_close(
            slope(engine(f, z0)[0][0], a), slope(stock(f, z0)[0][0], a), rtol=1e-9, atol=1e-9
        )
        damped = torchdeq.get_deq(core="hamdeq", f_tol=1e-12, grad=4, tau=0.5)
        stock = torchdeq.get_deq(f_tol=1e-12, f_max_iter=400, grad=4, tau=0.5)
        torch.testing.assert_close(
            slope(damped(f, z0)[0][0], a), slope(stock(f, z0)[0][0], a), rtol=1e-9, atol=1e-9
        )

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_several_tensors(self, kind: Any) -> None:
        """As in torchdeq: func(*z), and a list of them back."""
        w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        a0, b0 = torch.zeros(3, 2).double(), torch.zeros(3, 1, 2).double()

        def f(a: Tensor, b: Tensor) -> Any:
            return kind([(w * b[:, 0]).cos(), a[:, None].sin()])

        engine = torchdeq.get_deq(core="hamdeq", **TIGHT)
        stock = torchdeq.get_deq(ift=True, **TIGHT)
        results = [e(f, [a0, b0])[0][0] for e in (engine, stock)]
        for ours, theirs in zip(*results, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert isinstance(results[0], list)
        grads = [torch.autograd.grad(sum(t.sum() for t in z), w)[0] for z in results]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=0.0)
        with pytest.raises(ValueError, match="f: expected it to keep the shapes"):
            engine(lambda a, b: (a,), [a0, b0])

    def test_as_a_layer(self) -> None:
        """In a module, trained, saved and loaded."""

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.deq = torchdeq.get_deq(core="hamdeq", f_tol=1e-6)
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.deq(lambda z: torch.tanh(self.linear(z)) + x, torch.zeros_like(x))[0][
                    -1
                ]

        torch.manual_seed(0)
        layer = Layer()
        with torch.no_grad():
            layer.linear.weight *= 0.5
        x = torch.randn(8, 4)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
        losses = []
        for _ in range(10):
            loss = (layer(x) - x.sin()).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]
        other = Layer()
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other.eval()(x), layer.eval()(x))
        assert set(layer.state_dict()) == {"linear.weight", "linear.bias"}

    def test_steps_in_evaluation(self) -> None:
        def f(z: Tensor) -> Tensor:
            return 0.99 * z + 1

        z0 = torch.zeros(1, 1)
        for options, steps in (
            ({}, 8),
            ({"eval_f_max_iter": 20}, 20),
            ({"eval_factor": 2.0}, 16),
        ):
            engine = HamdeqCore(
                f_solver="hamdeq_picard", f_max_iter=8, on_failure="ignore", **options
            )
            assert engine(f, z0)[1]["nstep"].item() == 8
            assert engine.eval()(f, z0)[1]["nstep"].item() == steps

    def test_backward_solver(self) -> None:
        engine = HamdeqCore(f_solver=Broyden(history=4), f_tol=1e-5)
        assert engine.b_solver == engine.f_solver == Broyden(history=4, tol=1e-5)
        engine = HamdeqCore(b_solver="anderson", b_tol=1e-7, b_max_iter=50)
        assert engine.b_solver == TorchDEQSolver(name="anderson", tol=1e-7, max_steps=50)
        assert engine.f_solver == Anderson()

    def test_torchdeqs_own_arguments(self) -> None:
        """A program's arguments, made by torchdeq's parser, are all taken."""
        parser = argparse.ArgumentParser()
        torchdeq.add_deq_args(parser)
        strict = ["--f_stop_mode", "rel", "--b_stop_mode", "rel", "--core", "hamdeq", "--ift"]
        args = parser.parse_args([*strict, "--norm_type", "spectral_norm"])
        engine = torchdeq.get_deq(args)
        assert isinstance(engine, HamdeqCore)
        assert engine.b_solver.tol == 1e-6
        plain = parser.parse_args(["--core", "hamdeq"])
        assert_refused(STOP_MODE, lambda: torchdeq.get_deq(plain))

    @pytest.mark.parametrize(
        ("config", "refusal"),
        [
            ({"f_stop_mode": "abs"}, STOP_MODE),
            ({"b_stop_mode": "abs"}, STOP_MODE),
            *(
                ({key: value}, (ValueError, key, f"{neutral}, as core='hamdeq'", "use core='sli"))
                for key, value, neutral in (
                    ("n_states", 2, "1"),
                    ("indexing", [3], r"\[\]"),
                    ("sup_gap", 2, "-1"),
                    ("sup_loc", [1], r"\[\]"),
                )
            ),
            ({"f_tol": 0.0}, (ValueError, "tol", "a finite number > 0", "")),
            ({"f_max_iter": -1}, (ValueError, "max_steps", "", "got -1")),
            ({"grad": 0}, (ValueError, "steps", "", "got 0")),
            ({"grad": [1, 2]}, (ValueError, "steps", "", r"got \[1, 2\]")),
            ({"tau": 2.0}, (ValueError, "damping", "", "got 2.0")),
            ({"lr": 0.1}, unknown(CORE, "lr")),
            ({"f_solver": "mine?"}, (ValueError, "solver", "one of", r"got 'mine\?'")),
            (
                {"f_solver": "hamdeq_andersen"},
                (ValueError, "solver", "one of", "did you mean 'hamdeq_anderson'"),
            ),
            (
                {"b_solver": Anderson},
                (TypeError, "b_solver", "a Solver or the name of one", "got the class Anderson"),
            ),
        ],
    )
    def test_refusals(self, config: dict[str, Any], refusal: Refusal) -> None:
        assert_refused(refusal, lambda: HamdeqCore(config))

    def test_unknown_arguments_of_a_call(self) -> None:
        with pytest.raises(TypeError, match="solver_kwarg"):
            HamdeqCore()(torch.cos, torch.zeros(1, 1), solver_kwarg={})
