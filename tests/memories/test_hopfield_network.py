"""The classical network: its three rules, its energy, and the memory with graded neurons."""

import copy
import math
import pickle

import pytest
import torch

from hamdeq import eliminate
from hamdeq.memories import (
    DenseAssociativeMemory,
    Hebbian,
    HopfieldNetwork,
    Original,
    Polynomial,
    PseudoInverse,
    Storkey,
    Synchronous,
)
from hamdeq.testing import normal

RULES = [Hebbian(), PseudoInverse(), Storkey()]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def signs(*shape, seed=0, dtype=torch.float64):
    return torch.where(normal(*shape, seed=seed) >= 0, 1.0, -1.0).to(dtype)


def correlated(count, size, seed=0):
    """Patterns that agree in four neurons of five."""
    base = signs(1, size, seed=seed)
    return base * torch.where(normal(count, size, seed=seed + 1) < -1.22, -1.0, 1.0)


def network(size, rule, patterns):
    return HopfieldNetwork(size, rule).to(patterns.dtype).store(patterns)


def corrupted(patterns, turned):
    """Each pattern with so many neurons turned over."""
    x = patterns.clone()
    for i, row in enumerate(x):
        order = torch.randperm(len(row), generator=torch.Generator().manual_seed(i))
        row[order[:turned]] *= -1
    return x


# ---------------------------------------------------------------------- rules


def test_hebb_by_hand():
    patterns = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])
    net = HopfieldNetwork(3).store(patterns)
    assert net.weights.tolist() == [[0.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]
    x = torch.tensor([[1.0, 1.0, 1.0]])
    assert net.fields(x).tolist() == [[-2.0, 0.0, -2.0]]
    assert net.energy(x).tolist() == [2.0]
    # Neuron 1 sees nothing, and takes +1.
    probe = torch.tensor([[1.0, -1.0, -1.0]])
    assert net.recall(probe).value.tolist() == [[1.0, 1.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5, 31])
@every_rule
def test_weights_are_symmetric_to_the_last_bit_without_a_diagonal(rule, count, dtype):
    net = network(30, rule, signs(count, 30, dtype=dtype))
    assert torch.equal(net.weights, net.weights.T)
    assert not net.weights.diagonal().any()
    assert net.weights.dtype == dtype
    assert net.patterns.shape == (count, 30)


@every_rule
def test_fields_and_energy_are_those_of_the_weights(rule):
    net, x = network(20, rule, signs(5, 20)), signs(7, 20, seed=1)
    for i in range(2):
        field = torch.stack(
            [sum(net.weights[a, b] * x[i, b] for b in range(20)) for a in range(20)]
        )
        torch.testing.assert_close(net.fields(x)[i], field, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(net.energy(x)[i], -0.5 * (x[i] @ field), rtol=1e-12, atol=1e-12)
    # A field is half of what the energy loses when the neuron turns from −1 to +1.
    for a in range(20):
        low, high = x.clone(), x.clone()
        low[:, a], high[:, a] = -1.0, 1.0
        half = (net.energy(low) - net.energy(high)) / 2
        torch.testing.assert_close(net.fields(x)[:, a], half, rtol=1e-11, atol=1e-11)


def test_pseudo_inverse_keeps_correlated_patterns_where_hebb_fails():
    size = 60
    patterns = correlated(size // 2, size)
    overlap = (patterns @ patterns.T / size).fill_diagonal_(0).sum() / (30 * 29)
    assert overlap > 0.4
    exact = network(size, PseudoInverse(), patterns)
    for updates in (None, Synchronous()):
        solution = exact.recall(patterns, updates=updates)
        assert torch.equal(solution.value, patterns)
        assert solution.steps.tolist() == [1] * 30
    hebb = network(size, Hebbian(), patterns)
    assert (hebb.recall(patterns).value != patterns).any(1).sum() > 25
    # In float32 as well, and with one neuron turned over of those that have room for it.
    single = network(size, PseudoInverse(), patterns.float())
    assert torch.equal(single.recall(patterns.float()).value, patterns.float())
    few = patterns[:10]
    found = network(size, PseudoInverse(), few).recall(corrupted(few, 1)).value
    assert torch.equal(found, few)


def test_pseudo_inverse_up_to_one_less_than_its_neurons():
    patterns = signs(29, 30, seed=5)
    assert torch.linalg.matrix_rank(patterns) == 29
    assert torch.equal(network(30, PseudoInverse(), patterns).recall(patterns).value, patterns)
    # With as many as neurons nothing is left of the projection but its diagonal.
    full = signs(30, 30, seed=6)
    assert torch.linalg.matrix_rank(full) == 30
    assert network(30, PseudoInverse(), full).weights.abs().max() < 1e-12


def test_storkey_is_the_published_formula():
    n, patterns = 12, signs(4, 12)
    w = [[0.0] * n for _ in range(n)]
    for x in patterns.tolist():
        h = [
            [sum(w[i][k] * x[k] for k in range(n) if k not in (i, j)) for j in range(n)]
            for i in range(n)
        ]
        w = [
            [
                w[i][j] + (x[i] * x[j] - x[i] * h[j][i] - h[i][j] * x[j]) / n if i != j else 0.0
                for j in range(n)
            ]
            for i in range(n)
        ]
    expected = torch.tensor(w, dtype=torch.float64)
    weights = network(n, Storkey(), patterns).weights
    torch.testing.assert_close(weights, expected, rtol=1e-13, atol=1e-15)
    # It is not Hebb's.
    assert (weights - network(n, Hebbian(), patterns).weights / n).abs().max() > 0.01


def test_storkey_has_more_room_than_hebb():
    size = 100
    patterns = signs(20, size, seed=3)
    errors = {
        rule: int((network(size, rule, patterns).recall(patterns).value != patterns).sum())
        for rule in (Hebbian(), Storkey())
    }
    assert errors[Storkey()] < errors[Hebbian()] / 3


@every_rule
def test_one_after_the_other_is_all_at_once(rule):
    patterns = signs(6, 20)
    together = network(20, rule, patterns)
    apart = HopfieldNetwork(20, rule).double()
    for part in patterns.split([1, 0, 2, 3]):
        assert apart.store(part) is apart
    torch.testing.assert_close(apart.weights, together.weights, rtol=1e-13, atol=1e-14)
    assert torch.equal(apart.patterns, together.patterns)


def test_n_two_is_the_classical_network_neuron_by_neuron():
    for size, count in ((40, 12), (31, 40), (1, 4)):
        patterns = signs(count, size, dtype=torch.float32)
        x = signs(50, size, seed=1).float()
        hebb = HopfieldNetwork(size).store(patterns)
        # Σ (ON² − OFF²) is four times the field: all integers.
        original = DenseAssociativeMemory(size, Polynomial(2), scaling=Original()).store(patterns)
        assert torch.equal(original.fields(x), 4 * hebb.fields(x))
        normalised = DenseAssociativeMemory(size, Polynomial(2)).store(patterns)
        assert torch.equal(normalised.fields(x).sign(), hebb.fields(x).sign().double())
        for updates in (None, Synchronous()):
            expected = hebb.recall(x, updates=updates, on_failure="ignore")
            for memory in (original, normalised):
                found = memory.recall(x, updates=updates, on_failure="ignore")
                for name in ("value", "steps", "status", "residual", "trace"):
                    assert torch.equal(getattr(found, name), getattr(expected, name)), name


@every_rule
def test_with_nothing_stored_there_is_nothing_to_recall(rule):
    net, states = HopfieldNetwork(5, rule), torch.ones(2, 5)
    for ask in (net.recall, net.energy, net.fields):
        with pytest.raises(ValueError, match="expected a stored pattern, got none"):
            ask(states)


# ------------------------------------------------------------ the rest of torch


@every_rule
def test_copies_and_state_dicts_of_another_size_agree(rule):
    patterns, x = signs(6, 20), signs(9, 20, seed=1)
    net = network(20, rule, patterns)
    expected = net.fields(x)
    fresh = HopfieldNetwork(20, rule).double()
    fresh.load_state_dict(net.state_dict())
    fuller = network(20, rule, signs(11, 20, seed=2))
    fuller.load_state_dict(net.state_dict())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh, fuller):
        assert torch.equal(twin.fields(x), expected)
        assert torch.equal(twin.patterns, patterns)
        assert twin.weights.data_ptr() != net.weights.data_ptr()
        # They learn on from where they are.
        twin.store(signs(2, 20, seed=3))
        assert twin.patterns.shape == (8, 20)
    assert net.patterns.shape == (6, 20)
    copied = [twin.weights for twin in (fresh, fuller)]
    assert torch.equal(*copied)
    with pytest.raises(RuntimeError, match="size mismatch"):
        HopfieldNetwork(21, rule).load_state_dict(net.state_dict())


@every_rule
def test_moves_and_prints(rule):
    net = network(20, rule, signs(6, 20, dtype=torch.float32))
    assert repr(net) == f"HopfieldNetwork(20, rule={rule}, patterns=6)"
    assert not list(net.parameters())
    double = copy.deepcopy(net).double()
    assert double.dtype == double.fields(signs(2, 20)).dtype == torch.float64
    meta = copy.deepcopy(net).to("meta")
    assert meta.device.type == "meta"
    x = torch.ones(3, 20, device="meta")
    assert meta.fields(x).shape == (3, 20)
    assert meta.energy(x).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_recalls(dtype):
    patterns = signs(3, 40, dtype=dtype)
    net = network(40, Hebbian(), patterns)
    solution = net.recall(corrupted(patterns, 2))
    assert torch.equal(solution.value, patterns)
    assert solution.value.dtype == dtype


# ------------------------------------------------------------------ graded neurons


@every_rule
def test_energy_with_graded_neurons_is_the_networks_up_to_a_constant(rule):
    net, g = network(30, rule, signs(4, 30)), signs(200, 30, seed=1)
    beta = 50.0
    reduced = eliminate(net.as_ham(beta), ["memories"])
    state = {"state": 10.0 * g}  # tanh(500) is one
    assert torch.equal(reduced.activations(state)["state"], g)
    difference = reduced.energy(state) - net.energy(g)
    spread = net.energy(g).std()
    assert spread > 0.1
    torch.testing.assert_close(difference, difference[:1].expand(200), rtol=0, atol=1e-10)
    # N ln 2 / β of the entropy, and −½ N times the diagonal that makes W a square.
    smallest = torch.linalg.eigvalsh(net.weights)[0]
    constant = 30 * (math.log(2) / beta + smallest / 2)
    torch.testing.assert_close(difference[0], constant, rtol=1e-10, atol=0)


@every_rule
def test_graded_neurons_recall_what_binary_ones_do(rule):
    patterns = signs(4, 100, dtype=torch.float64)
    net = network(100, rule, patterns)
    probes = corrupted(patterns, 6)
    expected = net.recall(probes).value
    assert torch.equal(expected, patterns)
    reduced = eliminate(net.as_ham(beta=20.0), ["memories"])
    state = {"state": probes}
    for _ in range(50):
        state = reduced.update(state)
    assert torch.equal(reduced.activations(state)["state"].sign(), expected)


def test_graded_memories_have_the_least_rank():
    ham = network(30, PseudoInverse(), signs(4, 30)).as_ham()
    assert ham.layers == ("state", "memories")
    rank = ham.layer("memories").shape[0]
    weight = ham.synapses[0].weight
    assert weight.shape == (30, rank)
    assert torch.linalg.matrix_rank(weight) == rank < 30
