"""Energy models in the solvers: downhill only, and honest to the end."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from random_memories import (
    BOUNDED,
    BOUNDED_KINDS,
    ROUNDING,
    SOLVERS,
    SPLITTINGS,
    TINY,
    Case,
    History,
    assert_downhill,
    chain,
    family,
    form_of,
    memory,
    watch,
)
from torch import Tensor

from hamdeq import (
    HAM,
    Broyden,
    Dense,
    Identity,
    Neurons,
    Picard,
    Solver,
    State,
    Status,
    Tanh,
    eliminate,
    fixed_point,
)
from hamdeq.solvers.energy_map import StateLayout
from hamdeq.testing import normal
from hamdeq.testing.contract import EPS

# ------------------------------------------------------------------------- the promise


def assert_honest(case: Case, hidden: Sequence[str], history: History, solver: Solver) -> None:
    """That every sample converged, or that its status says why not."""
    solution = history.solution
    converged, max_steps, diverged = (
        solution.status == status
        for status in (Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED)
    )
    assert (converged | max_steps | diverged).all()
    assert torch.equal(converged, solution.converged)
    assert solution.value.isfinite().all()
    assert (solution.residual[converged] < solver.tol).all()
    assert (solution.residual[~converged] >= solver.tol).all()
    assert (solution.steps[max_steps] == solver.max_steps).all()
    assert not (case.bounded and diverged.any())
    with torch.no_grad():
        x = form_of(case.visible(hidden), case.batch).unflatten(solution.value)
        fx = case.model(hidden).update(x)
        here, there = torch.cat([*x.values()], 1), torch.cat([*fx.values()], 1)
        # Scaled, so that no square is too large: a residual of 0 must not come from ‖f(x)‖ = ∞.
        size = there.abs().amax(1, keepdim=True).clamp_min(TINY)
        expected = ((there - here) / size).norm(dim=1) / (there / size).norm(dim=1)
    # At 1e6 f(x) is as good as zero, and the ratio a matter of rounding.
    sure = ~diverged & (solution.residual < 1e6)
    torch.testing.assert_close(solution.residual[sure], expected[sure], rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
@pytest.mark.slow
def test_the_energy_never_rises(name: str, splitting: str | None) -> None:
    """In no accepted state of any sample, whatever the memory: seen from outside."""
    newton = name == "newton"
    solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=25 if newton else 50)
    steps = started = compared = fell = 0
    for case in family(small=newton, batch=56 if newton else 128, every=3):
        hidden = case.hidden(splitting)
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        rises = history.rises()
        steps += int(history.went.sum())
        started += int(history.went[0].sum())
        compared += len(rises)
        fell += int((rises < -ROUNDING * EPS).sum())
    print(f"{name}, {splitting}: {steps} accepted steps, {compared} compared, {fell} fell")
    assert compared > (5_000 if newton else 25_000)
    # Each but the first is compared, unless its energy overflows on the way to minus infinity.
    assert steps - started - compared < 0.01 * steps
    # What is tested is descent, not a rest.
    assert fell > 0.7 * compared


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden"])
@pytest.mark.slow
def test_the_energy_never_rises_in_float32(name: str, splitting: str | None) -> None:
    """The solver sees float32 and its rounding; the energies are those of float64."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-5, max_steps=40)
    compared = 0
    for case in family(every=7):
        history = watch(case, case.hidden(splitting), solver, dtype=torch.float32)
        assert history.solution.value.dtype == torch.float32
        assert_downhill(case, history, torch.float32)
        assert not (case.bounded and (history.solution.status == Status.DIVERGED).any())
        compared += len(history.rises())
    assert compared > 6_000


@pytest.mark.slow
def test_plain_steps_of_a_two_coloured_memory_never_raise_the_energy() -> None:
    solver = Picard(tol=1e-8, max_steps=60)
    compared = 0
    for case in family(every=3):
        hidden = case.hidden("even-odd")
        assert case.model(hidden).descends
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        compared += len(history.rises())
    assert compared > 25_000


@pytest.mark.parametrize(
    ("name", "splitting"),
    [pair for pair in itertools.product(SOLVERS, SPLITTINGS) if pair != ("picard", "even-odd")],
)
def test_without_the_energy_it_does_rise(name: str, splitting: str | None) -> None:
    """So that the tests above can fail: the same memories as plain maps, seen by the same spy."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=30)
    rose = 0
    for case in family(kinds=[BOUNDED], scales=(3.0, 10.0), small=name == "newton", batch=32):
        history = watch(case, case.hidden(splitting), solver, info=False)
        rose += int((history.rises() > 1e6 * ROUNDING * EPS).sum())
    assert rose > 10


def coupled(batch: int = 64) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Memories of which layers that are left act on each other, and what is eliminated of them."""
    for seed, scale in itertools.product(range(3), (1.0, 3.0, 10.0)):
        options = {"scale": scale, "batch": batch, "widest": 3, "seed": seed}
        line = chain(5, **options)
        third = memory([(0, 1)], 4, triples=[(1, 2, 3), (0, 3, 2)], **options)
        yield from ((line, ("layer2",)), (third, ()), (third, ("layer2",)))


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
@pytest.mark.slow
def test_partial_elimination_and_third_order_synapses(name: str) -> None:
    solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=40)
    compared = 0
    for case, hidden in coupled(128 if name == "newton" else 64):  # it takes half as many steps
        assert not case.model(hidden).descends
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        compared += len(history.rises())
    assert compared > 4_000


@pytest.mark.slow
def test_plain_steps_of_these_do_rise() -> None:
    rose = 0
    for case, hidden in coupled():
        plain = watch(case, hidden, Picard(tol=1e-8, max_steps=40))
        rose += int((plain.rises() > 1e6 * ROUNDING * EPS).sum())
    assert rose > 100


# ----------------------------------------------------------------------------- the end


@pytest.mark.slow
def test_weak_bounded_memories_converge() -> None:
    """With weights up to those of an untrained memory, 99 of 100 samples at least."""
    solver = Broyden(tol=1e-6, max_steps=500)
    converged, total = 0, 0
    for case in family(kinds=BOUNDED_KINDS, scales=(0.1, 0.3, 1.0), batch=64):
        assert case.bounded
        hidden = case.hidden("even-odd")
        history = watch(case, hidden, solver)
        assert_honest(case, hidden, history, solver)
        converged += int(history.solution.converged.sum())
        total += case.batch
    print(f"{converged} of {total} converged")
    assert total == 36 * 64
    assert converged >= 0.99 * total


def linear(case: Case) -> tuple[float, State]:
    """Of a memory of identities: the largest eigenvalue of its weights, and where it can rest."""
    form, layered = StateLayout(case.start), case.layered()
    zero = torch.zeros_like(form.flatten(case.start))
    n = zero.shape[1]
    unit, rows = torch.eye(n, dtype=torch.float64), torch.zeros(n, dtype=torch.long)
    first, each = case.layered(rows), form_of(case.start, n)

    def field(g: Tensor) -> Tensor:
        return each.flatten(first.fields(each.unflatten(g)))

    with torch.no_grad():
        weights = field(unit) - field(torch.zeros_like(unit))
        drive = form.flatten(layered.fields(form.unflatten(zero)))
        rest = torch.linalg.solve(unit - weights.T, drive.T).T
    torch.testing.assert_close(weights, weights.T, rtol=0, atol=1e-13)
    return torch.linalg.eigvalsh(weights)[-1].item(), form.unflatten(rest)


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden"])
@pytest.mark.slow
def test_a_linear_memory_diverges_only_where_its_energy_falls_forever(
    name: str, splitting: str | None
) -> None:
    """½gᵀ(1 − W)g − bᵀg has a minimum where the largest eigenvalue of W is below 1."""
    solver = dataclasses.replace(SOLVERS[name], tol=1e-9, max_steps=450)
    with_minimum = without = lost = 0
    for case in family(kinds=[[Identity]], batch=16):
        hidden = case.hidden(splitting)
        largest, rest = linear(case)
        assert abs(largest - 1) > 1e-3
        history = watch(case, hidden, solver)
        assert_downhill(case, history)
        assert_honest(case, hidden, history, solver)
        solution = history.solution
        x = form_of(case.visible(hidden), case.batch).unflatten(solution.value)
        for a, x_a in x.items():
            there = (x_a - rest[a]).abs() <= 1e-5 * (1 + rest[a].abs())
            assert there[solution.converged].all()
        if largest < 1:
            with_minimum += 1
            assert solution.converged.all()
        else:
            without += 1
            lost += int((solution.status == Status.DIVERGED).sum())
    assert with_minimum >= 3
    assert without >= 3
    assert lost > 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["anderson", "broyden", "picard"])
@pytest.mark.slow
def test_no_sample_converges_by_overflow(name: str, dtype: torch.dtype) -> None:
    """‖f(x)‖ overflows before ‖f(x) − x‖ does: their ratio is then 0, and no equilibrium."""
    dense = Dense(4, 4)
    with torch.no_grad():
        dense.weight.copy_(1.9**0.5 * torch.eye(4))
    ham = HAM({a: Neurons(4, Identity()) for a in "ab"}, [(("a", "b"), dense)]).to(dtype)
    x0 = {"a": 1 + torch.rand(8, 4, generator=torch.Generator().manual_seed(0)).to(dtype)}
    solver = dataclasses.replace(SOLVERS[name], tol=1e-4, max_steps=1200)
    solution = fixed_point(eliminate(ham, ("b",)), x0, solver=solver, on_failure="ignore")
    x = solution.value["a"]
    assert x.isfinite().all()
    # Zero is the only equilibrium.
    assert not (solution.converged & (x.abs().amax(1) > 1e-3)).any()


# ------------------------------------------------------------- where plain steps do not converge


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_solvers_converge_where_plain_steps_cycle(name: str) -> None:
    """Two layers that answer each other at once swap their states for ever."""
    torch.manual_seed(1)
    neurons = {a: Neurons(6, Tanh()) for a in "ab"}
    ham = HAM(neurons, [(("a", "b"), Dense(6, 6))]).double()
    with torch.no_grad():
        ham.synapses[0].weight.mul_(5.0)  # type: ignore[operator]
    x0 = {a: normal(16, 6, seed=i) for i, a in enumerate("ab")}
    with torch.no_grad():
        cut = Picard(tol=1e-8, max_steps=400, fallback_steps=0)
        plain = fixed_point(ham, x0, solver=cut, on_failure="ignore")
        cycling = plain.status == Status.MAX_STEPS
        assert cycling.sum() >= 12
        x = x0
        for _ in range(400):
            x = ham.update(x)
        once = ham.update(x)
        twice = ham.update(once)
        for a in "ab":
            torch.testing.assert_close(twice[a], x[a], rtol=0, atol=1e-9)
        swing = torch.cat([once[a] - x[a] for a in "ab"], 1).norm(dim=1)
        assert (swing[cycling] > 0.1).all()
        solver = dataclasses.replace(SOLVERS[name], tol=1e-8, max_steps=400)
        solution = fixed_point(ham, x0, solver=solver, on_failure="raise")
        assert solution.converged.all()
        there = ham.update(solution.value)
        for a in "ab":
            torch.testing.assert_close(there[a], solution.value[a], rtol=0, atol=1e-6)
        assert (ham.energy(solution.value) < ham.energy(x0)).all()


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_a_saturated_neuron_does_not_stop_the_solver(name: str) -> None:
    """Where neurons have next to no gain, the energy promises more than a short step can keep."""
    ham = HAM({a: Neurons(1, Tanh()) for a in "ab"}, [(("a", "b"), Dense(1, 1))]).double()
    with torch.no_grad():
        ham.synapses[0].weight.fill_(10.0)  # type: ignore[operator]
    grid = torch.linspace(-12.0, 12.0, 17, dtype=torch.float64)
    a, b = torch.cartesian_prod(grid, grid).split(1, 1)
    # On a + b = 0, and there alone, both run into the saddle at zero.
    off = ((a + b).abs() > 1).flatten()
    x0 = {"a": a[off], "b": b[off]}
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6, max_steps=100)
    solution = fixed_point(ham, x0, solver=solver, on_failure="ignore")
    # Three equilibria: x = 10 tanh(x), to 1e-7 at ±10, and at 0.
    assert solution.converged.all(), (~solution.converged).sum()
    for x in solution.value.values():
        nearest = torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64) - x
        assert (nearest.abs().amin(1) < 1e-4).all()


@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
@pytest.mark.slow
def test_halving_finds_a_step_downhill(name: str) -> None:
    """Without splitting a step is halved until the energy falls, which is soon.

    Of samples that converge: the others, a percent at most, wander between saturated neurons by a
    path that depends on the last bit of a product, and so on the processor.
    """
    solver = dataclasses.replace(SOLVERS[name], tol=1e-6, max_steps=200)
    longest, converged, total = 0, 0, 0
    for case in family(kinds=BOUNDED_KINDS, batch=32, small=name == "newton", every=4):
        history = watch(case, (), solver)
        assert_downhill(case, history)
        solution = history.solution
        streak = torch.zeros(case.batch, dtype=torch.long)
        for k, went in enumerate(history.went):
            streak = torch.where(went | (k >= solution.steps), 0, streak + 1)
            longest = max(longest, int(streak[solution.converged].max()))
        converged += int(solution.converged.sum())
        total += case.batch
    assert longest <= 20, (longest, converged, total)
    assert converged >= 0.99 * total


# ------------------------------------------------------------------- the same as a plain map


@pytest.mark.parametrize("splitting", SPLITTINGS)
@pytest.mark.parametrize("name", ["anderson", "broyden", "newton"])
def test_the_energy_changes_neither_equilibrium_nor_gradient(
    name: str, splitting: str | None
) -> None:
    """Of a contraction: against the plain map, and against autograd through many steps."""
    for seed in range(1):
        case = chain(4, kinds=BOUNDED[:3], scale=0.2, batch=5, seed=seed)
        hidden = case.hidden(splitting)
        x0 = case.visible(hidden)
        weights = {a: normal(*x.shape, seed=40) for a, x in x0.items()}
        case.clamped = {a: x.requires_grad_() for a, x in case.clamped.items()}
        inputs = [*case.clamped.values(), *case.ham.parameters()]

        def gradient(value: State) -> tuple[Tensor, ...]:
            loss = torch.stack([(value[a] * weights[a]).sum() for a in value]).sum()  # noqa: B023
            return torch.autograd.grad(loss, inputs, materialize_grads=True)  # noqa: B023

        # Made anew for each: what the clamped layer exerts keeps its graph for one backward pass.
        solver = dataclasses.replace(SOLVERS[name], tol=1e-12, max_steps=300)
        picard = Picard(tol=1e-13, max_steps=2000)
        with_energy = fixed_point(case.model(hidden), x0, solver=solver, on_failure="raise").value
        plain = fixed_point(case.model(hidden).update, x0, solver=picard, on_failure="raise").value
        model, unrolled = case.model(hidden), x0
        for _ in range(200):
            unrolled = model.update(unrolled)
        grads = gradient(with_energy)
        assert max(grad.abs().max() for grad in grads) > 1e-2
        for value, expected in ((plain, gradient(plain)), (unrolled, gradient(unrolled))):
            for a in x0:
                torch.testing.assert_close(with_energy[a], value[a], rtol=1e-10, atol=1e-10)
            for grad, other in zip(grads, expected, strict=True):
                torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-9)
