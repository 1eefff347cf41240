"""Interaction functions: values, derivatives, what they claim of themselves, and their scales."""

import math

import pytest
import torch

from hamdeq import RePU
from hamdeq.memories import (
    Exponential,
    Interacting,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
)
from hamdeq.testing import LagrangianContract, normal

ALL = [
    *(Polynomial(n) for n in (1, 2, 3, 5, 20)),
    *(RectifiedPolynomial(n) for n in (1, 2, 3, 20)),
    *(LeakyRectifiedPolynomial(n) for n in (1, 2, 3, 20)),
    LeakyRectifiedPolynomial(3, 0.5),
    LeakyRectifiedPolynomial(3, -0.5),
    LeakyRectifiedPolynomial(2, -0.01),
    *(LeakyRectifiedPolynomial(1, eps) for eps in (-0.5, -2.0)),
    Exponential(),
]


BENT = {
    "power": lambda: Interacting(Polynomial(4), 0.3),
    "rectified": lambda: Interacting(RectifiedPolynomial(2), 0.5),
    "exponential": lambda: Interacting(Exponential(), 0.3),
}


class TestAsLagrangian(LagrangianContract):
    """Every kind of convex F that bends, with a scale inside."""

    @pytest.fixture(autouse=True, params=BENT.values(), ids=BENT.keys())
    def kind(self, request):
        self.make = request.param
        if isinstance(self.make().interaction, Exponential):
            self.largest = 40.0


class TestLeakyAsLagrangian(LagrangianContract):
    def make(self):
        return Interacting(LeakyRectifiedPolynomial(2, 0.5), 0.3)

    def test_second_derivative_at_zero_lies_between_the_slopes_of_both_sides(self):
        # There is none, as the activation jumps there, but there is a subgradient.
        zero = torch.zeros(1, 4, dtype=torch.float64)
        left, g, right = (self.make().activation(zero + h) for h in (-1e-9, 0.0, 1e-9))
        assert (left < -0.001).all()
        assert ((left <= g) & (g <= right)).all()


@pytest.mark.parametrize(
    ("interaction", "x", "value", "slope"),
    [
        (Polynomial(1), [-2.0, 0.0, 3.0], [-2.0, 0.0, 3.0], [1.0, 1.0, 1.0]),
        (Polynomial(3), [-2.0, 0.0, 3.0], [-8.0, 0.0, 27.0], [12.0, 0.0, 27.0]),
        (RectifiedPolynomial(1), [-2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 1.0]),
        (RectifiedPolynomial(4), [-2.0, 0.0, 3.0], [0.0, 0.0, 81.0], [0.0, 0.0, 108.0]),
        (LeakyRectifiedPolynomial(1, 0.5), [-2.0, 0.0, 3.0], [1.0, 0.0, 3.0], [-0.5, 0.0, 1.0]),
        (LeakyRectifiedPolynomial(3, 0.5), [-2.0, 0.0, 3.0], [1.0, 0.0, 27.0], [-0.5, 0.0, 27.0]),
        (LeakyRectifiedPolynomial(3, -0.5), [-2.0, 0.0, 3.0], [-1.0, 0.0, 27.0], [0.5, 0.0, 27.0]),
        (Exponential(), [-1.0, 0.0, 1.0], [1 / math.e, 1.0, math.e], [1 / math.e, 1.0, math.e]),
    ],
    ids=repr,
)
def test_values_by_hand(interaction, x, value, slope):
    x, value, slope = (torch.tensor(v, dtype=torch.float64) for v in (x, value, slope))
    torch.testing.assert_close(interaction(x), value, rtol=1e-15, atol=0)
    torch.testing.assert_close(interaction.derivative(x), slope, rtol=1e-15, atol=0)


@pytest.mark.parametrize("interaction", ALL, ids=repr)
def test_derivative_is_that_of_autograd(interaction):
    # With an exact zero, where rectified ones have their kink.
    x = torch.cat([2 * normal(50), torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    value, slope = interaction.both(x)
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-14, atol=0)
    assert torch.equal(interaction(x), value)
    assert torch.equal(interaction.derivative(x), slope)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 29])
def test_powers_are_those_of_integers(n):
    x = torch.arange(-3, 4, dtype=torch.float64)
    expected = torch.tensor([float(int(a) ** n) for a in x], dtype=torch.float64)
    assert torch.equal(Polynomial(n)(x), expected)  # 3²⁹ < 2⁵³: exact
    assert torch.equal(RectifiedPolynomial(n)(x), expected * (x > 0))


@pytest.mark.parametrize("interaction", ALL, ids=repr)
def test_degree_is_that_of_a_homogeneous_function(interaction):
    x, k = 3 * normal(200), interaction.degree
    if k is not None:
        assert k == interaction.steepness == interaction.n
        assert torch.equal(interaction(2 * x), 2.0**k * interaction(x))  # a power of two is exact
        return
    assert isinstance(interaction, LeakyRectifiedPolynomial | Exponential)
    ratios = interaction(2 * x) / interaction(x)
    if isinstance(interaction, LeakyRectifiedPolynomial) and interaction.n == 1:
        # Homogeneous as it happens; it is enough that nothing is claimed wrongly.
        torch.testing.assert_close(ratios, torch.full_like(x, 2.0), rtol=1e-14, atol=0)
    else:
        assert ratios.max() > 1.5 * ratios.min()  # one factor for all x there is not


@pytest.mark.parametrize("interaction", ALL, ids=repr)
def test_convexity_is_that_of_sampled_midpoints(interaction):
    a, b = 2 * normal(2000), 2 * normal(2000, seed=1)
    fa, fb = interaction(a), interaction(b)
    gap = (fa + fb) / 2 - interaction((a + b) / 2)
    # Powers of up to twenty roundings.
    convex = bool((gap >= -1e-14 * (fa.abs() + fb.abs())).all())
    assert convex == interaction.is_convex


@pytest.mark.parametrize("n", [2, 101])
@pytest.mark.parametrize("kind", [Polynomial, RectifiedPolynomial])
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_gauge_of_powers_is_a_power_of_two(n, kind, size):
    own, flipped = size * normal(3, 4, 1), size * normal(3, 4, 5, seed=1)
    a, b = kind(n).gauge(own, flipped)
    scale = a / own
    assert torch.equal(scale, scale[:, :1].expand_as(scale))  # one for each state
    assert torch.equal(b, flipped * scale[:, :1])
    assert (torch.frexp(scale).mantissa == 0.5).all()
    largest = torch.cat([a, b], -1).abs().amax((1, 2))
    assert (largest < 1).all()
    assert (largest >= 0.5).all()


def test_gauge_of_nothing_but_zeros_and_of_the_others():
    zero = torch.zeros(2, 3, 1, dtype=torch.float64)
    for interaction in ALL:
        a, b = interaction.gauge(zero, zero.expand(2, 3, 4))
        assert not a.any()
        assert not b.any()
    own, flipped = 1e3 * normal(3, 4, 1), 1e3 * normal(3, 4, 5, seed=1)
    a, b = Exponential().gauge(own, flipped)
    shift = (own - a)[:, :1]
    # Subtracting what is up to 1e3 rounds by 1e-13.
    torch.testing.assert_close(b, flipped - shift, rtol=0, atol=1e-12)
    assert torch.equal(torch.cat([a, b], -1).amax((1, 2)), torch.zeros(3, dtype=torch.float64))
    a, b = LeakyRectifiedPolynomial(3).gauge(own, flipped)
    assert a is own
    assert b is flipped


def test_rectified_power_as_lagrangian_is_repu_but_for_its_factor():
    x = normal(4, 6)
    mine, other = Interacting(RectifiedPolynomial(3)), RePU(3)
    for f in ("forward", "activation", "energy"):
        torch.testing.assert_close(
            getattr(mine, f)(x), 3 * getattr(other, f)(x), rtol=1e-14, atol=0
        )


def test_factors_by_hand():
    assert Normalised(0.5).factors(100, Polynomial(7)) == (1 / 50, 1.0)
    assert Original(2.0).factors(100, Polynomial(7)) == (1.0, 1 / 128)
    assert Original(2.0).factors(100, LeakyRectifiedPolynomial(3)) == (1.0, 1 / 8)
    assert Original(2.0).factors(100, Exponential()) == (1.0, 0.5)
    assert Original(2.0).at(4.0) == Original(4.0)
    with pytest.raises(OverflowError, match=r"T⁻ⁿ is out of range at T = 0\.001 and n = 120"):
        Original(1e-3).factors(100, Polynomial(120))
