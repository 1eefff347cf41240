"""Initial states: a feed-forward pass, which no equilibrium depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from custom_terms import Squared, Triple
from random_memories import SOLVERS
from torch import Tensor, nn

from hamdeq import (
    DEQ,
    HAM,
    Bias,
    Broyden,
    Dense,
    Exp,
    Identity,
    Lateral,
    MaxPool2d,
    Neurons,
    Newton,
    Picard,
    Sigmoid,
    Softmax,
    Status,
    Synapse,
    Tanh,
    clamp,
)
from hamdeq.energy.clamping import forward_sweep
from hamdeq.energy.model import Connection
from hamdeq.testing import normal

EXACT = {"rtol": 1e-13, "atol": 1e-13}
TIGHT = Newton(tol=1e-13, max_steps=300)


def memory(sizes: dict[str, int], edges: Sequence[str], *, gain: float = 0.5) -> HAM:
    torch.manual_seed(0)
    neurons = {name: Neurons(n, Tanh(1.5)) for name, n in sizes.items()}
    connections: list[Connection] = [((name,), Bias(n, std=0.5)) for name, n in sizes.items()]
    for edge in edges:
        a, b = edge.split()
        connections.append(((a, b), Dense(sizes[a], sizes[b], gain=gain)))
    return HAM(neurons, connections).double()


def weight(ham: HAM, *layers: str) -> Tensor:
    (synapse,) = (synapse for names, synapse in ham.connections if names == layers)
    (parameter,) = synapse.parameters()
    return parameter


def g(x: Tensor) -> Tensor:
    return torch.tanh(1.5 * x)


@pytest.mark.parametrize("n", range(2, 7))
@pytest.mark.parametrize("bias", [True, False])
def test_of_a_chain_it_is_the_feed_forward_pass(n: int, bias: bool) -> None:
    torch.manual_seed(n)
    ham = HAM.chain([5, 4, 6, 3, 5, 2][:n], Tanh(1.5), bias=bias).double()
    with torch.no_grad():
        for p in ham.parameters():
            p += 0.3 * torch.randn_like(p)
    x = normal(4, 5)
    found = forward_sweep(clamp(ham, {"input": x}))
    assert tuple(found) == ham.layers[1:]
    for i, name in enumerate(ham.layers[1:]):
        x = g(x) @ weight(ham, ham.layers[i], name) + (weight(ham, name) if bias else 0.0)
        torch.testing.assert_close(found[name], x, **EXACT)


def test_the_pass_goes_outwards_from_all_clamped_layers() -> None:
    """Backwards through weights too, as there is one for both ways."""
    ham = memory(
        {"input": 3, "a": 4, "b": 5, "c": 4, "output": 2}, ["input a", "a b", "b c", "c output"]
    )
    x, y = normal(4, 3), normal(4, 2, seed=1)
    found = forward_sweep(clamp(ham, {"input": x, "output": y}))
    a = g(x) @ weight(ham, "input", "a") + weight(ham, "a")
    c = g(y) @ weight(ham, "c", "output").T + weight(ham, "c")
    b = g(a) @ weight(ham, "a", "b") + g(c) @ weight(ham, "b", "c").T + weight(ham, "b")
    for name, expected in {"a": a, "b": b, "c": c}.items():
        torch.testing.assert_close(found[name], expected, **EXACT)


def test_skip_connections_make_a_layer_one_of_the_next() -> None:
    """input – a – b, input – b: a and b are reached at once, then c by both."""
    ham = memory({"input": 3, "a": 4, "b": 5, "c": 2}, ["input a", "b a", "input b", "a c", "b c"])
    x = normal(4, 3)
    found = forward_sweep(clamp(ham, {"input": x}))
    a = g(x) @ weight(ham, "input", "a") + weight(ham, "a")
    b = g(x) @ weight(ham, "input", "b") + weight(ham, "b")
    c = g(a) @ weight(ham, "a", "c") + g(b) @ weight(ham, "b", "c") + weight(ham, "c")
    for name, expected in {"a": a, "b": b, "c": c}.items():
        torch.testing.assert_close(found[name], expected, **EXACT)


def test_several_inputs_meet_in_a_synapse_of_three() -> None:
    torch.manual_seed(0)
    neurons = {a: Neurons(n, Tanh(1.5)) for a, n in zip("abcde", (2, 3, 4, 3, 2), strict=True)}
    triple = Triple(2, 3, 4)
    links: list[Connection] = [
        (("a", "b", "c"), triple),
        (("c", "d"), Dense(4, 3)),
        (("d", "e"), Dense(3, 2)),
    ]
    ham = HAM(neurons, links).double()
    clamped = {"a": normal(5, 2), "b": normal(5, 3, seed=1)}
    found = forward_sweep(clamp(ham, clamped))
    c = triple.field(2, g(clamped["a"]), g(clamped["b"]), torch.zeros(5, 4).double())
    d = g(c) @ weight(ham, "c", "d")
    torch.testing.assert_close(found["c"], c, **EXACT)
    torch.testing.assert_close(found["d"], d, **EXACT)
    torch.testing.assert_close(found["e"], g(d) @ weight(ham, "d", "e"), **EXACT)
    # With one of the two alone the synapse leads nowhere.
    found = forward_sweep(clamp(ham, {"a": clamped["a"]}))
    assert not any(x.any() for x in found.values())


def test_what_nothing_leads_to_starts_at_zero() -> None:
    """A bias alone leads nowhere; a later layer gets its field, not that of a bias only."""
    ham = memory({"input": 3, "a": 4, "b": 5, "alone": 2, "c": 3}, ["input a", "b c"])
    found = forward_sweep(clamp(ham, {"input": normal(4, 3)}))
    assert found["a"].abs().min() > 1e-3
    for name in ("b", "alone", "c"):
        assert torch.equal(found[name], torch.zeros_like(found[name]))


def test_what_acts_within_a_layer_leads_nowhere() -> None:
    ham = memory({"input": 3, "a": 4, "b": 5}, ["input a", "a b"])
    torch.manual_seed(3)
    within: list[Connection] = [(("b",), Lateral(5)), (("a", "a"), Dense(4, 4))]
    both = HAM({a: ham.layer(a) for a in ham.layers}, ham.connections + within).double()
    clamped = {"input": normal(4, 3)}
    torch.testing.assert_close(
        forward_sweep(clamp(both, clamped)), forward_sweep(clamp(ham, clamped)), **EXACT
    )
    none = HAM({a: ham.layer(a) for a in ham.layers}, within)
    assert not any(x.any() for x in forward_sweep(clamp(none, clamped)).values())


def test_synapses_that_are_not_linear() -> None:
    """The field on a layer that is not known yet is that at zero activation."""
    neurons = {"input": Neurons(3, Tanh()), "a": Neurons(2, Tanh())}
    squared = Squared(3, 2)
    ham = HAM(neurons, [(("input", "a"), squared)]).double()
    x = normal(4, 3)
    expected = squared.field(1, torch.tanh(x), torch.zeros(4, 2).double())
    found = forward_sweep(clamp(ham, {"input": x}))["a"]
    torch.testing.assert_close(found, expected, **EXACT)
    shapes = {"image": (1, 4, 4), "pooled": (1, 2, 2)}
    pooling = HAM(
        {a: Neurons(n, Tanh()) for a, n in shapes.items()}, [(tuple(shapes), MaxPool2d(2))]
    )
    image = normal(4, 16).reshape(4, 1, 4, 4)
    found = forward_sweep(clamp(pooling, {"image": image}))["pooled"]
    torch.testing.assert_close(found, nn.functional.max_pool2d(image.tanh(), 2), **EXACT)


def test_a_layer_clamped_in_part_counts_to_that_extent() -> None:
    ham = memory({"input": 4, "a": 3, "b": 2}, ["input a", "a b"])
    x, mask = normal(5, 4), torch.tensor([True, False, True, False])
    found = forward_sweep(clamp(ham, {"input": x}, {"input": mask}))
    assert torch.equal(found["input"], torch.zeros_like(x))
    a = g(torch.where(mask, x, 0.0)) @ weight(ham, "input", "a") + weight(ham, "a")
    torch.testing.assert_close(found["a"], a, **EXACT)
    b = g(a) @ weight(ham, "a", "b") + weight(ham, "b")
    torch.testing.assert_close(found["b"], b, **EXACT)


# ------------------------------------------------------------------------- of a DEQ


CYCLE = memory({"input": 3, "a": 4, "b": 5, "c": 2}, ["input a", "a b", "b c", "c a"], gain=0.4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("splitting", ["sweep", None])
def test_both_starts_lead_to_the_equilibrium(splitting: Any, solver: str) -> None:
    given: Any = {"input": normal(6, 3)}
    options: Any = {"splitting": splitting, "solver": type(SOLVERS[solver])(tol=1e-12)}
    forward = DEQ(CYCLE, start="forward", **options)(given)
    zeros = DEQ(CYCLE, start="zeros", **options)(given)
    assert forward.converged.all()
    torch.testing.assert_close(forward.value, zeros.value, rtol=1e-10, atol=1e-10)
    assert (forward.trace[0] != zeros.trace[0]).all()


def test_the_first_state_is_the_one_asked_for() -> None:
    """Seen from a solver that takes no step."""
    given = {"input": normal(6, 3)}

    def first(init: Any = None, **options: Any) -> Any:
        solver = Picard(max_steps=1, fallback_steps=0)
        deq = DEQ(CYCLE, splitting=None, solver=solver, on_failure="ignore", **options)
        return deq(given, init=init).value

    forward, zeros = first(), first(start="zeros")
    for name, expected in forward_sweep(clamp(CYCLE, given)).items():
        torch.testing.assert_close(forward[name], expected, **EXACT)
        assert not zeros[name].any()
    b = normal(6, 5, seed=4)
    for start, others in (("forward", forward), ("zeros", zeros)):
        found = first({"b": b}, start=start)
        assert torch.equal(found["b"], b)
        assert torch.equal(found["a"], others["a"])
        assert torch.equal(found["c"], others["c"])


def test_no_start_gets_a_gradient_but_that_of_the_equilibrium() -> None:
    gradients = []
    for start in ("forward", "zeros"):
        x = normal(6, 3).requires_grad_()
        deq = DEQ(CYCLE, splitting="sweep", solver=TIGHT, start=start)  # type: ignore[arg-type]
        loss = deq({"input": x}).value["c"].square().sum()
        gradients.append(torch.autograd.grad(loss, [x, *deq.parameters()], allow_unused=True))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_fewer_steps_than_from_zeros() -> None:
    """A memory after some steps of training, as a classifier of four directions."""
    torch.manual_seed(0)
    deq = DEQ(HAM.chain([8, 16, 12, 4], gain=[2.0, 0.5, 0.5]), on_failure="ignore")
    optimiser = torch.optim.Adam(deq.parameters(), lr=1e-2)
    centres = torch.rand(4, 8)
    labels = torch.arange(64) % 4
    losses = []
    for step in range(60):
        x = centres[labels] + 0.1 * torch.randn(
            64, 8, generator=torch.Generator().manual_seed(step)
        )
        output = deq({"input": x}).value["output"]
        loss = (output - nn.functional.one_hot(labels).float()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        for splitting in ("even-odd", None):
            steps = {}
            for start in ("forward", "zeros"):
                solver = Broyden(tol=1e-5)
                settled = DEQ(deq.ham, splitting=splitting, solver=solver, start=start)  # type: ignore[arg-type]
                solution = settled({"input": centres[labels]})
                assert solution.converged.all()
                steps[start] = solution.steps.double().mean()
            assert steps["forward"] <= steps["zeros"] - 0.5


def test_where_the_pass_overflows_iteration_starts_from_zero() -> None:
    """exp of a large field is infinite; from zero the memory converges to where it is not."""
    neurons = {"input": Neurons(1, Identity()), "a": Neurons(2, Exp()), "b": Neurons(3, Softmax())}
    ham = HAM(neurons, [(("input", "a"), Dense(1, 2)), (("a", "b"), Dense(2, 3))]).double()
    with torch.no_grad():
        ham.synapses[0].weight.fill_(1.0)
        ham.synapses[1].weight.copy_(torch.tensor([[0.1, -0.2, 0.3], [0.2, 0.1, -0.1]]))
    x = torch.tensor([[0.5], [1000.0], [-1.0]]).double()
    assert not forward_sweep(clamp(ham, {"input": x}))["b"][1].isfinite().all()
    options: Any = {"solver": Picard(fallback_steps=0), "on_failure": "ignore"}
    deq = DEQ(ham, splitting=None, **options)
    zeros = DEQ(ham, splitting=None, start="zeros", **options)
    found, expected = deq({"input": x}), zeros({"input": x})
    # That sample goes the way it goes from zero, and the others theirs.
    assert found.status.tolist() == expected.status.tolist()
    assert found.status[[0, 2]].tolist() == [0, 0]
    assert found.status[1] == Status.DIVERGED
    assert found.steps[1] == expected.steps[1]
    torch.testing.assert_close(found.value["b"][1], expected.value["b"][1], rtol=0, atol=0)
    alone = deq({"input": x[[0, 2]]})
    torch.testing.assert_close(found.value["b"][[0, 2]], alone.value["b"], rtol=1e-12, atol=1e-12)


class Root(Synapse):
    """An energy whose field at zero is not a number."""

    def energy(self, *g: Tensor) -> Tensor:
        a, b = g
        return -(a * (b.square().sum(1, keepdim=True)).sqrt()).sum(1)


def test_a_pass_that_is_not_a_number_is_no_invalid_state() -> None:
    neurons = {"input": Neurons(2, Sigmoid()), "a": Neurons(3, Sigmoid())}
    ham = HAM(neurons, [(("input", "a"), Root())]).double()
    given = {"input": normal(4, 2)}
    assert forward_sweep(clamp(ham, given))["a"].isnan().any()
    solution = DEQ(ham, splitting=None)(given)
    assert solution.converged.all()


def test_bad_inputs_are_told_as_such() -> None:
    x = normal(4, 3)
    x[1, 0] = torch.nan
    solution = DEQ(CYCLE, splitting="sweep", on_failure="ignore")({"input": x})
    assert solution.status.tolist() == [0, Status.INVALID, 0, 0]


def test_under_autocast_states_keep_their_dtype() -> None:
    torch.manual_seed(0)
    ham = HAM.chain([5, 6, 4, 3])
    x = torch.rand(4, 5)
    exact = forward_sweep(clamp(ham, {"input": x}))
    with torch.autocast("cpu", torch.bfloat16):
        found = forward_sweep(clamp(ham, {"input": x}))
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.05)


def test_another_start_is_refused() -> None:
    with pytest.raises(
        ValueError, match="start: expected 'forward', 'linearised' or 'zeros', got 'random'"
    ):
        DEQ(CYCLE, splitting=None, start="random")  # type: ignore[arg-type]
    assert "start='zeros'" in repr(DEQ(CYCLE, splitting=None, start="zeros"))
