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
    CHNDEQ,
    DEQ,
    HAM,
    Anderson,
    Bias,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Dense,
    Neurons,
    Newton,
    Picard,
    ReLU,
    Sigmoid,
    Solution,
    Status,
    Synapse,
    Unrolled,
    clamp,
    contract_,
    contraction,
    eliminate,
    two_colouring,
)
from hamdeq.elimination.colouring import colouring

EXACT = Anderson(tol=1e-12)
# Stops long before the equilibrium, and gets no second budget.
HASTY = Picard(tol=1e-12, max_steps=3, fallback_steps=0)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])


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
def digits() -> tuple[HAM, Tensor, dict[str, Tensor]]:
    """A memory trained for a few steps on digits, some digits, and their equilibria."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    x = torch.as_tensor(pixels / 16, dtype=torch.float32)
    y = nn.functional.one_hot(torch.as_tensor(labels)).float()
    torch.manual_seed(0)
    deq = DEQ(HAM.chain([64, 32, 16, 10]), on_failure="ignore")
    optimiser = torch.optim.Adam(deq.parameters(), lr=6e-3)
    losses = []
    for step in range(20):
        rows = torch.arange(64) + 40 * step
        loss = (deq({"input": x[rows]}).value["output"] - y[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    ham, x = deq.ham.double(), x[:30].double()
    with torch.no_grad():
        reference = DEQ(ham)({"input": x}, solver=Picard(tol=1e-13, max_steps=5000))
    return ham, x, reference.value


# ---------------------------------------------------------------------- one equilibrium


@pytest.mark.parametrize("solver", [Picard, Anderson, Broyden])
@splittings
def test_every_solver_and_splitting_finds_the_same_equilibrium(
    digits: Any, solver: Any, splitting: Any
) -> None:
    ham, x, reference = digits
    deq = DEQ(ham, splitting=splitting, solver=solver(tol=1e-8, max_steps=2000))
    with torch.no_grad():
        solution = deq({"input": x})
    assert solution.converged.all()
    for name in ham.layers:
        error = (solution.value[name] - reference[name]).norm(dim=1)
        # tol, times what a slow contraction leaves of it.
        assert (error <= 1e-5 * reference[name].norm(dim=1)).all(), name


@splittings
def test_the_value_is_an_equilibrium_of_the_ham_from_anywhere(splitting: Any) -> None:
    deq = DEQ(chain(), splitting=splitting, solver=EXACT)
    value = deq({"input": images()}).value
    assert tuple(value) == deq.ham.layers
    after = deq.ham.update(value, clamped=["input"])
    torch.testing.assert_close(after, value, **CLOSE)
    init = {name: 3 * torch.randn_like(value[name]) for name in deq.ham.layers[1:]}
    for given in (init, {"output": init["output"]}, {"hidden2": init["hidden2"]}):
        other = deq({"input": images()}, init=given).value
        torch.testing.assert_close(other, value, **CLOSE)


def test_a_warm_start_takes_one_step() -> None:
    deq = DEQ(chain())
    first = deq({"input": images()})
    again = deq({"input": images()}, init=first.value)
    assert first.steps.min() > 1
    assert again.steps.tolist() == [1] * 4


def test_even_odd_steps_never_raise_the_energy() -> None:
    reduced = DEQ(chain(gain=3.0)).reduced({"input": images(20)})
    x = {a: torch.randn(20, *reduced.model.layer(a).shape).double() for a in reduced.visible}
    energy = [reduced.energy(x)]
    for _ in range(20):
        x = reduced.update(x)
        energy.append(reduced.energy(x))
    change = torch.stack(energy).diff(dim=0)
    assert (change < 1e-12).all()
    assert (change < -1e-3).any()


def test_splitting_keeps_the_narrow_layers() -> None:
    deq = DEQ(HAM.chain([784, 512, 10]))
    assert deq.hidden == ("hidden1",)
    assert deq.reduced({"input": torch.zeros(2, 784)}).visible == ("output",)


def test_two_layers_leave_nothing_to_solve() -> None:
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


def test_clamping_the_output_at_its_equilibrium_changes_no_other_layer() -> None:
    ham = chain()
    assert DEQ(ham, "input").clamped == ("input",)  # a lone name
    free = DEQ(ham, solver=EXACT)({"input": images()}).value
    deq = DEQ(ham, ("input", "output"), solver=EXACT)
    clamped = deq({"input": images(), "output": free["output"]}).value
    torch.testing.assert_close(clamped, free, **CLOSE)
    other = deq({"input": images(), "output": free["output"] + 1}).value
    assert (other["hidden2"] - free["hidden2"]).abs().max() > 1e-3
    assert torch.equal(other["output"], free["output"] + 1)


def test_an_odd_cycle_is_refused_solved_without_splitting_or_opened_by_clamping() -> None:
    with pytest.raises(ValueError, match=r"b – a – c – b form a cycle of odd .*splitting='sweep'"):
        DEQ(triangle())
    deq = DEQ(triangle(), splitting=None, solver=EXACT)
    solution = deq({"input": images(3, 4)})
    assert solution.converged.all()
    after = deq.ham.update(solution.value, clamped=["input"])
    torch.testing.assert_close(after["c"], solution.value["c"], **CLOSE)
    opened = DEQ(triangle(), ("input", "c"), solver=EXACT)
    value = opened({"input": images(3, 4), "c": solution.value["c"]}).value
    torch.testing.assert_close(value["a"], solution.value["a"], rtol=1e-9, atol=1e-9)


def test_samples_do_not_depend_on_their_batch() -> None:
    deq = DEQ(chain(), solver=Anderson(tol=1e-6))
    whole = deq({"input": images(8)})
    for rows in ([3], [7, 0], [5, 4, 3, 2, 1, 0]):
        part = deq({"input": images(8)[rows]})
        assert part.steps.tolist() == whole.steps[rows].tolist()
        for name, x in part.value.items():
            torch.testing.assert_close(x, whole.value[name][rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [Anderson, Broyden])
@splittings
def test_acceleration_loses_no_sample(solver: Any, splitting: Any) -> None:
    """Chains with several equilibria, where unguarded acceleration wanders between them."""
    for seed in range(2):
        torch.manual_seed(seed)
        ham = HAM.chain([20] * 5).double()
        x = {"input": torch.rand(24, 20).double()}
        deq = DEQ(ham, splitting=splitting, on_failure="ignore")
        with torch.no_grad():
            plain, accelerated = deq(x, solver=Picard()), deq(x, solver=solver(max_steps=1000))
        assert plain.converged.double().mean() > 0.5
        assert accelerated.converged[plain.converged].all()


# ---------------------------------------------------------------------- invalid samples


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
class TestInvalidSamples:
    def spoilt(self, bad: float) -> Tensor:
        x = images()
        x[1, 2] = bad
        return x

    def deq(self) -> DEQ:
        return DEQ(chain(), solver=Anderson(tol=1e-6), on_failure="ignore")

    def test_are_marked_and_change_no_bit_of_another_or_its_gradient(self, bad: float) -> None:
        deq, alone, rows = self.deq(), self.deq(), [0, 2, 3]
        x, y = self.spoilt(bad).requires_grad_(), images()[rows].requires_grad_()
        solution, without = deq({"input": x}), alone({"input": y})
        assert solution.status.tolist() == [0, Status.INVALID, 0, 0]
        assert solution.converged.tolist() == [True, False, True, True]
        assert solution.residual[1].isnan()
        assert torch.equal(solution.steps[rows], without.steps)
        for name, value in solution.value.items():
            assert value[1].isnan().all()
            assert torch.equal(value[rows], without.value[name])
        upstream = torch.ones_like(solution.value["output"])
        upstream[1] = torch.nan
        solution.value["output"].backward(upstream)
        without.value["output"].sum().backward()
        assert x.grad is not None
        assert y.grad is not None
        assert x.grad[1].tolist() == [0.0] * 5
        assert torch.equal(x.grad[rows], y.grad)
        for p, q in zip(deq.parameters(), alone.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.equal(p.grad, q.grad)  # type: ignore[arg-type]

    def test_an_initial_state_counts_only_of_visible_layers(self, bad: float) -> None:
        deq = self.deq()
        state = deq({"input": images()}).value
        for name, x in state.items():
            x = x.detach().clone()
            x[2] = bad
            status = deq({"input": images()}, init={name: x}).status.tolist()
            visible = name not in (*deq.clamped, *deq.hidden)
            assert status == [0, 0, Status.INVALID if visible else 0, 0]

    def test_are_reported(self, bad: float) -> None:
        x = {"input": self.spoilt(bad)}
        with pytest.warns(ConvergenceWarning, match=r"1 of 4 samples: .*torch.isfinite"):
            self.deq()(x, on_failure="warn")
        with pytest.raises(ConvergenceError, match="1 of 4"):
            self.deq()(x, on_failure="raise")

    def test_may_be_all_of_them(self, bad: float) -> None:
        x = torch.full((2, 5), bad).double().requires_grad_()
        solution = self.deq()({"input": x})
        assert (solution.status == Status.INVALID).all()
        solution.value["output"].sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[0.0] * 5] * 2


# ------------------------------------------------------------------------------ failure


def test_a_module_warns_once_and_a_call_that_asks_for_it_every_time() -> None:
    deq, x = DEQ(chain()), {"input": images()}
    assert deq(x).converged.all()  # which is no reason to warn
    with pytest.warns(ConvergenceWarning, match=r"4 of 4 samples: .*splitting='even-odd'") as log:
        assert not deq(x, solver=HASTY).converged.any()
    assert len(log) == 1
    assert log[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deq(x, solver=HASTY)
    for _ in range(2):
        with pytest.warns(ConvergenceWarning):
            deq(x, solver=HASTY, on_failure="warn")
    with pytest.warns(ConvergenceWarning):
        DEQ(chain(), solver=HASTY)(x)


def test_on_failure_raises_every_time_and_a_call_may_ignore_it() -> None:
    deq, x = DEQ(chain(), solver=HASTY, on_failure="raise"), {"input": images()}
    for _ in range(2):
        with pytest.raises(ConvergenceError, match="max_steps"):
            deq(x)
    assert not deq(x, on_failure="ignore").converged.any()
    assert deq(x, solver=EXACT).converged.all()
    assert (deq.solver, deq.failures.on_failure) == (HASTY, "raise")


@pytest.mark.parametrize("build", [lambda: DEQ(chain()), lambda: CHNDEQ(CHN.chain([5, 4, 3]))])
def test_a_solver_for_a_call_is_used_for_it_alone(build: Any) -> None:
    deq = build()
    x = {"input": images().to(next(deq.parameters()).dtype)}
    before = deq(x)
    once = deq(x, solver=Picard(max_steps=1, fallback_steps=0), on_failure="ignore")
    assert once.n_evals == 1 < before.n_evals
    after = deq(x)
    assert torch.equal(after.value["output"], before.value["output"])


def test_a_diverging_memory_keeps_its_best_finite_state() -> None:
    neurons = {name: Neurons(3, ReLU()) for name in ("input", "a", "b")}
    ham = HAM(neurons, [(("input", "a"), Dense(3, 3)), (("a", "b"), Dense(3, 3))])
    with torch.no_grad():
        for _, synapse in ham.connections:
            synapse.weight.copy_(10 * torch.eye(3))  # type: ignore[union-attr, operator]
    solution = DEQ(ham, solver=Picard(), on_failure="ignore")({"input": torch.ones(2, 3)})
    assert (solution.status == Status.DIVERGED).all()
    assert all(x.isfinite().all() for x in solution.value.values())


# ----------------------------------------------------------------------------- refusals

ALL = {name: images(n=n) for name, n in zip(chain().layers, (5, 7, 6, 4), strict=True)}
GIVEN: list[tuple[Any, type[Exception], str]] = [
    ({}, ValueError, r"expected the layers \['input'\], got \[\]"),
    ({"inputs": images()}, ValueError, "'inputs'"),
    ({"input": images(), "output": images(n=4)}, ValueError, "expected the layers"),
    ({"input": images(n=6)}, ValueError, r"expected shape \(batch, 5\), got \(4, 6\)"),
    ({"input": images()[0]}, ValueError, r"expected shape \(batch, 5\), got \(5,\)"),
    ({"input": torch.tensor(1.0)}, ValueError, r"got \(\)"),
    ({"input": torch.ones(4, 5, dtype=torch.uint8)}, TypeError, r"images.float\(\) / 255"),
    ({"input": torch.ones(4, 5, dtype=torch.long)}, TypeError, "got torch.int64"),
    ({"input": images().tolist()}, TypeError, "got list"),
    (images(), TypeError, r"^clamped: expected a dict \{layer name: tensor\} of \['input'\]"),
    ({"input": images().float()}, TypeError, "expected torch.float64, as the weights.*float32"),
    ({"input": images().to("meta")}, ValueError, "got states on the meta device"),
]
INIT: list[tuple[Any, type[Exception], str]] = [
    ({"output": torch.zeros(3, 4).double()}, ValueError, "^init: expected a batch of 4 for"),
    ({"output": torch.zeros(4, 3).double()}, ValueError, "expected shape"),
    ({"outputs": torch.zeros(4, 4).double()}, ValueError, "'outputs'"),
    ({"output": torch.zeros(4, 4).long()}, TypeError, "floating-point"),
]
OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"clamped": ("images",)}, ValueError, "'images'"),
    ({"clamped": ()}, ValueError, "^clamped: expected at least one layer, got none"),
    ({"splitting": "odd-even"}, ValueError, "^splitting: expected 'even-odd', 'sweep' or None"),
    (
        {"start": "ones"},
        ValueError,
        "^start: expected 'forward', 'linearised' or 'zeros', got 'ones'",
    ),
    ({"on_failure": "explode"}, ValueError, "^on_failure: expected 'warn', 'raise' or 'ignore'"),
    ({"solver": "anderson"}, TypeError, "^solver: expected a Solver, got str"),
    ({"adjoint": "implicit"}, TypeError, "^adjoint: expected an Adjoint, got str"),
    ({"tolerance": 1e-3}, TypeError, "tolerance"),
]


@pytest.mark.parametrize(("given", "error", "match"), GIVEN)
def test_clamped_states_that_do_not_fit_are_refused(given: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        DEQ(chain())(given)


@pytest.mark.parametrize(("init", "error", "match"), INIT)
def test_initial_states_that_do_not_fit_are_refused(init: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        DEQ(chain())({"input": images()}, init=init)


@pytest.mark.parametrize(("options", "error", "match"), OPTIONS)
def test_options_that_are_none_are_refused(options: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        DEQ(chain(), **options)
    if options.keys() <= {"solver", "on_failure"}:  # which a call takes, too
        with pytest.raises(error, match=match):
            DEQ(chain())({"input": images()}, **options)


def test_a_call_that_leaves_nothing_free_or_two_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^clamped: expected at least one free layer, got all of"):
        DEQ(chain(), tuple(ALL))(ALL)
    with pytest.raises(ValueError, match=r"expected a batch of 4 .* got 3"):
        DEQ(chain(), ("input", "output"))({"input": images(), "output": images(3, 4)})
    with torch.device("meta"):
        deq = DEQ(HAM.chain([5, 4, 3]))
    with pytest.raises(ValueError, match=r"got weights on the meta device.*to_empty"):
        deq({"input": torch.rand(2, 5)})


@pytest.mark.parametrize(
    "call",
    [
        contraction,
        contract_,
        lambda deq: clamp(deq, {"input": torch.rand(2, 5)}),
        lambda deq: eliminate(deq, ["hidden1"]),
        two_colouring,
        colouring,
    ],
)
def test_a_deq_in_place_of_its_ham_is_refused_with_a_remedy(call: Any) -> None:
    for module in (DEQ(HAM.chain([5, 4, 3])), CHN.chain([5, 4, 3])):
        kind = type(module).__name__
        with pytest.raises(TypeError, match=f"expected a HAM, got {kind}; use the HAM of this"):
            call(module)
    with pytest.raises(TypeError, match=r"^ham: expected a HAM, got CHN; use CHNDEQ"):
        DEQ(CHN.chain([5, 4, 3]))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- module


def test_a_batch_may_be_empty_or_of_one() -> None:
    x = images()[:0].requires_grad_()
    for deq in (DEQ(chain()), DEQ(chain(), splitting=None), DEQ(chain(5, 4))):
        solution = deq({"input": x})
        shapes = {name: (0, *deq.ham.layer(name).shape) for name in deq.ham.layers}
        assert {name: tuple(v.shape) for name, v in solution.value.items()} == shapes
        assert solution.steps.shape == solution.residual.shape == (0,)
        solution.value["output"].sum().backward()
    assert DEQ(chain())({"input": images(1)}).value["output"].shape == (1, 4)


def test_a_copy_is_independent_and_a_pickle_the_same() -> None:
    deq = DEQ(chain(), solver=Broyden(history=4), adjoint=Unrolled(3), splitting=None)
    before = deq({"input": images()}).value["output"]
    other = copy.deepcopy(deq)
    assert torch.equal(other({"input": images()}).value["output"], before)
    with torch.no_grad():
        for p in other.parameters():
            p += 1
    assert torch.equal(deq({"input": images()}).value["output"], before)
    assert not torch.equal(other({"input": images()}).value["output"], before)
    other = pickle.loads(pickle.dumps(deq))
    assert (other.solver, other.adjoint) == (deq.solver, deq.adjoint)
    assert torch.equal(other({"input": images()}).value["output"], before)


def test_a_state_dict_holds_the_ham_whatever_the_splitting() -> None:
    deq, other = DEQ(chain(seed=0)), DEQ(chain(seed=1), splitting=None)
    other.load_state_dict(deq.state_dict())
    value, again = (d({"input": images()}).value["output"] for d in (deq, other))
    torch.testing.assert_close(again, value, rtol=1e-3, atol=1e-3)
    assert all(key.startswith("ham.") for key in deq.state_dict())


def test_the_energy_is_the_hams() -> None:
    deq = DEQ(chain())
    value = deq({"input": images()}).value
    assert torch.equal(deq.energy(value), deq.ham.energy(value))


def test_hooks_see_the_solution_and_may_change_the_gradient() -> None:
    deq, x, seen = DEQ(chain()), images().requires_grad_(), []
    solutions: list[Solution] = []
    deq.register_forward_hook(lambda _m, _i, out: solutions.append(out))
    solution = deq({"input": x})
    assert solutions[0] is solution
    output = solution.value["output"]
    output.register_hook(lambda g: seen.append(g) or 2 * g)
    (doubled,) = torch.autograd.grad(output.sum(), x)
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.ones_like(output))
    (plain,) = torch.autograd.grad(deq({"input": x}).value["output"].sum(), x)
    torch.testing.assert_close(doubled, 2 * plain, rtol=1e-12, atol=0.0)


class Product(Synapse):
    """A synapse that gives no field, so that it is derived."""

    shapes = ((3,), (3,))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def energy(self, *g: Tensor) -> Tensor:
        return -(g[0] * self.weight * g[1]).sum(-1)

    def is_linear_in(self, place: int) -> bool:
        return True


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_value_is_the_same_to_the_last_bit(context: Any) -> None:
    layers = {name: Neurons(3, Sigmoid()) for name in ("input", "a", "b")}
    connections: Any = [(("input", "a"), Product()), (("a", "b"), Product()), (("b",), Bias(3))]
    derived = HAM(layers, connections).double()
    for deq, x in (
        (DEQ(chain()), images()),
        (DEQ(chain(), splitting=None), images()),
        (DEQ(chain(), solver=Newton()), images()),
        (DEQ(derived), images(n=3)),
    ):
        expected = deq({"input": x}).value
        with context():
            value = deq({"input": x}).value
        for name, state in value.items():
            assert not state.requires_grad
            assert torch.equal(state, expected[name])
    frozen = DEQ(chain()).requires_grad_(False)({"input": images()}).value
    assert not any(state.requires_grad for state in frozen.values())


def test_a_call_mutates_nothing_and_returns_tensors_of_its_own() -> None:
    deq = DEQ(chain(), on_failure="ignore")
    x, output = images(), images(n=4)
    x[0, 0] = torch.nan
    given, init = {"input": x}, {"output": output}
    before = copy.deepcopy((given, init, deq.state_dict()))
    first = deq(given, init=init)
    after = given, init, deq.state_dict()
    torch.testing.assert_close(after, before, rtol=0.0, atol=0.0, equal_nan=True)
    assert all(p.grad is None for p in deq.parameters())
    assert torch.equal(first.value["input"][1:], x[1:])
    with torch.no_grad():
        first = deq({"input": images()})
        kept = first.value["output"].clone()
        deq({"input": images()}, init=first.value).value["output"].zero_()
        assert torch.equal(first.value["output"], kept)


def test_the_repr_names_the_choices() -> None:
    text = repr(DEQ(chain(), solver=Anderson(history=3)))
    for part in ("history=3", "splitting='even-odd'", "Implicit"):
        assert part in text
    assert "converged: 4/4" in repr(DEQ(chain())({"input": images()}))


# ---------------------------------------------------------------------------- precision


def test_the_value_has_the_dtype_of_the_weights_whatever_the_default() -> None:
    deq = DEQ(HAM.chain([5, 7, 4]))
    single = deq({"input": images().float()})
    torch.set_default_dtype(torch.float64)
    try:
        again = deq({"input": images().float()})
    finally:
        torch.set_default_dtype(torch.float32)
    double = deq.double()({"input": images()})
    assert single.value["output"].dtype == single.residual.dtype == torch.float32
    assert again.value["output"].dtype == again.residual.dtype == torch.float32
    assert double.value["output"].dtype == double.residual.dtype == torch.float64
    torch.testing.assert_close(again.value, single.value)
    torch.testing.assert_close(single.value, double.value, check_dtype=False, rtol=1e-3, atol=1e-3)


@splittings
@pytest.mark.parametrize("solver", [Anderson, Broyden, Newton])
def test_the_safeguard_keeps_half_precision(solver: Any, splitting: Any) -> None:
    """Of weights so strong that steps are turned down."""
    torch.manual_seed(0)
    half = HAM.chain([20, 16, 12, 5], gain=1.5).bfloat16()
    deq = DEQ(half, splitting=splitting, solver=solver(tol=2e-2), on_failure="ignore")
    assert deq({"input": torch.rand(6, 20).bfloat16()}).value["output"].dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
def test_a_training_step_in_autocast_is_close_to_full_precision(bias: bool) -> None:
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


@splittings
@pytest.mark.parametrize("solver", [Anderson, Broyden])
def test_autocast_changes_no_equilibrium(solver: Any, splitting: Any) -> None:
    """Of an energy in half precision nothing would be left near its minimum."""
    torch.manual_seed(1)
    deq = DEQ(HAM.chain([50, 40, 30, 5]), splitting=splitting, solver=solver(max_steps=500))
    x = torch.rand(16, 50)
    with torch.no_grad():
        expected = deq({"input": x})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = deq({"input": x})
    assert expected.converged.all()
    assert mixed.converged.all()
    # The clamped input's product is one of half precision.
    assert mixed.steps.double().mean() < 1.5 * expected.steps.double().mean()
