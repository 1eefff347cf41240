"""Lagrangians: the contract, high-precision references, float32 extremes, errors."""

import math

import pytest
import torch
from custom_terms import OnlyForward

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    Dense,
    Exp,
    Grouped,
    Identity,
    Lagrangian,
    LayerNorm,
    Neurons,
    RectifiedExp,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    Spherical,
    Tanh,
)
from hamdeq.testing import LagrangianContract, derivative, inner, normal

mpmath = pytest.importorskip("mpmath")  # comes with torch, through sympy

FIXED = {
    "Identity": lambda: Identity(),
    "Sigmoid": lambda: Sigmoid(),
    "Sigmoid(4, 0.5)": lambda: Sigmoid(4.0, 0.5),
    "Tanh": lambda: Tanh(),
    "Tanh(0.5)": lambda: Tanh(0.5),
    "ReLU": lambda: ReLU(),
    "RePU(2)": lambda: RePU(2),
    "RePU(2.5)": lambda: RePU(2.5),
    "RePU(5)": lambda: RePU(5),
    "Exp": lambda: Exp(),
    "Exp(0.5)": lambda: Exp(0.5),
    "Softmax": lambda: Softmax(),
    "Softmax(4)": lambda: Softmax(4.0),
    "LayerNorm": lambda: LayerNorm(),
    "LayerNorm(2, 0.1)": lambda: LayerNorm(2.0, 0.1),
    "Spherical": lambda: Spherical(),
    "Spherical(0.1)": lambda: Spherical(0.1),
    "Spherical(0.1, 2)": lambda: Spherical(0.1, 2.0),
    "RectifiedExp": lambda: RectifiedExp(),
    "RectifiedExp(0.5)": lambda: RectifiedExp(0.5),
}
LEARNABLE = {
    "Sigmoid": lambda: Sigmoid(2.0, 0.25, learnable=True),
    "Tanh": lambda: Tanh(0.7, learnable=True),
    "Exp": lambda: Exp(0.7, learnable=True),
    "Softmax": lambda: Softmax(3.0, learnable=True),
    "LayerNorm": lambda: LayerNorm(0.7, 0.1, learnable=True),
    "Spherical": lambda: Spherical(0.1, 0.7, learnable=True),
    "RectifiedExp": lambda: RectifiedExp(0.7, learnable=True),
}


class TestFixed(LagrangianContract):
    @pytest.fixture(autouse=True, params=FIXED.values(), ids=FIXED.keys())
    def kind(self, request):
        self.make = request.param
        if isinstance(self.make(), Exp | RectifiedExp):
            self.largest = 40.0


class TestLearnable(LagrangianContract):
    largest = 40.0

    @pytest.fixture(autouse=True, params=LEARNABLE.values(), ids=LEARNABLE.keys())
    def kind(self, request):
        self.make = request.param

    def test_has_one_parameter_and_starts_where_told(self):
        lagrangian = self.make()
        (name,) = dict(lagrangian.named_parameters())
        given = {"Sigmoid": 2.0, "Softmax": 3.0}
        value = getattr(lagrangian, name.removeprefix("log_"))
        # The parameter was created in float32.
        expected = given.get(type(lagrangian).__name__, 0.7)
        assert float(value.detach()) == pytest.approx(expected, rel=1e-6)

    def test_stays_convex_whatever_the_optimiser_does(self):
        lagrangian = self.make().double()
        (parameter,) = lagrangian.parameters()
        self.make = lambda: lagrangian
        for value in (-5.0, 1.0):
            with torch.no_grad():
                parameter.fill_(value)
            self.test_is_convex()
            self.test_fenchel_inequality()


# ------------------------------------------------- neurons of one layer that differ


def several(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


BETAS, CENTERS = several(0.5, 1.0, 2.0, 4.0), several(0.5, 0.0, -1.0, 0.25)
DIFFERING = {
    "Sigmoid": lambda **how: Sigmoid(BETAS, CENTERS, **how),
    "Tanh": lambda **how: Tanh(BETAS, **how),
    "Exp": lambda **how: Exp(BETAS, **how),
    "RectifiedExp": lambda **how: RectifiedExp(BETAS, **how),
    "LayerNorm": lambda **how: LayerNorm(2.0, 0.1, shift=CENTERS, **how),
    "Spherical": lambda **how: Spherical(0.1, 2.0, shift=0.7 * CENTERS, **how),
}
GROUPS = {
    "of one kind": lambda: Grouped([1, 3], [Tanh(), Tanh(2.0)]),
    "of several kinds": lambda: Grouped([1, 2, 1], [Identity(), Softmax(2.0), Sigmoid(4.0, 0.5)]),
    "of each neuron": lambda: Grouped([1] * 4, [Tanh(b) for b in BETAS.tolist()]),
    "that learn": lambda: Grouped(
        [2, 2], [Tanh(0.7, learnable=True), LayerNorm(0.7, 0.1, learnable=True)]
    ),
    "of groups": lambda: Grouped([3, 1], [Grouped([1, 2], [ReLU(), Tanh()]), Identity()]),
}


class TestDiffering(LagrangianContract):
    shapes = ((4, 4), (3, 2, 4), (2, 3, 2, 4))
    largest = 20.0

    @pytest.fixture(
        autouse=True, params=[(n, t) for n in DIFFERING for t in (False, True)], ids=str
    )
    def kind(self, request):
        name, learnable = request.param
        self.make = lambda: DIFFERING[name](learnable=learnable)


class TestGrouped(LagrangianContract):
    shapes = ((4, 4), (3, 2, 4), (2, 3, 2, 4))

    @pytest.fixture(autouse=True, params=GROUPS.values(), ids=GROUPS.keys())
    def kind(self, request):
        self.make = request.param


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Exp", "RectifiedExp"])
@pytest.mark.parametrize("learnable", [False, True])
def test_a_layer_of_several_temperatures_is_the_sum_of_its_neurons(name, learnable):
    lagrangian = DIFFERING[name](learnable=learnable)
    kind, x = type(lagrangian), normal(3, 2, 4)
    each = [
        kind(float(b), *([float(c)] if kind is Sigmoid else []))
        for b, c in zip(BETAS, CENTERS, strict=True)
    ]
    columns = list(zip(each, x.split(1, -1), strict=True))
    for f in ("forward", "energy"):
        expected = sum(getattr(one, f)(part) for one, part in columns)
        torch.testing.assert_close(getattr(lagrangian, f)(x), expected, rtol=1e-12, atol=1e-12)
    expected = torch.cat([one.activation(part) for one, part in columns], -1)
    torch.testing.assert_close(lagrangian.activation(x), expected, rtol=1e-12, atol=1e-12)
    if hasattr(lagrangian, "log_slope"):
        for got, parts in zip(
            lagrangian.log_slope(x),
            zip(*(one.log_slope(part) for one, part in columns), strict=True),
            strict=True,
        ):
            torch.testing.assert_close(got, torch.cat(parts, -1), rtol=1e-12, atol=1e-12)


def test_a_temperature_broadcasts_over_the_layer_and_never_over_its_batch():
    channels = Tanh(torch.tensor([1.0, 2.0])[:, None, None])
    x = normal(5, 2, 3, 3)
    expected = torch.cat([Tanh(1.0).activation(x[:, :1]), Tanh(2.0).activation(x[:, 1:])], 1)
    torch.testing.assert_close(channels.activation(x), expected)
    for shape in ((5,), (5, 3), (1, 4)):
        for make in (
            lambda beta: Tanh(beta),
            lambda beta: Sigmoid(beta),
            lambda beta: Sigmoid(1.0, beta),
            lambda beta: Exp(beta),
            lambda beta: RectifiedExp(beta),
        ):
            with pytest.raises(ValueError, match=r"expected a number, or a tensor that broadcasts"):
                make(torch.ones(5)).activation(torch.zeros(shape))
    for kind in (LayerNorm, Spherical):
        with pytest.raises(ValueError, match=r"shift: expected .* \(4,\), got shape \(3,\)"):
            kind(shift=torch.zeros(3))(torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"shift: expected one number for each entry"):
            kind(shift=torch.zeros(1, 3))


def test_groups_are_refused_that_do_not_fit():
    layer = Grouped([2, 3], [Identity(), Tanh()])
    with pytest.raises(ValueError, match=r"layer: expected 5 neurons on the last axis.*\(2, 4\)"):
        layer.activation(torch.zeros(7, 2, 4))
    with pytest.raises(ValueError, match="layer: expected 5 neurons"):
        layer(torch.zeros(5))
    with pytest.raises(ValueError, match="lagrangians: expected 2, one for each group, got 1"):
        Grouped([2, 3], [Identity()])
    with pytest.raises(ValueError, match="sizes"):
        Grouped([], [])
    with pytest.raises(ValueError, match="sizes"):
        Grouped([2, 0], [Identity(), Tanh()])
    with pytest.raises(TypeError, match="lagrangians: expected a Lagrangian, got str"):
        Grouped([2], ["tanh"])


def test_a_group_is_clamped_in_part_only_where_all_of_its_neurons_are_independent():
    assert Grouped([1, 1], [Tanh(), ReLU()]).additive
    assert not Grouped([1, 2], [Tanh(), Softmax()]).additive


@pytest.mark.parametrize("splitting", ["even-odd", None])
def test_a_memory_of_different_neurons_settles_and_learns(splitting):
    """The implicit gradient in β of each neuron is its finite difference."""
    torch.manual_seed(0)
    mixed = Grouped([2, 2], [Sigmoid(torch.tensor([1.0, 3.0]), 0.5, learnable=True), Tanh()])
    ham = HAM.chain([3, 4, 2], [Identity(), mixed, Tanh(torch.tensor([0.5, 1.0]))], gain=0.5)
    deq = DEQ(ham.double(), splitting=splitting, solver=Anderson(tol=1e-12))
    x = {"input": normal(5, 3)}

    def loss():
        return (deq(x).value["output"] ** 2).sum()

    log_beta = mixed.lagrangians[0].log_beta
    (gradient,) = torch.autograd.grad(loss(), log_beta)
    differences, h = [], 1e-5
    for i in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                log_beta[i] += sign * h
                values.append(loss())
                log_beta[i] -= sign * h
        differences.append((values[0] - values[1]) / (2 * h))
    torch.testing.assert_close(gradient, torch.stack(differences), rtol=1e-6, atol=1e-9)
    energy = deq.ham.energy(deq(x).value)
    assert (energy <= deq.ham.energy(deq.ham.zero_state(x["input"]) | x) + 1e-12).all()


@pytest.mark.parametrize("observed", [False, True])
def test_a_layer_of_two_groups_is_two_layers(observed):
    torch.manual_seed(0)
    kinds = [Sigmoid(torch.tensor([1.0, 3.0]), 0.5), Tanh(torch.tensor([2.0, 0.5, 1.0]))]
    down, up = Dense(3, 5), Dense(5, 2)
    one = HAM(
        {
            "input": Neurons(3, Tanh()),
            "h": Neurons(5, Grouped([2, 3], kinds)),
            "o": Neurons(2, Tanh()),
        },
        [(("input", "h"), down), (("h", "o"), up)],
    )
    pairs = [(a, b) for part in ("h1", "h2") for a, b in (("input", part), (part, "o"))]
    sizes = {"input": 3, "h1": 2, "h2": 3, "o": 2}
    each = {"h1": kinds[0], "h2": kinds[1]}
    two = HAM(
        {a: Neurons(n, each.get(a, Tanh())) for a, n in sizes.items()},
        [((a, b), Dense(sizes[a], sizes[b])) for a, b in pairs],
    )
    weights = [*down.weight.split([2, 3], 1), *up.weight.split([2, 3], 0)]
    with torch.no_grad():
        for synapse, weight in zip(two.synapses, [weights[i] for i in (0, 2, 1, 3)], strict=True):
            synapse.weight.copy_(weight)
    x = {"input": normal(4, 3)}
    options = {"solver": Anderson(tol=1e-12)}
    if observed:  # some neurons of either kind
        h, mask = normal(4, 5, seed=2), torch.tensor([True, False, False, True, True])
        asked = {"observed": {"h": mask}}, {"observed": {"h1": mask[:2], "h2": mask[2:]}}
        given = x | {"h": h}, x | {"h1": h[:, :2], "h2": h[:, 2:]}
        options["splitting"] = "sweep"
    else:
        asked, given = ({}, {}), (x, x)
    found = [
        DEQ(ham.double(), [*clamped], **options)(clamped, **how).value
        for ham, clamped, how in zip((one, two), given, asked, strict=True)
    ]
    both = torch.cat([found[1]["h1"], found[1]["h2"]], 1)
    torch.testing.assert_close(found[0]["h"], both, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0]["o"], found[1]["o"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.energy(found[0]), two.energy(found[1]), rtol=1e-9, atol=1e-9)


# ---------------------------------------- the base class, given L(x) alone

DERIVED = ["Sigmoid", "Tanh", "Exp", "Softmax", "LayerNorm"]


@pytest.mark.parametrize("name", DERIVED)
def test_derived_activations_and_energies_equal_the_closed_forms(name):
    lagrangian = LEARNABLE[name]().double()
    default = OnlyForward(lagrangian)
    for x in (normal(3, 2, 4), torch.zeros(3, 4, dtype=torch.float64)):
        torch.testing.assert_close(default.activation(x), lagrangian.activation(x))
        torch.testing.assert_close(default.energy(x), lagrangian.energy(x))
        w = normal(*x.shape, seed=8)
        for f, closed in (
            (
                lambda x, w=w: inner(default.activation(x), w),
                lambda x, w=w: inner(lagrangian.activation(x), w),
            ),
            (default.energy, lagrangian.energy),
        ):
            torch.testing.assert_close(derivative(f, x), derivative(closed, x))


@pytest.mark.parametrize("name", DERIVED)
def test_derived_activations_and_energies_learn(name):
    lagrangian = LEARNABLE[name]().double()
    default, x = OnlyForward(lagrangian), normal(3, 4, seed=5)
    LagrangianContract().parameters_learn(
        lagrangian,
        {"activation": lambda: default.activation(x), "energy": lambda: default.energy(x)},
    )


def test_derived_activations_and_energies_need_no_gradient_mode():
    default, x = OnlyForward(Tanh()), normal(4, 5)
    expected = default.activation(x)
    with torch.no_grad():
        g, energy = default.activation(x), default.energy(x)
    assert not any(t.requires_grad for t in (g, energy, x))
    assert torch.equal(g, expected)
    torch.testing.assert_close(energy, Tanh().energy(x))


def test_a_learnable_beta_learns_through_a_whole_memory():
    """The finite difference of a HAM's energy, in which hamux's β gets no gradient."""
    softmax = Softmax(1.5, learnable=True).double()
    ham = HAM(
        {"query": Neurons(3, Identity()), "memories": Neurons(4, softmax)},
        [(("query", "memories"), Dense(3, 4))],
    ).double()
    x = {"query": normal(2, 3), "memories": normal(2, 4, seed=1)}

    def energy():
        return ham.energy(x).sum()

    (gradient,) = torch.autograd.grad(energy(), softmax.log_beta)
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            softmax.log_beta += sign * h
            values.append(energy())
            softmax.log_beta -= sign * h
    assert gradient.abs() > 0.01
    torch.testing.assert_close(gradient, (values[0] - values[1]) / (2 * h), rtol=1e-7, atol=1e-9)


# -------------------------------------------------------------------- steepness

FAR = -1e3  # where softmax gives no weight

STEEPEST = {
    "Identity": (Identity(), [0.3, -2.0, 1.0]),
    "Sigmoid": (Sigmoid(3.0, 0.25), [0.25, 9.0, -1.0]),
    "Tanh": (Tanh(0.7), [0.0, 2.0, -1.0]),
    "ReLU": (ReLU(), [0.5, -1.0, -2.0]),
    "RePU(2)": (RePU(2), [0.5, -1.0, -2.0]),
    "Softmax": (Softmax(3.0), [1.5, 1.5, FAR]),
    "Softmax of several β": (Softmax(torch.tensor([[3.0], [0.2]])), [[1.5, 1.5, FAR]] * 2),
    "LayerNorm": (LayerNorm(2.0, 0.1), [0.4, 0.4, 0.4]),
    "Spherical": (Spherical(0.1), [0.0, 0.0, 0.0]),
    "Spherical(0.1, 2)": (Spherical(0.1, 2.0), [0.0, 0.0, 0.0]),
    "several": (Tanh(torch.tensor([0.7, 2.0, 1.0])), [0.0, 0.0, -1.0]),
    "Grouped": (Grouped([2, 1], [Softmax(3.0), Tanh(0.7)]), [1.5, 1.5, 0.0]),
    "learnable": (Tanh(0.7, learnable=True), [0.0, 2.0, -1.0]),
}


@pytest.mark.parametrize("name", STEEPEST)
def test_slopes_are_attained_where_the_docstrings_say(name):
    lagrangian, state = STEEPEST[name]
    lagrangian, x = lagrangian.double(), torch.tensor(state, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: lagrangian(x[None]).sum(), x)
    steepest = torch.linalg.eigvalsh(hessian.reshape(x.numel(), x.numel())).max()
    assert lagrangian.max_slope == pytest.approx(float(steepest), rel=1e-12)


@pytest.mark.parametrize(
    "lagrangian", [RePU(2.5), RePU(5), Exp(), RectifiedExp(), Grouped([1], [Exp()])]
)
def test_no_bound_is_known_of_slopes_that_grow(lagrangian):
    assert lagrangian.max_slope == math.inf


# --------------------------------------------------------------- known special cases


def test_relu_is_repu_two():
    x = normal(4, 6)
    for f in ("forward", "activation", "energy"):
        torch.testing.assert_close(
            getattr(ReLU(), f)(x), getattr(RePU(2), f)(x), rtol=1e-15, atol=0
        )


def test_sigmoid_4_half_is_the_non_linearity_of_the_paper():
    x = normal(4, 6)
    lagrangian = Sigmoid(4.0, 0.5)
    expected = torch.sigmoid(4 * x - 2)
    torch.testing.assert_close(lagrangian.activation(x), expected, rtol=1e-14, atol=0)
    expected = torch.nn.functional.softplus(4 * x - 2).sum(1) / 4
    torch.testing.assert_close(lagrangian(x), expected, rtol=1e-8, atol=0)  # softplus's own error


@pytest.mark.parametrize("lagrangian", [Softmax(2.0), LayerNorm(), Spherical()])
def test_non_additive_lagrangians_act_along_the_last_axis_and_add_over_the_others(lagrangian):
    x = normal(3, 2, 4)
    rows = x.reshape(6, 4)
    for f in (lagrangian, lagrangian.energy):
        torch.testing.assert_close(f(x), f(rows).reshape(3, 2).sum(1), rtol=1e-14, atol=1e-15)
    expected = lagrangian.activation(rows).reshape(3, 2, 4)
    torch.testing.assert_close(lagrangian.activation(x), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED.keys())
def test_a_layer_of_scalars_is_refused_or_does_not_mix_its_batch(make):
    """A layer of shape () has states (batch,): the last axis is the batch."""
    try:
        neurons = Neurons((), make())
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017 (either outcome is right)
        return
    x = normal(4)
    alone = torch.cat([neurons.activation(sample[None]) for sample in x])
    torch.testing.assert_close(neurons.activation(x), alone, rtol=1e-14, atol=0)
    assert neurons.energy(x).shape == (4,)


# ---------------------------------------------------- references of eighty decimal digits
#
# Each reference gives L, the list g and the Hessian, from the definitions and with nothing of the
# package's rearrangements: 80 digits absorb every cancellation. It also gives what the rounding
# error of three results may be relative to, where that is more than the result itself:
#
#   energy   the energy;
#   g        the activation;
#   slope    times a vector v, the products of the Hessian: an error of eps·slopeᵢ·max(|v|, 1).


def additive(f, g, slope, saturating=None):
    """Neurons on their own.

    The slope g(1 − g) of saturating neurons has the rounding error of their largest slope, which
    is given as ``saturating``. The 1 in max(|x|, 1) is for the center of a sigmoid, and for the
    two terms of the energy (x − 1/β) exp βx, whose slopes cancel at x = 0.
    """

    def reference(x):
        value, activation = mpmath.fsum(map(f, x)), [g(a) for a in x]
        slopes = [slope(a) for a in x]
        hessian = [[h if i == j else 0 for j in range(len(x))] for i, h in enumerate(slopes)]
        scale = slopes if saturating is None else [mpmath.mpf(saturating)] * len(x)
        return value, activation, hessian, {"energy": 0, "g": 0, "slope": scale, "reach": x}

    return reference


def logistic(beta, center):
    def g(x):
        return 1 / (1 + mpmath.exp(-beta * (x - center)))

    return additive(
        lambda x: mpmath.log1p(mpmath.exp(beta * (x - center))) / beta,
        g,
        lambda x: beta * g(x) / (1 + mpmath.exp(beta * (x - center))),
        saturating=beta,
    )


def tanh(beta):
    return additive(
        lambda x: mpmath.log(mpmath.cosh(beta * x)) / beta,
        lambda x: mpmath.tanh(beta * x),
        lambda x: beta / mpmath.cosh(beta * x) ** 2,
        saturating=beta,
    )


def repu(n):
    return additive(
        lambda x: max(x, 0) ** mpmath.mpf(n) / n,
        lambda x: max(x, 0) ** mpmath.mpf(n - 1),
        lambda x: (n - 1) * x ** mpmath.mpf(n - 2) if x > 0 else mpmath.mpf(0),
    )


def exponential(beta):
    return additive(
        lambda x: mpmath.exp(beta * x) / beta,
        lambda x: mpmath.exp(beta * x),
        lambda x: beta * mpmath.exp(beta * x),
    )


def rectified_exponential(beta):
    return additive(
        lambda x: mpmath.expm1(beta * max(x, 0)) / beta - max(x, 0),
        lambda x: mpmath.expm1(beta * max(x, 0)),
        lambda x: beta * mpmath.exp(beta * x) if x > 0 else mpmath.mpf(0),
    )


def softmax(beta):
    def reference(x):
        weights = [mpmath.exp(beta * a) for a in x]
        total = mpmath.fsum(weights)
        g = [w / total for w in weights]
        hessian = [
            [beta * ((a if i == j else 0) - a * b) for j, b in enumerate(g)]
            for i, a in enumerate(g)
        ]
        # g ln g of a winner with g ≈ 1 has the rounding error of g, not of the small product.
        reach = [max(map(abs, x))] * len(x)
        floors = {"energy": mpmath.mpf(1) / beta, "g": 0, "slope": [beta] * len(x), "reach": reach}
        return mpmath.log(total) / beta, g, hessian, floors

    return reference


def normalised(scale, eps, *, centred):
    def reference(x):
        d = len(x)
        mean = mpmath.fsum(x) / d if centred else mpmath.mpf(0)
        c = [a - mean for a in x]
        count = d if centred else 1
        norm = mpmath.sqrt(mpmath.fsum(a * a for a in c) / count + eps)
        u = [a / norm for a in c]
        hessian = [
            [
                scale / norm * ((i == j) - (mpmath.mpf(1) / d if centred else 0) - a * b / count)
                for j, b in enumerate(u)
            ]
            for i, a in enumerate(u)
        ]
        # A mean is as exact as its largest term. The Hessian is γ/s times a projector, and
        # a projector's product is a difference of vectors as long as its argument.
        largest = scale * max(map(abs, u)) if centred else 0
        slope = [scale / norm] * len(x)
        reach = [max(map(abs, x))] * len(x)
        floors = {"energy": 0, "g": largest, "slope": slope, "reach": reach}
        return scale * count * norm, [scale * a for a in u], hessian, floors

    return reference


REFERENCES = {
    "Identity": additive(lambda x: x * x / 2, lambda x: x, lambda x: mpmath.mpf(1)),
    "Sigmoid": logistic(1, 0),
    "Sigmoid(4, 0.5)": logistic(4, mpmath.mpf("0.5")),
    "Tanh": tanh(1),
    "Tanh(0.5)": tanh(mpmath.mpf("0.5")),
    "ReLU": repu(2),
    "RePU(2)": repu(2),
    "RePU(2.5)": repu(2.5),
    "RePU(5)": repu(5),
    "Exp": exponential(1),
    "Exp(0.5)": exponential(mpmath.mpf("0.5")),
    "Softmax": softmax(1),
    "Softmax(4)": softmax(4),
    "LayerNorm": normalised(1, mpmath.mpf(1e-5), centred=True),
    "LayerNorm(2, 0.1)": normalised(2, mpmath.mpf(0.1), centred=True),
    "Spherical": normalised(1, mpmath.mpf(1e-5), centred=False),
    "Spherical(0.1)": normalised(1, mpmath.mpf(0.1), centred=False),
    "Spherical(0.1, 2)": normalised(2, mpmath.mpf(0.1), centred=False),
    "RectifiedExp": rectified_exponential(1),
    "RectifiedExp(0.5)": rectified_exponential(mpmath.mpf("0.5")),
}
assert REFERENCES.keys() == FIXED.keys()

MODERATE = [
    [0.5, -1.25, 3.0, 0.0, 0.75],
    [1.0, 1.0, 1.0, 1.0, 1.0],
    [-2.0, -4.0, -8.0, -0.5, -1.0],
    [10.0, 0.25, -10.0, 0.0, 6.5],
]
EXTREME = [
    [1e4, -1e4, 0.0, 1e-30, -1e-30],
    [1e4, 1e4, 1e4, 1e4, 1e4],
    [-1e4, -1e4, -1e4, -1e4, -1e4],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [1e-30, -1e-30, 1e-30, 0.0, 1e-38],
    [-1e4, 0.0, 0.0, 0.0, 0.0],
    [1e4, 0.0, 0.0, 0.0, 0.0],
    [1e4, 9999.0, 9998.0, 0.0, 1.0],
    [1e4],
    [-1e4],
    [0.0],
    [1e-30],
]


def dot(a, b):
    return mpmath.fsum(x * y for x, y in zip(a, b, strict=True))


def check_against_reference(name, row, dtype, ulps):
    """L, g and energy, and the gradients of all three, against 80 digits."""
    info = torch.finfo(dtype)
    lagrangian = FIXED[name]().to(dtype)
    x = torch.tensor([row], dtype=dtype)
    w = torch.tensor([[0.75, -0.5, 1.0, 0.25, -1.5][: len(row)]], dtype=dtype)
    with mpmath.workdps(80):
        exact = [mpmath.mpf(a) for a in x[0].tolist()]
        value, g, hessian, floors = REFERENCES[name](exact)
        energy = dot(exact, g) - value

        def times(vector):
            return [dot(line, vector) for line in hessian]

        slope, d = floors["slope"], len(row)
        reach = [h * max(abs(a), 1) for h, a in zip(slope, floors["reach"], strict=True)]
        expected = {
            "L": ([value], [0]),
            "g": (g, [floors["g"]] * d),
            "gradient of L": (g, [floors["g"]] * d),
            "energy": ([energy], [floors["energy"]]),
            "gradient of energy": (times(exact), reach),
            "gradient of g": (times([mpmath.mpf(a) for a in w[0].tolist()]), slope),
        }
    actual = {
        "L": lagrangian(x),
        "g": lagrangian.activation(x),
        "gradient of L": derivative(lagrangian, x),
        "energy": lagrangian.energy(x),
        "gradient of energy": derivative(lagrangian.energy, x),
        "gradient of g": derivative(lambda x: inner(lagrangian.activation(x), w), x),
    }
    for what, (references, scales) in expected.items():
        got_all = actual[what].flatten().tolist()
        for got, reference, floor in zip(got_all, references, scales, strict=True):
            if abs(reference) > info.max:
                continue  # the true value does not fit: infinity is right
            assert math.isfinite(got), f"{what} of {row}: expected {float(reference)}, got {got}"
            # Below the smallest normal number there are no relative digits.
            allowed = ulps * info.eps * (abs(reference) + floor) + info.tiny
            error = abs(mpmath.mpf(got) - reference)
            assert error <= allowed, (
                f"{what} of {row}: expected {float(reference)!r}, got {got!r}: "
                f"an error of {float(error):.2g}, allowed {float(allowed):.2g}"
            )


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_moderate_states_match_the_reference(name, dtype):
    for row in MODERATE:
        check_against_reference(name, row, dtype, ulps=16)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_extreme_states_match_the_reference(name, dtype):
    for row in EXTREME:
        check_against_reference(name, row, dtype, ulps=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_tanh_keeps_its_digits_near_zero(dtype):
    """L = βx²/2 − … there: a tanh network at rest around zero has nothing but these digits."""
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        check_against_reference("Tanh", [size, -2 * size, size / 2], dtype, ulps=16)


# ------------------------------------------------------------- the base class alone


def test_defaults_work_in_inference_mode():
    """Lightning validates and predicts in inference mode, where enable_grad does nothing."""
    closed = Sigmoid(4.0, 0.5)
    default = OnlyForward(closed)
    with torch.inference_mode():
        x = normal(4, 5)
        torch.testing.assert_close(default.activation(x), closed.activation(x))
        torch.testing.assert_close(default.energy(x), closed.energy(x))


def test_defaults_ask_for_gradients_only_where_the_closed_forms_do():
    """Otherwise a loop over states without gradients keeps the graph of every step."""
    closed, x = Sigmoid(4.0, 0.5), normal(4, 5)
    default = OnlyForward(closed)
    assert not closed.activation(x).requires_grad
    assert default.activation(x.clone().requires_grad_()).requires_grad
    assert not default.activation(x).requires_grad


def test_forward_is_all_a_lagrangian_must_have():
    with pytest.raises(TypeError, match="forward"):
        type("Empty", (Lagrangian,), {})()


# ---------------------------------------------------------------------------- errors


TEMPERED = [Sigmoid, Tanh, Exp, RectifiedExp, Softmax]


@pytest.mark.parametrize("kind", TEMPERED)
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("beta", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_beta_must_be_positive_and_finite(kind, learnable, beta):
    with pytest.raises(ValueError, match=r"beta: expected a finite number > 0, got ") as error:
        kind(beta, learnable=learnable)
    assert repr(beta) in str(error.value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_gamma_and_eps_must_be_positive_and_finite(value):
    for name, make in (
        ("gamma", lambda: LayerNorm(gamma=value)),
        ("gamma", lambda: LayerNorm(gamma=value, learnable=True)),
        ("eps", lambda: LayerNorm(eps=value)),
        ("eps", lambda: Spherical(eps=value)),
        ("gamma", lambda: Spherical(gamma=value)),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected a finite number > 0, got {value}"):
            make()


@pytest.mark.parametrize("n", [1.999, 1, 0, -2, math.nan, math.inf])
def test_the_power_must_be_at_least_two(n):
    with pytest.raises(ValueError, match=rf"n: expected a finite number ≥ 2, got {n}"):
        RePU(n)


@pytest.mark.parametrize("center", [math.nan, math.inf, -math.inf])
def test_the_center_must_be_finite(center):
    with pytest.raises(ValueError, match=rf"center: expected a finite number, got {center}"):
        Sigmoid(1.0, center)


@pytest.mark.parametrize("kind", TEMPERED)
def test_numbers_must_be_numbers_and_keywords_known(kind):
    with pytest.raises(TypeError):
        kind("one")
    with pytest.raises(TypeError, match="temperature"):
        kind(temperature=1.0)
    with pytest.raises(TypeError):
        kind(1.0, 0.0, True)  # learnable is a keyword


def test_a_parameter_given_as_beta_is_not_silently_made_a_constant():
    """Softmax(beta=nn.Parameter(…)) must train it, or say ``learnable=True``."""
    beta = torch.nn.Parameter(torch.tensor(2.0))
    try:
        lagrangian = Softmax(beta)
    except (TypeError, ValueError):
        return
    assert lagrangian(normal(2, 3)).requires_grad


def test_the_printed_form_shows_the_arguments():
    for lagrangian, expected in (
        (Sigmoid(4.0, 0.5), "Sigmoid(beta=4, center=0.5)"),
        (RePU(3), "RePU(n=3)"),
        (ReLU(), "ReLU()"),
        (Identity(), "Identity()"),
        (Softmax(2.0, learnable=True), "Softmax(beta=2, learnable=True)"),
        (LayerNorm(2.0), "LayerNorm(gamma=2, eps=1e-05)"),
        (Spherical(), "Spherical(gamma=1, eps=1e-05)"),
        (LayerNorm(shift=torch.zeros(3)), "LayerNorm(gamma=1, eps=1e-05, shift=Tensor(3,))"),
        (Sigmoid(torch.ones(3), torch.ones(3, 1)), "Sigmoid(beta=Tensor(3,), center=Tensor(3, 1))"),
    ):
        assert repr(lagrangian) == expected
