"""A DEQ under torch.func: what a transform gives is what autograd gives, sample by sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vjp, vmap

from hamdeq import (
    CHN,
    CHNDEQ,
    DEQ,
    HAM,
    Anderson,
    Bias,
    ConjugateGradient,
    ConvergenceError,
    Dense,
    EquilibriumPropagation,
    FunctionSynapse,
    Implicit,
    Neurons,
    Phantom,
    Picard,
    Sigmoid,
    Status,
    Unrolled,
    fixed_point,
)

TIGHT: dict[str, Any] = {
    "solver": Anderson(tol=1e-12),
    "adjoint": Implicit(solver=ConjugateGradient(tol=1e-12)),
}
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def chain(**options: Any) -> DEQ:
    torch.manual_seed(0)
    return DEQ(HAM.chain([6, 5, 4, 3], gain=0.6).double(), **{**TIGHT, **options})


def samples(batch: int = 4, n: int = 6) -> Tensor:
    return torch.rand(batch, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def output(deq: DEQ, x: Tensor) -> Tensor:
    """Of one sample."""
    return deq({"input": x[None]}).value["output"][0]


def loss(deq: DEQ, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of one sample, in which all layers have a part."""
    # Tied, PyTorch would not give a synapse that is in two places its own weights back.
    given = ({"input": x[None]},)
    value = functional_call(deq, parameters, given, tie_weights=False).value
    return sum((i + 1) * x_a.square().sum() for i, x_a in enumerate(value.values()))  # type: ignore[return-value]


DEQS = {
    "implicit": lambda: chain(),
    "synchronous": lambda: chain(splitting=None),
    "unrolled": lambda: chain(adjoint=Unrolled(3)),
    "phantom": lambda: chain(adjoint=Phantom(3)),
    "propagation": lambda: chain(adjoint=EquilibriumPropagation()),
    "one layer": lambda: DEQ(HAM.chain([6, 3]).double()),
    "chn": lambda: CHNDEQ(CHN.chain([6, 5, 4, 3], gain=0.6).double(), **TIGHT),
    "shared weights": lambda: DEQ(shared().double(), **TIGHT),
    "derived fields": lambda: DEQ(derived().double(), **TIGHT),
}


def shared() -> HAM:
    torch.manual_seed(0)
    synapse = Dense(6, 6, gain=0.3)
    neurons = {name: Neurons(6, Sigmoid()) for name in ("input", "a", "output")}
    return HAM(neurons, [(("input", "a"), synapse), (("a", "output"), synapse)])


def derived() -> HAM:
    neurons = {name: Neurons(6, Sigmoid()) for name in ("input", "a", "output")}
    product = FunctionSynapse(lambda a, b: -(a * b).sum(-1) / 2, linear_in=(0, 1))
    return HAM(neurons, [(("input", "a"), product), (("a", "output"), product), (("a",), Bias(6))])


@pytest.mark.parametrize("kind", DEQS)
def test_per_sample_gradients_are_those_of_each_sample(kind: str) -> None:
    deq, x = DEQS[kind](), samples()
    parameters = {name: p.detach() for name, p in deq.named_parameters()}
    result = vmap(grad(lambda p, x: loss(deq, p, x), argnums=(0, 1)), in_dims=(None, 0))(
        parameters, x
    )
    for i in range(len(x)):
        own = x[i].clone().requires_grad_()
        value = loss(deq, dict(deq.named_parameters()), own)
        expected = torch.autograd.grad(value, [*deq.parameters(), own])
        one = [*(g[i] for g in result[0].values()), result[1][i]]
        torch.testing.assert_close(one, [*expected], **CLOSE)


def test_the_gradient_of_a_batch_is_that_of_autograd() -> None:
    deq, x = chain(), samples()
    parameters = dict(deq.named_parameters())

    def total(p: dict[str, Tensor]) -> Tensor:
        return functional_call(deq, p, ({"input": x},)).value["output"].square().sum()

    expected = torch.autograd.grad(total(parameters), [*parameters.values()])
    result = grad(total)({name: p.detach() for name, p in parameters.items()})
    torch.testing.assert_close([*result.values()], [*expected], **CLOSE)

    def mapped(p: dict[str, Tensor]) -> Tensor:
        one = vmap(lambda x: functional_call(deq, p, ({"input": x[None]},)).value["output"])
        return one(x).square().sum()

    result = grad(mapped)({name: p.detach() for name, p in parameters.items()})
    torch.testing.assert_close([*result.values()], [*expected], **CLOSE)


def test_vmap_is_a_larger_batch() -> None:
    """Solved at once: as many evaluations as the batch takes, and the same result."""
    deq, x = chain(), samples(6)
    expected = deq({"input": x})
    result = vmap(lambda x: deq({"input": x[None]}))(x)
    assert torch.equal(result.steps[:, 0], expected.steps)
    assert result.trace.shape == (6, expected.n_evals, 1)
    torch.testing.assert_close(result.trace[:, :, 0].T, expected.trace, rtol=1e-6, atol=1e-14)
    for name, x_a in result.value.items():
        torch.testing.assert_close(x_a[:, 0], expected.value[name], **CLOSE)
    # The module's own parameters get their gradient from autograd outside.
    result.value["output"].sum().backward()
    grads = [p.grad for p in deq.parameters()]
    deq.zero_grad()
    expected.value["output"].sum().backward()
    torch.testing.assert_close(grads, [p.grad for p in deq.parameters()], **CLOSE)


@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_over_any_dimension_and_over_a_mask(in_dim: int) -> None:
    deq = chain(splitting="sweep")
    x = samples(5)[:, None].expand(5, 2, 6).contiguous()
    mask = torch.arange(6) % 2 == 0
    expected = torch.stack(
        [deq({"input": xs}, observed={"input": mask}).value["output"] for xs in x]
    )
    result = vmap(
        lambda xs: deq({"input": xs}, observed={"input": mask}).value["output"], in_dims=in_dim
    )(x.movedim(0, in_dim))
    torch.testing.assert_close(result, expected, **CLOSE)


def test_jacobians_are_those_of_autograd() -> None:
    deq, x = chain(), samples(3)
    result = vmap(jacrev(lambda x: output(deq, x)))(x)
    for i in range(3):
        expected = torch.autograd.functional.jacobian(lambda x: output(deq, x), x[i])
        torch.testing.assert_close(result[i], expected, **CLOSE)
    _, pull = vjp(lambda x: output(deq, x), x[0])
    torch.testing.assert_close(pull(torch.ones(3).double())[0], result[0].sum(0), **CLOSE)


def test_an_ensemble_of_memories() -> None:
    deqs, x = [chain(), chain()], samples()
    with torch.no_grad():
        for p in deqs[1].parameters():
            p *= 0.3
    stacked = {
        name: torch.stack([p.detach(), dict(deqs[1].named_parameters())[name].detach()])
        for name, p in deqs[0].named_parameters()
    }
    result = vmap(lambda p: functional_call(deqs[0], p, ({"input": x},)))(stacked)
    alone = [deq({"input": x}) for deq in deqs]
    assert result.n_evals == max(solution.n_evals for solution in alone)
    for i, solution in enumerate(alone):
        torch.testing.assert_close(result.value["output"][i], solution.value["output"], **CLOSE)
        assert torch.equal(result.trace[i, : solution.n_evals], solution.trace)
        assert torch.equal(result.trace[i, -1], solution.residual)


def test_lost_samples_change_no_other() -> None:
    deq, x = chain(on_failure="ignore"), samples()
    x[1, 0] = torch.nan
    parameters = {name: p.detach() for name, p in deq.named_parameters()}
    result = vmap(grad(lambda p, x: loss(deq, p, x)), in_dims=(None, 0))(parameters, x)
    rows = [0, 2, 3]
    expected = vmap(grad(lambda p, x: loss(deq, p, x)), in_dims=(None, 0))(parameters, x[rows])
    for name, g in result.items():
        assert not g[1].any()
        torch.testing.assert_close(g[rows], expected[name], **CLOSE)
    status = vmap(lambda x: deq({"input": x[None]}).status)(x)[:, 0]
    assert status.tolist() == [0, Status.INVALID, 0, 0]


def test_failures_are_reported_as_the_module_or_the_call_says() -> None:
    hasty = Picard(tol=1e-12, max_steps=2, fallback_steps=0)
    deq = chain(solver=hasty, on_failure="raise")
    with pytest.raises(ConvergenceError, match="4 of 4 samples"):
        vmap(lambda x: output(deq, x))(samples())
    deq = chain()
    steps = vmap(lambda x: deq({"input": x[None]}, solver=hasty, on_failure="ignore").steps)
    assert steps(samples())[:, 0].tolist() == [2] * 4


def test_backward_solves_are_kept_in_the_solution() -> None:
    deq, kept = chain(), []

    def square(x: Tensor) -> Tensor:
        solution = deq({"input": x})
        kept.append(solution)
        return solution.value["output"].square().sum()

    grad(square)(samples())
    (backward,) = kept[0].adjoint
    assert backward.converged.tolist() == [True] * 4


def test_the_energy_can_be_transformed() -> None:
    deq, x = chain(), samples()
    state = deq({"input": x}).value
    each = vmap(lambda s: deq.energy({name: x_a[None] for name, x_a in s.items()})[0])(state)
    torch.testing.assert_close(each, deq.energy(state), **CLOSE)
    ham = derived().double()
    free = {name: samples() for name in ham.layers}
    fields = vmap(lambda s: ham.update({name: x_a[None] for name, x_a in s.items()}))(free)
    for name, x_a in ham.update(free).items():
        torch.testing.assert_close(fields[name][:, 0], x_a, **CLOSE)


# From torch, at the first use of its forward mode.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_what_is_not_supported_is_refused_with_a_remedy() -> None:
    deq, x = chain(), samples()[0]
    for transform in (jacfwd, hessian):
        with pytest.raises(RuntimeError, match="expected derivatives in reverse mode"):
            transform(lambda x: output(deq, x).sum())(x)
    with pytest.raises(RuntimeError, match=r"expected a first derivative.*Unrolled"):
        grad(lambda x: grad(lambda x: output(deq, x).sum())(x).sum())(x)
    with pytest.raises(RuntimeError, match="fixed_point: expected plain tensors"):
        grad(lambda x: fixed_point(lambda y: torch.cos(y + x), x).value.sum())(samples())
