"""Only finite numbers are converged, and a sample that is lost changes no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hamdeq import (
    CHN,
    CHNDEQ,
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    Dense,
    Exp,
    Identity,
    Implicit,
    Lagrangian,
    Neurons,
    Phantom,
    Picard,
    RePU,
    Sigmoid,
    Solution,
    Status,
    Tanh,
    TwoLayer,
    Unrolled,
    clamp,
    eliminate,
    fixed_point,
)
from hamdeq.nn.functional import settle


def pair() -> DEQ:
    """Two layers, of which the free one is eliminated: exp(100) overflows."""
    torch.manual_seed(0)
    neurons = {"a": Neurons(2, Exp()), "b": Neurons(3, Identity())}
    return DEQ(HAM(neurons, [(("a", "b"), Dense(2, 3))]), ("a",), on_failure="ignore")


def chain(
    first: Lagrangian,
    splitting: Any = "even-odd",
    dtype: torch.dtype | None = None,
    adjoint: Adjoint | None = None,
) -> DEQ:
    """A chain whose input has an activation that overflows where its states are huge."""
    torch.manual_seed(0)
    rest = [Sigmoid(4.0, 0.5)] * 3
    ham = HAM.chain([6, 5, 4, 3], [first, *rest], gain=0.5).to(dtype)
    tol = 1e-6 if dtype is None else 2e-2
    solver = Anderson(tol=tol)
    return DEQ(ham, splitting=splitting, solver=solver, adjoint=adjoint, on_failure="ignore")


def pixels(large: float, dtype: torch.dtype | None = None) -> Tensor:
    """Three samples, the second of them of huge numbers."""
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[1] = large
    return x


def assert_lost(solution: Solution, sample: int, status: Status) -> None:
    """No number of the sample claims anything, and each of the others is finite."""
    assert solution.status[sample] == status
    assert not solution.converged[sample]
    assert solution.residual[sample].isnan()
    for x in solution.value.values():
        assert x[sample].isnan().all()
        others = [i for i in range(len(x)) if i != sample]
        assert x[others].isfinite().all()
        assert solution.converged[others].all()


def assert_others_unharmed(deq: DEQ, given: dict[str, Tensor], lost: int) -> None:
    """Values and gradients of the other samples are those that they have alone."""
    others = [i for i in range(len(next(iter(given.values())))) if i != lost]
    results = []
    for rows in (list(range(len(others) + 1)), others):
        deq.zero_grad()
        x = {name: x[rows].clone().requires_grad_() for name, x in given.items()}
        solution = deq(x)
        keep = others if len(rows) > len(others) else slice(None)
        loss = sum(v.square().sum((1,)) for v in solution.value.values())
        energy = deq.energy(solution.value)
        # Whatever is sent back to a lost sample stays there.
        weight = torch.ones(len(rows))
        weight[lost if len(rows) > len(others) else []] = torch.nan
        ((loss + energy) * weight.to(loss.dtype)).sum().backward()
        grads = [x_a.grad for x_a in x.values()]
        if len(rows) > len(others):
            assert all(g is not None and not g[lost].any() for g in grads)
        results.append(
            [v[keep] for v in solution.value.values()]
            + [energy[keep], solution.steps[keep]]
            + [g[keep] for g in grads if g is not None]
            + [p.grad for p in deq.parameters()]
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_an_eliminated_layer_that_overflows_is_not_converged() -> None:
    deq, x = pair(), torch.tensor([[0.1, 0.2], [100.0, 0.0]])
    assert_lost(deq({"a": x}), 1, Status.DIVERGED)
    assert_others_unharmed(deq, {"a": x}, 1)


@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled(3), Phantom(3)])
@pytest.mark.parametrize("splitting", ["even-odd", "sweep"])
def test_a_hidden_layer_that_overflows_is_not_converged(splitting: Any, adjoint: Adjoint) -> None:
    """The output saturates where the hidden layers are infinite, and alone would be converged."""
    deq, x = chain(Exp(), splitting, adjoint=adjoint), pixels(3e38)
    solution = deq({"input": x})
    assert_lost(solution, 1, Status.DIVERGED)
    assert_others_unharmed(deq, {"input": x}, 1)
    assert deq.energy(solution.value).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_that_overflows_in_half_precision(dtype: torch.dtype) -> None:
    deq = chain(RePU(3), dtype=dtype)
    assert_lost(deq({"input": pixels(torch.finfo(dtype).max / 2, dtype)}), 1, Status.DIVERGED)


@pytest.mark.parametrize("first", [Identity(), Sigmoid(4.0, 0.5)], ids=repr)
@pytest.mark.parametrize("splitting", ["even-odd", None])
def test_huge_pixels_converge_where_all_layers_are_finite(
    first: Lagrangian, splitting: Any
) -> None:
    solution = chain(first, splitting)({"input": pixels(3e37)})
    assert all(x.isfinite().all() for x in solution.value.values())
    assert solution.converged[[0, 2]].all()
    # Without splitting the norm of an infinite state tells nothing, and is no convergence.
    assert solution.converged[1] or not solution.residual[1].isfinite()


def test_the_energy_of_huge_states_is_finite_where_its_limit_is() -> None:
    x = torch.tensor([[-3e38], [3e38]], requires_grad=True)
    for lagrangian in (Sigmoid(4.0, 0.5), Tanh(2.0)):
        energy = lagrangian.energy(x)
        torch.testing.assert_close(energy, lagrangian.energy(x.sign() * 1e3))
        (grad,) = torch.autograd.grad(energy.sum(), x)
        assert not grad.any()


def test_a_lost_sample_keeps_its_best_finite_state() -> None:
    """Where f overflows but the initial state and all that follows from it are finite."""
    deq = chain(Exp(), None)
    solution = deq({"input": pixels(3e38)})
    assert solution.status.tolist() == [0, Status.DIVERGED, 0]
    assert all(x.isfinite().all() for x in solution.value.values())
    assert torch.equal(solution.value["output"][1], torch.zeros(3))
    assert solution.residual[1] == torch.inf
    assert_others_unharmed(deq, {"input": pixels(3e38)}, 1)


def test_invalid_and_diverged_samples_in_one_batch() -> None:
    deq, x = chain(Exp()), pixels(3e38)
    x = torch.cat([x, x])
    x[3, 2] = torch.nan
    solution = deq({"input": x.requires_grad_()})
    expected = [0, Status.DIVERGED, 0, Status.INVALID, Status.DIVERGED, 0]
    assert solution.status.tolist() == expected
    assert solution.trace.shape == (solution.n_evals, 6)
    sum(v.square().sum() for v in solution.value.values()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any(1).tolist() == [True, False, True, False, False, True]
    (backward,) = solution.adjoint
    assert backward.converged.tolist() == [s == 0 for s in expected]
    assert backward.status.tolist() == expected


def test_a_batch_of_lost_samples_alone() -> None:
    deq = chain(Exp())
    x = pixels(3e38)[[1, 1]].requires_grad_()
    solution = deq({"input": x})
    assert (solution.status == Status.DIVERGED).all()
    sum(v.square().sum() for v in solution.value.values()).backward()
    assert not any(p.grad.any() for p in (x, *deq.parameters()) if p.grad is not None)


@pytest.mark.parametrize("splitting", ["even-odd", None])
def test_a_chn_that_overflows_is_not_converged(splitting: Any) -> None:
    torch.manual_seed(0)
    chn = CHN.chain([6, 5, 4, 3], Identity(), gain=0.3)
    with torch.no_grad():
        chn.ham.synapses[0].weight.fill_(1.0)  # pyright: ignore[reportCallIssue]
    deq = CHNDEQ(chn, splitting=splitting, on_failure="ignore")
    solution = deq({"input": pixels(3e38)})
    assert solution.status.tolist() == [0, Status.DIVERGED, 0]
    assert all(x[[0, 2]].isfinite().all() for x in solution.value.values())
    assert_others_unharmed(deq, {"input": pixels(3e38)}, 1)


def test_a_two_layer_memory_that_overflows_is_not_converged() -> None:
    torch.manual_seed(0)
    memory = TwoLayer.model_c(torch.randn(4, 6), Exp(30.0))
    deq = DEQ(memory, ("features",), on_failure="ignore")
    solution = deq({"features": torch.tensor([[0.0] * 6, [3e38] * 6])})
    assert solution.converged.tolist() == [
        bool(solution.value["memories"][i].isfinite().all()) for i in range(2)
    ]


def test_fixed_point_of_a_model_with_an_overflowing_hidden_layer_is_not_converged() -> None:
    ham = chain(Exp()).ham
    clamped = clamp(ham, {"input": pixels(3e38)})
    reduced = eliminate(clamped, ["hidden1"])
    x0 = ham.zero_state(pixels(0.0), reduced.visible)
    solution = fixed_point(reduced, x0, solver=Picard(), on_failure="ignore")
    assert solution.status.tolist() == [0, Status.DIVERGED, 0]
    assert all(x.isfinite().all() for x in solution.value.values())


def test_fixed_point_of_an_energy_model_keeps_lost_samples_out_of_the_gradient() -> None:
    ham = chain(Identity()).ham
    x0 = ham.zero_state(pixels(0.0), ham.layers[1:])
    grads = []
    for rows in ([0, 1, 2], [0, 2]):
        ham.zero_grad()
        start = {name: x[rows].clone() for name, x in x0.items()}
        if len(rows) == 3:
            start["output"][1] = torch.nan
        clamped = clamp(ham, {"input": pixels(0.5)[rows]})
        solution = fixed_point(clamped, start, on_failure="ignore")
        assert solution.status.tolist() == ([0, Status.INVALID, 0] if len(rows) == 3 else [0, 0])
        solution.value["output"].sum().backward()
        grads.append([p.grad.clone() for p in ham.parameters() if p.grad is not None])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_settle_with_a_state_pattern_that_overflows_harms_no_other() -> None:
    torch.manual_seed(0)
    stored = torch.randn(5, 4, requires_grad=True)
    state = torch.randn(3, 4)
    grads = []
    for x in (torch.cat([state, torch.full((1, 4), 3e38)]), state):
        (stored.grad, solution) = (None, settle(x, stored, on_failure="ignore"))
        assert solution.converged[:3].all()
        assert solution.value[solution.converged].isfinite().all()
        solution.value[solution.converged][:3].sum().backward()
        grads.append(stored.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_a_value_is_not_the_callers_tensor() -> None:
    ham = HAM.chain([5, 4, 3])
    for deq in (DEQ(ham), DEQ(HAM.chain([5, 4])), CHNDEQ(CHN.chain([5, 4, 3]), splitting=None)):
        x = torch.rand(2, 5)
        given = x.clone()
        value = deq({"input": x}).value["input"]
        x.zero_()
        assert torch.equal(value, given)
        value.fill_(7.0)
        assert not x.any()
