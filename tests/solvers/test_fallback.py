"""No sample left behind: the second budget of a solve, and of its gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings

import pytest
import torch
from random_memories import (
    BOUNDED_KINDS,
    SPLITTINGS,
    assert_downhill,
    chain,
    family,
    memory,
    take,
    watch,
)

from hamdeq import (
    DEQ,
    GMRES,
    HAM,
    Bias,
    Broyden,
    ConjugateGradient,
    ConvergenceWarning,
    Dense,
    Identity,
    Implicit,
    Lateral,
    LayerNorm,
    Neurons,
    Picard,
    Sigmoid,
    Sparsemax,
    Status,
    Tanh,
    TrustRegion,
    fixed_point,
)
from hamdeq.implicit.linear import solve_linear

# So few steps that nearly every sample needs the fallback.
SHORT = Broyden(max_steps=2)


def residual(model, x):
    """The relative residual of a state of the visible layers, from the model's update alone."""
    fx = model.update(x)
    flat = {name: torch.cat([s[a].flatten(1) for a in x], 1) for name, s in (("x", x), ("fx", fx))}
    return (flat["fx"] - flat["x"]).norm(dim=1) / flat["fx"].norm(dim=1)


@pytest.mark.parametrize(
    ("splitting", "dtype"), [("even-odd", torch.float32), (None, torch.float64)], ids=str
)
@pytest.mark.slow
def test_every_sample_of_a_bounded_energy_converges_whatever_the_first_budget(splitting, dtype):
    reached = 0
    for case in family(kinds=BOUNDED_KINDS, batch=32, every=5):
        case = case.to(dtype)
        hidden = case.hidden(splitting)
        model, start = case.model(hidden), case.visible(hidden)
        if not start:
            continue
        first = fixed_point(
            model, start, solver=dataclasses.replace(SHORT, fallback_steps=0), on_failure="ignore"
        )
        both = fixed_point(model, start, solver=SHORT, on_failure="raise")
        assert both.converged.all()
        assert torch.equal(both.status == Status.FALLBACK, ~first.converged)
        with torch.no_grad():
            value = {name: x.detach() for name, x in both.value.items()}
            assert (residual(model, value) < 1.01e-4).all()
            before, after = model.energy(first.value), model.energy(value)
        slack = 1e3 * torch.finfo(dtype).eps * (1 + before.abs())
        assert (after <= before + slack).all()
        reached += int((both.status == Status.FALLBACK).sum())
    assert reached > 200


@pytest.mark.parametrize(
    ("edges", "n"),
    [([(0, 1), (1, 2), (2, 3), (3, 1)], 4), ([(0, 1), *itertools.combinations(range(1, 6), 2)], 6)],
    ids=["triangle", "complete"],
)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_every_sample_of_a_sweep_converges(edges, n, scale):
    for seed in range(1):
        case, hidden = memory(edges, n, scale=scale, seed=seed, batch=32).swept()
        solution = fixed_point(case.model(hidden), case.visible(hidden), solver=SHORT)
        assert solution.converged.all()


def test_nothing_changes_for_samples_that_need_no_fallback():
    deq = DEQ(HAM.chain([6, 20, 20, 4], gain=3.0).double(), on_failure="ignore")
    x = {"input": torch.rand(64, 6, dtype=torch.float64)}
    deq.solver = Broyden(tol=1e-6, max_steps=9, fallback_steps=0)
    first = deq(x)
    deq.solver = Broyden(tol=1e-6, max_steps=9)
    both = deq(x)
    done = first.converged
    assert 0 < int(done.sum()) < 64
    for name in first.value:
        assert torch.equal(first.value[name][done], both.value[name][done])
    assert torch.equal(first.steps[done], both.steps[done])
    assert (both.steps[~done] > 9).all()
    assert torch.equal(both.status == Status.FALLBACK, ~done)


def test_the_trace_and_the_counts_go_on():
    deq = DEQ(HAM.chain([6, 20, 20, 4], gain=3.0), solver=SHORT)
    solution = deq({"input": torch.rand(16, 6)})
    assert solution.n_evals > 2
    assert solution.trace.shape == (solution.n_evals, 16)
    assert torch.equal(solution.trace[-1], solution.residual)
    assert int(solution.steps.max()) <= solution.n_evals


def test_a_sample_does_not_depend_on_companions_in_the_fallback():
    case = chain(4, scale=3.0, seed=5, batch=12)
    model = case.model(())
    whole = fixed_point(model, case.start, solver=SHORT)
    for i in range(0, 12, 5):
        rows = torch.tensor([i])
        alone = fixed_point(case.model((), rows), take(case.start, rows), solver=SHORT)
        assert torch.equal(alone.steps, whole.steps[rows])
        for name, x in alone.value.items():
            torch.testing.assert_close(x, whole.value[name][rows], rtol=1e-9, atol=1e-9)


def test_a_sample_that_diverges_from_its_minimum_is_brought_back():
    # W has the eigenvalues −1.8, 0.9 and 0.9: x <- W x + b grows, but the energy is convex.
    ham = HAM(
        {name: Neurons(3, Identity()) for name in ("input", "a")},
        [(("input", "a"), Dense(3, 3)), (("a",), Lateral(3))],
    )
    with torch.no_grad():
        ham.synapses[1].weight.fill_(-0.9)
    x = {"input": torch.randn(8, 3)}
    lost = DEQ(ham, splitting=None, solver=Picard(fallback_steps=0), on_failure="ignore")(x)
    assert not lost.converged.any()
    assert (DEQ(ham, splitting=None, solver=Picard())(x).status == Status.FALLBACK).all()


def test_without_a_fallback_the_status_is_max_steps():
    deq = DEQ(HAM.chain([6, 20, 4], gain=3.0), solver=Picard(max_steps=1, fallback_steps=0))
    with pytest.warns(ConvergenceWarning, match="max_steps"):
        assert (deq({"input": torch.rand(4, 6)}).status == Status.MAX_STEPS).all()


def test_a_plain_map_has_no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = fixed_point(torch.cos, torch.zeros(3, 1), solver=Picard(max_steps=2))
    assert (solution.status == Status.MAX_STEPS).all()
    assert solution.n_evals == 2


def test_trust_region_refuses_a_plain_map():
    with pytest.raises(TypeError, match="expected an energy model"):
        fixed_point(torch.cos, torch.zeros(3, 1), solver=TrustRegion())


@pytest.mark.parametrize("options", [{"inner_steps": 0}, {"fallback_steps": -1}], ids=str)
def test_trust_region_refuses_budgets_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrustRegion(**options)


@pytest.mark.parametrize(
    ("splitting", "dtype"), [("even-odd", torch.float32), (None, torch.float64)], ids=str
)
@pytest.mark.slow
def test_trust_region_never_raises_the_energy(splitting, dtype):
    compared = 0
    for case in family(batch=16, every=8):
        hidden = case.hidden(splitting)
        if not case.visible(hidden):
            continue
        solver = TrustRegion(tol=1e-5 if dtype == torch.float32 else 1e-9, max_steps=25)
        history = watch(case, hidden, solver, dtype=dtype)
        assert_downhill(case, history, dtype)
        compared += len(history.rises())
    assert compared > 500


def two_wells() -> HAM:
    """E = L*(g₁) + L*(g₂) − 3 g₁ g₂ of two neurons: minima at ±, a saddle at zero."""
    tanh = Tanh()
    ham = HAM(
        {"input": Neurons(1, tanh), "a": Neurons(1, tanh), "b": Neurons(1, tanh)},
        [(("input", "a"), Dense(1, 1)), (("a", "b"), Dense(1, 1))],
    ).double()
    with torch.no_grad():
        for synapse, weight in zip(ham.synapses, (0.0, 3.0), strict=True):
            synapse.weight.fill_(weight)
    return ham


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_trust_region_leaves_a_saddle_for_a_minimum(splitting):
    deq = DEQ(two_wells(), splitting=splitting, solver=TrustRegion(tol=1e-10))
    near = torch.tensor([[1e-6], [-1e-6]], dtype=torch.float64)
    solution = deq({"input": torch.zeros(2, 1, dtype=torch.float64)}, init={"a": near, "b": near})
    assert solution.converged.all()
    # At a minimum x = 3 tanh(x), which is 2.98 and not zero.
    x = solution.value["b"][:, 0]
    torch.testing.assert_close(x, 3 * torch.tanh(x))
    assert torch.equal(x.sign(), torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert int(solution.steps.max()) <= 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trust_region_does_not_stop_where_neurons_saturate(dtype):
    # At x = 500 the activation and all its derivatives have rounded to one and zero.
    ham = HAM(
        {"input": Neurons(1, Sigmoid()), "a": Neurons(3, Sigmoid(4.0, 0.5))},
        [(("input", "a"), Dense(1, 3)), (("a",), Bias(3)), (("a",), Lateral(3, gain=0.1))],
    ).to(dtype)
    with torch.no_grad():
        ham.synapses[0].weight.zero_()
        ham.synapses[1].bias.fill_(-2.0)
    deq = DEQ(ham, splitting=None, solver=TrustRegion())
    start = torch.tensor([[500.0, -500.0, 0.5], [1e6, 1e6, 1e6]], dtype=dtype)
    solution = deq({"input": torch.zeros(2, 1, dtype=dtype)}, init={"a": start})
    assert solution.converged.all()
    assert (solution.value["a"] < -1.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trust_region_leaves_a_corner_where_no_activation_answers(dtype):
    # E = ½‖g‖² − 5 g₁g₂ on the simplex: its minimum is the middle. From a corner, where g answers
    # no small change of x, the whole step leads to the other corner, of the same energy, and back.
    ham = HAM(
        {"input": Neurons(1, Sigmoid()), "a": Neurons(2, Sparsemax())},
        [(("input", "a"), Dense(1, 2)), (("a",), Lateral(2))],
    ).to(dtype)
    with torch.no_grad():
        ham.synapses[0].weight.zero_()
        ham.synapses[1].weight.copy_(torch.tensor([[0.0, 5.0], [5.0, 0.0]]))
    deq = DEQ(ham, splitting=None, solver=TrustRegion(tol=1e-5), on_failure="raise")
    start = torch.tensor([[5.0, 0.0], [-40.0, 60.0]], dtype=dtype)
    solution = deq({"input": torch.zeros(2, 1, dtype=dtype)}, init={"a": start})
    middle = torch.full((2, 2), 2.5, dtype=dtype)
    torch.testing.assert_close(solution.value["a"].detach(), middle, rtol=1e-4, atol=1e-4)


def test_trust_region_starts_where_no_slope_is_left():
    # At the start the derivative of the activation is zero to rounding: no length can be measured.
    ham = HAM.chain([1, 1, 1], gain=0.1)
    deq = DEQ(ham, solver=TrustRegion(tol=1e-6), on_failure="raise")
    solution = deq({"input": torch.zeros(1, 1)}, init={"output": torch.tensor([[500.0]])})
    assert int(solution.steps.max()) <= 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_energy_without_a_minimum_ends_as_diverged(dtype):
    ham = HAM(
        {name: Neurons(2, Identity()) for name in ("input", "a", "b")},
        [(("input", "a"), Dense(2, 2)), (("a", "b"), Dense(2, 2))],
    ).to(dtype)
    with torch.no_grad():
        ham.synapses[1].weight.copy_(3 * torch.eye(2))
    deq = DEQ(ham, solver=Broyden(max_steps=3), on_failure="ignore")
    solution = deq({"input": torch.randn(4, 2, dtype=dtype)})
    assert (solution.status == Status.DIVERGED).all()
    assert all(x.isfinite().all() for x in solution.value.values())
    solution.value["b"].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in ham.parameters())


@pytest.mark.parametrize("kind", [Sparsemax, LayerNorm], ids=lambda kind: kind.__name__)
def test_trust_region_handles_activations_with_flat_directions(kind):
    torch.manual_seed(0)
    ham = HAM(
        {"input": Neurons(4, Tanh()), "a": Neurons(6, kind()), "b": Neurons(5, kind())},
        [(("input", "a"), Dense(4, 6)), (("a", "b"), Dense(6, 5, gain=3.0)), (("b",), Lateral(5))],
    )
    deq = DEQ(ham, splitting=None, solver=TrustRegion())
    assert deq({"input": torch.randn(64, 4)}).converged.all()


def test_the_fallback_runs_in_inference_mode_and_under_autocast():
    deq = DEQ(HAM.chain([6, 20, 20, 4], gain=3.0), solver=SHORT)
    x = {"input": torch.rand(8, 6)}
    reference = deq(x).value["output"]
    with torch.inference_mode():
        torch.testing.assert_close(deq(x).value["output"], reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert deq(x).converged.all()
    assert deq({"input": torch.rand(0, 6)}).value["output"].shape == (0, 4)


# --------------------------------------------------------------------------------- the gradient


def gradients(adjoint, *, gain=2.0, dtype=torch.float64):
    torch.manual_seed(0)
    ham = HAM.chain([6, 20, 20, 4], gain=gain).to(dtype)
    deq = DEQ(ham, solver=Broyden(tol=1e-10 if dtype == torch.float64 else 1e-6), adjoint=adjoint)
    solution = deq({"input": torch.rand(16, 6, dtype=dtype)})
    solution.value["output"].square().sum().backward()
    return [p.grad for p in ham.parameters() if p.grad is not None], solution.adjoint[0]


@pytest.mark.parametrize(
    "linear",
    [
        GMRES(tol=1e-12, max_steps=400),
        GMRES(tol=1e-12, max_steps=2000, restart=4),
        ConjugateGradient(tol=1e-12, max_steps=1),
        Broyden(tol=1e-12, max_steps=1),
    ],
    ids=["gmres", "gmres restarted", "conjugate gradients cut short", "broyden cut short"],
)
def test_the_gradient_is_exact_whoever_solves_its_system(linear):
    expected, _ = gradients(Implicit(solver=ConjugateGradient(tol=1e-12)))
    found, report = gradients(Implicit(solver=linear))
    assert report.converged.all()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    if not isinstance(linear, GMRES):
        assert (report.status == Status.FALLBACK).any()


def test_gmres_solves_a_system_that_is_neither_symmetric_nor_definite():
    torch.manual_seed(0)
    matrices = torch.randn(5, 12, 12, dtype=torch.float64)
    c = torch.randn(5, 12, dtype=torch.float64)
    c[3] = 0.0
    solution = GMRES(tol=1e-11, max_steps=100).solve(lambda v: (matrices @ v[..., None])[..., 0], c)
    assert solution.converged.all()
    expected = torch.linalg.solve(torch.eye(12, dtype=torch.float64) - matrices, c)
    torch.testing.assert_close(solution.value, expected, rtol=1e-8, atol=1e-10)
    assert solution.trace.shape == (solution.n_evals, 5)


class Products:
    """D and S of each sample as matrices, in place of the graph of a memory."""

    def __init__(self, d, s):
        self.d, self.s = d, s

    def gain(self, v):
        return (self.d @ v[..., None])[..., 0]

    def coupling(self, v):
        return (self.s @ v[..., None])[..., 0]

    def transposed(self, v):
        return self.gain(self.coupling(v))


def test_a_gradient_is_solved_in_float32_where_most_neurons_saturate():
    # The scalar product of conjugate gradients, with D, loses its digits to large entries of S
    # where D is zero; the system itself is well conditioned.
    torch.manual_seed(0)
    n, batch = 24, 512
    axes = torch.linalg.qr(torch.randn(batch, n, 6, dtype=torch.float64))[0]
    w = torch.randn(batch, n, n, dtype=torch.float64)
    d, s = 0.05 * axes @ axes.mT, w @ w.mT
    s *= (0.93 / torch.linalg.eigvalsh(0.05 * axes.mT @ s @ axes).amax(1))[:, None, None]
    c = torch.randn(batch, n, dtype=torch.float64)
    graph = Products(d.float(), s.float())
    alone = solve_linear(ConjugateGradient(fallback_steps=0), graph, c.float())
    both = solve_linear(ConjugateGradient(), graph, c.float())
    assert not alone.converged.all()
    assert both.converged.all()
    exact = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - d @ s, c)
    error = (both.value - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.05


def test_a_gradient_that_is_not_finite_harms_no_other_in_gmres():
    matrices = torch.full((3, 4, 4), 0.1, dtype=torch.float64)
    c = torch.ones(3, 4, dtype=torch.float64)
    c[1] = torch.nan
    solution = GMRES(tol=1e-10).solve(lambda v: (matrices @ v[..., None])[..., 0], c)
    assert solution.converged.tolist() == [True, False, True]
    torch.testing.assert_close(solution.value[[0, 2]], c[[0, 2]] / 0.6)


def test_gmres_refuses_a_cycle_of_no_products():
    with pytest.raises(ValueError, match="restart"):
        GMRES(restart=0)


def test_the_message_of_the_fallback_names_a_remedy():
    assert "TrustRegion" in Status.FALLBACK.message
    assert math.isfinite(Status.FALLBACK)
