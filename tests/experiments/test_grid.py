"""Many networks at once: the same numbers as one at a time, and what is reported of them."""

import re
import shutil

import pytest
import torch

from hamdeq.experiments.hyperparameters import grid
from hamdeq.experiments.hyperparameters.grid import Kernel, Networks, Training, measure, relax
from hamdeq.memories import (
    DenseAssociativeMemory,
    LeakyRectifiedPolynomial,
    Learning,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    Synchronous,
)
from hamdeq.optim import NormalisedSGD

N, K, M = 12, 6, 4
PLAIN = Kernel(compiled=False)
PAPER, OTHER = Learning(), Learning(momentum=0.6, exponent=2, decay=0.97)
FLOORED = Learning(momentum=0.6, floor=0.1)
# Temperatures at which the networks of these sizes learn something, but not all.
SCALINGS = {Normalised(): (0.7, 1.0, 1.6), Original(): (9.0, 12.0, 20.0)}

pytestmark = pytest.mark.usefixtures("one_thread")


def networks(temperatures, rates=None, *, seed=0, std=0.3, size=N, memories=K, states=M):
    g = torch.Generator().manual_seed(seed)
    count = len(temperatures)
    return Networks(
        std * torch.randn(count, memories, size, generator=g, dtype=torch.float64),
        2.0 * torch.randint(2, (count, states, size), generator=g).double() - 1,
        torch.tensor(temperatures, dtype=torch.float64),
        torch.tensor(rates or [0.1 * (i + 1) for i in range(count)], dtype=torch.float64),
    )


def alone(given, i, training):
    """One network by the module, its loss in a graph, and the optimiser."""
    scaling = training.scaling.at(given.temperatures[i].item())
    memory = DenseAssociativeMemory(N, training.interaction, scaling=scaling, memories=K).double()
    with torch.no_grad():
        memory.memories.copy_(given.memories[i])
    learning, states = training.learning, given.states[i]
    rate = given.rates[i].item()
    optimizer = NormalisedSGD(
        [memory.memories],
        lr=rate,
        momentum=learning.momentum,
        floor=learning.floor / states.numel(),  # of the sum of errors, where the loss is a mean
    )
    for epoch in range(training.epochs):
        optimizer.param_groups[0]["lr"] = rate * learning.decay**epoch
        optimizer.zero_grad()
        memory.loss(states, learning.exponent).backward()
        optimizer.step()
    with torch.no_grad():
        loss = memory.loss(states, learning.exponent)
    end = memory.recall(states, updates=Synchronous(), on_failure="ignore")
    return memory.memories.detach(), loss, end


@pytest.mark.parametrize(
    ("interaction", "scaling", "learning"),
    [
        (Polynomial(2), Original(), PAPER),
        (Polynomial(5), Normalised(), OTHER),
        (RectifiedPolynomial(3), Normalised(), PAPER),
        (LeakyRectifiedPolynomial(4, 0.05), Normalised(), OTHER),
        (LeakyRectifiedPolynomial(4, 0.05), Original(), PAPER),
        (LeakyRectifiedPolynomial(4, -0.05), Normalised(), FLOORED),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_batch_is_one_network_at_a_time(interaction, scaling, learning):
    given = networks(SCALINGS[scaling])
    training = Training(interaction, scaling, learning, epochs=15)
    found = measure(given, training, kernel=PLAIN)
    for i in range(len(given)):
        _, loss, end = alone(given, i, training)
        torch.testing.assert_close(found.loss[i], loss, rtol=1e-10, atol=1e-10)
        settled = end.converged
        assert found.resting[i] == settled.double().mean()
        if settled.all():
            far = (end.value - given.states[i]).norm(dim=1).mean()
            torch.testing.assert_close(found.distance[i], far, rtol=0, atol=0)
            assert found.recalled[i] == (end.value == given.states[i]).all(1).double().mean()
    assert not found.overflow.any()


def test_a_floor_silences_powers_of_small_similarities():
    given = networks((1.0,), [0.3], std=1e-3)
    moved = []
    for floor in (0.0, 1e-30):
        training = Training(Polynomial(20), Normalised(), Learning(floor=floor), epochs=1)
        after, *_ = grid._learn(given, training, PLAIN)
        moved.append((after.memories - given.memories).abs().amax(-1)[0])
    assert moved[0].tolist() == pytest.approx([0.3] * K)
    assert moved[1].max() < 1e-6


def test_each_network_recalls_at_its_own_temperature():
    # Of a leaky function the temperature has a part in signs: the same memories, other ends.
    given = networks((0.05, 0.3, 1.0, 5.0))
    same = Networks(
        given.memories[:1].expand(4, -1, -1) * 3,
        given.states[:1].expand(4, -1, -1),
        given.temperatures,
        given.rates,
    )
    training = Training(LeakyRectifiedPolynomial(3, 0.2), Normalised(), epochs=0)
    value, rests, overflow = relax(same, training)
    for i, t in enumerate(same.temperatures.tolist()):
        memory = DenseAssociativeMemory(
            N, training.interaction, scaling=Normalised(t), memories=K
        ).double()
        with torch.no_grad():
            memory.memories.copy_(same.memories[i])
        end = memory.recall(same.states[i], updates=Synchronous(), on_failure="ignore")
        assert (rests[i] == end.converged).all()
        assert (value[i][rests[i]] == end.value[rests[i]]).all()
    assert not (value[0] == value[3]).all()
    assert not overflow.any()


def test_recall_at_one_temperature_is_that_of_networks_that_have_it():
    memories, states = 3 * networks((1.0,)).memories, networks((1.0,)).states
    cold, warm = (
        Networks(memories, states, torch.tensor([t]).double(), torch.ones(1)) for t in (0.05, 5.0)
    )
    interaction = LeakyRectifiedPolynomial(3, 0.2)
    own = Training(interaction, Normalised(), epochs=0)
    fixed = Training(interaction, Normalised(), epochs=0, recall_temperature=5.0)
    assert torch.equal(relax(cold, fixed)[0], relax(warm, own)[0])
    assert not torch.equal(relax(cold, own)[0], relax(warm, own)[0])


@pytest.mark.parametrize("max_steps", [1, 2, 99, 100])
def test_a_cycle_ends_where_all_steps_would(max_steps):
    # W = ζζᵀ without its diagonal couples the two neurons by −1: both turn over at every step.
    states = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]], dtype=torch.float64)
    given = Networks(
        torch.tensor([[[1.0, -1.0]]], dtype=torch.float64), states, torch.ones(1), torch.ones(1)
    )
    value, rests, _ = relax(given, Training(Polynomial(2), Normalised()), max_steps)
    assert rests.tolist() == [[False, True]]
    assert value[0, 0].tolist() == ([1.0, 1.0] if max_steps % 2 == 0 else [-1.0, -1.0])
    assert value[0, 1].tolist() == [1.0, -1.0]


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_is_eager():
    given = networks((0.5, 0.9, 1.4), size=9, memories=4, states=3)
    training = Training(LeakyRectifiedPolynomial(3, 0.05), Normalised(), epochs=8)
    kernel = Kernel()
    found = measure(given, training, kernel=kernel)
    assert kernel.name == "compiled"
    plain = measure(given, training, kernel=PLAIN)
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.distance, plain.distance)


def test_without_a_compiler_the_plain_program_goes_on_and_says_so(monkeypatch):
    def broken(*args):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    given, training = networks((0.9, 1.2)), Training(Polynomial(3), Normalised(), epochs=3)
    kernel = Kernel()
    with pytest.warns(UserWarning, match="no compiler here; install a C\\+\\+ compiler"):
        found = measure(given, training, kernel=kernel)
    assert kernel.name == "eager"
    plain = measure(given, training, kernel=PLAIN)
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-12, atol=1e-12)


def test_chunks_are_filled_up_and_nothing_is_counted_twice(monkeypatch):
    given, training = networks((0.9, 1.2, 1.5)), Training(Polynomial(3), Normalised(), epochs=3)
    before = given.memories.clone()
    whole = measure(given, training, kernel=PLAIN)
    monkeypatch.setattr(Kernel, "networks", lambda self, work: 2)
    counts = []
    parts = measure(given, training, kernel=PLAIN, progress=counts.append)
    assert counts == [2, 1]
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=1e-12)
    assert (given.memories == before).all()


def test_overflow_is_reported_of_the_network_that_has_it():
    given = networks((1.0, 1.0))
    memories = given.memories.clone()
    memories[0, 0] = given.states[0, 0]  # 12^400
    memories[1] *= 1e-3
    given = Networks(memories, given.states, given.temperatures, given.rates)
    training = Training(Polynomial(400), Original(), epochs=0)
    found = measure(given, training, kernel=PLAIN)
    assert found.overflow.tolist() == [True, False]
    for name in ("distance", "loss", "recalled", "resting", "silent"):
        assert getattr(found, name).isfinite().tolist() == [False, True], name


def test_a_temperature_whose_power_overflows_is_an_overflow():
    given = networks((1e-5, 10.0))
    found = measure(given, Training(Polynomial(80), Original(), epochs=1), kernel=PLAIN)
    assert found.overflow.tolist() == [True, False]


def test_memories_without_a_gradient_are_counted():
    given = networks((10.0,))
    single = Networks(given.memories.float(), given.states.float(), given.temperatures, given.rates)
    training = Training(Polynomial(60), Normalised(), epochs=0)
    assert measure(given, training, kernel=PLAIN).silent == 0
    # Powers of a few hundredths underflow in float32.
    assert measure(single, training, kernel=PLAIN).silent == 1
    floored = Training(Polynomial(60), Normalised(), Learning(floor=1e-30), epochs=0)
    assert measure(given, floored, kernel=PLAIN).silent == 1
    # Those of a leak do not, and are far above a floor.
    leaky = Training(LeakyRectifiedPolynomial(60), Normalised(), Learning(floor=1e-30), epochs=0)
    assert measure(given, leaky, kernel=PLAIN).silent == 0


def test_the_unit_of_a_step():
    given = networks((0.9,), [0.05])
    moved = {}
    for unit in ("memory", "network", "none"):
        training = Training(Polynomial(2), Normalised(), epochs=1, unit=unit)
        after, *_ = grid._learn(given, training, PLAIN)
        moved[unit] = (after.memories - given.memories)[0]
    largest = {unit: change.abs().amax(-1) for unit, change in moved.items()}
    torch.testing.assert_close(largest["memory"], torch.full((K,), 0.05).double())
    assert largest["network"].max().item() == pytest.approx(0.05)
    assert largest["network"].min() < 0.05
    ratio = moved["none"] / moved["network"]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    _, gradient, _ = PLAIN(given.memories, given.states, Polynomial(2), training.factors(given), 1)
    torch.testing.assert_close(moved["none"], -0.05 * gradient[0] / (M * N))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memories": lambda x: x[0]}, "memories: expected (G, K, N)"),
        ({"states": lambda x: x[..., 1:]}, "states: expected (2, M, 12), got (2, 4, 11)"),
        ({"states": lambda x: x.float()}, "states: expected the memories' torch"),
        ({"states": lambda x: x * 0}, "states: expected ±1"),
        ({"temperatures": lambda x: x[:1]}, "temperatures: expected (2,)"),
        ({"rates": lambda x: x * 0 - 1}, "rates: expected finite numbers > 0, got -1"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_networks_that_do_not_fit_are_refused(change, message):
    given = vars(networks((0.9, 1.2)))
    with pytest.raises(ValueError, match=re.escape(message)):
        Networks(**(given | {name: broken(given[name]) for name, broken in change.items()}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning": Learning(temperatures=(1.0, 0.5))}, "expected no schedule of temperatures"),
        ({"unit": "row"}, "unit: expected 'memory', 'network' or 'none', got 'row'"),
        ({"epochs": -1}, "epochs: expected an integer ≥ 0, got -1"),
        ({"recall_temperature": 0.0}, "recall_temperature: expected a finite number > 0, got 0.0"),
    ],
    ids=["learning", "unit", "epochs", "recall_temperature"],
)
def test_trainings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Training(Polynomial(2), Normalised(), **options)
