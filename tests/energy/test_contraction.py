"""How strongly layers act on each other: the bound, its promise, and weights brought within it."""

import itertools
import math

import pytest
import torch

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    AvgPool2d,
    Bias,
    Broyden,
    Composed,
    Conv2d,
    Dense,
    Exp,
    Flatten,
    FunctionSynapse,
    Identity,
    Lateral,
    LayerNorm,
    MaxPool2d,
    Neurons,
    Newton,
    Picard,
    ReLU,
    RePU,
    SelfAttention,
    Sigmoid,
    Softmax,
    Tanh,
    clamp,
    contract_,
    contraction,
    eliminate,
    two_colouring,
)
from hamdeq.energy.spectral import clip_, cut_, spectral_norm
from hamdeq.testing import normal

STEEP = 1e-7  # what float64 leaves of the eigenvalues of Gram matrices, and more


def matrix(synapse, shape):
    """A linear map as a matrix: (numbers of the first layer, numbers of the second)."""
    n = math.prod(shape)
    with torch.no_grad():
        return synapse(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1)


def norm(weight):
    return float(torch.linalg.matrix_norm(weight.detach(), 2))


def largest(rows):
    return float(torch.linalg.eigvalsh(torch.tensor(rows, dtype=torch.float64))[-1])


def memory(layers, connections):
    """A memory with an input of three numbers; layers of 4, 5, … neurons by name."""
    neurons = {"input": Neurons(3, Identity())}
    return HAM(neurons | layers, [(("input", next(iter(layers))), Dense(3, 4)), *connections])


def chain(sizes=(6, 5, 4, 7), beta=1.5, gain=0.4, **options):
    torch.manual_seed(0)
    return HAM.chain(sizes, Tanh(beta), gain=gain, **options).double()


# ------------------------------------------------------------------ the bound


def test_of_a_chain_by_hand():
    ham = HAM.chain([6, 5, 4, 7], [Tanh(), Tanh(2.0), Sigmoid(4.0, 0.5), Softmax(3.0)]).double()
    _, one, two = (ham.synapses[i].weight for i in range(3))
    a, b = math.sqrt(2.0 * 1.0) * norm(one), math.sqrt(1.0 * 1.5) * norm(two)
    assert contraction(ham) == pytest.approx(math.hypot(a, b), rel=STEEP)
    # What is clamped does not count, whatever it is.
    assert contraction(ham, clamped=["input", "hidden2"]) == 0
    assert contraction(ham, clamped=["input", "output"]) == pytest.approx(a, rel=STEEP)
    assert contraction(ham, clamped=[]) > math.hypot(a, b)


def test_of_a_skip_connection_and_of_several_synapses_between_the_same_layers():
    skip, twin = Dense(4, 6), Dense(5, 4)
    first, second = Dense(4, 5), Dense(5, 6)
    layers = {
        "a": Neurons(4, Tanh(0.5)),
        "b": Neurons(5, ReLU()),
        "c": Neurons(6, Sigmoid(2.0)),
    }
    ham = memory(
        layers,
        [
            (("a", "b"), first),
            (("b", "c"), second),
            (("a", "c"), skip),
            (("b", "a"), twin),
            (("b",), Bias(5)),
        ],
    ).double()
    ab = math.sqrt(0.5 * 1.0) * (norm(first.weight) + norm(twin.weight))
    bc = math.sqrt(1.0 * 0.5) * norm(second.weight)
    ac = math.sqrt(0.5 * 0.5) * norm(skip.weight)
    expected = largest([[0, ab, ac], [ab, 0, bc], [ac, bc, 0]])
    assert contraction(ham) == pytest.approx(expected, rel=STEEP)


def test_of_synapses_within_a_layer():
    lateral, twice = Lateral(4), Dense(4, 4)
    ham = memory({"a": Neurons(4, Tanh(2.0))}, [(("a",), lateral), (("a", "a"), twice)]).double()
    # A synapse from a layer to itself has the field (W + Wᵀ) g: both ways count.
    expected = 2.0 * norm(lateral.matrix()) + 2.0 * 2 * norm(twice.weight)
    assert contraction(ham) == pytest.approx(expected, rel=STEEP)
    assert contraction(ham) >= 2.0 * norm(lateral.matrix() + twice.weight + twice.weight.T)


MAPS = {
    "Dense": (lambda: Dense(5, 8), (5,)),
    "Conv2d": (lambda: Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
    "Conv2d(stride=2)": (lambda: Conv2d(3, 6, 3, stride=2), (3, 11, 11)),
    "Conv2d(1 × 1)": (lambda: Conv2d(1, 1, 1), (1, 1, 1)),
    "AvgPool2d": (lambda: AvgPool2d(2), (2, 6, 6)),
    "AvgPool2d(stride=1)": (lambda: AvgPool2d(3, stride=1), (1, 20, 20)),
    "Flatten": (lambda: Flatten(), (2, 3, 3)),
    "Composed": (lambda: Composed(Conv2d(1, 4, 3), AvgPool2d(2)), (1, 8, 8)),
    "Composed of two weights": (
        lambda: Composed(Conv2d(1, 2, 3), Flatten(), Dense(32, 5)),
        (1, 6, 6),
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_spectral_norms_are_those_of_the_matrices(name):
    make, shape = MAPS[name]
    torch.manual_seed(0)
    synapse = make().double()
    expected = norm(matrix(synapse, shape))
    # Of what is sought step by step the last percent comes slowest: of these a bound needs it.
    assert spectral_norm(synapse, shape) == pytest.approx(expected, rel=1e-5)
    assert spectral_norm(synapse.float(), shape) == pytest.approx(expected, rel=1e-5)


def test_of_images():
    conv = Conv2d(1, 2, 3)
    pooled = Composed(Conv2d(2, 4, 3), AvgPool2d(2))
    ham = HAM(
        {
            "input": Neurons((1, 10, 10), Identity()),
            "maps": Neurons((2, 8, 8), Tanh(2.0)),
            "small": Neurons((4, 3, 3), Tanh()),
            "output": Neurons(36, Tanh()),
        },
        [
            (("input", "maps"), conv),
            (("maps", "small"), pooled),
            (("small", "output"), Flatten()),
        ],
    ).double()
    expected = math.hypot(math.sqrt(2.0) * norm(matrix(pooled, (2, 8, 8))), 1.0)
    assert contraction(ham) == pytest.approx(expected, rel=1e-5)


def test_a_map_of_a_matrix_used_otherwise_is_measured_as_it_acts():
    class Halved(Dense):
        def forward(self, g):
            return super().forward(g) / 2

        def adjoint(self, h, g):
            return super().adjoint(h, g) / 2

    synapse = Halved(5, 4).double()
    assert spectral_norm(synapse, (5,)) == pytest.approx(norm(synapse.weight) / 2, rel=1e-6)


def test_without_weights_between_free_layers_nothing_contracts():
    assert contraction(HAM.chain([3, 4])) == 0
    assert contract_(HAM.chain([3, 4])) == math.inf
    zero = chain()
    with torch.no_grad():
        zero.synapses[1].weight.zero_()
        zero.synapses[2].weight.zero_()
    assert contraction(zero) == 0
    assert spectral_norm(Conv2d(1, 2, 3), (1, 3, 3)) > 0
    conv = Conv2d(1, 2, 3)
    torch.nn.init.zeros_(conv.weight)
    assert spectral_norm(conv, (1, 5, 5)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype(dtype):
    ham = memory({"a": Neurons(4, Tanh())}, [(("a",), Lateral(4))]).to(dtype)
    assert contraction(ham) == pytest.approx(
        norm(ham.synapses[1].matrix().double()), rel=1e-2 if dtype == torch.bfloat16 else 1e-6
    )
    assert contraction(chain().to(dtype)) == pytest.approx(contraction(chain()), rel=1e-2)
    contract_(ham, rate=0.1)
    assert contraction(ham) == pytest.approx(0.1, rel=1e-2)
    assert all(p.dtype == dtype for p in ham.parameters())


# ---------------------------------------------------------------- its promise


def starts(ham, count=6):
    return [
        {
            name: 3.0 * normal(1, *ham.layer(name).shape, seed=10 * i + j)
            for j, name in enumerate(ham.layers)
        }
        for i in range(count)
    ]


def skipping():
    """A memory with an odd cycle, lateral synapses and a coupled layer, near its limit."""
    torch.manual_seed(0)
    ham = memory(
        {
            "a": Neurons(4, Sigmoid(4.0, 0.5)),
            "b": Neurons(5, Softmax(2.0)),
            "c": Neurons(6, ReLU()),
        },
        [
            (("a", "b"), Dense(4, 5)),
            (("b", "c"), Dense(5, 6)),
            (("a", "c"), Dense(4, 6)),
            (("a",), Lateral(4)),
        ],
    ).double()
    contract_(ham, rate=0.9)
    return ham


@pytest.mark.parametrize("splitting", ["even-odd", "sweep", None])
@pytest.mark.slow
def test_below_one_every_solver_ends_at_the_same_equilibrium_from_anywhere(splitting):
    ham = chain(gain=3.0)
    contract_(ham, rate=0.95)
    check_one_equilibrium(ham, splitting)


@pytest.mark.parametrize("splitting", ["sweep", None])
def test_one_equilibrium_of_a_graph_with_cycles_and_coupled_layers(splitting):
    check_one_equilibrium(skipping(), splitting)


def check_one_equilibrium(ham, splitting):
    image = {"input": normal(1, *ham.layer("input").shape)}
    found = []
    for kind in (Picard, Anderson, Broyden, Newton):
        deq = DEQ(ham, splitting=splitting, solver=kind(tol=1e-13, max_steps=2000))
        # Plain steps from everywhere, the others from one more.
        for x0 in starts(ham) if kind is Picard else starts(ham, 7)[-1:]:
            with torch.no_grad():
                init = {name: x for name, x in x0.items() if name != "input"}
                found.append(deq(image, init=init).value)
    for value in found[1:]:
        for name in value:
            torch.testing.assert_close(value[name], found[0][name], rtol=0, atol=1e-9)


def test_above_one_there_may_be_several():
    ham = memory({"a": Neurons(4, Tanh()), "b": Neurons(4, Tanh())}, [(("a", "b"), Dense(4, 4))])
    with torch.no_grad():
        ham.synapses[0].weight.zero_()
        ham.synapses[1].weight.copy_(1.5 * torch.eye(4))
    assert contraction(ham) == pytest.approx(1.5)
    deq = DEQ(ham, splitting=None)
    image = {"input": torch.zeros(2, 3)}
    x0 = torch.tensor([[1.0], [-1.0]]).expand(2, 4)
    value = deq(image, init={"a": x0, "b": x0}).value["a"]
    assert (value[0] > 0.5).all()
    assert (value[1] < -0.5).all()


def distance(ham, x, y):
    """The norm in which a step contracts: √(Σ s_A ‖x_A − y_A‖²)."""
    return math.sqrt(
        sum(ham.layer(a).lagrangian.max_slope * float((x[a] - y[a]).square().sum()) for a in x)
    )


@pytest.mark.parametrize("make", [chain, skipping])
@torch.no_grad()
def test_a_plain_step_brings_any_two_states_closer_by_the_rate(make):
    ham = make()
    memory = clamp(ham, {"input": normal(1, *ham.layer("input").shape)})
    rate = contraction(ham)
    for x, y in itertools.combinations(starts(ham), 2):
        x, y = ({name: z[name] for name in memory.layers} for z in (x, y))
        for _ in range(20):
            before = distance(ham, x, y)
            x, y = memory.update(x), memory.update(y)
            assert distance(ham, x, y) <= rate * before + 1e-14


@torch.no_grad()
def test_an_even_odd_step_brings_them_closer_by_its_square():
    ham = chain((6, 5, 4, 7, 3))
    _, hidden = two_colouring(ham, clamped=["input"])
    memory = eliminate(clamp(ham, {"input": normal(1, 6)}), hidden)
    rate = contraction(ham)
    for x, y in itertools.combinations(starts(ham), 2):
        x, y = ({name: z[name] for name in memory.visible} for z in (x, y))
        for _ in range(20):
            before = distance(ham, x, y)
            x, y = memory.update(x), memory.update(y)
            assert distance(ham, x, y) <= rate**2 * before + 1e-14


def test_the_rate_is_attained():
    """Of linear neurons whose strongest directions meet: no smaller bound holds."""
    ham = HAM.chain([3, 4, 4, 4], Identity(), bias=False).double()
    with torch.no_grad():
        ham.synapses[1].weight.copy_(0.6 * torch.eye(4))
        ham.synapses[2].weight.copy_(0.5 * torch.eye(4))
    rate = contraction(ham)
    assert rate == pytest.approx(math.hypot(0.6, 0.5))
    # The first eigenvector of N.
    perron = {"hidden1": 0.6, "hidden2": rate, "output": 0.5}
    for splitting, power in ((None, 1), ("even-odd", 2)):
        memory = DEQ(ham, splitting=splitting).reduced({"input": normal(1, 3)})
        y = {name: normal(1, 4) for name in memory.visible}
        x = {name: y[name] + perron[name] for name in memory.visible}
        with torch.no_grad():
            ratio = distance(ham, memory.update(x), memory.update(y)) / distance(ham, x, y)
        assert ratio == pytest.approx(rate**power)


# ---------------------------------------------------------------- contract_


def test_weak_weights_stay_as_they_are_and_strong_ones_become_the_nearest_within_the_bound():
    ham = chain(gain=[5.0, 0.01, 0.25])
    torch.nn.init.uniform_(ham.synapses[0].weight)
    before = {name: p.clone() for name, p in ham.named_parameters()}
    ham.synapses[0].weight.requires_grad_(False)
    ham.synapses[2].weight.grad = torch.ones(4, 7).double()
    limit = contract_(ham, rate=0.8)
    for name, p in ham.named_parameters():
        if name != "synapses.2.weight":
            assert torch.equal(p, before[name]), name
    weight = ham.synapses[2].weight
    u, sizes, vh = torch.linalg.svd(before["synapses.2.weight"], full_matrices=False)
    bound = limit / 1.5  # of neurons whose steepest slope is 1.5
    assert (sizes > bound).any()
    assert (sizes < bound).any()
    nearest = (u * sizes.clamp_max(bound)) @ vh
    torch.testing.assert_close(weight.detach(), nearest.detach(), rtol=0, atol=1e-13)
    assert 1.5 * norm(weight) == pytest.approx(limit, rel=STEEP)
    assert weight.requires_grad
    assert weight.is_leaf
    assert torch.equal(weight.grad, torch.ones(4, 7).double())
    assert not ham.synapses[0].weight.requires_grad
    assert contraction(ham) <= 0.8


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_the_limit_of_a_chain(n):
    ham = chain([3, *[4] * n], gain=4.0)
    limit = contract_(ham, rate=0.9)
    assert limit == pytest.approx(0.9 / (2 * math.cos(math.pi / (n + 1))))
    assert contraction(ham) == pytest.approx(0.9, rel=STEEP)  # all are at their limit
    assert contract_(ham, rate=2.0) == pytest.approx(limit * 2.0 / 0.9)
    assert contraction(ham) == pytest.approx(0.9, rel=STEEP)


def test_of_any_graph():
    for rate in (0.5, 0.9):
        ham = skipping()
        contract_(ham, rate=rate)
        assert contraction(ham) <= rate * (1 + STEEP)


def test_images():
    torch.manual_seed(0)
    pooled = Composed(Conv2d(2, 4, 3, gain=9.0), AvgPool2d(2))
    two = Composed(Flatten(), Dense(36, 9, gain=4.0), Dense(9, 8, gain=4.0))
    ham = HAM(
        {
            "input": Neurons((1, 10, 10), Identity()),
            "maps": Neurons((2, 8, 8), Tanh()),
            "small": Neurons((4, 3, 3), Tanh()),
            "output": Neurons(8, Tanh()),
        },
        [
            (("input", "maps"), Conv2d(1, 2, 3)),
            (("maps", "small"), pooled),
            (("small", "output"), two),
        ],
    ).double()
    limit = contract_(ham, rate=0.9)
    assert norm(matrix(pooled, (2, 8, 8))) == pytest.approx(limit, rel=1e-5)
    assert norm(matrix(two, (4, 3, 3))) == pytest.approx(limit, rel=1e-5)


def of_images(layers, connections):
    neurons = {"input": Neurons(3, Identity())}
    return HAM(neurons | layers, connections).double()


def test_convolutions_keep_more_than_scaling_would_leave():
    torch.manual_seed(0)
    conv = Conv2d(2, 4, 3, gain=0.4)
    with torch.no_grad():
        conv.weight.add_(0.1)  # most of all they pass on the mean
    layers = {"maps": Neurons((2, 8, 8), Tanh()), "small": Neurons((4, 6, 6), Tanh())}
    ham = of_images(layers, [(("maps", "small"), conv)])
    before = conv.weight.detach().clone()
    sizes = torch.linalg.svdvals(matrix(conv, (2, 8, 8)))
    limit = contract_(ham, rate=0.9)
    assert float(sizes[0]) > 1.3 * limit
    after = torch.linalg.svdvals(matrix(conv, (2, 8, 8)))
    assert float(after[0]) == pytest.approx(limit, rel=1e-5)
    scaled = before * limit / sizes[0]
    assert (conv.weight - before).norm() < 0.8 * (scaled - before).norm()
    assert after.median() > 1.5 * sizes.median() * limit / sizes[0]


def test_a_cut_of_a_matrix_is_exact():
    torch.manual_seed(0)
    cut, clipped = (Dense(6, 5).double() for _ in range(2))
    clipped.load_state_dict(cut.state_dict())
    first, second = torch.linalg.svdvals(cut.weight)[:2].tolist()
    bound = (first + second) / 2
    clip_(clipped.weight, bound)
    cut_(cut, (6,), bound)
    torch.testing.assert_close(cut.weight, clipped.weight, rtol=0, atol=1e-6 * first)


def test_a_cut_of_a_convolution_comes_nearer_to_every_kernel_within_the_bound():
    torch.manual_seed(0)
    conv = Conv2d(2, 3, 3, padding=1, stride=2).double()
    shape = (2, 7, 7)
    bound = spectral_norm(conv, shape) / 2
    before = conv.weight.detach().clone()
    cut_(conv, shape, bound, times=2)
    assert spectral_norm(conv, shape) >= bound * (1 - 1e-6)  # from above
    after = conv.weight.detach().clone()
    for seed in range(20):
        inside = Conv2d(2, 3, 3, padding=1, stride=2).double()
        with torch.no_grad():
            inside.weight.copy_(before + normal(*before.shape, seed=seed) / 5)
            inside.weight.mul_(bound / spectral_norm(inside, shape))
        assert (after - inside.weight).norm() < (before - inside.weight).norm()


def test_a_kernel_that_acts_in_several_places_is_within_the_bound_in_each():
    torch.manual_seed(0)
    narrow, wide = Conv2d(2, 2, 3, gain=4.0, padding=1), Conv2d(2, 2, 3, padding=1, stride=3)
    wide.weight = narrow.weight
    layers = {
        "a": Neurons((2, 6, 6), Tanh()),
        "b": Neurons((2, 6, 6), Tanh()),
        "c": Neurons((2, 2, 2), Tanh(9.0)),
    }
    ham = of_images(layers, [(("a", "b"), narrow), (("b", "c"), wide)])
    assert contraction(ham) > 1
    contract_(ham, rate=0.9)
    assert contraction(ham) <= 0.9 * (1 + 1e-5)


def test_weights_that_act_in_several_places_are_scaled_once():
    shared = Dense(4, 4, gain=5.0)
    tied = Dense(4, 4)
    tied.weight = shared.weight
    layers = {"a": Neurons(4, Tanh()), "b": Neurons(4, Tanh(2.0)), "c": Neurons(4, Tanh(0.5))}
    for other in (shared, tied):
        torch.nn.init.normal_(shared.weight)
        ham = memory(layers, [(("a", "b"), shared), (("b", "c"), other)]).double()
        limit = contract_(ham, rate=0.9)
        # Between the steeper layers they are at the limit, between the others below it.
        assert math.sqrt(2.0) * norm(shared.weight) == pytest.approx(limit, rel=STEEP)
        assert contraction(ham) < 0.9


# ------------------------------------------------------------------- errors


def between(synapse, one=Tanh, other=Tanh, shape=(4,), to=(4,)):
    return HAM(
        {"input": Neurons(3, Identity()), "a": Neurons(shape, one()), "b": Neurons(to, other())},
        [(("a", "b"), synapse)],
    )


@pytest.mark.parametrize("check", [contraction, contract_])
def test_what_has_no_bound_is_named(check):
    for steep in (lambda: RePU(3), Exp):
        name = type(steep()).__name__
        with pytest.raises(ValueError, match=f"layer 'b'.*bounded slope.*got {name}"):
            check(between(Dense(4, 4), other=steep))
        check(between(Dense(4, 4), other=steep), clamped=["input", "b"])
    pool = between(MaxPool2d(2), shape=(1, 4, 4), to=(1, 2, 2))
    with pytest.raises(TypeError, match=r"MaxPool2d \('a', 'b'\): expected linear maps"):
        check(pool)
    check(pool, clamped=["input", "a"])  # of what is clamped it is a constant field
    with pytest.raises(TypeError, match=r"MaxPool2d \('a', 'b'\)"):
        check(pool, clamped=["input", "b"])
    square = FunctionSynapse(lambda g, h: (g * h).sum(-1) ** 2)
    with pytest.raises(TypeError, match=r"FunctionSynapse \('a', 'b'\).*no bound is known"):
        check(between(square))
    tokens = HAM(
        {"input": Neurons((5, 4), Identity()), "a": Neurons((5, 4), LayerNorm())},
        [(("a",), SelfAttention(4, heads=2, head_dim=2))],
    )
    with pytest.raises(TypeError, match=r"SelfAttention \('a',\)"):
        check(tokens)
    with pytest.raises(ValueError, match="unknown layer 'hidden7'"):
        check(chain(), clamped=["input", "hidden7"])


def test_a_rectified_square_is_a_rectifier():
    one = between(Dense(4, 4), other=lambda: RePU(2))
    assert contraction(one) == pytest.approx(norm(one.synapses[0].weight))


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_are_positive(rate):
    with pytest.raises(ValueError, match="rate: expected a finite number > 0"):
        contract_(chain(), rate=rate)


def test_what_is_too_strong_and_has_no_weights():
    flat = between(Flatten(), shape=(2, 2))
    with pytest.raises(ValueError, match=r"Flatten between 'a' and 'b'.*got 1 and none"):
        contract_(flat)
    assert contract_(flat, rate=1.0) == 1.0
    pool = between(AvgPool2d(2), lambda: Tanh(9.0), Tanh, shape=(1, 4, 4), to=(1, 2, 2))
    with pytest.raises(ValueError, match="AvgPool2d between"):
        contract_(pool)
    frozen = chain(gain=5.0).requires_grad_(False)
    before = frozen.synapses[1].weight.clone()
    with pytest.raises(ValueError, match=r"Dense between.*weights to weaken"):
        contract_(frozen)
    assert torch.equal(frozen.synapses[1].weight, before)


# --------------------------------------------------------- orthogonal weights


@pytest.mark.parametrize(("n", "m"), [(4, 9), (9, 4), (6, 6)])
def test_orthogonal_weights(n, m):
    weight = Dense(n, m, gain=0.7, orthogonal=True).double().weight.detach()
    small = weight if n <= m else weight.T
    torch.testing.assert_close(
        small @ small.T, 0.49 * torch.eye(min(n, m)).double(), rtol=0, atol=1e-6
    )
    uniform = Dense(n, m, gain=0.7).weight
    assert uniform.abs().max() <= 0.7 * math.sqrt(6 / (n + m))


def test_an_orthogonal_chain_has_the_strength_of_its_gains():
    ham = HAM.chain([8, 7, 6, 5], Tanh(2.0), gain=[3.0, 0.2, 0.3], orthogonal=True).double()
    assert contraction(ham) == pytest.approx(2.0 * math.hypot(0.2, 0.3), rel=1e-6)
