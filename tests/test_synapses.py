"""Synapses: the contract for Dense, Bias and a user's own, initial statistics, errors."""

import math

import pytest
import torch
from contracts import CLOSE, OnlyEnergy, SynapseContract, derivative, normal
from torch import nn

from hamdeq import HAM, Association, Bias, Dense, Identity, Neurons, Synapse


class Triple(Synapse):
    """A user's synapse: E = −Σ T_ijk aᵢ bⱼ cₖ, with nothing but its energy."""

    def __init__(self, *sizes):
        super().__init__()
        self.shapes = tuple((n,) for n in sizes)
        self.tensor = nn.Parameter(torch.randn(*sizes, generator=torch.Generator().manual_seed(1)))

    def energy(self, *g):
        return -torch.einsum("ijk,bi,bj,bk->b", self.tensor, *g)

    def is_linear_in(self, place):
        return True


class Quartic(Synapse):
    """A user's synapse linear in neither place: E = ¼ (aᵀ W b)⁴ + ½‖a‖²."""

    def __init__(self, n, m):
        super().__init__()
        self.shapes = ((n,), (m,))
        self.weight = nn.Parameter(torch.randn(n, m, generator=torch.Generator().manual_seed(2)))

    def energy(self, *g):
        return ((g[0] @ self.weight) * g[1]).sum(-1) ** 4 / 4 + (g[0] ** 2).sum(-1) / 2


class Images(Synapse):
    """A user's synapse without parameters, between layers of several axes: E = −⟨a, bᵀ⟩."""

    shapes = ((2, 3), (3, 2))

    def energy(self, *g):
        return -(g[0] * g[1].mT).flatten(1).sum(1)

    def is_linear_in(self, place):
        return True


KINDS = {
    "Dense": lambda: Dense(4, 3),
    "Dense, one neuron": lambda: Dense(1, 1),
    "Bias": lambda: Bias(4),
    "Bias of an image": lambda: Bias((2, 3), std=1.0),
    "Triple": lambda: Triple(2, 3, 4),
    "Quartic": lambda: Quartic(3, 2),
    "Images": lambda: Images(),
    "Association": lambda: Association(heads=2, states=3, stored=4, size=2),
}


class TestContract(SynapseContract):
    @pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
    def synapse(self, request):
        torch.manual_seed(0)
        return request.param().double()


def test_dense_fields_by_hand():
    dense = Dense(2, 3).double()
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    a = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    assert dense.field(1, a, b).tolist() == [[-3.0, -3.0, -3.0]]  # Wᵀ a
    assert dense.field(0, a, b).tolist() == [[7.0, 16.0]]  # W b
    assert dense.energy(a, b).tolist() == [9.0]  # −aᵀ W b = −(7 − 16)


def test_bias_by_hand():
    bias = Bias(2).double()
    with torch.no_grad():
        bias.bias.copy_(torch.tensor([1.0, -2.0]))
    g = torch.tensor([[3.0, 5.0], [0.0, 1.0]], dtype=torch.float64)
    assert bias.energy(g).tolist() == [7.0, 2.0]  # per sample, never summed over the batch
    assert bias.field(0, g).tolist() == [[1.0, -2.0], [1.0, -2.0]]


def test_a_synapse_that_is_not_linear_says_so_by_default():
    quartic = Quartic(3, 2)
    assert not quartic.is_linear_in(0)
    assert not quartic.is_linear_in(1)


@pytest.mark.parametrize("sizes", [(784, 512), (512, 10), (300, 900)])
def test_dense_starts_with_the_fans_of_its_own_matrix(sizes):
    torch.manual_seed(0)
    weight = Dense(*sizes).weight.detach().double()
    bound = math.sqrt(6 / sum(sizes))
    variance = bound**2 / 3
    assert weight.abs().max() <= bound * (1 + 1e-6)  # drawn in float32
    assert weight.abs().max() >= bound * (1 - 10 / weight.numel())  # P(miss) = e^-10
    # Five standard errors; of a uniform's variance that is √(4/5)·σ²/√n.
    assert abs(weight.mean()) < 5 * math.sqrt(variance / weight.numel())
    assert abs(weight.var() - variance) < 5 * math.sqrt(0.8 / weight.numel()) * variance


def test_every_layer_of_a_chain_starts_with_its_own_fans():
    torch.manual_seed(0)
    sizes = [400, 300, 200, 100]
    dense = [s for _, s in HAM.chain(sizes).connections if isinstance(s, Dense)]
    for synapse, n, m in zip(dense, sizes, sizes[1:], strict=False):
        expected = math.sqrt(2 / (n + m))
        # Five standard errors of a uniform's standard deviation, √(1/5)·σ/√n.
        error = 5 * math.sqrt(0.2 / (n * m)) * expected
        assert abs(float(synapse.weight.detach().std()) - expected) < error


def test_bias_starts_with_the_standard_deviation_given():
    torch.manual_seed(0)
    for std, expected in ((None, 0.01), (0.5, 0.5), (0.0, 0.0)):
        bias = (Bias(20_000) if std is None else Bias(20_000, std=std)).bias.detach()
        assert abs(float(bias.std()) - expected) <= 5 * expected / math.sqrt(2 * 20_000)


def test_one_weight_learns_from_both_directions():
    dense = Dense(3, 2).double()
    a, b = normal(4, 3), normal(4, 2, seed=1)
    loss = dense.field(0, a, b).sum() + dense.field(1, a, b).sum()
    (gradient,) = torch.autograd.grad(loss, dense.weight)
    expected = a.sum(0)[:, None] + b.sum(0)[None, :]
    torch.testing.assert_close(gradient, expected.expand(3, 2), **CLOSE)


# ------------------------------------------------------------- the default field


def test_default_field_works_in_inference_mode():
    """Lightning validates and predicts in inference mode, where enable_grad does nothing."""
    torch.manual_seed(0)
    dense = Dense(4, 3).double()
    with torch.inference_mode():
        a, b = normal(2, 4), normal(2, 3, seed=1)
        for place in (0, 1):
            default = OnlyEnergy(dense).field(place, a, b)
            torch.testing.assert_close(default, dense.field(place, a, b), **CLOSE)


def test_default_field_asks_for_gradients_only_where_something_has_them():
    """Otherwise a loop over states without gradients keeps the graph of every step."""
    a, b = normal(2, 2, 3), normal(2, 3, 2, seed=1)
    images = Images()
    assert images.field(0, a, b.clone().requires_grad_()).requires_grad
    assert not images.field(0, a, b).requires_grad


def test_default_field_is_zero_on_a_layer_that_the_energy_leaves_out():
    class First(Synapse):
        def energy(self, *g):
            return -g[0].sum(-1)

    a, b = normal(2, 3), normal(2, 4, seed=1)
    assert torch.equal(First().field(0, a, b), torch.ones_like(a))
    assert torch.equal(First().field(1, a, b), torch.zeros_like(b))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_default_field_of_a_layer_connected_with_itself(requires_grad):
    """E = −⟨g, g⟩ through two places: the field is 2g, whether or not x asks for gradients."""

    class Inner(Synapse):
        def energy(self, *g):
            return -(g[0] * g[1]).sum(-1)

    ham = HAM({"a": Neurons(3, Identity())}, [(("a", "a"), Inner())])
    x = normal(2, 3).requires_grad_(requires_grad)
    torch.testing.assert_close(ham.update({"a": x})["a"], 2 * x, **CLOSE)
    expected = -derivative(lambda x: -(x * x).sum(-1), x.detach())
    torch.testing.assert_close(ham.update({"a": x})["a"], expected, **CLOSE)


def test_energy_is_all_a_synapse_must_have():
    with pytest.raises(TypeError, match="energy"):
        type("Empty", (Synapse,), {})()


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("size", [0, -3, 2.0, "4", None])
def test_sizes_must_be_positive_integers(size):
    for name, make in (
        ("n_from", lambda: Dense(size, 3)),
        ("n_to", lambda: Dense(3, size)),
        ("shape", lambda: Bias((3, size))),
        ("shape", lambda: Bias(size)),
        ("shape", lambda: Neurons(size, Identity())),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            make()
        message = str(error.value)
        assert message.startswith(f"{name}: expected a positive integer"), message
        assert f"got {size!r}" in message


@pytest.mark.parametrize("std", [-1.0, math.nan])
def test_standard_deviation_must_not_be_negative(std):
    with pytest.raises(ValueError, match=rf"std: expected a number ≥ 0, got {std}"):
        Bias(3, std=std)


def test_places_that_a_dense_synapse_does_not_have():
    with pytest.raises((ValueError, IndexError)):
        Dense(3, 3).double().field(2, normal(1, 3), normal(1, 3))


def test_printed_forms():
    assert repr(Dense(4, 3)) == "Dense(4, 3)"
    assert repr(Bias((2, 3))) == "Bias((2, 3))"
