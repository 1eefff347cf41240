"""two_colouring and eliminate: exact, descending, the square of the synchronous map, attention."""

import itertools
import math
import random
import re

import pytest
import torch
import torch.nn.functional as F
from custom_terms import OnlyEnergy, Squared, Triple
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Synapse,
    Tanh,
    clamp,
    eliminate,
    two_colouring,
)
from hamdeq.testing import inner, normal
from hamdeq.testing.contract import CLOSE, EPS

# The same examples in every run, and no limit of time on a shared machine.
FIXED = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def graph(sizes, edges, lagrangian=None):
    """A HAM of vector layers, a Dense on each edge."""
    lagrangian = Sigmoid() if lagrangian is None else lagrangian
    neurons = {name: Neurons(n, lagrangian) for name, n in sizes.items()}
    return HAM(neurons, [((a, b), Dense(sizes[a], sizes[b])) for a, b in edges])


def state(model, batch=3, seed=0, scale=1.0, layers=None):
    names = model.layers if layers is None else layers
    return {
        name: scale * normal(batch, *model.layer(name).shape, seed=seed + i)
        for i, name in enumerate(names)
    }


def flat(x):
    return torch.cat([x_a.flatten(1) for x_a in x.values()], 1)


def unflat(vector, like):
    parts = vector.split([x_a[0].numel() for x_a in like.values()], 1)
    return {n: p.reshape(-1, *like[n].shape[1:]) for n, p in zip(like, parts, strict=True)}


def width(ham, names):
    return sum(math.prod(ham.layer(a).shape) for a in names)


# ------------------------------------------------------------------------- colouring


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("clamped", [(), ("input",), ("input", "output")])
def test_chains_split_into_even_and_odd(n, clamped):
    torch.manual_seed(n)
    sizes = torch.randint(1, 30, (n,)).tolist()
    ham = HAM.chain(sizes)
    keep, hide = two_colouring(ham, clamped=clamped)
    free = [a for a in ham.layers if a not in clamped]
    assert sorted([*keep, *hide]) == sorted(free)
    even, odd = free[::2], free[1::2]
    if not free:
        return
    assert {tuple(keep), tuple(hide)} == {tuple(even), tuple(odd)}
    assert width(ham, hide) >= width(ham, keep)


def test_the_wider_colour_is_hidden():
    for sizes, hidden in (
        ([784, 512, 10], ("hidden1",)),
        ([784, 5, 10], ("output",)),
        ([7, 3, 7, 3], ("hidden2",)),
        ([7, 4, 6, 4], ("hidden1", "output")),  # 8 neurons in two layers against 6 in one
    ):
        _, hide = two_colouring(HAM.chain(sizes), clamped=("input",))
        assert hide == hidden
    image = {"a": Neurons((3, 3), Identity()), "b": Neurons(8, Identity())}

    class Map(OnlyEnergy):
        shapes = None

        def __init__(self):
            Synapse.__init__(self)

        def energy(self, a, b):
            return -(a.flatten(1)[:, :8] * b).sum(1)

        def is_linear_in(self, place):
            return True

    assert two_colouring(HAM(image, [(("a", "b"), Map())])) == (("b",), ("a",))


def test_clamped_layers_connect_nothing():
    """A triangle is odd; with one corner clamped it is a single edge, or, with two, a point."""
    triangle = graph({"a": 5, "b": 3, "c": 4}, ["ab", "bc", "ca"])
    assert two_colouring(triangle, clamped=("a",)) == (("b",), ("c",))
    keep, hide = two_colouring(triangle, clamped=("a", "c"))
    assert (keep, hide) == ((), ("b",))
    assert two_colouring(triangle, clamped=("a", "b", "c")) == ((), ())
    # A star whose centre is clamped falls apart: every leaf can be hidden.
    star = graph({"o": 2, "p": 3, "q": 4, "r": 5}, ["op", "oq", "or"])
    assert two_colouring(star, clamped=("o",)) == ((), ("p", "q", "r"))
    assert two_colouring(star) == (("o",), ("p", "q", "r"))


def test_a_triple_with_a_clamped_layer_is_an_edge():
    neurons = {a: Neurons(n, Sigmoid()) for a, n in (("a", 2), ("b", 3), ("c", 4))}
    ham = HAM(neurons, [(("a", "b", "c"), Triple(2, 3, 4))])
    assert two_colouring(ham, clamped=("a",)) == (("b",), ("c",))
    with pytest.raises(ValueError, match="cycle of odd length"):
        two_colouring(ham)


@st.composite
def bipartite(draw):
    """Sizes and edges of a random bipartite graph, connected or not, layers in any order."""
    n_left, n_right = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    left, right = [f"l{i}" for i in range(n_left)], [f"r{i}" for i in range(n_right)]
    names = draw(st.permutations(left + right))
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    pairs = [(a, b) for a in left for b in right]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=12))
    return sizes, [edge if draw(st.booleans()) else edge[::-1] for edge in edges]


def components(names, edges):
    """Connected parts, by merging: independent of the package's breadth-first search."""
    parts = [{name} for name in names]
    for a, b in edges:
        joined = [p for p in parts if a in p or b in p]
        parts = [p for p in parts if p not in joined] + [set().union(*joined)]
    return parts


@FIXED
@given(bipartite(), st.data())
def test_random_bipartite_graphs(drawn, data):
    sizes, edges = drawn
    ham = graph(sizes, edges)
    clamped = data.draw(st.sets(st.sampled_from(list(sizes))))
    keep, hide = two_colouring(ham, clamped=clamped)
    free = [a for a in sizes if a not in clamped]
    assert sorted(keep + hide) == sorted(free)
    inside = [(a, b) for a, b in edges if a in free and b in free]
    for a, b in inside:
        assert (a in keep) != (b in keep)
    for part in components(free, inside):
        hidden = sum(sizes[a] for a in part if a in hide)
        assert hidden >= sum(sizes[a] for a in part) / 2
    eliminate(clamp(ham, {a: torch.zeros(1, sizes[a]) for a in clamped}) if clamped else ham, hide)


@FIXED
@given(st.integers(3, 9), st.integers(0, 2**32 - 1))
def test_an_odd_cycle_is_named_and_real(n, seed):
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(n)]
    rng.shuffle(names)
    pairs = list(itertools.combinations(names, 2))
    edges = rng.sample(pairs, rng.randint(2, len(pairs)))
    ham = graph(dict.fromkeys(names, 2), edges)
    # Two-colourable or not, by trying all colourings.
    colourings = itertools.product((0, 1), repeat=n)
    possible = any(
        all(c[i] != c[j] for i, j in ((names.index(a), names.index(b)) for a, b in edges))
        for c in colourings
    )
    if possible:
        two_colouring(ham)
        return
    with pytest.raises(ValueError, match="form a cycle of odd length") as error:
        two_colouring(ham)
    cycle = re.search(r"the layers (.*) form a cycle", str(error.value)).group(1).split(" – ")
    assert cycle[0] == cycle[-1]
    distinct = cycle[:-1]
    assert len(set(distinct)) == len(distinct)
    assert len(distinct) % 2 == 1
    assert len(distinct) >= 3
    joined = {frozenset(edge) for edge in edges}
    for a, b in itertools.pairwise(cycle):
        assert frozenset((a, b)) in joined


def test_a_synapse_within_a_layer_is_named():
    ham = graph({"a": 3, "b": 3}, ["ab", "bb"])
    with pytest.raises(ValueError, match=r"'b' acts on itself through Dense \('b', 'b'\)"):
        two_colouring(ham)
    assert two_colouring(ham, clamped=("b",)) == ((), ("a",))


def test_a_non_linear_synapse_is_named():
    neurons = {"a": Neurons(3, Sigmoid()), "b": Neurons(2, Sigmoid())}
    ham = HAM(neurons, [(("a", "b"), Squared(3, 2))])
    with pytest.raises(ValueError, match=r"through Squared \('a', 'b'\).*linear in each"):
        two_colouring(ham)
    with pytest.raises(ValueError, match=r"'b' acts on itself through Squared"):
        two_colouring(ham, clamped=("a",))


def test_colouring_refuses_unknown_layers():
    with pytest.raises(ValueError, match=r"unknown layer 'inputs': this HAM has \['input'"):
        two_colouring(HAM.chain([3, 2]), clamped=("inputs",))


# ------------------------------------------------------------------ elimination: exact


def zoo():
    """Small contracting models: (full model, hidden layers). Held inputs in most of them."""
    torch.manual_seed(3)

    def damped(ham, scale=0.4):
        with torch.no_grad():
            for p in ham.parameters():
                p.mul_(scale)
        return ham.double()

    chain = damped(HAM.chain([4, 5, 3, 4, 2], Sigmoid(2.0, 0.1)))
    clamped = {"input": normal(3, 4, seed=77).requires_grad_()}
    yield "chain", clamp(chain, clamped), ("hidden1", "hidden3"), chain, clamped
    yield "chain, other colour", clamp(chain, clamped), ("hidden2", "output"), chain, clamped
    yield "chain, one layer", clamp(chain, clamped), ("hidden2",), chain, clamped
    yield "chain, nothing clamped", chain, two_colouring(chain)[1], chain, {}

    neurons = {
        "x": Neurons(3, Identity()),
        "a": Neurons(4, Softmax(2.0, learnable=True)),
        "b": Neurons((2, 2), LayerNorm(eps=0.5)),
        "c": Neurons(3, Tanh()),
        "d": Neurons(2, Spherical(eps=0.5)),
    }

    class Flat(Dense):
        """A dense synapse onto an image."""

        def __init__(self, n, shape):
            super().__init__(n, torch.Size(shape).numel())
            self.shapes = ((n,), shape)

        def energy(self, *g):
            return super().energy(g[0], g[1].flatten(1))

        def field(self, to, *g):
            field = super().field(to, g[0], g[1].flatten(1))
            return field.unflatten(1, self.shapes[1]) if to == 1 else field

    mixed = damped(
        HAM(
            neurons,
            [
                (("x", "a"), Dense(3, 4)),
                (("x", "a", "c"), Triple(3, 4, 3)),
                (("c", "b"), Flat(3, (2, 2))),
                (("d", "c"), Dense(2, 3)),
                (("d",), Bias(2, std=1.0)),
                (("b",), Bias((2, 2), std=1.0)),
                (("a",), Bias(4, std=1.0)),
            ],
        )
    )
    clamped = {"x": normal(3, 3, seed=78).requires_grad_()}
    yield "mixed", clamp(mixed, clamped), ("a", "b", "d"), mixed, clamped
    yield "mixed, other colour", clamp(mixed, clamped), ("c",), mixed, clamped
    yield "mixed, nothing clamped", mixed, ("a", "d"), mixed, {}


@pytest.fixture(params=[name for name, *_ in zoo()])
def case(request):
    """Made anew for each test: what clamped layers exert keeps its graph for one backward pass."""
    return next(rest for name, *rest in zoo() if name == request.param)


def settle(f, x, steps=600):
    with torch.no_grad():
        for _ in range(steps):
            new = f(x)
            if all(torch.equal(new[a], x[a]) for a in x):
                break  # further steps would change no bit
            x = new
    return x


def test_full_and_eliminated_models_share_their_fixed_points(case):
    model, hidden, *_ = case
    reduced = eliminate(model, hidden)
    assert reduced.hidden == tuple(a for a in model.layers if a in hidden)
    assert reduced.visible == tuple(a for a in model.layers if a not in hidden)
    full = settle(model.update, state(model))
    visible = settle(reduced.update, state(model, seed=30, layers=reduced.visible))
    restored = reduced.restore(visible)
    assert set(restored) == set(model.layers)
    for name in model.layers:
        torch.testing.assert_close(restored[name], full[name], rtol=0, atol=1e-10)
    # and each is at rest under the other's map
    for f, x in (
        (model.update, restored),
        (reduced.update, {a: full[a] for a in reduced.visible}),
    ):
        torch.testing.assert_close(flat(f(x)), flat(x), rtol=0, atol=1e-10)


def test_gradients_at_the_fixed_point_are_those_of_the_full_model(case):
    """dℓ/dθ by the implicit function theorem, with the linear system solved densely."""
    model, hidden, ham, clamped = case
    reduced = eliminate(model, hidden)
    inputs = [*clamped.values(), *ham.parameters()]
    weights = state(model, seed=60)

    def loss(x):
        return sum(((x[a] - weights[a]) ** 2).sum() for a in model.layers)

    def implicit(f, x, value):
        """dℓ/dθ = ∂ℓ/∂θ + (∂f/∂θ)ᵀ (I − J)⁻ᵀ ∂ℓ/∂z, at the rest z of f."""
        z = flat(x).detach().requires_grad_()
        image = flat(f(unflat(z, x)))
        rows = [
            torch.autograd.grad(image[:, i].sum(), z, retain_graph=True)[0]
            for i in range(z.shape[1])
        ]
        jacobian = torch.stack(rows, 1)
        direct = value(unflat(z, x))
        dz, *dtheta = torch.autograd.grad(
            direct, [z, *inputs], allow_unused=True, materialize_grads=True, retain_graph=True
        )
        eye = torch.eye(z.shape[1], dtype=z.dtype)
        v = torch.linalg.solve((eye - jacobian).mT, dz[..., None])[..., 0]
        through = torch.autograd.grad(
            (image * v).sum(),
            inputs,
            allow_unused=True,
            materialize_grads=True,
            retain_graph=True,
        )
        return [a + b for a, b in zip(dtheta, through, strict=True)]

    full = settle(model.update, state(model))
    expected = implicit(model.update, full, loss)
    visible = {a: full[a] for a in reduced.visible}
    actual = implicit(reduced.update, visible, lambda x: loss(reduced.restore(x)))
    assert max(g.abs().max() for g in expected) > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_update_does_not_depend_on_whether_gradients_are_on(case):
    """The hidden activations are functions of the visible ones; the field is still partial."""
    model, hidden, *_ = case
    reduced = eliminate(model, hidden)
    x = state(model, layers=reduced.visible)
    with torch.no_grad():
        expected = flat(reduced.update(x))
    asking = {a: x_a.clone().requires_grad_() for a, x_a in x.items()}
    torch.testing.assert_close(flat(reduced.update(asking)).detach(), expected, **CLOSE)


def test_update_is_two_half_steps_of_the_full_model(case):
    model, hidden, *_ = case
    reduced = eliminate(model, hidden)
    x = state(model)
    visible = {a: x[a] for a in reduced.visible}
    x = {a: new if a in hidden else x[a] for a, new in model.update(x).items()}
    restored = reduced.restore(visible)
    for name in model.layers:
        torch.testing.assert_close(restored[name], x[name], **CLOSE)
    new = model.update(x)
    for name, value in reduced.update(visible).items():
        torch.testing.assert_close(value, new[name], **CLOSE)


def test_eliminated_energy_is_the_least_that_hidden_states_give(case):
    model, hidden, *_ = case
    reduced = eliminate(model, hidden)
    for scale in (0.3, 3.0):
        visible = state(model, layers=reduced.visible, scale=scale)
        least = reduced.energy(visible)
        full = reduced.restore(visible)
        torch.testing.assert_close(model.energy(full), least, **CLOSE)
        for seed in range(40):
            moved = dict(full)
            for i, name in enumerate(reduced.hidden):
                step = (1e-3, 0.1, 1.0, 10.0)[seed % 4]
                moved[name] = full[name] + step * normal(*full[name].shape, seed=50 * seed + i)
            energy = model.energy(moved)
            assert (energy >= least - 64 * EPS * (energy.abs() + least.abs() + 1)).all()
            if seed % 4 == 3:
                assert (energy > least + 1e-6).any()  # the steps do leave the minimum


def test_gradient_of_the_eliminated_energy_is_the_full_one_at_the_minimum(case):
    """Envelope theorem: the hidden states' dependence adds nothing."""
    model, hidden, ham, clamped = case
    reduced = eliminate(model, hidden)
    visible = {a: v.requires_grad_() for a, v in state(model, layers=reduced.visible).items()}
    inputs = [*visible.values(), *clamped.values(), *ham.parameters()]
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    minimum = {a: x.detach() for a, x in reduced.restore(visible).items() if a in hidden}
    expected = torch.autograd.grad(model.energy(visible | minimum).sum(), inputs, **options)
    actual = torch.autograd.grad(reduced.energy(visible).sum(), inputs, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def test_states_are_not_written_to(case):
    model, hidden, *_ = case
    reduced = eliminate(model, hidden)
    x = state(model, layers=reduced.visible)
    reduced.update(x), reduced.energy(x), reduced.restore(x)
    assert tuple(x) == reduced.visible
    for name, before in state(model, layers=reduced.visible).items():
        assert torch.equal(x[name], before)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch(batch):
    ham = HAM.chain([3, 4, 5, 2]).double()
    clamped = {"input": normal(batch, 3)}
    reduced = eliminate(clamp(ham, clamped), ("hidden1", "output"))
    x = {"hidden2": normal(batch, 5)}
    assert reduced.energy(x).shape == (batch,)
    assert reduced.update(x)["hidden2"].shape == (batch, 5)
    assert reduced.restore(x)["output"].shape == (batch, 2)
    for i in range(batch):
        alone = eliminate(clamp(ham, {"input": clamped["input"][i : i + 1]}), ("hidden1", "output"))
        one = {"hidden2": x["hidden2"][i : i + 1]}
        torch.testing.assert_close(
            alone.update(one)["hidden2"][0], reduced.update(x)["hidden2"][i], **CLOSE
        )
        torch.testing.assert_close(alone.energy(one)[0], reduced.energy(x)[i], **CLOSE)


def test_visible_layers_can_be_clamped_as_well():
    ham = HAM.chain([3, 4, 2]).double()
    reduced = eliminate(ham, ("hidden1",))
    x = state(ham, layers=reduced.visible)
    new, free = reduced.update(x, clamped=("input",)), reduced.update(x)
    assert torch.equal(new["input"], x["input"])
    assert torch.equal(new["output"], free["output"])
    assert not torch.equal(free["input"], x["input"])


def test_nothing_left_to_solve():
    """A clamped input and one layer: its minimum is found without any iteration."""
    ham = HAM.chain([4, 3]).double()
    x = {"input": normal(2, 4)}
    reduced = eliminate(clamp(ham, x), ("output",))
    assert reduced.visible == ()
    assert reduced.update({}) == {}
    output = reduced.restore({})["output"]
    (weight, bias) = [s for _, s in ham.connections]
    expected = torch.sigmoid(4 * x["input"] - 2) @ weight.weight + bias.bias
    torch.testing.assert_close(output, expected, **CLOSE)
    torch.testing.assert_close(reduced.energy({}), ham.energy(x | {"output": output}), **CLOSE)


def test_a_hidden_layer_without_synapses_rests_at_zero():
    neurons = {"x": Neurons(3, Identity()), "alone": Neurons(2, Sigmoid())}
    ham = HAM(neurons, []).double()
    x = {"x": normal(2, 3)}
    for model, given_state in ((ham, x), (clamp(ham, x), {})):
        restored = eliminate(model, ("alone",)).restore(given_state)
        assert torch.equal(restored["alone"], torch.zeros(2, 2, dtype=torch.float64))


def test_eliminating_nothing_changes_nothing():
    ham = HAM.chain([3, 4, 2]).double()
    reduced, x = eliminate(ham, ()), state(ham)
    torch.testing.assert_close(reduced.energy(x), ham.energy(x), rtol=0, atol=0)
    torch.testing.assert_close(reduced.update(x), ham.update(x), rtol=0, atol=0)


# --------------------------------------------------------------------- spectral radius


def spectral_radius(f, x):
    """Of one sample."""
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flat(f(unflat(v[None], x)))[0], flat(x)[0]
    )
    return torch.linalg.eigvals(jacobian).abs().max()


@pytest.mark.parametrize("sizes", [[5, 4, 3], [4, 5, 4, 3], [3, 4, 5, 4, 3, 2]])
@pytest.mark.parametrize("hide", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_eliminated_map_has_the_square_of_the_spectral_radius(sizes, hide, seed):
    torch.manual_seed(len(sizes))
    ham = HAM.chain(sizes, Sigmoid(2.0)).double()
    model = clamp(ham, {"input": normal(1, sizes[0], seed=seed)})
    reduced = eliminate(model, two_colouring(ham, clamped=("input",))[hide])
    full = settle(model.update, state(model, batch=1), 2000)
    torch.testing.assert_close(flat(model.update(full)), flat(full), rtol=0, atol=1e-13)
    synchronous = spectral_radius(model.update, full)
    split = spectral_radius(reduced.update, {a: full[a] for a in reduced.visible})
    assert 0.05 < synchronous < 1
    torch.testing.assert_close(split, synchronous**2, rtol=0, atol=1e-8)


# ---------------------------------------------------------------------------- descent


LAGRANGIANS = {
    "Identity": Identity,
    "Sigmoid": lambda: Sigmoid(4.0, 0.5),
    "Tanh": lambda: Tanh(2.0),
    "ReLU": ReLU,
    "RePU": lambda: RePU(3),
    "Exp": lambda: Exp(0.5),
    "Softmax": lambda: Softmax(3.0),
    "LayerNorm": LayerNorm,
    "Spherical": Spherical,
    "one of each": None,
}
# Energies of these are bounded below, so that every step must give a finite one.
BOUNDED = {"Sigmoid", "Tanh", "Softmax", "LayerNorm", "Spherical"}


@pytest.mark.parametrize("name", LAGRANGIANS)
def test_even_odd_steps_never_raise_the_energy(name):
    """Without damping, from random states: no rise beyond rounding, wherever it is finite."""
    checked, fell = 0, 0
    for n, (k, scale) in itertools.product(range(2, 8), enumerate((0.1, 1.0, 3.0, 10.0))):
        rng = random.Random(100 * n + k)
        torch.manual_seed(100 * n + k)
        kinds = [make for make in LAGRANGIANS.values() if make is not None]
        sizes = [rng.randint(1, 8) for _ in range(n)]
        ham = HAM.chain(sizes)
        neurons = {
            a: Neurons(m, (LAGRANGIANS[name] or rng.choice(kinds))())
            for a, m in zip(ham.layers, sizes, strict=True)
        }
        ham = HAM(neurons, ham.connections).double()
        clamped = ("input",) if k % 2 else ()
        with torch.no_grad():
            for p in ham.parameters():
                p.mul_(scale)
            start = state(ham, batch=8, seed=n, scale=(0.5, 3.0)[n % 2])
            model = clamp(ham, {"input": start["input"]}) if clamped else ham
            reduced = eliminate(model, two_colouring(ham, clamped=clamped)[1])
            x = {a: start[a] for a in reduced.visible}
            energy = reduced.energy(x)
            for _ in range(12 if x else 0):
                x = reduced.update(x)
                new, full = reduced.energy(x), reduced.restore(x)
                # Energies are differences of terms that may be far larger, and states carry
                # rounding errors of their own, each worth eps·|x|·|g|.
                size = sum(term.abs() for term in model.energy_terms(full).values()) + 1
                for a, x_a in full.items():
                    layer = model.layer(a)
                    size += layer.lagrangian(x_a).abs() + inner(
                        x_a.abs(), layer.activation(x_a).abs()
                    )
                finite = energy.isfinite() & new.isfinite() & size.isfinite()
                assert finite.all() or name not in BOUNDED
                rise = new - energy
                assert not (rise > 16 * EPS * size)[finite].any(), (sizes, scale, rise.max())
                checked += int(finite.sum())
                fell += int((rise < -16 * EPS * size)[finite].sum())
                energy = new
    # Of 2,112 (with n = 2 and the input clamped there is nothing to do: 22 models × 12 × 8).
    assert checked == 2112 if name in BOUNDED else checked > 500
    assert fell > 100


def test_synchronous_steps_do_raise_it():
    """So the test above can fail: the same models, without splitting."""
    torch.manual_seed(0)
    ham = HAM.chain([6, 6, 6]).double()
    with torch.no_grad():
        for p in ham.parameters():
            p.mul_(10.0)
        x = state(ham, batch=8, scale=3.0)
        rises, energy = 0, ham.energy(x)
        for _ in range(12):
            x = ham.update(x)
            new = ham.energy(x)
            rises += int((new > energy + 1e-6).sum())
            energy = new
    assert rises > 0


# -------------------------------------------------------- attention, dense memories


def retrieval(patterns, lagrangian):
    """Query and memories: patterns are (N, d), the weight their transpose."""
    n, d = patterns.shape
    dense = Dense(d, n).double()
    with torch.no_grad():
        dense.weight.copy_(patterns.T)
    neurons = {"query": Neurons(d, Identity()), "memories": Neurons(n, lagrangian)}
    return eliminate(HAM(neurons, [(("query", "memories"), dense)]), ("memories",))


@pytest.mark.parametrize("beta", [0.1, 1.0, 8.0**-0.5, 20.0])
def test_attention_is_the_elimination_of_softmax_memories(beta):
    patterns, queries = normal(11, 8), normal(5, 8, seed=1)
    reduced = retrieval(patterns, Softmax(beta))
    x = {"query": queries}
    new = reduced.update(x)["query"]
    by_hand = torch.softmax(beta * queries @ patterns.T, -1) @ patterns
    torch.testing.assert_close(new, by_hand, rtol=0, atol=1e-12)
    attention = F.scaled_dot_product_attention(
        queries[None], patterns[None], patterns[None], scale=beta
    )[0]
    torch.testing.assert_close(new, attention, rtol=0, atol=1e-12)
    lse = torch.logsumexp(beta * queries @ patterns.T, -1) / beta
    energy = 0.5 * (queries**2).sum(-1) - lse
    torch.testing.assert_close(reduced.energy(x), energy, rtol=0, atol=1e-12)
    weights = torch.softmax(beta * reduced.restore(x)["memories"], -1)
    expected = torch.softmax(beta * queries @ patterns.T, -1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def test_attention_has_the_gradients_of_attention():
    patterns, queries = normal(7, 4), normal(3, 4, seed=1).requires_grad_()
    beta = 0.5
    reduced = retrieval(patterns, Softmax(beta))
    (synapse,) = [s for _, s in reduced.model.connections]
    weight = normal(3, 4, seed=2)
    actual = torch.autograd.grad(
        (reduced.update({"query": queries})["query"] * weight).sum(), [queries, synapse.weight]
    )
    keys = patterns.clone().requires_grad_()
    out = F.scaled_dot_product_attention(queries[None], keys[None], keys[None], scale=beta)[0]
    expected = torch.autograd.grad((out * weight).sum(), [queries, keys])
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(actual[1].T, expected[1], rtol=0, atol=1e-12)


def test_a_clear_pattern_is_retrieved_in_one_step():
    """Ramsauer et al.: error ≤ 2(N−1) exp(−β(Δ − 2·distance·M)) M."""
    patterns = F.normalize(normal(6, 32), dim=1) * 4
    noise = 0.05 * normal(6, 32, seed=1)
    beta = 3.0
    new = retrieval(patterns, Softmax(beta)).update({"query": patterns + noise})["query"]
    largest = patterns.norm(dim=1).max()
    overlap = patterns @ patterns.T
    others = overlap.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf).max(1).values
    separation = overlap.diagonal() - others
    bound = 2 * 5 * torch.exp(-beta * (separation - 2 * noise.norm(dim=1) * largest)) * largest
    assert (bound < 1e-2).all()
    assert ((new - patterns).norm(dim=1) <= bound).all()


@pytest.mark.parametrize("n", [2, 3, 4.5])
def test_a_dense_associative_memory_is_the_elimination_of_powers(n):
    patterns, queries = normal(6, 5), normal(4, 5, seed=1)
    reduced = retrieval(patterns, RePU(n))
    overlap = torch.relu(queries @ patterns.T)
    new = reduced.update({"query": queries})["query"]
    torch.testing.assert_close(new, overlap ** (n - 1) @ patterns, rtol=1e-12, atol=1e-12)
    energy = 0.5 * (queries**2).sum(-1) - (overlap**n).sum(-1) / n
    torch.testing.assert_close(reduced.energy({"query": queries}), energy, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------- errors


def test_eliminate_says_what_it_cannot_remove():
    ham = HAM.chain([4, 3, 2])
    with pytest.raises(
        ValueError, match=r"hidden: expected names among \['input'.*, got 'hidden2'"
    ):
        eliminate(ham, ("hidden2",))
    with pytest.raises(
        ValueError, match=r"Dense \('hidden1', 'output'\); remove 'hidden1' or 'out"
    ):
        eliminate(ham, ("hidden1", "output"))
    clamped = clamp(ham, {"input": torch.zeros(1, 4)})
    with pytest.raises(
        ValueError, match=r"expected names among \['hidden1', 'output'\], got 'input'"
    ):
        eliminate(clamped, ("input",))
    loop = graph({"a": 2, "b": 2}, ["ab", "aa"])
    with pytest.raises(
        ValueError, match=r"without a synapse among themselves, got Dense \('a', 'a'\)"
    ):
        eliminate(loop, ("a",))
    eliminate(loop, ("b",))
    neurons = {"a": Neurons(3, Sigmoid()), "b": Neurons(2, Sigmoid())}
    squared = HAM(neurons, [(("a", "b"), Squared(3, 2))])
    with pytest.raises(
        ValueError, match=r"Squared \('a', 'b'\) is not linear in 'b'.*is_linear_in"
    ):
        eliminate(squared, ("b",))


def test_a_name_is_not_a_collection_of_layers():
    with pytest.raises((ValueError, TypeError), match="got the string 'hidden1'"):
        eliminate(HAM.chain([4, 3, 2]), "hidden1")
    with pytest.raises((ValueError, TypeError), match="got the string 'input'"):
        two_colouring(HAM.chain([4, 3, 2]), clamped="input")


@pytest.mark.parametrize("method", ["energy", "update", "restore"])
def test_an_eliminated_model_refuses_states_of_other_layers(method):
    """With a hidden layer among them, the energy would count it twice."""
    ham = HAM.chain([4, 3, 2]).double()
    f = getattr(eliminate(ham, ("hidden1",)), method)
    x = state(ham)
    with pytest.raises(ValueError, match="hidden1"):
        f(x)
    with pytest.raises(ValueError, match="output"):
        f({"input": x["input"]})
