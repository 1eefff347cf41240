"""The contracts that every Lagrangian and every Synapse must pass.

Subclass a contract in a test module, give it the fixture it asks for, and inherit all its tests:

    class TestMine(LagrangianContract):
        @pytest.fixture
        def lagrangian(self):
            return Mine().double()

Everything here is float64 unless a test is about another dtype, so that what must be equal can be
compared to a few units in the last place.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from hamdeq import Lagrangian, Map, Synapse

EPS = torch.finfo(torch.float64).eps
# Sums of a few dozen float64 terms of unit size.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def normal(*shape, seed=0, dtype=torch.float64):
    """A reproducible normal sample."""
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def inner(a, b):
    """⟨a, b⟩ per sample."""
    return (a * b).flatten(1).sum(1)


def derivative(f, x, **kwargs):
    """Autograd's gradient of a function with one scalar per sample."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x).sum(), x, **kwargs)
    return g


def assert_parameter_gradients(module, outputs, *, step=1e-6):
    """Every parameter of ``module`` gets the finite difference of every output as its gradient.

    ``outputs`` maps a name to a function of no arguments that returns a tensor. Each output is
    contracted with random numbers, so that errors of opposite sign do not cancel.
    """
    parameters = list(module.named_parameters())
    for label, f in outputs.items():
        weight = normal(*f().shape, seed=99)
        grads = torch.autograd.grad((f() * weight).sum(), [p for _, p in parameters])
        for (name, p), grad in zip(parameters, grads, strict=True):
            direction = normal(*p.shape, seed=98)
            with torch.no_grad():
                values = []
                start = p.clone()
                for sign in (1, -1):
                    p.copy_(start + sign * step * direction)
                    values.append((f() * weight).sum())
                p.copy_(start)
            expected = (values[0] - values[1]) / (2 * step)
            # Central differences: an error of step² = 1e-12 in truncation and of eps/step = 1e-10
            # in rounding, times sums of some tens of terms.
            torch.testing.assert_close(
                (grad * direction).sum(),
                expected,
                rtol=1e-7,
                atol=1e-8,
                msg=lambda m, name=name, label=label: f"{label} with respect to {name}: {m}",
            )


def assert_copies_agree(module, f):
    """deepcopy, pickle and a state-dict round trip give modules that compute the same."""
    expected = f(module)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin is not module
        torch.testing.assert_close(f(twin), expected, rtol=0, atol=0)
        for p, q in zip(module.parameters(), twin.parameters(), strict=True):
            assert p.data_ptr() != q.data_ptr()
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for p in changed.parameters():
            p.add_(1.0)
    if list(module.parameters()):
        assert not torch.equal(f(changed), expected)
    changed.load_state_dict(module.state_dict())
    torch.testing.assert_close(f(changed), expected, rtol=0, atol=0)


def assert_prints(module):
    """repr() names the class, without a warning."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise only the first of all tests would see a warning
    try:
        assert type(module).__name__ in repr(module)
    finally:
        torch.set_warn_always(before)


class OnlyForward(Lagrangian):
    """A user's Lagrangian with nothing but L(x): everything else is the base class's."""

    def __init__(self, closed):
        super().__init__()
        self.closed = closed

    def forward(self, x):
        return self.closed(x)


class OnlyEnergy(Synapse):
    """A user's synapse with nothing but E(g₁, …): the field is the base class's."""

    def __init__(self, closed):
        super().__init__()
        self.closed = closed
        self.shapes = closed.shapes

    def energy(self, *g):
        return self.closed.energy(*g)

    def is_linear_in(self, place):
        return self.closed.is_linear_in(place)


class Energy(nn.Module):
    """A synapse's energy as a module's forward, for functional_call."""

    def __init__(self, synapse):
        super().__init__()
        self.synapse = synapse

    def forward(self, *g):
        return self.synapse.energy(*g)


class LagrangianContract:
    """What makes a function a Lagrangian of a layer of neurons.

    A subclass gives the fixture ``lagrangian``, a float64 module, finite on states of size ten.
    """

    shapes = [(4, 5), (3, 2, 4), (2, 3, 2, 2)]

    @pytest.fixture
    def lagrangian(self):
        raise NotImplementedError

    def states(self, scale=1.0):
        """Random states, all zeros, and random states with exact zeros among them."""
        for shape in self.shapes:
            x = scale * normal(*shape, seed=len(shape))
            yield x
            yield torch.zeros(shape, dtype=torch.float64)
            holes = x.clone()
            holes[..., ::2] = 0.0
            yield holes

    # ------------------------------------------------------------------ shapes

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("batch", [0, 1, 3])
    def test_one_scalar_a_sample_and_an_activation_like_the_state(self, lagrangian, batch, dtype):
        lagrangian = lagrangian.to(dtype)
        for shape in self.shapes:
            x = normal(batch, *shape[1:], dtype=dtype)
            for value, expected in (
                (lagrangian(x), (batch,)),
                (lagrangian.energy(x), (batch,)),
                (lagrangian.activation(x), x.shape),
                (derivative(lagrangian, x), x.shape),
                (derivative(lagrangian.energy, x), x.shape),
            ):
                assert value.shape == expected
                assert value.dtype == dtype

    def test_states_are_not_written_to(self, lagrangian):
        x = normal(4, 5)
        before = x.clone()
        lagrangian(x), lagrangian.activation(x), lagrangian.energy(x)
        assert torch.equal(x, before)
        assert not x.requires_grad

    # ------------------------------------------------------------- derivatives

    def test_activation_is_the_gradient(self, lagrangian):
        for x in self.states(2.0):
            torch.testing.assert_close(lagrangian.activation(x), derivative(lagrangian, x), **CLOSE)

    def test_activation_has_the_second_derivative_of_the_lagrangian(self, lagrangian):
        for x in self.states(2.0):
            w = normal(*x.shape, seed=7)
            of_activation = derivative(lambda x, w=w: inner(lagrangian.activation(x), w), x)

            def of_gradient(x, w=w):
                (g,) = torch.autograd.grad(lagrangian(x).sum(), x, create_graph=True)
                return inner(g, w)

            torch.testing.assert_close(of_activation, derivative(of_gradient, x), **CLOSE)

    def test_second_derivative_at_zero_lies_between_the_slopes_of_both_sides(self, lagrangian):
        # The two slopes are equal where L is smooth; at the kink of a rectifier they differ.
        h = 1e-6
        zero = torch.zeros(1, 4, dtype=torch.float64)
        hessian = torch.autograd.functional.jacobian(
            lambda x: lagrangian.activation(x[None])[0], zero[0]
        )
        g = lagrangian.activation(zero)
        for i, column in enumerate(hessian.unbind(1)):
            step = torch.zeros_like(zero)
            step[0, i] = h
            right = (lagrangian.activation(step) - g)[0] / h
            left = (g - lagrangian.activation(-step))[0] / h
            low, high = torch.minimum(left, right), torch.maximum(left, right)
            # One-sided differences err by h/2 times the next derivative, 1e-6·β² here.
            slack = 1e-4 * hessian.abs().max().clamp_min(1.0)
            assert (column >= low - slack).all()
            assert (column <= high + slack).all()

    def test_derivatives_agree_with_finite_differences(self, lagrangian):
        # Away from zero, where rectifiers have their kink.
        x = torch.tensor([[0.5, -1.25, 0.75], [-0.3, 1.5, 0.2]], dtype=torch.float64)
        x.requires_grad_()
        for f in (lagrangian, lagrangian.energy, lagrangian.activation):
            assert gradcheck(f, (x,))
            assert gradgradcheck(f, (x,))

    def test_parameters_get_their_gradients(self, lagrangian):
        x = normal(3, 4, seed=5)
        if list(lagrangian.parameters()):
            assert_parameter_gradients(
                lagrangian,
                {
                    "forward": lambda: lagrangian(x),
                    "energy": lambda: lagrangian.energy(x),
                    "activation": lambda: lagrangian.activation(x),
                    "default activation": lambda: OnlyForward(lagrangian).activation(x),
                    "default energy": lambda: OnlyForward(lagrangian).energy(x),
                },
            )
        else:
            assert not lagrangian(x).requires_grad

    # --------------------------------------------------------- convex duality

    def test_energy_is_the_legendre_transform(self, lagrangian):
        for x in self.states(2.0):
            expected = inner(x, lagrangian.activation(x)) - lagrangian(x)
            torch.testing.assert_close(lagrangian.energy(x), expected, **CLOSE)

    def test_jensen(self, lagrangian):
        for shape in self.shapes:
            for seed, (scale, t) in enumerate([(0.1, 0.5), (1.0, 0.25), (3.0, 0.5), (3.0, 0.9)]):
                x, y = scale * normal(*shape, seed=seed), scale * normal(*shape, seed=seed + 50)
                above = t * lagrangian(x) + (1 - t) * lagrangian(y)
                below = lagrangian(t * x + (1 - t) * y)
                assert (below <= above + 16 * EPS * (above.abs() + 1)).all()

    def test_hessian_is_positive_semidefinite(self, lagrangian):
        for x in self.states(2.0):
            x0 = x[0].clone()
            hessian = torch.autograd.functional.hessian(lambda x: lagrangian(x[None]).sum(), x0)
            hessian = hessian.reshape(x0.numel(), x0.numel())
            torch.testing.assert_close(hessian, hessian.T, **CLOSE)
            values = torch.linalg.eigvalsh(hessian)
            assert values.min() >= -64 * EPS * values.abs().max()
        assert values.max() > 0  # the last state is random: a flat L would be no layer

    def test_slope_is_bounded(self, lagrangian):
        bound = lagrangian.max_slope
        assert type(bound) is float
        assert bound > 0
        for x in (*self.states(0.01), *self.states(2.0)):
            x0 = x[0].clone()
            hessian = torch.autograd.functional.hessian(lambda x: lagrangian(x[None]).sum(), x0)
            values = torch.linalg.eigvalsh(hessian.reshape(x0.numel(), x0.numel()))
            assert values.max() <= bound * (1 + 64 * EPS)

    def test_fenchel_inequality(self, lagrangian):
        for shape in self.shapes:
            x = 2.0 * normal(*shape, seed=1)
            g, dual = lagrangian.activation(x), lagrangian.energy(x)
            equality = lagrangian(x) - inner(x, g) + dual
            scale = lagrangian(x).abs() + inner(x, g).abs() + dual.abs() + 1
            assert (equality.abs() <= 64 * EPS * scale).all()
            for seed in range(20):
                y = x + (0.01, 0.3, 3.0)[seed % 3] * normal(*shape, seed=100 + seed)
                gap = lagrangian(y) - inner(y, g) + dual
                assert (gap >= -64 * EPS * (scale + lagrangian(y).abs())).all()

    # ------------------------------------------------------- the rest of torch

    def test_a_sample_does_not_depend_on_its_batch(self, lagrangian):
        for shape in self.shapes:
            x = normal(*shape, seed=11)
            spoilt = x.clone()
            spoilt[0] = float("nan")
            spoilt[1] = 1e30
            for f in (
                lagrangian,
                lagrangian.energy,
                lagrangian.activation,
                lambda x: derivative(lagrangian, x),
                lambda x: derivative(lagrangian.energy, x),
            ):
                alone = torch.cat([f(sample[None]) for sample in x])
                torch.testing.assert_close(f(x), alone, rtol=8 * EPS, atol=0)
                torch.testing.assert_close(f(spoilt)[2:], alone[2:], rtol=8 * EPS, atol=0)

    def test_copies_agree(self, lagrangian):
        x = normal(4, 5)

        def compute(lagrangian):
            with torch.no_grad():
                return torch.cat(
                    [lagrangian(x), lagrangian.energy(x), lagrangian.activation(x).flatten()]
                )

        assert_copies_agree(lagrangian, compute)

    def test_has_a_printed_form(self, lagrangian):
        assert_prints(lagrangian)

    # ---------------------------------------- the base class, given L(x) alone

    def test_defaults_equal_the_closed_forms(self, lagrangian):
        default = OnlyForward(lagrangian)
        for x in self.states(2.0):
            torch.testing.assert_close(default.activation(x), lagrangian.activation(x), **CLOSE)
            torch.testing.assert_close(default.energy(x), lagrangian.energy(x), **CLOSE)

    def test_defaults_are_differentiable_again(self, lagrangian):
        default = OnlyForward(lagrangian)
        for x in self.states(2.0):
            w = normal(*x.shape, seed=8)
            torch.testing.assert_close(
                derivative(lambda x, w=w: inner(default.activation(x), w), x),
                derivative(lambda x, w=w: inner(lagrangian.activation(x), w), x),
                **CLOSE,
            )
            torch.testing.assert_close(
                derivative(default.energy, x), derivative(lagrangian.energy, x), **CLOSE
            )

    def test_defaults_need_no_gradient_mode(self, lagrangian):
        default = OnlyForward(lagrangian)
        x = normal(4, 5)
        expected = default.activation(x).detach()
        with torch.no_grad():
            g, energy = default.activation(x), default.energy(x)
            assert not g.requires_grad
            assert not energy.requires_grad
            assert torch.equal(g, expected)
            torch.testing.assert_close(energy, lagrangian.energy(x), **CLOSE)
        assert not x.requires_grad


class SynapseContract:
    """What makes a function of activations a synapse.

    A subclass gives the fixture ``synapse``, a float64 module, and the class attribute ``shapes``
    where the synapse's own ``shapes`` leave one open.
    """

    shapes = None

    @pytest.fixture
    def synapse(self):
        raise NotImplementedError

    def activations(self, synapse, batch=3, seed=0, dtype=torch.float64):
        shapes = synapse.shapes if self.shapes is None else self.shapes
        return [normal(batch, *shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("batch", [0, 1, 4])
    def test_shapes_for_any_batch(self, synapse, batch, dtype):
        synapse = synapse.to(dtype)
        g = self.activations(synapse, batch, dtype=dtype)
        energy = synapse.energy(*g)
        assert energy.shape == (batch,)
        assert energy.dtype == dtype
        for place in range(len(g)):
            field = synapse.field(place, *g)
            assert field.shape == g[place].shape
            assert field.dtype == dtype

    def test_field_is_minus_the_gradient_of_the_energy(self, synapse):
        for seed in (0, 10):
            g = self.activations(synapse, seed=seed)
            for place in range(len(g)):
                gradient = derivative(
                    lambda x, g=g, place=place: synapse.energy(*g[:place], x, *g[place + 1 :]),
                    g[place],
                    materialize_grads=True,
                )
                torch.testing.assert_close(synapse.field(place, *g), -gradient, **CLOSE)
                torch.testing.assert_close(OnlyEnergy(synapse).field(place, *g), -gradient, **CLOSE)

    def test_field_is_a_partial_derivative(self, synapse):
        """With all activations computed from one tensor, as in an unrolled or reduced model."""
        g = self.activations(synapse)
        source = torch.ones((), dtype=torch.float64, requires_grad=True)
        linked = [g[0] * source]
        for other in g[1:]:
            linked.append(other * linked[0].flatten(1).sum(1).reshape(-1, *[1] * (other.dim() - 1)))
        plain = [x.detach() for x in linked]
        for place in range(len(g)):
            expected = synapse.field(place, *plain)
            torch.testing.assert_close(synapse.field(place, *linked), expected, **CLOSE)
            default = OnlyEnergy(synapse).field(place, *linked)
            torch.testing.assert_close(default, expected, **CLOSE)

    def test_linear_where_it_says_so(self, synapse):
        g, h = self.activations(synapse), self.activations(synapse, seed=20)
        for place in range(len(g)):
            if not synapse.is_linear_in(place):
                continue

            def energy(x, place=place):
                return synapse.energy(*g[:place], x, *g[place + 1 :])

            mixed = energy(2.0 * g[place] - 3.0 * h[place])
            expected = 2.0 * energy(g[place]) - 3.0 * energy(h[place])
            torch.testing.assert_close(mixed, expected, **CLOSE)
            moved = [*g[:place], h[place], *g[place + 1 :]]
            torch.testing.assert_close(
                synapse.field(place, *moved), synapse.field(place, *g), **CLOSE
            )

    def test_declarations_of_linearity_are_confirmed(self, synapse):
        for seed in (0, 30):
            synapse.check_linear(*self.activations(synapse, seed=seed))

    def test_runs_under_vmap(self, synapse):
        g = self.activations(synapse)

        def of_one(f):
            return torch.func.vmap(lambda *x: f(*(a[None] for a in x))[0])(*g)

        torch.testing.assert_close(of_one(synapse.energy), synapse.energy(*g), **CLOSE)
        kinds = [type(module) for module in synapse.modules()]
        if Synapse.field in (getattr(kind, "field", None) for kind in kinds) or Map.adjoint in (
            getattr(kind, "adjoint", None) for kind in kinds
        ):
            return  # torch.autograd.grad, which derives it, does not run under vmap
        for place in range(len(g)):
            field = of_one(lambda *x, place=place: synapse.field(place, *x))
            torch.testing.assert_close(field, synapse.field(place, *g), **CLOSE)

    def test_a_gradient_for_each_sample(self, synapse):
        g = self.activations(synapse)
        weights = dict(synapse.named_parameters())
        if not weights:
            return

        def energy(weights, *x):
            model = torch.func.functional_call(Energy(synapse), weights, tuple(a[None] for a in x))
            return model[0]

        weights = {f"synapse.{name}": p.detach() for name, p in weights.items()}
        each = torch.func.vmap(torch.func.grad(energy), (None, *[0] * len(g)))(weights, *g)
        for i in range(len(g[0])):
            alone = synapse.energy(*(x[i : i + 1] for x in g)).sum()
            expected = torch.autograd.grad(alone, [*synapse.parameters()])
            torch.testing.assert_close([x[i] for x in each.values()], [*expected], **CLOSE)

    def test_parameters_get_their_gradients(self, synapse):
        g = self.activations(synapse)
        if not list(synapse.parameters()):
            assert not synapse.energy(*g).requires_grad
            return
        outputs = {"energy": lambda: synapse.energy(*g)}
        for place in range(len(g)):
            outputs[f"field {place}"] = lambda place=place: synapse.field(place, *g)
            outputs[f"default field {place}"] = lambda place=place: OnlyEnergy(synapse).field(
                place, *g
            )
        assert_parameter_gradients(synapse, outputs)

    def test_field_is_differentiable_again(self, synapse):
        g = [x.requires_grad_() for x in self.activations(synapse, batch=2)]
        for place in range(len(g)):
            field = synapse.field(place, *g)
            default = OnlyEnergy(synapse).field(place, *g)
            weight = normal(*field.shape, seed=6)
            expected = torch.autograd.grad(
                (field * weight).sum(), g, allow_unused=True, materialize_grads=True
            )
            actual = torch.autograd.grad(
                (default * weight).sum(), g, allow_unused=True, materialize_grads=True
            )
            torch.testing.assert_close(actual, expected, **CLOSE)
            torch.testing.assert_close(field, default, **CLOSE)

    def test_field_needs_no_gradient_mode(self, synapse):
        g = self.activations(synapse)
        for place in range(len(g)):
            expected = synapse.field(place, *g).detach()
            with torch.no_grad():
                for kind in (synapse, OnlyEnergy(synapse)):
                    field = kind.field(place, *g)
                    assert not field.requires_grad
                    torch.testing.assert_close(field, expected, **CLOSE)

    def test_a_sample_does_not_depend_on_its_batch(self, synapse):
        g = self.activations(synapse)
        spoilt = [x.clone() for x in g]
        for x in spoilt:
            x[0] = float("nan")
        functions = [synapse.energy]
        for place in range(len(g)):
            functions.append(lambda *g, place=place: synapse.field(place, *g))
        for f in functions:
            alone = torch.cat([f(*(x[i : i + 1] for x in g)) for i in range(len(g[0]))])
            torch.testing.assert_close(f(*g), alone, **CLOSE)
            torch.testing.assert_close(f(*spoilt)[1:], alone[1:], **CLOSE)

    def test_activations_are_not_written_to(self, synapse):
        g = self.activations(synapse)
        synapse.energy(*g)
        for place in range(len(g)):
            synapse.field(place, *g)
        for x, before in zip(g, self.activations(synapse), strict=True):
            assert torch.equal(x, before)
            assert not x.requires_grad

    def test_copies_agree(self, synapse):
        g = self.activations(synapse)

        def compute(synapse):
            with torch.no_grad():
                fields = [synapse.field(place, *g).flatten() for place in range(len(g))]
                return torch.cat([synapse.energy(*g), *fields])

        assert_copies_agree(synapse, compute)

    def test_has_a_printed_form(self, synapse):
        assert_prints(synapse)


class MapContract(SynapseContract):
    """What makes a synapse a map from one layer to another: all of the above, and its two ways.

    The attribute ``shapes``, of the class or the test, are those of its two layers.
    """

    def test_is_a_map_and_its_adjoint(self, synapse):
        first, second = self.activations(synapse)
        torch.testing.assert_close(synapse(first), synapse.field(1, first, second), rtol=0, atol=0)
        adjoint = synapse.adjoint(second, first)
        torch.testing.assert_close(adjoint, synapse.field(0, first, second), rtol=0, atol=0)
        torch.testing.assert_close(
            inner(synapse(first), second), -synapse.energy(first, second), **CLOSE
        )
        if synapse.linear:
            torch.testing.assert_close(
                inner(synapse(first), second), inner(first, adjoint), **CLOSE
            )
            # As a layer is asked for its field without its activation.
            shape = first.new_zeros(()).expand(first.shape)
            torch.testing.assert_close(synapse.adjoint(second, shape), adjoint, rtol=0, atol=0)

    def test_adjoint_by_default(self, synapse):
        first, second = self.activations(synapse)
        torch.testing.assert_close(
            Map.adjoint(synapse, second, first), synapse.adjoint(second, first), **CLOSE
        )

    def test_says_its_shapes(self, synapse):
        first, second = self.activations(synapse)
        assert synapse.output_shape(first.shape[1:]) == tuple(second.shape[1:])
        assert type(synapse.output_shape(list(first.shape[1:]))) is tuple
        shapes = tuple(first.shape[1:]), tuple(second.shape[1:])
        synapse.fit(("a", "b"), shapes)
        with pytest.raises(ValueError, match=r"got layer 'b'|for layer 'b'"):
            synapse.fit(("a", "b"), (shapes[0], (*shapes[1], 2)))
        with pytest.raises(ValueError, match="connects 2 layers, got 1 names"):
            synapse.fit(("a",), shapes[:1])

    def test_has_two_places(self, synapse):
        with pytest.raises(ValueError, match="to: expected place 0 or 1, got 2"):
            synapse.field(2, *self.activations(synapse))


class Triple(Synapse):
    """E = −Σ T_ijk aᵢ bⱼ cₖ, through the default field; linear in each layer."""

    def __init__(self, *sizes):
        super().__init__()
        self.shapes = tuple((n,) for n in sizes)
        self.tensor = nn.Parameter(torch.randn(*sizes) / 4)

    def energy(self, *g):
        return -torch.einsum("ijk,bi,bj,bk->b", self.tensor, *g)

    def is_linear_in(self, place):
        return True


class Squared(Synapse):
    """E = ½ (aᵀ W b)², linear in neither layer."""

    def __init__(self, n, m):
        super().__init__()
        self.shapes = ((n,), (m,))
        self.weight = nn.Parameter(torch.randn(n, m) / 4)

    def energy(self, *g):
        return ((g[0] @ self.weight) * g[1]).sum(-1) ** 2 / 2
