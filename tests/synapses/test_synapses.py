"""Synapses: the contract for all but maps and for a user's own, initial statistics."""

import math

import pytest
import torch
from custom_terms import OnlyEnergy
from torch import nn

from hamdeq import (
    DEQ,
    HAM,
    Association,
    Bias,
    Dense,
    FunctionSynapse,
    Identity,
    Lateral,
    LayerNorm,
    Neurons,
    Picard,
    SelfAttention,
    Sigmoid,
    Synapse,
    clamp,
    eliminate,
    fixed_point,
    two_colouring,
)
from hamdeq.testing import SynapseContract, derivative, normal
from hamdeq.testing.contract import CLOSE


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


class Bilinear(nn.Module):
    """A user's module: minus the interaction, with a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(3)))

    def forward(self, a, b):
        return -((a @ self.weight) * b).sum(-1)


def cubic(a, b, c):
    """A user's function of three layers, linear in the last."""
    return (a.sin() * b**2 * c).sum(-1)


KINDS = {
    "Dense": lambda: Dense(4, 3),
    "Dense, one neuron": lambda: Dense(1, 1),
    "Bias": lambda: Bias(4),
    "Bias of an image": lambda: Bias((2, 3), std=1.0),
    "Bias by channel": lambda: Bias((2, 3, 2), std=1.0, by_channel=True),
    "Triple": lambda: Triple(2, 3, 4),
    "Quartic": lambda: Quartic(3, 2),
    "Images": lambda: Images(),
    "Association": lambda: Association(heads=2, states=3, stored=4, size=2),
    "Lateral": lambda: Lateral(4),
    "FunctionSynapse of a module": lambda: with_shapes(
        FunctionSynapse(Bilinear(), linear_in=(0, 1)), (3,), (2,)
    ),
    "FunctionSynapse of three": lambda: with_shapes(
        FunctionSynapse(cubic, linear_in=[2]), (3,), (3,), (3,)
    ),
    "SelfAttention": lambda: with_shapes(SelfAttention(3, 2, 4), (5, 3)),
    "SelfAttention, of itself": lambda: with_shapes(SelfAttention(3, 2, 4, itself=True), (5, 3)),
    "SelfAttention, of itself alone": lambda: with_shapes(
        SelfAttention(3, 2, 4, itself=True), (1, 3)
    ),
    "SelfAttention, two tokens": lambda: with_shapes(SelfAttention(2, 1, 1, beta=3.0), (2, 2)),
    "SelfAttention, trained beta": lambda: with_shapes(
        SelfAttention(3, 2, 2, beta=0.5, learnable=True), (4, 3)
    ),
}


def with_shapes(synapse, *shapes):
    """With the shapes of the layers to test it on."""
    synapse.shapes = shapes
    return synapse


class TestContract(SynapseContract):
    @pytest.fixture(autouse=True, params=KINDS.values(), ids=KINDS.keys())
    def kind(self, request):
        self.make = request.param


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


DERIVED = ["Dense", "SelfAttention, trained beta", "Triple"]


@pytest.mark.parametrize("name", DERIVED)
def test_default_field_equals_the_closed_form(name):
    """And so do its derivatives, under no_grad() and with activations that depend on others."""
    synapse = KINDS[name]().double()
    g = [normal(2, *shape, seed=i).requires_grad_() for i, shape in enumerate(synapse.shapes)]
    scale = 1 + g[0].mean()
    for place in range(len(g)):
        linked = [x * scale for x in g]
        field, default = (s.field(place, *linked) for s in (synapse, OnlyEnergy(synapse)))
        torch.testing.assert_close(default, field, **CLOSE)
        w = normal(*field.shape, seed=6)
        leaves = [*g, *synapse.parameters()]
        found, expected = (
            torch.autograd.grad(
                (x * w).sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for x in (default, field)
        )
        torch.testing.assert_close(found, expected, **CLOSE)
        with torch.no_grad():
            default = OnlyEnergy(synapse).field(place, *linked)
        assert not default.requires_grad
        torch.testing.assert_close(default, field.detach(), **CLOSE)


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


# -------------------------------------------------------------------------------- lateral


def test_lateral_by_hand():
    lateral = Lateral(3).double()
    with torch.no_grad():
        lateral.weight.copy_(torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [0.0, 6.0, 9.0]]))
    w = [[0.0, 2.0, 1.0], [2.0, 0.0, 5.0], [1.0, 5.0, 0.0]]
    assert lateral.matrix().tolist() == w
    g = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    assert lateral.field(0, g).tolist() == [[0.0, 12.0, -4.0]]
    assert lateral.energy(g).tolist() == [10.0]  # −½ (0 − 12 − 8)


def test_lateral_starts_as_its_matrix_and_stays_so():
    torch.manual_seed(0)
    lateral = Lateral(200, gain=0.5)
    assert torch.equal(lateral.matrix(), lateral.weight)
    weight = lateral.weight.detach()
    assert not weight.diagonal().any()
    bound = 0.5 * math.sqrt(3 / 200)
    assert 0.999 * bound < weight.abs().max() <= bound
    (gradient,) = torch.autograd.grad(
        (lateral.field(0, torch.rand(4, 200)) ** 2).sum(), lateral.weight
    )
    torch.testing.assert_close(gradient, gradient.T)
    assert not gradient.diagonal().any()


def test_lateral_is_a_synapse_of_a_layer_with_itself():
    """In one place, which is the same energy and field as in two with half the work."""

    class Twice(Lateral):
        def energy(self, *g):
            return -((g[0] @ self.matrix()) * g[1]).sum(-1) / 2

        def field(self, to, *g):
            return g[1 - to] @ self.matrix() / 2

    torch.manual_seed(0)
    lateral = Lateral(4).double()
    twice = Twice(4).double()
    twice.load_state_dict(lateral.state_dict())
    twice.shapes = ((4,), (4,))
    neurons = {"hidden": Neurons(4, Sigmoid())}
    one, two = HAM(neurons, [(("hidden",), lateral)]), HAM(neurons, [(("hidden", "hidden"), twice)])
    x = {"hidden": normal(3, 4)}
    torch.testing.assert_close(one.energy(x), two.energy(x), **CLOSE)
    torch.testing.assert_close(one.update(x), two.update(x), **CLOSE)


def lateral_memory(gain=0.5):
    torch.manual_seed(0)
    return HAM(
        {"input": Neurons(3, Identity()), "hidden": Neurons(5, Sigmoid())},
        [(("input", "hidden"), Dense(3, 5)), (("hidden",), Lateral(5, gain=gain))],
    ).double()


def test_a_lateral_memory_converges_and_is_not_split():
    ham = lateral_memory()
    with pytest.raises(ValueError, match=r"'hidden' acts on itself through Lateral.*splitting="):
        DEQ(ham)
    with pytest.raises(ValueError, match=r"Lateral .* is not linear in 'hidden'"):
        eliminate(ham, ("hidden",))
    x = normal(2, 3)
    value = DEQ(ham, splitting=None, solver=Picard(tol=1e-12))({"input": x}).value
    field = ham.update(value, clamped=("input",))
    torch.testing.assert_close(field["hidden"], value["hidden"], rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------- attention of tokens


def attention(tokens, dim=4, **kwargs):
    torch.manual_seed(0)
    shape = (tokens, dim)
    return HAM(
        {"input": Neurons(shape, Identity()), "tokens": Neurons(shape, LayerNorm())},
        [
            (("tokens",), SelfAttention(dim, 2, 3, **kwargs)),
            (("input", "tokens"), FunctionSynapse(inner_product, linear_in=(0, 1))),
        ],
    ).double()


def inner_product(a, b):
    return -(a * b).flatten(1).sum(1)


@pytest.mark.parametrize("itself", [False, True])
def test_attention_energy_is_the_sum_that_it_says(itself):
    torch.manual_seed(0)
    synapse = SelfAttention(3, 2, 4, beta=0.7, itself=itself).double()
    g = normal(2, 5, 3)
    expected = torch.zeros(2, dtype=torch.float64)
    for h in range(2):
        for c in range(5):
            others = [b for b in range(5) if itself or b != c]
            q = g[:, c] @ synapse.queries[:, h]
            terms = [(0.7 * (g[:, b] @ synapse.keys[:, h] * q).sum(-1)).exp() for b in others]
            expected -= torch.stack(terms).sum(0).log() / 0.7
    torch.testing.assert_close(synapse.energy(g), expected, **CLOSE)


def test_attention_defaults_to_the_common_temperature():
    assert SelfAttention(3, 2, 16).beta == 0.25
    assert list(dict(SelfAttention(3, 2, 16).named_parameters())) == ["queries", "keys"]
    trained = SelfAttention(3, 2, 16, learnable=True)
    assert "log_beta" in dict(trained.named_parameters())
    torch.testing.assert_close(trained.beta, torch.tensor(0.25))


def test_attention_of_a_released_layout_is_that_of_its_formula():
    """Weights ``(heads, head_dim, dim)``, one scale and a shift, and B = C in the sum over keys."""
    q, k, delta, gamma = normal(2, 4, 3), normal(2, 4, 3, seed=1), normal(3, seed=2), 1.3
    norm = LayerNorm(gamma, 1e-5, shift=delta)
    synapse = SelfAttention(3, 2, 4, itself=True).double()
    with torch.no_grad():
        synapse.queries.copy_(q.permute(2, 0, 1))
        synapse.keys.copy_(k.permute(2, 0, 1))
    x = normal(2, 5, 3, seed=3)
    centred = x - x.mean(-1, keepdim=True)
    g = gamma * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + delta
    torch.testing.assert_close(norm.activation(x), g, **CLOSE)
    similarity = torch.einsum("nbd,hyd,hye,nce->nhcb", g, k, q, g) / 2
    expected = -2 * similarity.logsumexp(-1).flatten(1).sum(1)
    torch.testing.assert_close(synapse.energy(g), expected, **CLOSE)
    assert repr(synapse).endswith("beta=0.5, itself=True)")


def test_attention_knows_no_order_of_tokens():
    torch.manual_seed(0)
    synapse = SelfAttention(3, 2, 4).double()
    g, order = normal(2, 6, 3), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(synapse.energy(g[:, order]), synapse.energy(g), **CLOSE)
    torch.testing.assert_close(
        synapse.field(0, g[:, order]), synapse.field(0, g)[:, order], **CLOSE
    )


def test_one_token_has_nothing_to_attend_to():
    synapse = SelfAttention(3, 2, 4).double()
    g = normal(2, 1, 3)
    assert synapse.energy(g).tolist() == [0.0, 0.0]
    assert not synapse.field(0, g).any()
    assert not OnlyEnergy(synapse).field(0, g).any()
    value = DEQ(attention(1), splitting=None)({"input": normal(2, 1, 4)}).value
    torch.testing.assert_close(value["tokens"], value["input"], **CLOSE)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e8])
def test_attention_of_extreme_tokens_is_finite(scale):
    torch.manual_seed(0)
    synapse = SelfAttention(3, 2, 4, learnable=True)
    g = (scale * normal(2, 5, 3, dtype=torch.float32)).requires_grad_()
    energy, field = synapse.energy(g), synapse.field(0, g)
    assert energy.isfinite().all()
    assert field.isfinite().all()
    gradients = torch.autograd.grad(energy.sum() + field.sum(), [g, *synapse.parameters()])
    assert all(x.isfinite().all() for x in gradients)
    exact = synapse.double().field(0, g.double())
    torch.testing.assert_close(field.double(), exact, rtol=1e-4, atol=1e-6 * max(scale, 1.0))


def test_energy_of_attention_falls_by_small_steps_to_rest():
    ham = attention(6)
    clamped = clamp(ham, {"input": normal(3, 6, 4)})
    x = {"tokens": normal(3, 6, 4, seed=5)}
    before = clamped.energy(x)
    for _ in range(100):
        x = {"tokens": x["tokens"] + 0.05 * (clamped.update(x)["tokens"] - x["tokens"])}
        after = clamped.energy(x)
        assert (after <= before + 1e-12).all()
        before = after
    solver = Picard(damping=0.3, tol=1e-11, max_steps=5000)
    solution = fixed_point(clamped, x, solver=solver)
    assert solution.converged.all()
    assert (clamped.energy(solution.value) <= after + 1e-12).all()
    field = clamped.update(solution.value)["tokens"]
    torch.testing.assert_close(field, solution.value["tokens"], rtol=1e-8, atol=1e-8)
    # As a layer, from its own start; its weights learn.
    deq = DEQ(ham, splitting=None, solver=Picard(damping=0.3, tol=1e-8, max_steps=5000))
    loss = deq({"input": clamped.clamped["input"]}).value["tokens"].square().sum()
    assert all(g.any() for g in torch.autograd.grad(loss, [*deq.parameters()]))


def test_attention_cannot_be_split_or_eliminated():
    ham = attention(3)
    with pytest.raises(
        ValueError,
        match=r"'tokens' acts on itself through SelfAttention .*splitting='sweep' or None",
    ):
        two_colouring(ham, clamped=("input",))
    with pytest.raises(ValueError, match=r"SelfAttention .* is not linear in 'tokens'"):
        eliminate(ham, ("tokens",))
    eliminate(ham, ("input",))


# ------------------------------------------------------------------------- a user's function


def test_an_interaction_converges_as_the_synapse_it_equals():
    torch.manual_seed(0)
    dense, module = Dense(3, 2), Bilinear()
    with torch.no_grad():
        dense.weight.copy_(module.weight)
    values = []
    for synapse in (dense, FunctionSynapse(module, linear_in=(0, 1))):
        neurons = {"input": Neurons(3, Sigmoid()), "output": Neurons(2, Sigmoid())}
        deq = DEQ(HAM(neurons, [(("input", "output"), synapse)])).double()
        value = deq({"input": normal(4, 3)}).value["output"]
        values.append((value, *torch.autograd.grad(value.sum(), [*deq.parameters()])))
    torch.testing.assert_close(*values, **CLOSE)


def test_a_false_declaration_of_linearity_is_found():
    g = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    for place in (0, 1):
        with pytest.raises(ValueError, match=f"declared to be linear in place {place}, got"):
            FunctionSynapse(cubic, linear_in=(place, 2)).check_linear(*g)

    def with_a_rest(a, b):
        return inner_product(a, b) + b.sum(-1) + 1.0

    FunctionSynapse(with_a_rest).check_linear(*g[:2])
    for place in (0, 1):
        with pytest.raises(ValueError, match="a synapse of its own"):
            FunctionSynapse(with_a_rest, linear_in=(place,)).check_linear(*g[:2])


def test_printed_forms():
    assert repr(Dense(4, 3)) == "Dense(4, 3)"
    assert repr(Bias((2, 3))) == "Bias((2, 3))"
    assert repr(Bias((2, 3), by_channel=True)) == "Bias((2, 3), by_channel=True)"
    assert repr(Lateral(3)) == "Lateral(3)"
    assert repr(SelfAttention(8, 2, 4)) == "SelfAttention(8, heads=2, head_dim=4, beta=0.5)"
    assert repr(FunctionSynapse(cubic, linear_in=[2])) == "FunctionSynapse(cubic, linear_in=(2,))"
    assert "Bilinear" in repr(FunctionSynapse(Bilinear()))
