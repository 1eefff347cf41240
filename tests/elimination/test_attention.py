"""Attention: what eliminate returns of memories is the generic form, in all that can be asked."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

import hamdeq.elimination
from hamdeq import (
    HAM,
    Anderson,
    Association,
    Bias,
    Dense,
    Entmax,
    Identity,
    Implicit,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    Sigmoid,
    Softmax,
    Sparsemax,
    State,
    Tanh,
    TwoLayer,
    clamp,
    eliminate,
    fixed_point,
)
from hamdeq.elimination import attention, fused
from hamdeq.elimination.fused import Attention
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.model import LayeredEnergy
from hamdeq.nn import Hopfield
from hamdeq.nn.functional import retrieve
from hamdeq.solvers.energy_map import Derivatives, EnergyMap, StateLayout
from hamdeq.testing import normal

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
D = 5
Made = tuple[LayeredEnergy, Reduced, State]


def pair(lagrangian: Any, stored: int, *, batch: int = 3, flip: bool = False) -> Made:
    """A query and its memories, with biases; the synapse from the one or from the other."""
    names, sizes = ("query", "memories"), (D, stored)
    order = -1 if flip else 1
    synapse = Dense(*sizes[::order])
    ham = HAM(
        {"query": Neurons(D, Identity()), "memories": Neurons(stored, lagrangian)},
        [(names[::order], synapse), (("query",), Bias(D, std=1.0))],
    ).double()
    return ham, eliminate(ham, ["memories"]), {"query": normal(batch, D, seed=1)}


def biased(stored: int, *, batch: int = 3, learnable: bool = True) -> Made:
    """A bias on the memories, and a clamped layer that acts on these and on the query."""
    neurons = {
        "label": Neurons(2, Identity()),
        "query": Neurons(D, LayerNorm(eps=0.3)),
        "memories": Neurons(stored, Softmax(1.5, learnable=learnable)),
    }
    connections: Any = [
        (("query", "memories"), Dense(D, stored)),
        (("memories",), Bias(stored, std=1.0)),
        (("label", "memories"), Dense(2, stored)),
        (("label", "query"), Dense(2, D)),
    ]
    ham = HAM(neurons, connections).double()
    clamped = clamp(ham, {"label": normal(batch, 2, seed=2)})
    return clamped, eliminate(clamped, ["memories"]), {"query": normal(batch, D, seed=1)}


def heads(lagrangian: Any, stored: int = 40, *, batch: int = 3) -> Made:
    """Stored patterns of each sample, clamped."""
    shape, patterns = (2, 4, D), (2, stored, D)
    ham = HAM(
        {
            "state": Neurons(shape, Identity()),
            "stored": Neurons(patterns, Identity()),
            "memories": Neurons((2, 4, stored), lagrangian),
        },
        [(("state", "stored", "memories"), Association(2, 4, stored, D))],
    ).double()
    clamped = clamp(ham, {"stored": normal(batch, *patterns, seed=2).requires_grad_()})
    return clamped, eliminate(clamped, ["memories"]), {"state": normal(batch, *shape, seed=1)}


def deep() -> Made:
    """Memories beside other hidden layers, and a query that others act on too."""
    sizes = {"image": 4, "hidden": 6, "query": D, "side": 3, "memories": 33}
    kinds = dict.fromkeys(sizes, Tanh()) | {"memories": Softmax(2.0), "query": Sigmoid()}
    pairs = [("image", "hidden"), ("hidden", "query"), ("query", "memories"), ("side", "query")]
    connections: Any = [(link, Dense(sizes[link[0]], sizes[link[1]])) for link in pairs]
    neurons = {name: Neurons(n, kinds[name]) for name, n in sizes.items()}
    clamped = clamp(HAM(neurons, connections).double(), {"image": normal(3, 4, seed=2)})
    reduced = eliminate(clamped, ["hidden", "memories"])
    x = {"query": normal(3, D, seed=1), "side": normal(3, 3, seed=3)}
    return clamped, reduced, x


def betas() -> Tensor:
    return torch.tensor([0.7, 2.0], dtype=torch.float64)[:, None, None]


# Few similarities, and more than are made: the fused kernel and its second derivative.
CASES: dict[str, Callable[[], Made]] = {
    "few": lambda: pair(Softmax(1.3), 7),
    "many": lambda: pair(Softmax(1.3), 300, batch=240),
    "many, from the memories": lambda: pair(Softmax(1.3), 300, batch=240, flip=True),
    "trained beta": lambda: pair(Softmax(1.3, learnable=True), 40),
    "many, trained beta": lambda: pair(Softmax(1.3, learnable=True), 300, batch=240),
    "sparsemax": lambda: pair(Sparsemax(0.8), 40),
    "entmax": lambda: pair(Entmax(1.5, 0.8, learnable=True), 40, flip=True),
    "bias": lambda: biased(40),
    "many, bias": lambda: biased(300, batch=240, learnable=False),
    "heads": lambda: heads(Softmax(betas())),
    "many, heads": lambda: heads(Softmax(0.5), 300, batch=30),
    "sparse heads": lambda: heads(Sparsemax(betas(), learnable=True)),
    "deep": deep,
}


@pytest.fixture(params=CASES)
def case(request: Any) -> tuple[Reduced, Reduced, State, list[Tensor]]:
    """What eliminate returns; the generic form; a state; what both are functions of."""
    torch.manual_seed(0)
    model, reduced, x = CASES[request.param]()
    assert type(reduced) is Attention
    root: Any = getattr(model, "ham", model)
    inputs = [*root.parameters()] + [
        t for t in getattr(model, "clamped", {}).values() if t.requires_grad
    ]
    return reduced, Reduced(model, reduced.hidden), x, inputs


def flat(x: State) -> Tensor:
    return torch.cat([x_a.flatten(1) for x_a in x.values()], 1)


def test_update_energy_and_fields_are_those_of_the_generic_form(case: Any) -> None:
    fused, generic, x, _ = case
    assert fused.descends == generic.descends
    for _ in range(2):
        found, expected = [], []
        for model, results in ((fused, found), (generic, expected)):
            here = model.step(x)
            assert here.at_once
            results += [here.g, here.fields, here.update, model.update(x), model.fields(here.g)]
            results += [model.restore(x), model.energy(x), here.terms().sum(0)]
        torch.testing.assert_close(found, expected, **CLOSE)
        with torch.no_grad():
            torch.testing.assert_close(fused.update(x), expected[2], **CLOSE)
        with torch.inference_mode():
            torch.testing.assert_close(fused.update(x), expected[2], **CLOSE)
            torch.testing.assert_close(fused.energy(x), expected[6], **CLOSE)
        x = {name: x_a.detach() for name, x_a in expected[2].items()}


def test_a_selection_is_the_rows_of_the_whole(case: Any) -> None:
    fused, _, x, _ = case
    rows = torch.tensor([2, 0, 2])
    part, some = fused.select(rows), {name: x_a[rows] for name, x_a in x.items()}
    assert type(part) is Attention
    for f in ("update", "energy"):
        whole: Any = getattr(fused, f)(x)
        whole = whole[rows] if f == "energy" else {name: x_a[rows] for name, x_a in whole.items()}
        torch.testing.assert_close(getattr(part, f)(some), whole, **CLOSE)


def test_gradients_and_their_gradients_are_those_of_the_generic_form(case: Any) -> None:
    fused, generic, x, inputs = case
    options: Any = {"allow_unused": True, "materialize_grads": True}
    found = []
    for model in (fused, generic):
        x = {name: x_a.detach().requires_grad_() for name, x_a in x.items()}
        asked = [*x.values(), *inputs]
        for f in (lambda x, m=model: flat(m.update(x)), lambda x, m=model: m.energy(x)):
            value = f(x)
            loss = (value * normal(*value.shape, seed=5)).sum()
            first = torch.autograd.grad(loss, asked, **options, create_graph=True)
            once = torch.autograd.grad(f(x).sin().sum(), asked, **options, retain_graph=True)
            mixed = sum((g * normal(*g.shape, seed=6 + i)).sum() for i, g in enumerate(first))
            second = torch.autograd.grad(mixed, asked, **options, retain_graph=True)  # type: ignore[arg-type]
            found.append([*once, *first, *second])
    assert max(float(t.detach().abs().max()) for t in found[0]) > 0.1
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-9, atol=1e-9)


def test_what_solvers_ask_for_is_that_of_the_generic_form(case: Any) -> None:
    fused, generic, x, _ = case
    layout = StateLayout(x)
    results = []
    for model in (fused, generic):
        f = EnergyMap(model, layout)
        row = layout.flatten(x)
        v = normal(*row.shape, seed=4)
        with torch.no_grad():
            products = Derivatives(f, row)
            parts = [products.coupling(v), products.gain(v), products.coupling(v)]
        w = v.clone().requires_grad_()
        again = torch.autograd.grad((products.coupling(w) * v).sum(), w)[0]
        results.append([*parts, again])
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp
def test_transforms_of_functions(case: Any) -> None:
    fused, generic, x, _ = case
    if any(isinstance(fused.model.layer(a).lagrangian, Entmax) for a in fused.hidden):
        pytest.skip("sparse distributions have no forward derivative")
    tangent = {name: normal(*x_a.shape, seed=8) for name, x_a in x.items()}
    found = []
    for model in (fused, generic):
        forward = torch.func.jvp(model.update, (x,), (tangent,))[1]
        slope = torch.func.grad(lambda x, m=model: flat(m.update(x)).sin().sum())
        curved = torch.func.jvp(slope, (x,), (tangent,))[1]
        mapped = torch.func.vmap(model.update)({name: x_a[None] for name, x_a in x.items()})
        found.append([forward, curved, mapped])
    torch.testing.assert_close(*found, **CLOSE)
    with torch.autograd.forward_ad.dual_level():
        dual = {
            name: torch.autograd.forward_ad.make_dual(x_a, tangent[name]) for name, x_a in x.items()
        }
        update = flat(fused.update(dual))
        tangents = torch.autograd.forward_ad.unpack_dual(update).tangent
    torch.testing.assert_close(tangents, flat(found[1][0]), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    """The fused form is as near to the exact result as the generic one."""
    for name in ("few", "many", "many, trained beta", "sparsemax"):
        torch.manual_seed(0)
        ham, reduced, x = CASES[name]()
        exact = Reduced(ham, reduced.hidden)
        expected = [exact.update(x)["query"], exact.energy(x)]
        ham.to(dtype)  # type: ignore[attr-defined]
        low = {"query": x["query"].to(dtype)}
        eps = torch.finfo(dtype).eps
        for f in (reduced, Reduced(ham, reduced.hidden)):
            results = [f.update(low)["query"], f.energy(low)]
            for one, other in zip(results, expected, strict=True):
                assert one.dtype == dtype
                assert (one.double() - other).abs().max() < 16 * eps * (1 + other.abs().max())


def test_autocast() -> None:
    torch.manual_seed(0)
    for name in ("few", "many", "many, heads"):
        _, reduced, x = CASES[name]()
        low = {a: x_a.float().requires_grad_() for a, x_a in x.items()}
        model = reduced.model
        if name == "many, heads":
            model = clamp(model.ham.float(), {"stored": model.clamped["stored"].float()})  # type: ignore[attr-defined]
        else:
            model.float()  # type: ignore[attr-defined]
        fused = eliminate(model, reduced.hidden)
        expected = Reduced(model, reduced.hidden).update(low)
        with torch.autocast("cpu", torch.bfloat16):
            found = fused.update(low)
        torch.testing.assert_close(flat(found).float(), flat(expected), rtol=0.05, atol=0.05)
        flat(found).float().square().sum().backward()
        assert all(x_a.grad is not None for x_a in low.values())


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Newton()])
def test_the_equilibrium_is_that_of_the_generic_form(solver: Any) -> None:
    found = []
    for kind in (Attention, Reduced):
        torch.manual_seed(0)
        model, reduced, x = CASES["many, trained beta"]()
        with torch.no_grad():
            for p in model.parameters():  # type: ignore[attr-defined]
                p.mul_(1.5)
        tight = type(solver)(tol=1e-12, max_steps=500)
        energy = kind(model, reduced.hidden)
        solution = fixed_point(energy, x, solver=tight, adjoint=Implicit())
        assert solution.converged.all()
        value = solution.value["query"]
        gradient = torch.autograd.grad(value.sin().sum(), [*model.parameters()])  # type: ignore[attr-defined]
        found.append([value, *gradient])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_two_layer_and_hopfield_layers_are_fused() -> None:
    torch.manual_seed(0)
    patterns, v = normal(40, D), {"features": normal(3, D, seed=1)}
    memory = eliminate(TwoLayer.model_b(patterns, beta=0.7), ["memories"])
    assert type(memory) is Attention
    by_hand = F.scaled_dot_product_attention(v["features"], patterns, patterns, scale=0.7)
    torch.testing.assert_close(memory.update(v)["features"], by_hand, **CLOSE)
    assert repr(memory) == "Attention(visible: features; hidden: memories)"

    layer = Hopfield(8, num_heads=2, scaling=0.6).double()
    given = normal(3, 40, 8), normal(3, 4, 8, seed=1), normal(3, 40, 8)
    q = layer.project(given)
    clamped = clamp(layer.as_ham(stored=40, states=4), {"stored": q.stored})
    reduced = eliminate(clamped, ["memories"])
    assert type(reduced) is Attention
    expected = torch.softmax(0.6 * q.state @ q.stored.mT, -1) @ q.stored
    torch.testing.assert_close(reduced.update({"state": q.state})["state"], expected, **CLOSE)


def test_what_is_no_memory_is_left_to_the_generic_form() -> None:
    class Sharper(Softmax):
        def distribution(self, z: Tensor) -> Tensor:
            return super().distribution(2 * z)

    class Own(Dense):
        def energy(self, *g: Tensor) -> Tensor:
            return 2 * super().energy(*g)

        def field(self, to: int, *g: Tensor) -> Tensor:
            return 2 * super().field(to, *g)

    def made(lagrangian: Any, synapse: Any, *more: Any) -> Reduced:
        neurons = {"query": Neurons(D, Identity()), "memories": Neurons(7, lagrangian)}
        return eliminate(HAM(neurons, [(("query", "memories"), synapse), *more]), ["memories"])

    for reduced in (
        made(Sharper(), Dense(D, 7)),
        made(Tanh(), Dense(D, 7)),
        made(Softmax(), Own(D, 7)),
        made(Softmax(), Dense(D, 7), (("query", "memories"), Dense(D, 7))),
    ):
        assert type(reduced) is Reduced
    # The stored patterns are free, and read as well.
    model, _, _ = heads(Softmax())
    assert type(eliminate(model.ham, ["memories"])) is Reduced  # type: ignore[attr-defined]


def test_weights_are_those_of_the_moment() -> None:
    """Trained, normalised, and looked at by hooks, which the fused form would not call."""
    torch.manual_seed(0)
    ham, reduced, x = pair(Softmax(), 40)
    generic = Reduced(ham, ["memories"])
    synapse: Any = ham.connections[0][1]
    weight_norm(synapse, dim=1)
    for _ in range(2):
        with torch.no_grad():
            synapse.parametrizations.weight.original0.mul_(1.5)
        torch.testing.assert_close(reduced.update(x), generic.update(x), **CLOSE)
        assert type(eliminate(ham, ["memories"])) is Attention
    seen: list[Any] = []
    synapse.register_forward_hook(lambda *args: seen.append(args))
    torch.testing.assert_close(reduced.update(x), generic.update(x), **CLOSE)
    assert len(seen) == 2
    clamped, reduced, x = biased(40)
    with torch.no_grad():
        before = reduced.update(x)["query"]
    after = reduced.update(x)["query"]
    torch.testing.assert_close(after, before, **CLOSE)
    after.sum().backward()
    assert clamped.ham.synapses[0].weight.grad.abs().max() > 0  # type: ignore[attr-defined]


def test_a_large_bank_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of few rows, with the same results, gradients and gradients of these."""
    found = []
    for bank, limit in ((4096, 2**23), (2, 200)):
        monkeypatch.setattr(fused, "_BANK", bank)
        monkeypatch.setattr(attention, "_BANK", bank)
        monkeypatch.setattr(attention, "_LIMIT", limit)
        monkeypatch.setattr(attention, "_BLOCK", limit)
        torch.manual_seed(0)
        ham, reduced, x = pair(Sparsemax(0.8), 40, batch=20)
        q = x["query"].requires_grad_()
        inputs = [q, *ham.parameters()]  # type: ignore[attr-defined]
        value = reduced.update(x)["query"]
        first = torch.autograd.grad(value.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(first[0].sin().sum(), inputs, allow_unused=True)
        found.append([value, reduced.energy(x), *first, *(g for g in second if g is not None)])
    torch.testing.assert_close(*found, **CLOSE)


def test_the_package_shows_the_three_families() -> None:
    torch.manual_seed(0)
    failed, tried = doctest.testmod(hamdeq.elimination)
    assert failed == 0
    assert tried >= 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32_whatever_instructions_are_allowed(
    dtype: torch.dtype,
) -> None:
    """Of sizes at which PyTorch's kernel packs what it reads, where the processor could."""
    torch.manual_seed(0)
    state, stored = torch.randn(300, 16), torch.randn(600, 16)
    found = retrieve(state.to(dtype), stored.to(dtype), 0.25)
    expected = retrieve(state, stored, 0.25)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
