"""HAM and clamp: one energy, its field, its descent; hypergraphs; what bad input says."""

import itertools
import math
import re

import pytest
import torch
from custom_terms import Squared, Triple
from torch import nn

from hamdeq import (
    HAM,
    Bias,
    Dense,
    Exp,
    Identity,
    LayerNorm,
    Neurons,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    Spherical,
    Tanh,
    clamp,
)
from hamdeq.testing import Contract, derivative, inner, normal
from hamdeq.testing.contract import CLOSE, EPS


class Counting(Dense):
    """A Dense that counts what is asked of it."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.calls = 0

    def energy(self, *g):
        self.calls += 1
        return super().energy(*g)

    def field(self, to, *g):
        self.calls += 1
        return super().field(to, *g)


def chain():
    torch.manual_seed(0)
    return HAM.chain([4, 3, 2]).double()


def hypergraph():
    """Every Lagrangian; pairs, a skip, a triple, a loop, a double edge, a non-linear synapse,
    a layer with two axes, a layer without any synapse, and one synapse used twice."""
    torch.manual_seed(1)
    shared = Dense(3, 3)
    neurons = {
        "a": Neurons(3, Sigmoid(4.0, 0.5)),
        "b": Neurons(3, Softmax(2.0)),
        "c": Neurons(3, Identity()),
        "d": Neurons(2, Tanh(1.5)),
        "e": Neurons(4, RePU(3)),
        "f": Neurons((2, 3), LayerNorm(eps=0.1)),
        "g": Neurons(2, Spherical(eps=0.1)),
        "h": Neurons(2, Exp(0.5)),
        "i": Neurons(2, ReLU()),
        "alone": Neurons(3, Sigmoid(learnable=True)),
    }
    connections = [
        (("a", "b"), shared),
        (("b", "c"), shared),
        (("a", "c"), Dense(3, 3)),
        (("a", "c"), Dense(3, 3)),
        (("c", "c"), Dense(3, 3)),
        (("d", "a", "e"), Triple(2, 3, 4)),
        (("e", "g"), Squared(4, 2)),
        (("f",), Bias((2, 3), std=1.0)),
        (("g", "h"), Dense(2, 2)),
        (("h", "i"), Dense(2, 2)),
        (("i",), Bias(2)),
    ]
    return HAM(neurons, connections).double()


MODELS = {"chain": chain, "hypergraph": hypergraph}


def state(ham, batch=3, seed=0, scale=1.0):
    return {
        name: scale * normal(batch, *ham.layer(name).shape, seed=seed + i)
        for i, name in enumerate(ham.layers)
    }


def assert_same_states(actual, expected, **kwargs):
    assert list(actual) == list(expected)
    for name in expected:
        torch.testing.assert_close(
            actual[name],
            expected[name],
            **(kwargs or CLOSE),
            msg=lambda m, name=name: f"layer {name}: {m}",
        )


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def ham(request):
    return request.param()


# ---------------------------------------------------------------------------- energy


def test_energy_of_a_chain_by_a_plain_loop():
    """Theory, section 1, with one number at a time and nothing of the package but the weights."""
    ham = chain()
    x = state(ham)
    dense = {layers: s.weight.tolist() for layers, s in ham.connections if isinstance(s, Dense)}
    bias = {layers[0]: s.bias.tolist() for layers, s in ham.connections if isinstance(s, Bias)}
    assert set(dense) == {("input", "hidden1"), ("hidden1", "output")}
    assert set(bias) == {"hidden1", "output"}
    expected = []
    for sample in range(3):
        energy, g = 0.0, {}
        for name, x_a in x.items():
            g[name] = []
            for number in x_a[sample].tolist():
                activation = 1 / (1 + math.exp(-(4 * number - 2)))
                g[name].append(activation)
                energy += number * activation - math.log1p(math.exp(4 * number - 2)) / 4
        for (a, b), weight in dense.items():
            for i, g_i in enumerate(g[a]):
                for j, g_j in enumerate(g[b]):
                    energy -= g_i * weight[i][j] * g_j
        for name, values in bias.items():
            for g_i, b_i in zip(g[name], values, strict=True):
                energy -= g_i * b_i
        expected.append(energy)
    torch.testing.assert_close(ham.energy(x), torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_energy_of_a_hypergraph_by_its_definition(ham):
    x = state(ham)
    g = {name: derivative(ham.layer(name).lagrangian, x_a) for name, x_a in x.items()}
    expected = sum(inner(x[a], g[a]) - ham.layer(a).lagrangian(x[a]) for a in ham.layers)
    expected = expected + sum(s.energy(*(g[a] for a in layers)) for layers, s in ham.connections)
    torch.testing.assert_close(ham.energy(x), expected, **CLOSE)


def test_energy_terms_add_up_and_are_named(ham):
    x = state(ham)
    terms = ham.energy_terms(x)
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(0), ham.energy(x), **CLOSE)
    labels = {f"{type(s).__name__} {'–'.join(layers)}" for layers, s in ham.connections}
    assert set(terms) == set(ham.layers) | labels
    for name in ham.layers:
        torch.testing.assert_close(terms[name], ham.layer(name).energy(x[name]), **CLOSE)
    g = ham.activations(x)
    for label in labels:
        expected = sum(
            s.energy(*(g[a] for a in layers))
            for layers, s in ham.connections
            if label == f"{type(s).__name__} {'–'.join(layers)}"
        )
        torch.testing.assert_close(terms[label], expected, **CLOSE)


# --------------------------------------------------------------------- field, update


def test_field_is_minus_the_gradient_of_the_synapses_energy(ham):
    g = ham.activations(state(ham))
    g = {name: g_a.detach().requires_grad_() for name, g_a in g.items()}
    total = sum(s.energy(*(g[a] for a in layers)).sum() for layers, s in ham.connections)
    gradients = torch.autograd.grad(
        total, list(g.values()), materialize_grads=True, allow_unused=True
    )
    for (name, _), gradient in zip(g.items(), gradients, strict=True):
        plain = {a: g_a.detach() for a, g_a in g.items()}
        torch.testing.assert_close(ham.field(plain, name), -gradient, **CLOSE)
        torch.testing.assert_close(ham.field(g, name), -gradient, **CLOSE)


def test_update_is_the_field_of_the_activation(ham):
    x = state(ham)
    g = {name: ham.layer(name).activation(x_a) for name, x_a in x.items()}
    assert_same_states(ham.update(x), {name: ham.field(g, name) for name in x})


def test_update_by_hand_on_a_chain():
    ham = chain()
    x = state(ham)
    (w1, w2), (b1, b2) = [
        [getattr(s, attribute) for _, s in ham.connections if isinstance(s, kind)]
        for kind, attribute in ((Dense, "weight"), (Bias, "bias"))
    ]
    g = {name: torch.sigmoid(4 * x_a - 2) for name, x_a in x.items()}
    expected = {
        "input": g["hidden1"] @ w1.T,
        "hidden1": g["input"] @ w1 + g["output"] @ w2.T + b1,
        "output": g["hidden1"] @ w2 + b2,
    }
    assert_same_states(ham.update(x), expected)


def test_update_does_not_depend_on_whether_gradients_are_on(ham):
    """In an unrolled or implicit solver, states ask for gradients; in a forward solve not."""
    x = state(ham)
    expected = ham.update(x)
    asking = {name: x_a.clone().requires_grad_() for name, x_a in x.items()}
    assert_same_states(ham.update(asking), expected)
    assert_same_states(ham.update(ham.update(asking)), ham.update(expected))
    with torch.no_grad():
        assert_same_states(ham.update(x), expected)


def test_clamped_layers_stay(ham):
    x = state(ham)
    free = ham.update(x)
    first, last = ham.layers[0], ham.layers[-1]
    for clamped in ((first,), (first, last), [last], {first: None}, set(ham.layers)):
        new = ham.update(x, clamped=clamped)
        expected = {name: x[name] if name in clamped else free[name] for name in x}
        assert_same_states(new, expected, rtol=0, atol=0)


def test_inputs_are_not_written_to(ham):
    x = state(ham)
    ham.energy(x), ham.energy_terms(x), ham.update(x), ham.update(x, clamped=(ham.layers[0],))
    clamped = clamp(ham, {ham.layers[0]: x[ham.layers[0]]})
    rest = {name: x[name] for name in clamped.layers}
    clamped.energy(rest), clamped.update(rest), clamped.full(rest)
    assert list(rest) == list(clamped.layers)
    assert_same_states(x, state(ham), rtol=0, atol=0)
    assert not any(x_a.requires_grad for x_a in x.values())


def test_a_sample_does_not_depend_on_its_batch(ham):
    x = state(ham)
    spoilt = {name: x_a.index_fill(0, torch.tensor([0]), math.nan) for name, x_a in x.items()}
    for i in range(3):
        alone = {name: x_a[i : i + 1] for name, x_a in x.items()}
        torch.testing.assert_close(ham.energy(x)[i : i + 1], ham.energy(alone), **CLOSE)
        new = {name: x_a[i : i + 1] for name, x_a in ham.update(x).items()}
        assert_same_states(new, ham.update(alone))
    torch.testing.assert_close(ham.energy(spoilt)[1:], ham.energy(x)[1:], **CLOSE)


def test_an_empty_batch_gives_an_empty_answer(ham):
    x = state(ham, batch=0)
    assert ham.energy(x).shape == (0,)
    assert {name: new.shape for name, new in ham.update(x).items()} == {
        name: x_a.shape for name, x_a in x.items()
    }


# --------------------------------------------------------------------------- descent


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_energy_falls_along_the_dynamics_at_the_rate_of_the_theory(ham, scale):
    """dE/dt = −Σ ẋᵀ ∇²L ẋ for ẋ = I − x, and not only its sign."""
    x = state(ham, scale=scale)
    new = ham.update(x)
    velocity = {name: (new[name] - x[name]).detach() for name in x}
    asking = [x_a.clone().requires_grad_() for x_a in x.values()]
    gradients = torch.autograd.grad(ham.energy(dict(zip(x, asking, strict=True))).sum(), asking)
    rate = sum(inner(v, g) for v, g in zip(velocity.values(), gradients, strict=True))
    expected = torch.zeros(3, dtype=torch.float64)
    for name, v in velocity.items():
        hv = derivative(lambda x, name=name, v=v: inner(ham.layer(name).activation(x), v), x[name])
        expected -= inner(v, hv)
    assert (expected < 0).all()
    # The gradient is a difference of terms much larger than their sum where states are large.
    torch.testing.assert_close(rate, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.slow
def test_energy_never_rises_in_small_euler_steps(ham, clamped):
    clamped = (ham.layers[0],) if clamped else ()
    with torch.no_grad():
        x = state(ham)
        energies = [ham.energy(x)]
        for _ in range(200):
            new = ham.update(x, clamped=clamped)
            x = {name: x_a + 0.005 * (new[name] - x_a) for name, x_a in x.items()}
            energies.append(ham.energy(x))
    energies = torch.stack(energies)
    assert energies.isfinite().all()
    assert (energies.diff(dim=0) <= 64 * EPS * energies.abs().max()).all()
    assert (energies[-1] < energies[0] - 1e-3).all()


# ----------------------------------------------------------------------- hypergraphs


def test_a_shared_synapse_is_one_parameter():
    shared = Dense(3, 3)
    neurons = {a: Neurons(3, Sigmoid()) for a in "abc"}
    ham = HAM(neurons, [(("a", "b"), shared), (("b", "c"), shared)]).double()
    assert len(list(ham.parameters())) == 1
    x = state(ham)
    (gradient,) = torch.autograd.grad(ham.energy(x).sum(), shared.weight)
    g = ham.activations(x)
    expected = -(g["a"].T @ g["b"] + g["b"].T @ g["c"])
    torch.testing.assert_close(gradient, expected, **CLOSE)


def test_a_double_edge_is_one_term_with_both_energies():
    one, two = Dense(2, 3), Dense(2, 3)
    neurons = {"a": Neurons(2, Identity()), "b": Neurons(3, Identity())}
    both = HAM(neurons, [(("a", "b"), one), (("a", "b"), two)]).double()
    x = state(both)
    assert set(both.energy_terms(x)) == {"a", "b", "Dense a–b"}
    summed = Dense(2, 3).double()
    with torch.no_grad():
        summed.weight.copy_(one.weight + two.weight)
    single = HAM(neurons, [(("a", "b"), summed)])
    torch.testing.assert_close(both.energy(x), single.energy(x), **CLOSE)
    assert_same_states(both.update(x), single.update(x))


def test_a_layer_without_synapses_has_no_field():
    ham = HAM({"a": Neurons((2, 2), Tanh())}, []).double()
    x = state(ham)
    assert torch.equal(ham.update(x)["a"], torch.zeros(3, 2, 2, dtype=torch.float64))
    torch.testing.assert_close(ham.energy(x), ham.layer("a").energy(x["a"]), **CLOSE)


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ([5, 4], ("input", "output")),
        ((5, 4, 3), ("input", "hidden1", "output")),
        ([5, 4, 3, 2, 1], ("input", "hidden1", "hidden2", "hidden3", "output")),
    ],
)
def test_a_chain_names_connects_and_sizes_its_layers(sizes, names):
    ham = HAM.chain(sizes)
    assert ham.layers == names
    assert [ham.layer(a).shape for a in names] == [(n,) for n in sizes]
    wiring = [layers for layers, _ in ham.connections]
    assert wiring == [*itertools.pairwise(names), *((a,) for a in names[1:])]
    for a in names:
        lagrangian = ham.layer(a).lagrangian
        assert isinstance(lagrangian, Sigmoid)
        assert (lagrangian.beta, lagrangian.center) == (4.0, 0.5)
    without = HAM.chain(sizes, Tanh(), bias=False)
    assert [layers for layers, _ in without.connections] == [*itertools.pairwise(names)]
    assert all(isinstance(without.layer(a).lagrangian, Tanh) for a in names)


def test_zero_state_follows_the_tensor_it_is_given(ham):
    like = torch.ones(5, 1, dtype=torch.float16)
    zeros = ham.zero_state(like)
    assert tuple(zeros) == ham.layers
    for name, x_a in zeros.items():
        assert x_a.shape == (5, *ham.layer(name).shape)
        assert x_a.dtype == torch.float16
        assert not x_a.any()
    assert list(ham.zero_state(like, [ham.layers[1]])) == [ham.layers[1]]


def test_copies_agree(ham):
    x = state(ham)

    def compute(ham):
        with torch.no_grad():
            return torch.cat([ham.energy(x), *(new.flatten() for new in ham.update(x).values())])

    Contract().copies_agree(ham, compute)
    Contract().prints(ham)


# ----------------------------------------------------------------------------- clamp


def clamped_sets(ham):
    a, b, last = ham.layers[0], ham.layers[1], ham.layers[-1]
    return [(a,), (b,), (a, last), tuple(ham.layers[:-1])]


def test_clamping_keeps_update_and_energy(ham):
    x = state(ham)
    for names in clamped_sets(ham):
        clamped = clamp(ham, {name: x[name] for name in names})
        assert clamped.layers == tuple(a for a in ham.layers if a not in names)
        free = {name: x[name] for name in clamped.layers}
        torch.testing.assert_close(clamped.energy(free), ham.energy(x), **CLOSE)
        expected = ham.update(x, clamped=names)
        assert_same_states(clamped.update(free), {a: expected[a] for a in free})
        terms = torch.stack(list(clamped.energy_terms(free).values())).sum(0)
        torch.testing.assert_close(terms, ham.energy(x), **CLOSE)
        assert_same_states(clamped.full(free), x, rtol=0, atol=0)


def test_clamping_keeps_the_gradients(ham):
    """To the clamped layers, to the free ones and to every parameter; of energy and update."""
    x = {name: x_a.requires_grad_() for name, x_a in state(ham).items()}
    inputs = [*x.values(), *ham.parameters()]
    for names in clamped_sets(ham):
        free_names = [a for a in ham.layers if a not in names]

        def loss(model, values, free_names=free_names):
            new = model.update(values)
            outputs = [new[a] * normal(*new[a].shape, seed=40) for a in free_names]
            return model.energy(values).pow(2).sum() + sum(o.sum() for o in outputs)

        expected = torch.autograd.grad(
            loss(ham, x), inputs, allow_unused=True, materialize_grads=True
        )
        clamped = clamp(ham, {name: x[name] for name in names})
        actual = torch.autograd.grad(
            loss(clamped, {a: x[a] for a in free_names}),
            inputs,
            allow_unused=True,
            materialize_grads=True,
        )
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_fields_of_clamped_layers_are_computed_once():
    torch.manual_seed(0)
    first, second = Counting(4, 3), Counting(3, 2)
    neurons = {a: Neurons(n, Sigmoid()) for a, n in (("input", 4), ("hidden", 3), ("output", 2))}
    ham = HAM(neurons, [(("input", "hidden"), first), (("hidden", "output"), second)]).double()
    x = state(ham)
    clamped = clamp(ham, {"input": x["input"]})
    assert (first.calls, second.calls) == (1, 0)
    free = {"hidden": x["hidden"], "output": x["output"]}
    for _ in range(5):
        free = clamped.update(free)
        clamped.energy(free)
    assert (first.calls, second.calls) == (1, 15)  # two fields and one energy a round


def test_a_triple_with_two_layers_clamped_is_computed_once():
    torch.manual_seed(0)
    triple, calls = Triple(2, 3, 4), []
    neurons = {a: Neurons(n, Sigmoid()) for a, n in (("a", 2), ("b", 3), ("c", 4))}
    ham = HAM(neurons, [(("a", "b", "c"), triple)]).double()
    x = state(ham)
    energy = triple.energy
    triple.energy = lambda *g: calls.append(1) or energy(*g)
    clamped = clamp(ham, {"a": x["a"], "c": x["c"]})
    after_clamping = len(calls)
    assert after_clamping >= 1
    for _ in range(4):
        clamped.update({"b": x["b"]})
        clamped.energy({"b": x["b"]})
    assert len(calls) == after_clamping
    one_clamped = clamp(ham, {"a": x["a"]})
    one_clamped.update({"b": x["b"], "c": x["c"]})
    assert len(calls) > after_clamping


def test_energy_terms_of_a_clamped_memory_come_in_a_fixed_order():
    """Sums in the order of a set of strings would differ from one process to the next."""
    ham = HAM.chain([2] * 9).double()
    x = state(ham)
    clamped = clamp(ham, {"input": x["input"]})
    terms = list(clamped.energy_terms({a: x[a] for a in clamped.layers}))
    assert [t for t in terms if t.startswith("clamped")] == [f"clamped–{a}" for a in clamped.layers]


def test_clamp_refuses_what_it_cannot_hold():
    ham = chain()
    x = state(ham)
    with pytest.raises(
        ValueError, match=r"clamped: expected states of at least one of .*'input'.* none"
    ):
        clamp(ham, {})
    with pytest.raises(ValueError, match=r"unknown layer 'inputs': this HAM has \['input'"):
        clamp(ham, {"inputs": x["input"]})
    with pytest.raises(ValueError, match=r"'input': expected shape \(batch, 4\), got \(3, 2\)"):
        clamp(ham, {"input": x["output"]})
    with pytest.raises(
        TypeError, match=r"'input': expected a floating-point tensor, got torch.uint8"
    ):
        clamp(ham, {"input": torch.zeros(3, 4, dtype=torch.uint8)})
    with pytest.raises(ValueError, match=r"'output': expected a batch of 3 .* got 2"):
        clamp(ham, {"input": x["input"], "output": x["output"][:2]})


@pytest.mark.parametrize("method", ["energy", "update"])
def test_a_clamped_memory_refuses_bad_states(method):
    ham = chain()
    x = state(ham)
    clamped = clamp(ham, {"input": x["input"]})
    f = getattr(clamped, method)
    hidden, output = x["hidden1"], x["output"]
    with pytest.raises(ValueError, match="hidden1"):
        f({"output": output})
    with pytest.raises(ValueError, match=r"expected shape \(batch, 3\), got \(3, 2\)"):
        f({"hidden1": output, "output": output})
    with pytest.raises(ValueError, match="batch of 3"):
        f({"hidden1": hidden[:1], "output": output[:1]})
    with pytest.raises(ValueError, match="unknown layer 'hidden'"):
        f({"hidden": hidden, "hidden1": hidden, "output": output})


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("method", ["energy", "energy_terms", "update"])
def test_bad_states_are_refused(method):
    ham = chain()
    f, x = getattr(ham, method), state(ham)
    with pytest.raises(ValueError, match=r"unknown layer 'hidden2': this HAM has .*'hidden1'"):
        f(x | {"hidden2": x["hidden1"]})
    missing = {"input": x["input"], "output": x["output"]}
    with pytest.raises(ValueError, match=r"expected the layers .*'hidden1'.*, got \['input', 'out"):
        f(missing)
    for wrong in (x["input"][:, :3], x["input"][0], x["input"][:, None], torch.tensor(1.0)):
        shape = str(tuple(wrong.shape)).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"'input': expected shape \(batch, 4\), got {shape}"):
            f(x | {"input": wrong})
    for dtype in (torch.int64, torch.uint8, torch.bool):
        with pytest.raises(TypeError, match=rf"'output': expected a floating.*, got {dtype}.* 255"):
            f(x | {"output": torch.zeros(3, 2, dtype=dtype)})
    with pytest.raises(TypeError, match=r"'output': expected a floating-point tensor, got list"):
        f(x | {"output": x["output"].tolist()})
    with pytest.raises(ValueError, match=r"'output': expected a batch of 3 .*, got 1"):
        f(x | {"output": x["output"][:1]})


def test_unknown_clamped_layers_are_refused():
    ham = chain()
    with pytest.raises(ValueError, match=r"unknown layer 'hidden': this HAM has \['input', 'hidd"):
        ham.update(state(ham), clamped=("input", "hidden"))


def test_a_string_is_not_a_collection_of_layers():
    """clamped="input" must not be read as the letters i, n, p, u, t."""
    ham = chain()
    with pytest.raises((ValueError, TypeError), match=r"'input'.*got|got.*'input'"):
        ham.update(state(ham), clamped="input")
    with pytest.raises((ValueError, TypeError), match="'output'"):
        HAM({"output": Neurons(2, Identity())}, [("output", Bias(2))])


def test_connections_must_fit_their_layers():
    neurons = {"a": Neurons(3, Identity()), "b": Neurons((2, 2), Identity())}
    with pytest.raises(ValueError, match=r"unknown layer 'c': this HAM has \['a', 'b'\]"):
        HAM(neurons, [(("a", "c"), Dense(3, 3))])
    with pytest.raises(ValueError, match="Bias: expected 1 layers, got 2 names"):
        HAM(neurons, [(("a", "a"), Bias(3))])


@pytest.mark.parametrize("wrong", [nn.Linear(3, 3), torch.ones(3, 3), None, Identity()])
def test_connections_must_be_synapses(wrong):
    neurons = {"a": Neurons(3, Identity()), "b": Neurons(3, Identity())}
    with pytest.raises(TypeError, match=f"expected a Synapse, got {type(wrong).__name__}"):
        HAM(neurons, [(("a", "b"), wrong)])


@pytest.mark.parametrize("wrong", [Identity(), 3, None, nn.Linear(3, 3)])
def test_layers_must_be_neurons(wrong):
    with pytest.raises(TypeError, match=f"expected Neurons.*got {type(wrong).__name__}"):
        HAM({"a": wrong}, [])


@pytest.mark.parametrize("wrong", [torch.sigmoid, "sigmoid", nn.Sigmoid(), Sigmoid, None])
def test_neurons_need_a_lagrangian(wrong):
    with pytest.raises(TypeError, match=f"expected a Lagrangian .*, got {type(wrong).__name__}"):
        Neurons(3, wrong)


def test_a_memory_needs_layers():
    with pytest.raises(ValueError, match="expected at least one layer, got none"):
        HAM({}, [])
    for sizes in ([], [5]):
        with pytest.raises(ValueError, match="sizes: expected at least two layers") as error:
            HAM.chain(sizes)
        assert str(error.value).endswith(f"got {sizes}")


@pytest.mark.parametrize("name", ["hidden 1", "", "a.b", "keys", "training", "forward", "1st"])
def test_names_that_torch_cannot_take_are_refused_with_one_that_it_can(name):
    with pytest.raises(ValueError, match="expected an identifier") as error:
        HAM({name: Neurons(2, Identity())}, [])
    assert repr(name) in str(error.value)
    # The last quoted words are the suggestion, which may be written as a sum of strings.
    suggestion = "".join(re.findall(r"'([^']*)'", str(error.value).rsplit("such as ", 1)[1]))
    HAM({suggestion: Neurons(2, Identity())}, [])
