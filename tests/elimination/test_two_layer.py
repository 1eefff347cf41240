"""TwoLayer: models A, B and C are their closed formulas, recall what they store, and descend."""

import copy
import math
import re

import pytest
import torch

from hamdeq import Exp, Picard, RePU, Softmax, Tanh, TwoLayer, eliminate, fixed_point, trajectory
from hamdeq.memories import Exponential, Interacting, RectifiedPolynomial
from hamdeq.nn import functional
from hamdeq.testing import Contract, normal

K, N = 7, 24
TINY = {"rtol": 1e-12, "atol": 1e-12}


def signs(count=K, size=N, seed=0):
    x = torch.sign(normal(count, size, seed=seed))
    return torch.where(x == 0, 1.0, x)


def flipped(patterns, bits, seed=1):
    """The patterns with some bits turned over, others in each."""
    order = normal(*patterns.shape, seed=seed).argsort(1)[:, :bits]
    return patterns.scatter_reduce(1, order, -torch.ones_like(patterns), "prod")


def power(n):
    """F(x) = max(x, 0)ⁿ/n and its derivative."""
    return lambda x: x.clamp(min=0) ** n / n, lambda x: x.clamp(min=0) ** (n - 1)


def exponential(beta):
    return lambda x: torch.exp(beta * x) / beta, lambda x: torch.exp(beta * x)


ADDITIVE = {
    "square": (RePU(2), *power(2)),
    "cube": (RePU(3), *power(3)),
    "tenth": (RePU(10), *power(10)),
    "exp": (Exp(0.3), *exponential(0.3)),
    # The interaction functions of the binary memories, F(x) = max(x, 0)⁴ and eˣ.
    "their fourth": (Interacting(RectifiedPolynomial(4), 0.5), *power(4)),
    "their exponential": (Interacting(Exponential(), 0.2), *exponential(0.2)),
}


def scale(name):
    """Constant between F and its formula here: Interacting has F(inner·x), not divided by n."""
    return {"their fourth": 4 * 0.5**4, "their exponential": 0.2}.get(name, 1.0)


# --------------------------------------------------------------------- closed formulas


@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("beta", [0.1, 10.0])
def test_model_a(kind, beta):
    lagrangian, f, slope = ADDITIVE[kind]
    x = signs()
    memory = eliminate(TwoLayer.model_a(x, lagrangian, beta=beta), ["memories"])
    v = normal(5, N, seed=2)
    g = torch.tanh(beta * v)
    expected = scale(kind) * slope(g @ x.T) @ x
    torch.testing.assert_close(memory.update({"features": v})["features"], expected, **TINY)
    # The Legendre transform of the features: the entropy of signs, which goes with β → ∞.
    p = (1 + g) / 2
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(1)
    energy = (N * math.log(2) - entropy) / beta - scale(kind) * f(g @ x.T).sum(1)
    torch.testing.assert_close(memory.energy({"features": v}), energy, rtol=1e-10, atol=1e-10)
    left = memory.energy({"features": v}) + scale(kind) * f(g @ x.T).sum(1)
    assert bool(((left > -1e-9) & (left < N * math.log(2) / beta + 1e-9)).all())


def test_model_a_at_a_large_beta_is_the_binary_memory_of_the_paper():
    """g = sign(v), g <- sign(Σ ξ f(ξ·g)), E = −Σ F(ξ·g), but for N ln 2/β."""
    x, beta = signs(), 1e6
    memory = eliminate(TwoLayer.model_a(x, beta=beta), ["memories"])
    v = normal(50, N, seed=2)
    f, slope = power(3)
    binary = torch.sign(v)
    new = memory.update({"features": v})
    assert torch.equal(torch.sign(new["features"]), torch.sign(slope(binary @ x.T) @ x))
    constant = N * math.log(2) / beta
    # A v of the size of 1/β is no sign yet.
    for state, signs_of in ((v, binary), (new["features"], torch.sign(new["features"]))):
        found = memory.energy({"features": state}) - constant
        torch.testing.assert_close(found, -f(signs_of @ x.T).sum(1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_model_b_is_attention(beta):
    x, v = normal(K, N), normal(5, N, seed=2)
    memory = eliminate(TwoLayer.model_b(x, beta=beta), ["memories"])
    found = memory.update({"features": v})["features"]
    torch.testing.assert_close(found, torch.softmax(beta * v @ x.T, 1) @ x, **TINY)
    torch.testing.assert_close(found, functional.retrieve(v, x, beta), **TINY)
    energy = 0.5 * v.square().sum(1) - torch.logsumexp(beta * v @ x.T, 1) / beta
    torch.testing.assert_close(memory.energy({"features": v}), energy, **TINY)
    constant = math.log(K) / beta + 0.5 * x.square().sum(1).max()
    torch.testing.assert_close(functional.energy(v, x, beta) - constant, energy, **TINY)
    for steps in (2, 5):
        state = {"features": v}
        for _ in range(steps):
            state = memory.update(state)
        torch.testing.assert_close(
            state["features"], functional.retrieve(v, x, beta, steps), **TINY
        )


@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_model_c(kind, eps):
    lagrangian, f, slope = ADDITIVE[kind]
    x, v = normal(K, N), normal(5, N, seed=2)
    memory = eliminate(TwoLayer.model_c(x, lagrangian, eps=eps), ["memories"])
    size = (v.square().sum(1, keepdim=True) + eps).sqrt()
    similarity = (v / size) @ x.T
    expected = scale(kind) * slope(similarity) @ x
    torch.testing.assert_close(memory.update({"features": v})["features"], expected, **TINY)
    energy = -scale(kind) * f(similarity).sum(1) - eps / size[:, 0]
    torch.testing.assert_close(memory.energy({"features": v}), energy, **TINY)
    # On the sphere the length of v means nothing, but for ε.
    longer = memory.energy({"features": 1e3 * v})
    gap = (longer - memory.energy({"features": v})).abs()
    assert bool((gap < 3 * eps * (1 + energy.abs())).all())


@pytest.mark.parametrize("model", ["model_a", "model_b", "model_c"])
def test_the_whole_memory_at_its_minimum_has_the_eliminated_energy(model):
    memory = getattr(TwoLayer, model)(signs())
    reduced = eliminate(memory, ["memories"])
    v = {"features": normal(5, N, seed=2)}
    full = reduced.restore(v)
    torch.testing.assert_close(memory.energy(full), reduced.energy(v), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(full["memories"], memory.activations(v)["features"] @ signs().T)


# ---------------------------------------------------------------------------- recall


MODELS = {
    "A": lambda x: TwoLayer.model_a(x, RePU(4)),
    "A, exponential": lambda x: TwoLayer.model_a(x, Exp(0.25)),
    "B": lambda x: TwoLayer.model_b(x, beta=0.25),
    "C": lambda x: TwoLayer.model_c(x, RePU(6)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_stored_patterns_are_recalled_from_corrupted_probes(kind):
    """30 patterns of 100 bits, twice what a classical network holds, a fifth of each wrong."""
    x = signs(30, 100)
    probes = flipped(x, 20)
    assert bool(((probes * x).mean(1) - 0.6).abs().max() < 1e-12)
    memory = MODELS[kind](x)
    reduced = eliminate(memory, ["memories"])
    solution = fixed_point(reduced, {"features": probes}, solver=Picard(tol=1e-8, max_steps=200))
    assert bool(solution.converged.all())
    g = memory.layer("features").activation(solution.value["features"])
    overlap = (g * x).sum(1) / (g.norm(dim=1) * x.norm(dim=1))
    assert overlap.min() > 0.99
    assert torch.equal(torch.sign(g), x)


@pytest.mark.parametrize("kind", MODELS)
def test_the_dynamics_of_both_layers_recall_too(kind):
    """The memories need not be at rest, nor fast, for the patterns to be found."""
    x = signs(10, 100)
    memory = MODELS[kind](x)
    state = {"features": flipped(x, 15), "memories": torch.zeros(10, 10, dtype=torch.float64)}
    with torch.no_grad():
        path = trajectory(memory, state, [0.0, 2.0, 30.0], tau={"memories": 0.2})
    # Memories at zero exert no power: features lose some of what they are before these wake.
    assert torch.equal(torch.sign(path.final["features"]), x)
    assert path.energy.diff(dim=0).max() < 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", MODELS)
def test_energy_never_rises(kind, seed):
    """From random states, where several patterns compete; each step is exact minimisation."""
    memory = MODELS[kind](normal(20, 30, seed=seed) if kind in "BC" else signs(20, 30, seed))
    reduced = eliminate(memory, ["memories"])
    assert reduced.descends
    state = {"features": normal(200, 30, seed=10 + seed)}
    before = reduced.energy(state)
    for _ in range(30):
        state = reduced.update(state)
        after = reduced.energy(state)
        assert (after - before - 1e-12 * after.abs()).max() <= 1e-12
        before = after


# --------------------------------------------------------------------------- patterns


def test_patterns_are_copied_and_may_be_trained():
    x = signs()
    original = x.clone()
    memory = TwoLayer.model_b(x)
    assert memory.layers == ("features", "memories")
    assert torch.equal(memory.patterns, x)
    with torch.no_grad():
        memory.patterns.add_(1.0)
    assert torch.equal(x, original)
    fixed = TwoLayer.model_b(x, trainable=False)
    assert not [p for p in fixed.parameters() if p.requires_grad]
    for trained in (
        TwoLayer.model_a(x),
        TwoLayer.model_b(x, learnable=True).double(),
        TwoLayer.model_c(x),
    ):
        reduced = eliminate(trained, ["memories"])
        reduced.update({"features": normal(2, N)})["features"].square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in trained.parameters())


def test_random_patterns():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    TwoLayer.model_a(signs())
    assert torch.equal(torch.random.get_rng_state(), state)
    one, other = TwoLayer.model_c((5, 3)), TwoLayer.model_c([5, 3])
    assert one.patterns.shape == (5, 3)
    assert not torch.equal(one.patterns, other.patterns)
    assert one.patterns.dtype == torch.get_default_dtype()


def test_any_other_pair_of_lagrangians():
    memory = TwoLayer(signs(), Tanh(2.0), Softmax(0.5))
    assert isinstance(memory.layer("features").lagrangian, Tanh)
    assert isinstance(memory.layer("memories").lagrangian, Softmax)
    Contract().prints(memory)
    v = {"features": normal(3, N), "memories": normal(3, K, seed=1)}
    Contract().copies_agree(memory, lambda m: m.energy(v))
    twin = copy.deepcopy(memory)
    assert twin.patterns.data_ptr() != memory.patterns.data_ptr()


@pytest.mark.parametrize(
    ("patterns", "kind", "message"),
    [
        (torch.ones(3, 4, dtype=torch.long), TypeError, "convert them by patterns.float()"),
        (torch.ones(4), ValueError, re.escape("a tensor (K, N), a row for each")),
        (torch.ones(0, 4), ValueError, "at least one pattern"),
        (torch.tensor([[1.0], [math.nan]]), ValueError, re.escape("in rows [1]")),
        ((3,), ValueError, "two positive integers"),
        ((3, 0), ValueError, "two positive integers"),
        ((3, 4.0), ValueError, "two positive integers"),
        (7, ValueError, "two positive integers"),
    ],
)
def test_patterns_that_are_none(patterns, kind, message):
    for model in (TwoLayer.model_a, TwoLayer.model_b, TwoLayer.model_c):
        with pytest.raises(kind, match=message):
            model(patterns)


def test_lagrangians_that_are_none():
    with pytest.raises(TypeError, match="expected a Lagrangian"):
        TwoLayer.model_a(signs(), torch.tanh)
    with pytest.raises(ValueError, match="beta: expected a finite number > 0"):
        TwoLayer.model_a(signs(), beta=0.0)
    with pytest.raises(ValueError, match="eps: expected a finite number > 0"):
        TwoLayer.model_c(signs(), eps=0.0)
