"""Updates at a temperature: Boltzmann's distribution, its limits, and mean-field theory."""

import itertools
import math

import pytest
import torch

from hamdeq import ConvergenceWarning, Status
from hamdeq.memories import (
    Asynchronous,
    DenseAssociativeMemory,
    Glauber,
    HopfieldNetwork,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    Storkey,
)
from hamdeq.testing import normal

N = 6
ALL = torch.tensor([*itertools.product([-1.0, 1.0], repeat=N)], dtype=torch.float64)
PATTERNS = ALL[[5, 22, 41]]


def dense(interaction, scaling):
    memory = DenseAssociativeMemory(N, interaction, scaling=scaling, memories=4).double()
    with torch.no_grad():
        memory.memories.copy_(normal(4, N, seed=4).clamp(-1, 1))
    return memory


# Memories, and temperatures at which states differ in probability, but none is rare.
MEMORIES = {
    "Hebbian": (lambda: HopfieldNetwork(N).double().store(PATTERNS), 6.0),
    "Storkey": (lambda: HopfieldNetwork(N, Storkey()).double().store(PATTERNS), 1.0),
    "Polynomial": (lambda: dense(Polynomial(3), Original()), 40.0),
    "leak": (lambda: dense(LeakyRectifiedPolynomial(2, 0.5), Normalised()), 0.3),
    "other leak": (lambda: dense(LeakyRectifiedPolynomial(2, -0.5), Normalised()), 0.3),
}


def statistic(counts, energy, temperature):
    """Pearson's statistic, Σ (observed − expected)²/expected."""
    expected = counts.sum() * torch.softmax(-energy / temperature, 0)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize(("make", "temperature"), MEMORIES.values(), ids=MEMORIES.keys())
def test_the_distribution_of_states_becomes_boltzmanns(make, temperature, clamped):
    memory = make()
    mask, of_all = torch.zeros(N, dtype=torch.bool), ALL
    if clamped:
        mask[[1, 4]] = True
        of_all = ALL[(ALL[:, 1] == 1) & (ALL[:, 4] == -1)]
    start = of_all.repeat(8000 // len(of_all), 1)
    updates = Glauber(temperature)
    value = memory.recall(start, clamped=mask, updates=updates, max_steps=20).value
    counts = (value[:, None] == of_all).all(-1).sum(0).double()
    energy = memory.energy(of_all).detach()
    # Above this a chi-squared number with so many degrees of freedom is once in 10⁸ (Wilson and
    # Hilferty): it hangs on no seed.
    free = len(of_all) - 1
    bound = free * (1 - 2 / (9 * free) + 5.6 * math.sqrt(2 / (9 * free))) ** 3
    assert statistic(counts, energy, temperature) < bound
    # It tells a factor in the temperature, and thus in the energy, from none.
    for wrong in (temperature / 2, 2 * temperature):
        assert statistic(counts, energy, wrong) > 3 * bound


@pytest.mark.parametrize("order", [None, torch.arange(23, -1, -1)], ids=["random", "given"])
def test_at_a_low_temperature_updates_are_the_asynchronous_ones(order):
    # Of an even number of neurons and an odd one of patterns no field is zero.
    patterns = torch.where(normal(5, 24, seed=2) >= 0, 1.0, -1.0).double()
    probes = torch.where(normal(50, 24, seed=3) >= 0, 1.0, -1.0).double()
    network = HopfieldNetwork(24).double().store(patterns)
    for steps in (1, 20):
        found, expected = (
            network.recall(probes, updates=updates, max_steps=steps, on_failure="ignore")
            for updates in (Glauber(1e-9, order, seed=3), Asynchronous(order, seed=3))
        )
        assert torch.equal(found.value, expected.value)
    assert found.converged.all()
    assert (found.residual == 0).all()
    # A neuron without a field has no preference: the other two cancel on the first.
    network = HopfieldNetwork(3).double().store(torch.ones(1, 3).double())
    probe = torch.tensor([[1.0, 1.0, -1.0]]).double().expand(2000, -1)
    others = torch.tensor([False, True, True])
    value = network.recall(probe, clamped=others, updates=Glauber(1e-9), max_steps=1).value
    assert value[:, 0].mean().abs() < 0.13


@pytest.mark.parametrize(("share", "m"), [(0.5, 0.9575), (0.7, 0.8287), (2.0, 0.0)])
def test_overlap_is_that_of_mean_field_theory(share, m):
    """m = tanh(m N/T), for three orthogonal patterns of 400 neurons and T as a share of N."""
    assert math.tanh(m / share) == pytest.approx(m, abs=1e-4)
    i = torch.arange(400)
    patterns = torch.stack([1.0 - 2 * (i // period % 2) for period in (200, 100, 50)])
    assert torch.equal(patterns @ patterns.T, 400 * torch.eye(3))
    network = HopfieldNetwork(400).store(patterns)
    start = patterns[:1].expand(100, -1)
    value = network.recall(start, updates=Glauber(share * 400), max_steps=10).value
    overlaps = (value @ patterns.T).mean(0) / 400
    # Means of 100 fluctuate by up to 0.005, and N is finite.
    assert overlaps.tolist() == pytest.approx([m, 0.0, 0.0], abs=0.025)


def test_the_seed_decides_and_samples_decide_independently():
    network = HopfieldNetwork(24).store(torch.ones(1, 24))
    start = torch.ones(8, 24)
    draws = [
        network.recall(start, updates=Glauber(30.0, seed=seed), max_steps=3).value
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(draws[0].unique(dim=0)) > 4


def test_no_state_is_expected_to_settle_and_overflow_is_still_told():
    network = HopfieldNetwork(24).store(torch.ones(1, 24))
    hot = network.recall(torch.ones(8, 24), updates=Glauber(1e3), max_steps=7, on_failure="raise")
    assert (hot.steps == 7).all()
    assert (hot.status == Status.MAX_STEPS).all()
    # Cold it does not move, and makes all its updates nevertheless.
    cold = network.recall(torch.ones(8, 24), updates=Glauber(1e-3), max_steps=7)
    assert (cold.steps == 7).all()
    assert cold.converged.all()
    memory = DenseAssociativeMemory(24, Polynomial(400), scaling=Original()).double()
    memory.store(torch.ones(1, 24).double())
    with pytest.warns(ConvergenceWarning, match="2 of 2 samples"):
        lost = memory.recall(torch.ones(2, 24).double(), updates=Glauber(1.0))
    assert (lost.status == Status.OVERFLOW).all()
    assert torch.equal(lost.value, torch.ones(2, 24).double())
