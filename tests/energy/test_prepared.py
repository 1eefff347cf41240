"""Weights that are computed from others, and hooks: a memory treats them as torch's layers do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from hamdeq import (
    CHN,
    DEQ,
    HAM,
    Bias,
    Composed,
    Conv2d,
    Dense,
    EquilibriumPropagation,
    Flatten,
    FunctionSynapse,
    Identity,
    Implicit,
    Neurons,
    Picard,
    Sigmoid,
    Tanh,
    TwoLayer,
    Unrolled,
    clamp,
    contract_,
    contraction,
    eliminate,
    fixed_point,
    trajectory,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"
)

N = 6
SOLVER = Picard(tol=1e-12, max_steps=500)


class Double(nn.Module):
    """A parametrization whose result is as large as its parameter is, twice."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Softened(nn.Module):
    """One that does not go with a power of its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + x.square().sum())


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.3)


def pruned_twice(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.3)
    prune.ln_structured(module, "weight", 0.3, n=2, dim=0)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm, a hook": nn.utils.weight_norm,
    "spectral_norm, a hook": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "parametrization": lambda m: parametrize.register_parametrization(m, "weight", Double()),
    "pruning": pruned,
    "pruning twice": pruned_twice,
}
ways = pytest.mark.parametrize("way", WAYS)


def memory(weight: Tensor) -> tuple[HAM, Dense]:
    """An input of N linear neurons, and N sigmoid ones that it drives, with neighbours."""
    synapse, back = Dense(N, N), Dense(N, 3, gain=0.3)
    with torch.no_grad():
        synapse.weight.copy_(weight)
    neurons = {
        "input": Neurons(N, Identity()),
        "hidden": Neurons(N, Tanh()),
        "output": Neurons(3, Sigmoid()),
    }
    # The other way round: then a synapse's matrix is that of a Linear.
    connections = [(("hidden", "input"), synapse), (("hidden", "output"), back)]
    return HAM(neurons, connections).double(), synapse


def names(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


@ways
@pytest.mark.parametrize("training", [True, False])
def test_weights_and_gradients_are_those_of_a_linear_layer(way: str, training: bool) -> None:
    """Of a memory that is a Linear: an input that drives one layer, and nothing else."""
    torch.manual_seed(0)
    linear = nn.Linear(N, N, bias=False).double()
    synapse = Dense(N, N).double()
    with torch.no_grad():
        synapse.weight.copy_(linear.weight)
    ham = HAM(
        {"input": Neurons(N, Identity()), "output": Neurons(N, Identity())},
        [(("output", "input"), synapse)],
    )
    for module in (linear, synapse):
        torch.manual_seed(1)  # where normalisation begins
        WAYS[way](module)
    linear.train(training), ham.train(training)
    deq = DEQ(ham)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (linear, synapse)]
    for step in range(3):
        x = torch.rand(4, N, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        expected, found = linear(x), deq({"input": x}).value["output"]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for y, optimizer in zip((expected, found), optimizers, strict=True):
            optimizer.zero_grad()
            y.square().sum().backward()
        for name, parameter in linear.named_parameters():
            other = names(synapse)[name].grad
            torch.testing.assert_close(other, parameter.grad, rtol=1e-10, atol=1e-12)
        for name, buffer in linear.named_buffers():
            torch.testing.assert_close(dict(synapse.named_buffers())[name], buffer)
        for optimizer in optimizers:
            optimizer.step()


@ways
@pytest.mark.parametrize(
    "adjoint", [Implicit(), Unrolled(60), EquilibriumPropagation(beta=1e-3)], ids=type
)
def test_gradients_at_an_equilibrium_are_those_of_the_weight(way: str, adjoint: Any) -> None:
    torch.manual_seed(0)
    ham, synapse = memory(torch.rand(N, N) - 0.5)
    back = ham.synapses[1]
    WAYS[way](back)
    deq = DEQ(ham, splitting=None, solver=SOLVER, adjoint=adjoint)
    x = torch.rand(4, N, dtype=torch.float64)
    ham.eval()  # so that a second look at the weight is the same
    for _ in range(2):  # a graph of the first step must not be met again in the second
        ham.zero_grad()
        deq({"input": x}).value["output"].square().sum().backward()
        found = {name: p.grad for name, p in back.named_parameters()}
        # The same of plain weights, whose gradient goes on to what they are computed from.
        plain, _ = memory(synapse.weight.detach())
        weight = copied(back).requires_grad_()
        plain.synapses[1].weight = nn.Parameter(weight.detach())
        DEQ(plain, splitting=None, solver=SOLVER, adjoint=adjoint)({"input": x}).value[
            "output"
        ].square().sum().backward()
        given = plain.synapses[1].weight.grad
        assert given is not None
        look = ham.prepared().connections[1][1].weight
        expected = torch.autograd.grad(look, list(back.parameters()), given)  # type: ignore[arg-type]
        for one, other in zip(found.values(), expected, strict=True):
            assert one is not None
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def copied(synapse: nn.Module) -> Tensor:
    return HAM(
        {"a": Neurons(N, Tanh()), "b": Neurons(3, Tanh())},
        [(("a", "b"), synapse)],  # type: ignore[list-item]
    ).prepared().connections[0][1].weight.detach().clone()  # type: ignore[return-value]  # fmt: skip


def counted(synapse: nn.Module) -> list[tuple[int, ...]]:
    """The numbers of inputs of a hook before forward, which computes a weight, and of one after."""
    calls: list[tuple[int, ...]] = []
    synapse.register_forward_pre_hook(lambda module, inputs: calls.append((len(inputs),)))
    synapse.register_forward_hook(lambda module, inputs, y: calls.append((len(inputs), y.dim())))
    return calls


STATE = {"input": torch.zeros(2, N), "hidden": torch.zeros(2, N), "output": torch.zeros(2, 3)}
USES: dict[str, Callable[[HAM], Any]] = {
    "a DEQ": lambda ham: DEQ(ham)({"input": torch.rand(2, N)}),
    "a DEQ without splitting": lambda ham: DEQ(ham, splitting=None)({"input": torch.rand(2, N)}),
    "a DEQ of which a sample is lost": lambda ham: DEQ(ham, on_failure="ignore")(
        {"input": torch.tensor([[torch.nan] * N, [1.0] * N])}
    ),
    "fixed_point": lambda ham: fixed_point(ham, STATE),
    "fixed_point of what is left": lambda ham: fixed_point(
        eliminate(ham, ["hidden"]), {name: STATE[name] for name in ("input", "output")}
    ),
    "trajectory": lambda ham: trajectory(ham, STATE, [0.0, 1.0]),
    "the energy": lambda ham: ham.energy(STATE),
    "the update": lambda ham: ham.update(STATE),
    "the fields": lambda ham: ham.fields(STATE),
    "the update of what is left": lambda ham: eliminate(ham, ["hidden"]).update(
        {name: STATE[name] for name in ("input", "output")}
    ),
    "clamp": lambda ham: clamp(ham, {"input": STATE["input"]}).update(
        {name: STATE[name] for name in ("hidden", "output")}
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("place", [0, 1])
def test_hooks_are_called_once_for_each_use(use: str, place: int) -> None:
    torch.manual_seed(0)
    ham, _ = memory(torch.rand(N, N) / 9)
    ham.float()
    calls = counted(ham.synapses[place])
    with torch.no_grad():
        USES[use](ham)
    assert calls == [(0,), (2, 1)] if use == "the energy" else [(0,), (2, 2)]
    with torch.no_grad():
        USES[use](ham)
    assert len(calls) == 4


def test_hooks_of_neurons_and_of_parts_are_called_too() -> None:
    conv, dense = Conv2d(1, 2, 3), Dense(8, N)
    ham = HAM(
        {"input": Neurons((1, 4, 4), Identity()), "hidden": Neurons(N, Tanh())},
        [(("input", "hidden"), Composed(conv, Flatten(), dense)), (("hidden",), Bias(N))],
    )
    calls = [counted(module) for module in (conv, dense, ham.layer("hidden").lagrangian)]
    DEQ(ham)({"input": torch.rand(2, 1, 4, 4)})
    assert [each[:1] for each in calls] == [[(0,)]] * 3
    assert [len(each) for each in calls[:2]] == [2, 2]


def test_a_shared_synapse_is_prepared_once() -> None:
    shared = Dense(N, N, gain=0.2)
    neurons = {name: Neurons(N, Tanh()) for name in "abc"}
    ham = HAM(neurons, [(("a", "b"), shared), (("b", "c"), shared)])
    calls = counted(shared)
    DEQ(ham, ["a"])({"a": torch.rand(2, N)})
    assert len(calls) == 2
    _, (_, one), (_, other) = None, *parametrized(ham, shared).prepared().connections
    assert one is other


def parametrized(ham: HAM, synapse: nn.Module) -> HAM:
    parametrizations.weight_norm(synapse)
    return ham


def test_plain_memories_are_not_copied() -> None:
    ham, synapse = memory(torch.rand(N, N))
    assert ham.prepared().connections[0][1] is synapse
    assert ham.prepared().layer("hidden") is ham.layer("hidden")


def test_a_function_that_is_a_module_has_its_weights_computed_once() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.utils.spectral_norm(nn.Linear(N, N))

        def forward(self, g: Tensor) -> Tensor:
            return -self.linear(g).tanh().sum(1)

    torch.manual_seed(0)
    energy = Energy()
    seen: list[Tensor] = []
    energy.linear.register_forward_hook(lambda *args: seen.append(energy.linear.weight_u.clone()))
    neurons = {"input": Neurons(N, Identity()), "hidden": Neurons(N, Tanh())}
    ham = HAM(
        neurons, [(("input", "hidden"), Dense(N, N)), (("hidden",), FunctionSynapse(energy))]
    ).train()
    before = energy.linear.weight_u.clone()
    deq = DEQ(ham, splitting=None, on_failure="ignore")
    deq({"input": torch.rand(2, N)}).value["hidden"].sum().backward()
    assert len(seen) > 3  # its own hooks see every evaluation
    assert all(torch.equal(u, seen[0]) for u in seen)
    assert not torch.equal(seen[0], before)
    assert energy.linear.weight_orig.grad.abs().max() > 0


def test_a_hook_that_a_memory_cannot_call_is_refused() -> None:
    for register, hook, message in (
        ("register_forward_pre_hook", lambda m, x: x[0], "one that needs them"),
        ("register_forward_pre_hook", lambda m, x: (1,), "one that replaces them"),
        ("register_forward_hook", lambda m, x, y: 2 * y, "one that replaces the output"),
    ):
        ham, synapse = memory(torch.rand(N, N))
        getattr(synapse, register)(hook)
        with pytest.raises(TypeError, match=f"Dense: expected a forward .*{message}"):
            DEQ(ham)({"input": torch.rand(2, N, dtype=torch.float64)})


def test_other_energies_have_them_too() -> None:
    torch.manual_seed(0)
    patterns = torch.randn(3, N).sign()
    two = TwoLayer.model_b(patterns)
    prune.custom_from_mask(two.synapses[0], "weight", torch.zeros(N, 3))
    with torch.no_grad():
        two.synapses[0].weight_orig.add_(1.0)  # type: ignore[operator, union-attr]
    assert torch.equal(two.patterns, torch.zeros(3, N))
    chn = CHN.chain([N, 3])
    calls = counted(chn.ham.synapses[0])
    s = chn.zero_state(torch.zeros(2, 1))
    for count, use in enumerate((chn.energy, chn.update, lambda s: chn.minimise(s, ["output"])), 1):
        use(s)
        assert len(calls) == 2 * count


# ------------------------------------------------------------------ contraction


def effective(ham: HAM) -> list[float]:
    """The spectral norms of the weights, as the next use of the memory sees them."""
    return [
        float(torch.linalg.matrix_norm(s.weight.detach(), 2))  # type: ignore[operator, union-attr]
        for _, s in ham.prepared().connections
    ]


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("orthogonal",)] + ["softened"])
@pytest.mark.parametrize("steep", [3.0, 0.5])
def test_contraction_keeps_its_promise_or_refuses(way: str, steep: float) -> None:
    torch.manual_seed(0)
    ways = WAYS | {
        "softened": lambda m: parametrize.register_parametrization(m, "weight", Softened())
    }
    ham = HAM.chain([4, N, 5], Tanh(steep), gain=3.0, bias=False).double()
    synapse = ham.synapses[1]
    ways[way](synapse)
    before = copy.deepcopy(synapse.state_dict())
    if "spectral" in way and steep > 1:
        with pytest.raises(
            ValueError, match=r"Dense between 'hidden1' and 'output'.*spectral_norm"
        ):
            contract_(ham)
        for name, parameter in synapse.named_parameters():
            assert torch.equal(parameter, before[name])
        return
    limit = contract_(ham, rate=0.9)
    assert effective(ham)[1] * steep <= limit * (1 + 1e-5)
    assert contraction(ham) <= 0.9 * (1 + 1e-5)
    assert synapse.weight.detach().norm() > 0.2 * limit / steep  # type: ignore[operator, union-attr]
    if "pruning" in way:
        assert torch.equal(synapse.weight == 0, synapse.weight_mask == 0)


def test_weights_of_several_maps_are_within_the_bound_in_each() -> None:
    torch.manual_seed(0)
    shared = Conv2d(1, 2, 3, gain=3.0)
    neurons = {
        "input": Neurons(2, Identity()),
        "a": Neurons((1, 4, 4), Tanh()),
        "b": Neurons((2, 2, 2), Tanh()),
        "c": Neurons(5, Tanh()),
    }
    composed = Composed(shared, Flatten(), Dense(8, 5, gain=2.0))
    ham = HAM(
        neurons, [(("input", "c"), Dense(2, 5)), (("a", "b"), shared), (("a", "c"), composed)]
    )
    contract_(ham, rate=0.9)
    assert contraction(ham) <= 0.9 * (1 + 1e-5)


def test_of_what_is_frozen_the_rest_is_weakened() -> None:
    torch.manual_seed(0)
    frozen = Dense(8, N, gain=3.0).requires_grad_(False)
    kept = frozen.weight.clone()
    composed = Composed(Flatten(), frozen, Dense(N, 5, gain=3.0))
    neurons = {"a": Neurons((2, 2, 2), Tanh()), "b": Neurons(5, Tanh())}
    ham = HAM(neurons | {"input": Neurons(2, Identity())}, [(("a", "b"), composed)])
    contract_(ham, rate=0.9)
    assert torch.equal(frozen.weight, kept)
    assert contraction(ham) <= 0.9 * (1 + 1e-5)
    buffer = Dense(4, 5, gain=9.0)
    weight = buffer.weight.detach()
    del buffer.weight
    buffer.register_buffer("weight", weight)
    neurons = {"a": Neurons(4, Tanh()), "b": Neurons(5, Tanh()), "input": Neurons(2, Identity())}
    with pytest.raises(ValueError, match="weights to weaken"):
        contract_(HAM(neurons, [(("a", "b"), buffer)]))
