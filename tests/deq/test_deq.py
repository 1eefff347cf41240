"""DEQ: one equilibrium by every way, honest failure, and a well-behaved module."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hamdeq import (
    CHN,
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Bias,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Dense,
    Exp,
    Identity,
    Implicit,
    Neurons,
    Newton,
    Phantom,
    Picard,
    ReLU,
    Sigmoid,
    Solution,
    State,
    Status,
    Synapse,
    Tanh,
    Unrolled,
    clamp,
    contract_,
    contraction,
    eliminate,
    two_colouring,
)
from hamdeq.elimination.colouring import colouring

TOL = 1e-8


def chain(*sizes: int, gain: float = 0.6, seed: int = 0) -> HAM:
    """A contractive chain in float64."""
    torch.manual_seed(seed)
    ham = HAM.chain(sizes or (5, 7, 6, 4)).double()
    with torch.no_grad():
        for p in ham.parameters():
            p.copy_(gain * p if p.dim() == 2 else 0.3 * torch.randn_like(p))
    return ham


def images(batch: int = 4, n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, n, generator=generator, dtype=torch.float64)


def triangle() -> HAM:
    """Three free layers in a cycle, the first of them driven by the input."""
    torch.manual_seed(0)
    neurons = {name: Neurons(4, Sigmoid(4.0, 0.5)) for name in ("input", "a", "b", "c")}
    pairs = [("input", "a"), ("a", "b"), ("b", "c"), ("c", "a")]
    ham = HAM(neurons, [(pair, Dense(4, 4)) for pair in pairs]).double()
    with torch.no_grad():
        for p in ham.parameters():
            p *= 0.4
    return ham


@pytest.fixture(scope="module")
def digits() -> tuple[HAM, Tensor]:
    """A memory trained for a few steps on handwritten digits, in float64, and some digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    x = torch.as_tensor(pixels / 16, dtype=torch.float32)
    y = nn.functional.one_hot(torch.as_tensor(labels)).float()
    torch.manual_seed(0)
    deq = DEQ(HAM.chain([64, 32, 16, 10]), on_failure="ignore")
    optimiser = torch.optim.Adam(deq.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        rows = torch.arange(64) + 40 * step
        loss = (deq({"input": x[rows]}).value["output"] - y[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    return deq.ham.double(), x[:100].double()


class TestOneEquilibrium:
    @pytest.mark.parametrize("solver", [Picard, Anderson, Broyden])
    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_all_variants(self, digits: tuple[HAM, Tensor], solver: Any, splitting: Any) -> None:
        ham, x = digits
        reference = DEQ(ham, solver=Picard(tol=1e-13, max_steps=5000))({"input": x}).value
        deq = DEQ(ham, splitting=splitting, solver=solver(tol=TOL, max_steps=2000))
        solution = deq({"input": x})
        assert solution.converged.all()
        for name in ham.layers:
            error = (solution.value[name] - reference[name]).norm(dim=1)
            # tol, times what a slow contraction leaves of it.
            assert (error <= 1e-5 * reference[name].norm(dim=1)).all(), name

    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_value_is_an_equilibrium_of_the_ham(self, splitting: Any) -> None:
        ham = chain()
        value = DEQ(ham, splitting=splitting, solver=Anderson(tol=1e-12))({"input": images()}).value
        assert tuple(value) == ham.layers
        after = ham.update(value, clamped=["input"])
        for name in ham.layers:
            torch.testing.assert_close(after[name], value[name], rtol=1e-10, atol=1e-10)

    def test_even_odd_steps_never_raise_the_energy(self) -> None:
        deq = DEQ(chain(gain=3.0), solver=Picard(tol=TOL))
        reduced = deq.reduced({"input": images(50)})
        x = {name: torch.randn(50, *deq.ham.layer(name).shape).double() for name in reduced.visible}
        energy = [reduced.energy(x)]
        for _ in range(30):
            x = reduced.update(x)
            energy.append(reduced.energy(x))
        change = torch.stack(energy).diff(dim=0)
        assert (change < 1e-12).all()
        assert (change < -1e-3).any()

    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_init_does_not_matter(self, splitting: Any) -> None:
        deq = DEQ(chain(), splitting=splitting, solver=Anderson(tol=1e-12))
        plain = deq({"input": images()})
        free = {"hidden1": 7, "hidden2": 6, "output": 4}
        init = {name: 3 * torch.randn(4, n).double() for name, n in free.items()}
        for given in (init, {"output": init["output"]}, {"hidden2": init["hidden2"]}):
            other = deq({"input": images()}, init=given)
            for name in free:
                torch.testing.assert_close(
                    other.value[name], plain.value[name], rtol=1e-10, atol=1e-10
                )

    def test_init_is_used(self) -> None:
        deq = DEQ(chain(), solver=Picard(tol=1e-10, max_steps=500))
        first = deq({"input": images()})
        again = deq({"input": images()}, init={k: first.value[k] for k in deq.ham.layers[1:]})
        assert (first.steps > 3).all()
        assert (again.steps == 1).all()

    def test_splitting_keeps_the_narrow_layers(self) -> None:
        deq = DEQ(HAM.chain([784, 512, 10]))
        assert deq.hidden == ("hidden1",)
        assert deq.reduced({"input": torch.zeros(2, 784)}).visible == ("output",)

    def test_two_layers_have_nothing_to_solve(self) -> None:
        ham = chain(5, 4)
        x = images().requires_grad_()
        solution = DEQ(ham)({"input": x})
        dense, bias = (synapse for _, synapse in ham.connections)
        expected = torch.sigmoid(4 * x - 2) @ dense.weight + bias.bias  # type: ignore[operator]
        torch.testing.assert_close(solution.value["output"], expected)
        torch.testing.assert_close(
            torch.autograd.grad(solution.value["output"].sum(), x),
            torch.autograd.grad(expected.sum(), x),
        )
        assert solution.converged.all()
        assert solution.steps.tolist() == [0] * 4
        assert solution.n_evals == 0
        assert solution.residual.dtype == torch.float64
        # Without splitting the same, by way of the solver.
        plain = DEQ(ham, splitting=None)({"input": x}).value["output"]
        torch.testing.assert_close(plain, expected)

    def test_several_clamped_layers(self) -> None:
        ham = chain()
        free = DEQ(ham, solver=Anderson(tol=1e-12))({"input": images()}).value
        # With the equilibrium's own output held, the others stay as they are.
        deq = DEQ(ham, ("input", "output"), solver=Anderson(tol=1e-12))
        held = deq({"input": images(), "output": free["output"]}).value
        for name in ham.layers:
            torch.testing.assert_close(held[name], free[name], rtol=1e-10, atol=1e-10)
        other = deq({"input": images(), "output": free["output"] + 1}).value
        assert (other["hidden2"] - free["hidden2"]).abs().max() > 1e-3
        assert torch.equal(other["output"], free["output"] + 1)

    def test_a_lone_name_of_a_clamped_layer(self) -> None:
        assert DEQ(chain(), "input").clamped == ("input",)

    def test_odd_cycle(self) -> None:
        with pytest.raises(
            ValueError, match=r"b – a – c – b form a cycle of odd .*splitting='sweep'"
        ):
            DEQ(triangle())
        deq = DEQ(triangle(), splitting=None, solver=Anderson(tol=1e-12))
        solution = deq({"input": images(3, 4)})
        assert solution.converged.all()
        after = deq.ham.update(solution.value, clamped=["input"])
        torch.testing.assert_close(after["c"], solution.value["c"], rtol=1e-10, atol=1e-10)
        # Clamping one of its layers opens the cycle.
        opened = DEQ(triangle(), ("input", "c"), solver=Anderson(tol=1e-12))
        value = opened({"input": images(3, 4), "c": solution.value["c"]}).value
        torch.testing.assert_close(value["a"], solution.value["a"], rtol=1e-9, atol=1e-9)

    def test_samples_do_not_depend_on_their_batch(self) -> None:
        deq = DEQ(chain(), solver=Anderson(tol=1e-6))
        all_of_them = deq({"input": images(8)})
        for rows in ([3], [7, 0], [5, 4, 3, 2, 1, 0]):
            some = deq({"input": images(8)[rows]})
            assert some.steps.tolist() == all_of_them.steps[rows].tolist()
            for name, x in some.value.items():
                torch.testing.assert_close(x, all_of_them.value[name][rows], rtol=1e-12, atol=1e-12)

    def test_energy_is_the_hams(self) -> None:
        deq = DEQ(chain())
        value = deq({"input": images()}).value
        assert torch.equal(deq.energy(value), deq.ham.energy(value))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
class TestInvalidSamples:
    def spoil(self, x: Tensor, bad: float) -> Tensor:
        x = x.clone()
        x[1, 2] = bad
        return x

    def deq(self) -> DEQ:
        return DEQ(chain(), solver=Anderson(tol=1e-6), on_failure="ignore")

    def test_are_marked_and_harm_no_other(self, bad: float) -> None:
        deq = self.deq()
        clean = deq({"input": images()})
        solution = deq({"input": self.spoil(images(), bad)})
        assert solution.status.tolist() == [0, Status.INVALID, 0, 0]
        assert solution.converged.tolist() == [True, False, True, True]
        assert solution.residual[1].isnan()
        rows = [0, 2, 3]
        without = deq({"input": images()[rows]})
        for name, x in solution.value.items():
            assert x[1].isnan().all()
            torch.testing.assert_close(x[rows], clean.value[name][rows], rtol=1e-12, atol=1e-12)
            # A matrix product of another height may round otherwise.
            torch.testing.assert_close(x[rows], without.value[name], rtol=1e-13, atol=1e-13)
        assert torch.equal(solution.steps[rows], clean.steps[rows])

    def test_have_no_gradient(self, bad: float) -> None:
        rows = [0, 2, 3]
        found = self.deq()
        x = self.spoil(images(), bad).requires_grad_()
        value = found({"input": x}).value["output"]
        upstream = torch.ones_like(value)
        upstream[1] = torch.nan
        value.backward(upstream)
        expected = self.deq()
        y = images()[rows].requires_grad_()
        expected({"input": y}).value["output"].sum().backward()
        assert x.grad is not None
        assert x.grad[1].tolist() == [0.0] * 5
        torch.testing.assert_close(x.grad[rows], y.grad, rtol=1e-12, atol=1e-12)
        for p, q in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)

    def test_in_the_initial_state(self, bad: float) -> None:
        deq = self.deq()
        state = deq({"input": images()}).value
        for name, x in state.items():
            x = x.detach().clone()
            x[2] = bad
            found = deq({"input": images()}, init={name: x}).status.tolist()
            # Of a clamped or an eliminated layer the initial state has no effect.
            visible = name not in (*deq.clamped, *deq.hidden)
            assert found == [0, 0, Status.INVALID if visible else 0, 0]

    def test_are_reported(self, bad: float) -> None:
        with pytest.warns(ConvergenceWarning, match=r"1 of 4 samples: .*torch.isfinite"):
            DEQ(chain())({"input": self.spoil(images(), bad)})
        with pytest.raises(ConvergenceError, match="1 of 4"):
            DEQ(chain(), on_failure="raise")({"input": self.spoil(images(), bad)})

    def test_all_of_them(self, bad: float) -> None:
        x = torch.full((2, 5), bad).double().requires_grad_()
        solution = self.deq()({"input": x})
        assert (solution.status == Status.INVALID).all()
        solution.value["output"].sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[0.0] * 5] * 2


class TestFailure:
    def deq(self, **options: Any) -> DEQ:
        return DEQ(chain(), solver=Picard(tol=1e-12, max_steps=3, fallback_steps=0), **options)

    def test_warns_once_per_module(self) -> None:
        deq = self.deq()
        with pytest.warns(
            ConvergenceWarning, match=r"4 of 4 samples: .*splitting='even-odd'"
        ) as log:
            deq({"input": images()})
        assert len(log) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not deq({"input": images()}).converged.any()
        with pytest.warns(ConvergenceWarning):
            self.deq()({"input": images()})

    def test_does_not_warn_of_success(self) -> None:
        deq = self.deq()
        deq.solver = Picard(tol=1e-6, max_steps=500)
        assert deq({"input": images()}).converged.all()
        deq.solver = Picard(tol=1e-12, max_steps=3, fallback_steps=0)
        with pytest.warns(ConvergenceWarning):
            deq({"input": images()})

    def test_raises_every_time(self) -> None:
        deq = self.deq(on_failure="raise")
        for _ in range(2):
            with pytest.raises(ConvergenceError, match="max_steps"):
                deq({"input": images()})

    def test_diverging(self) -> None:
        torch.manual_seed(0)
        neurons = {name: Neurons(3, ReLU()) for name in ("input", "a", "b")}
        ham = HAM(neurons, [(("input", "a"), Dense(3, 3)), (("a", "b"), Dense(3, 3))])
        with torch.no_grad():
            for _, synapse in ham.connections:
                synapse.weight.copy_(10 * torch.eye(3))  # type: ignore[union-attr, operator]
        deq = DEQ(ham, solver=Picard(), on_failure="ignore")
        solution = deq({"input": torch.ones(2, 3)})
        assert (solution.status == Status.DIVERGED).all()
        assert all(x.isfinite().all() for x in solution.value.values())


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "error", "match"),
        [
            ({}, ValueError, r"expected the layers \['input'\], got \[\]"),
            ({"inputs": images()}, ValueError, "unknown layer 'inputs': this HAM has"),
            ({"input": images(), "output": images(n=4)}, ValueError, "expected the layers"),
            ({"input": images(n=6)}, ValueError, r"expected shape \(batch, 5\), got \(4, 6\)"),
            ({"input": images()[0]}, ValueError, r"expected shape \(batch, 5\), got \(5,\)"),
            ({"input": torch.tensor(1.0)}, ValueError, r"got \(\)"),
            ({"input": torch.ones(4, 5, dtype=torch.uint8)}, TypeError, r"images.float\(\) / 255"),
            ({"input": torch.ones(4, 5, dtype=torch.long)}, TypeError, "got torch.int64"),
            ({"input": images().tolist()}, TypeError, "got list"),
            (images(), TypeError, "expected a dict"),
        ],
        ids=lambda p: "" if not isinstance(p, str) else p[:20],
    )
    def test_clamped_states(self, given: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            DEQ(chain())(given)

    def test_unequal_batches(self) -> None:
        deq = DEQ(chain(), ("input", "output"))
        with pytest.raises(ValueError, match=r"expected a batch of 4 .* got 3"):
            deq({"input": images(), "output": images(3, 4)})

    @pytest.mark.parametrize(
        ("init", "error", "match"),
        [
            ({"output": torch.zeros(3, 4).double()}, ValueError, "expected a batch of 4"),
            ({"output": torch.zeros(4, 3).double()}, ValueError, "expected shape"),
            ({"outputs": torch.zeros(4, 4).double()}, ValueError, "unknown layer 'outputs'"),
            ({"output": torch.zeros(4, 4).long()}, TypeError, "floating-point"),
        ],
    )
    def test_initial_states(self, init: State, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            DEQ(chain())({"input": images()}, init=init)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"clamped": ("images",)}, "unknown layer 'images': this HAM has"),
            ({"clamped": ()}, "clamped: expected at least one layer"),
            (
                {"splitting": "odd-even"},
                "splitting: expected 'even-odd', 'sweep' or None, got 'odd-even'",
            ),
        ],
    )
    def test_options(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            DEQ(chain(), **options)

    def test_on_failure_at_construction(self) -> None:
        with pytest.raises(ValueError, match="on_failure: expected 'warn', 'raise' or 'ignore'"):
            DEQ(chain(), on_failure="explode")  # type: ignore[arg-type]

    @pytest.mark.parametrize("option", ["solver", "adjoint"])
    def test_a_name_is_no_solver(self, option: str) -> None:
        with pytest.raises(TypeError, match=f"{option}: expected"):
            DEQ(chain(), **{option: "anderson"})  # type: ignore[arg-type]

    def test_unknown_options(self) -> None:
        with pytest.raises(TypeError, match="tolerance"):
            DEQ(chain(), tolerance=1e-3)  # type: ignore[call-arg]

    def test_nothing_left_to_settle(self) -> None:
        ham = chain()
        value = {"input": images(), "hidden1": images(n=7), "hidden2": images(n=6)}
        value["output"] = images(n=4)
        with pytest.raises(ValueError, match=r"expected at least one layer to settle, got all of"):
            DEQ(ham, ham.layers)(value)


class TestModule:
    def test_empty_batch(self) -> None:
        x = images()[:0].requires_grad_()
        for deq in (DEQ(chain()), DEQ(chain(), splitting=None), DEQ(chain(5, 4))):
            solution = deq({"input": x})
            sizes = {name: deq.ham.layer(name).shape for name in deq.ham.layers}
            assert {name: tuple(v.shape[1:]) for name, v in solution.value.items()} == sizes
            assert all(len(v) == 0 for v in solution.value.values())
            assert solution.steps.shape == solution.residual.shape == (0,)
            solution.value["output"].sum().backward()

    def test_batch_of_one(self) -> None:
        assert DEQ(chain())({"input": images(1)}).value["output"].shape == (1, 4)

    def test_deepcopy_is_independent(self) -> None:
        deq = DEQ(chain())
        deq({"input": images()})
        other = copy.deepcopy(deq)
        before = deq({"input": images()}).value["output"]
        assert torch.equal(other({"input": images()}).value["output"], before)
        with torch.no_grad():
            for p in other.parameters():
                p += 1
        assert torch.equal(deq({"input": images()}).value["output"], before)
        assert not torch.equal(other({"input": images()}).value["output"], before)

    def test_pickle(self) -> None:
        deq = DEQ(chain(), solver=Broyden(history=4), adjoint=Unrolled(3), splitting=None)
        other = pickle.loads(pickle.dumps(deq))
        assert (other.solver, other.adjoint) == (deq.solver, deq.adjoint)
        value = deq({"input": images()}).value["output"]
        assert torch.equal(other({"input": images()}).value["output"], value)

    def test_state_dict(self) -> None:
        deq, other = DEQ(chain(seed=0)), DEQ(chain(seed=1), splitting=None)
        other.load_state_dict(deq.state_dict())
        value = deq({"input": images()}).value["output"]
        torch.testing.assert_close(
            other({"input": images()}).value["output"], value, rtol=1e-3, atol=1e-3
        )
        assert all(key.startswith("ham.") for key in deq.state_dict())

    def test_dtype(self) -> None:
        deq = DEQ(HAM.chain([5, 7, 4]))
        single = deq({"input": images().float()})
        double = deq.double()({"input": images()})
        assert single.value["output"].dtype == single.residual.dtype == torch.float32
        assert double.value["output"].dtype == double.residual.dtype == torch.float64
        torch.testing.assert_close(
            single.value["output"].double(), double.value["output"], rtol=1e-3, atol=1e-3
        )

    def test_gradient_hooks(self) -> None:
        deq = DEQ(chain())
        seen = []
        x = images().requires_grad_()
        output = deq({"input": x}).value["output"]
        output.register_hook(lambda g: seen.append(g) or 2 * g)
        (doubled,) = torch.autograd.grad(output.sum(), x)
        assert len(seen) == 1
        assert torch.equal(seen[0], torch.ones_like(output))
        (plain,) = torch.autograd.grad(deq({"input": x}).value["output"].sum(), x)
        torch.testing.assert_close(doubled, 2 * plain, rtol=1e-12, atol=0.0)

    def test_forward_hooks(self) -> None:
        deq = DEQ(chain())
        seen: list[Solution] = []
        deq.register_forward_hook(lambda _m, _i, out: seen.append(out))
        assert seen == []
        solution = deq({"input": images()})
        assert seen[0] is solution

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("splitting", ["even-odd", None])
    def test_without_gradients(self, context: Any, splitting: Any) -> None:
        deq = DEQ(chain(), splitting=splitting)
        with_gradients = deq({"input": images()})
        with context():
            without = deq({"input": images()})
        assert not any(x.requires_grad for x in without.value.values())
        for name, x in without.value.items():
            assert torch.equal(x, with_gradients.value[name])

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_derived_fields_without_gradients(self, context: Any) -> None:
        """A synapse that gives no field has it derived, whatever the mode."""

        class Product(Synapse):
            shapes = ((3,), (3,))

            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

            def energy(self, *g: Tensor) -> Tensor:
                return -(g[0] * self.weight * g[1]).sum(-1)

            def is_linear_in(self, place: int) -> bool:
                return True

        layers = {name: Neurons(3, Sigmoid()) for name in ("input", "a", "b")}
        connections: Any = [(("input", "a"), Product()), (("a", "b"), Product()), (("b",), Bias(3))]
        deq = DEQ(HAM(layers, connections))
        expected = deq({"input": torch.ones(2, 3)}).value["b"]
        with context():
            found = deq({"input": torch.ones(2, 3)}).value["b"]
        assert torch.equal(found, expected.detach())

    def test_nothing_is_mutated(self) -> None:
        ham = chain()
        deq = DEQ(ham, on_failure="ignore")
        weights = {name: p.clone() for name, p in ham.named_parameters()}
        x, init = images(), {"output": images(n=4)}
        x[0, 0] = torch.nan
        given = {"input": x}
        before = {"input": x.clone(), "output": init["output"].clone()}
        deq(given, init=init)
        assert list(given) == ["input"]
        assert list(init) == ["output"]
        assert given["input"] is x
        torch.testing.assert_close(x, before["input"], rtol=0.0, atol=0.0, equal_nan=True)
        assert torch.equal(init["output"], before["output"])
        for name, p in ham.named_parameters():
            assert torch.equal(p, weights[name])
            assert p.grad is None

    def test_frozen_memory(self) -> None:
        """Nothing to differentiate: no graph is kept, and the result can be turned to numpy."""
        deq = DEQ(chain()).requires_grad_(False)
        value = deq({"input": images()}).value
        assert not any(x.requires_grad for x in value.values())

    def test_clamped_states_come_back_as_given(self) -> None:
        x = images().requires_grad_()
        value = DEQ(chain())({"input": x}).value["input"]
        assert torch.equal(value, x)

    def test_repr_names_the_choices(self) -> None:
        text = repr(DEQ(chain(), solver=Anderson(history=3)))
        assert "memory=3" in text
        assert "splitting='even-odd'" in text
        assert "Implicit" in text
        assert "converged: 4/4" in repr(DEQ(chain())({"input": images()}))


class TestLostSamples:
    """A sample that overflows is kept out of what all samples share: the weights' gradient."""

    def ham(self) -> HAM:
        torch.manual_seed(0)
        neurons = {
            "input": Neurons(1, Identity()),
            "hidden": Neurons(4, Exp()),
            "output": Neurons(2, Tanh()),
        }
        return HAM(
            neurons, [(("input", "hidden"), Dense(1, 4)), (("hidden", "output"), Dense(4, 2))]
        )

    @pytest.mark.parametrize("splitting", ["even-odd", None])
    @pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(3), Phantom(3)])
    def test_gradient(self, adjoint: Adjoint, splitting: Any) -> None:
        # exp(βx) overflows in the second sample alone.
        x = torch.tensor([[0.1], [300.0], [-0.2]])
        ham = self.ham()
        deq = DEQ(ham, splitting=splitting, adjoint=adjoint, on_failure="ignore")
        solution = deq({"input": x})
        assert solution.status.tolist() == [0, Status.DIVERGED, 0]
        assert all(state.isfinite().all() for state in solution.value.values())
        solution.value["output"].sum().backward()
        found = [p.grad.clone() for p in ham.parameters() if p.grad is not None]
        ham.zero_grad()
        deq({"input": x[[0, 2]]}).value["output"].sum().backward()
        expected = [p.grad for p in ham.parameters() if p.grad is not None]
        assert len(found) == 2
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_warm_start_takes_one_step() -> None:
    deq = DEQ(chain())
    first = deq({"input": images()})
    again = deq({"input": images()}, init=first.value)
    assert first.steps.min() > 1
    assert again.steps.tolist() == [1] * 4


@pytest.mark.parametrize("bias", [True, False])
def test_autocast(bias: bool) -> None:
    torch.manual_seed(0)
    deq = DEQ(HAM.chain([6, 5, 4, 3], bias=bias, gain=0.5), solver=Anderson(tol=1e-2))
    x = {"input": torch.rand(8, 6)}
    exact = deq(x).value["output"]
    with torch.autocast("cpu", torch.bfloat16):
        solution = deq(x)
    solution.value["output"].float().sum().backward()
    assert solution.converged.all()
    torch.testing.assert_close(solution.value["output"].float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in deq.parameters() if p.grad is not None)


def test_another_dtype_than_the_weights_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected torch.float32, as the weights.*float64"):
        DEQ(HAM.chain([5, 3, 2]))({"input": torch.zeros(1, 5).double()})


@pytest.mark.parametrize("solver", [Anderson, Broyden])
@pytest.mark.parametrize("splitting", ["even-odd", None])
def test_acceleration_loses_no_sample(solver: Any, splitting: Any) -> None:
    """Chains with several equilibria, where unguarded acceleration wanders between them."""
    for seed in range(4):
        torch.manual_seed(seed)
        ham = HAM.chain([20] * 5).double()
        x = {"input": torch.rand(32, 20).double()}
        with torch.no_grad():
            plain = DEQ(ham, splitting=splitting, solver=Picard(), on_failure="ignore")(x)
            found = DEQ(
                ham, splitting=splitting, solver=solver(max_steps=1000), on_failure="ignore"
            )(x)
        assert plain.converged.double().mean() > 0.5
        assert found.converged[plain.converged].all()


SAFEGUARDED = [Anderson, Broyden, Newton]


@pytest.mark.parametrize("splitting", ["even-odd", None])
@pytest.mark.parametrize("solver", SAFEGUARDED)
def test_the_safeguard_keeps_the_dtype(solver: Any, splitting: Any) -> None:
    """Weights strong enough that steps are turned down, in dtypes other than the default."""
    torch.manual_seed(0)
    x = torch.rand(6, 20)
    half = DEQ(
        HAM.chain([20, 16, 12, 5], gain=1.5).bfloat16(),
        splitting=splitting,
        solver=solver(tol=2e-2),
        on_failure="ignore",
    )
    assert half({"input": x.bfloat16()}).value["output"].dtype == torch.bfloat16
    single = DEQ(HAM.chain([20, 16, 12, 5], gain=1.5), splitting=splitting, solver=solver())
    expected = single({"input": x}).value["output"]
    torch.set_default_dtype(torch.float64)
    try:
        found = single({"input": x}).value["output"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("splitting", ["even-odd", None])
@pytest.mark.parametrize("solver", [Anderson, Broyden])
def test_autocast_changes_no_equilibrium(solver: Any, splitting: Any) -> None:
    """Of an energy in half precision nothing would be left near its minimum."""
    torch.manual_seed(1)
    deq = DEQ(HAM.chain([50, 40, 30, 5]), splitting=splitting, solver=solver(max_steps=500))
    x = torch.rand(16, 50)
    with torch.no_grad():
        expected = deq({"input": x})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = deq({"input": x})
    assert expected.converged.all()
    assert found.converged.all()
    # The clamped input's product is one of half precision.
    assert found.steps.double().mean() < 1.5 * expected.steps.double().mean()


def test_results_are_the_callers_own() -> None:
    with torch.no_grad():
        deq = DEQ(HAM.chain([5, 4, 3]))
        x = {"input": torch.rand(2, 5)}
        first = deq(x)
        kept = first.value["output"].clone()
        deq(x, init=first.value).value["output"].zero_()
        assert torch.equal(first.value["output"], kept)


def test_tensors_on_the_meta_device_are_refused() -> None:
    with torch.device("meta"):
        deq = DEQ(HAM.chain([5, 4, 3]))
    with pytest.raises(ValueError, match=r"got weights on the meta device.*to_empty"):
        deq({"input": torch.rand(2, 5)})
    with pytest.raises(ValueError, match="got states on the meta device"):
        DEQ(HAM.chain([5, 4, 3]))({"input": torch.rand(2, 5, device="meta")})


@pytest.mark.parametrize(
    "call",
    [
        lambda deq: contraction(deq),
        lambda deq: contract_(deq),
        lambda deq: clamp(deq, {"input": torch.rand(2, 5)}),
        lambda deq: eliminate(deq, ["hidden1"]),
        lambda deq: two_colouring(deq),
        lambda deq: colouring(deq),
    ],
    ids=["contraction", "contract_", "clamp", "eliminate", "two_colouring", "colouring"],
)
def test_a_deq_in_place_of_its_ham_is_refused_with_a_remedy(call: Any) -> None:
    for module in (DEQ(HAM.chain([5, 4, 3])), CHN.chain([5, 4, 3])):
        kind = type(module).__name__
        with pytest.raises(TypeError, match=f"expected a HAM, got {kind}; use the HAM of this"):
            call(module)
