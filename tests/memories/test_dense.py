"""The dense associative memory: energy, predictions, classes, learning, graded neurons."""

import copy
import math
import pickle

import pytest
import torch

from hamdeq import eliminate
from hamdeq.memories import (
    DenseAssociativeMemory,
    Exponential,
    LeakyRectifiedPolynomial,
    Learning,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    Synchronous,
    flips,
)
from hamdeq.optim import NormalisedSGD
from hamdeq.testing import normal

INTERACTIONS = [
    Polynomial(2),
    Polynomial(3),
    RectifiedPolynomial(3),
    LeakyRectifiedPolynomial(3, 0.1),
    Exponential(),
]
SCALINGS = [Original(2.0), Normalised(0.4)]
every_interaction = pytest.mark.parametrize("interaction", INTERACTIONS, ids=repr)
every_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=repr)


def signs(*shape, seed=0, dtype=torch.float64):
    return torch.where(normal(*shape, seed=seed) >= 0, 1.0, -1.0).to(dtype)


def learned(size, interaction, scaling=None, *, count=5, classes=0):
    """Memories that are no states, in float64."""
    memory = DenseAssociativeMemory(
        size, interaction, scaling=scaling, memories=count, classes=classes
    ).double()
    with torch.no_grad():
        memory.memories.copy_(0.5 * normal(count, size + classes, seed=4))
    return memory


# ------------------------------------------------------------ energy and predictions


@every_scaling
@every_interaction
def test_energy_is_the_sum_of_f_over_the_memories(interaction, scaling):
    memory, x = learned(8, interaction, scaling), signs(6, 8)
    inner = 1.0 if isinstance(scaling, Original) else 1 / (8 * 0.4)
    for state, energy in zip(x, memory.energy(x), strict=True):
        terms = [interaction(inner * (row @ state)) for row in memory.memories]
        torch.testing.assert_close(energy, -sum(terms), rtol=1e-13, atol=1e-14)
    # F of the sum over memories would be another number.
    wrong = -interaction(inner * (x @ memory.memories.T).sum(-1))
    assert (memory.energy(x) - wrong).abs().min() > 1e-4


def test_energy_and_prediction_by_hand():
    memory = DenseAssociativeMemory(3, Polynomial(3), scaling=Original(2.0)).double()
    memory.store(torch.tensor([[1.0, 1, 1], [1, -1, 1]], dtype=torch.float64))
    x = torch.tensor([[-1.0, 1, 1]], dtype=torch.float64)
    # Similarities 1 and −1; with neuron 0 at +1 they are 3 and 1.
    assert memory.energy(x).item() == -(1**3 + (-1) ** 3)
    margins = [
        (27 - 1) + (1 - -1),  # ON 3, 1; OFF 1, −1
        (1 - -1) + (-1 - 1),  # ON 1, −1; OFF −1, 1
        (1 - -1) + (-1 - -27),  # ON 1, −1; OFF −1, −3
    ]
    assert memory.fields(x).tolist() == [margins]
    expected = [math.tanh(m / 2**3) for m in margins]
    assert memory.predict(x)[0].tolist() == pytest.approx(expected, rel=1e-14)
    # All memories' powers of 1/(3T), T = 2: the same signs.
    normalised = DenseAssociativeMemory(3, Polynomial(3), scaling=Normalised(2.0)).double()
    normalised.store(memory.memories.detach())
    expected = [math.tanh(m / 6**3) for m in margins]
    assert normalised.predict(x)[0].tolist() == pytest.approx(expected, rel=1e-14)
    assert normalised.energy(x).item() == 0.0


@every_scaling
@every_interaction
def test_a_prediction_compares_the_energies_of_a_neurons_two_states(interaction, scaling):
    memory, x = learned(8, interaction, scaling), signs(6, 8)
    outer = memory.factors.outer
    for i in range(8):
        on, off = x.clone(), x.clone()
        on[:, i], off[:, i] = 1.0, -1.0
        expected = torch.tanh(outer * (memory.energy(off) - memory.energy(on)))
        torch.testing.assert_close(memory.predict(x)[:, i], expected, rtol=1e-11, atol=1e-13)
    fields = memory.fields(x)
    assert torch.equal(fields >= 0, memory.predict(x) >= 0)
    assert not fields.requires_grad
    loss = memory.loss(x, 2)
    torch.testing.assert_close(loss, ((x - memory.predict(x)) ** 4).mean(), rtol=1e-12, atol=0)


def test_classes_by_hand():
    """Three pixels and two classes; each class sees the pixels, and the other class off."""
    memory = DenseAssociativeMemory(3, Polynomial(2), scaling=Original(3.0), classes=2).double()
    memory.store(torch.tensor([[1.0, 1, -1, 1, -1], [1, -1, -1, -1, 1]], dtype=torch.float64))
    pixels = torch.tensor([[0.5, 1.0, 0.0]], dtype=torch.float64)
    own = [1.5, -0.5]  # of the pixels
    margins = [
        ((own[0] + 1 + 1) ** 2 - (own[0] - 1 + 1) ** 2)
        + ((own[1] - 1 - 1) ** 2 - (own[1] + 1 - 1) ** 2),
        ((own[0] - 1 - 1) ** 2 - (own[0] - 1 + 1) ** 2)
        + ((own[1] + 1 + 1) ** 2 - (own[1] + 1 - 1) ** 2),
    ]
    expected = [math.tanh(m / 9) for m in margins]
    assert memory.classify(pixels)[0].tolist() == pytest.approx(expected, rel=1e-13)
    loss, predicted = memory.class_loss(pixels, torch.tensor([1]), 2)
    assert predicted[0].tolist() == pytest.approx(expected, rel=1e-13)
    by_hand = ((-1 - expected[0]) ** 4 + (1 - expected[1]) ** 4) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-13)


def test_with_a_teacher_each_class_sees_the_labels_of_the_others():
    memory = learned(6, LeakyRectifiedPolynomial(3, -0.1), classes=3)
    pixels, labels = normal(7, 6).clamp(-1, 1), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    targets = 2 * torch.eye(3, dtype=torch.float64)[labels] - 1
    loss, predicted = memory.class_loss(pixels, labels, 2, teacher=True)
    states = torch.cat([pixels, targets], 1)
    inner, outer = memory.factors
    margins = flips.margins(memory.memories, states, memory.interaction, inner)[:, 6:]
    expected = torch.tanh(outer * margins)
    torch.testing.assert_close(predicted, expected.detach(), rtol=1e-12, atol=1e-14)
    error = ((targets - expected) ** 4).mean()
    torch.testing.assert_close(loss, error, rtol=1e-12, atol=0)
    (a,), (b,) = (torch.autograd.grad(x, memory.memories) for x in (loss, error))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert (predicted - memory.class_loss(pixels, labels, 2)[1]).abs().max() > 1e-3


@every_scaling
@every_interaction
def test_gradient_of_the_loss_of_classes_is_that_of_predictions(interaction, scaling):
    memory = learned(6, interaction, scaling, classes=3)
    pixels, labels = normal(7, 6).clamp(-1, 1), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    targets = 2 * torch.eye(3, dtype=torch.float64)[labels] - 1
    loss, predicted = memory.class_loss(pixels, labels, 3)
    expected = ((targets - memory.classify(pixels)) ** 6).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert not predicted.requires_grad
    (a,), (b,) = (torch.autograd.grad(x, memory.memories) for x in (loss, expected))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert a.abs().max() > 1e-4
    for x in (memory.classify(pixels[:0]), memory.class_loss(pixels[:0], labels[:0])[1]):
        assert x.shape == (0, 3)


# ------------------------------------------------------------------- learning


@pytest.mark.parametrize(("n", "dtype", "rest"), [(3, torch.float32, 20), (50, torch.float32, 17)])
def test_learned_states_are_stable(n, dtype, rest):
    torch.manual_seed(0)
    states = signs(20, 100, dtype=dtype)
    memory = DenseAssociativeMemory(
        100, Polynomial(n), scaling=Normalised(1 / 0.9), memories=100
    ).to(dtype)

    def stable():
        solution = memory.recall(states, updates=Synchronous(), on_failure="ignore")
        return int((solution.value == states).all(1).sum())

    assert stable() == 0
    losses = memory.fit(states, Learning(rate=0.3), epochs=60)
    assert losses.shape == (60,)
    assert losses.dtype == torch.float64
    assert losses[-1] < losses[0]
    assert memory.memories.dtype == dtype
    assert memory.memories.abs().max() <= 1
    assert stable() >= rest


def test_an_epoch_is_a_step_of_the_papers_rule():
    memory, states = learned(12, Polynomial(3), count=4), signs(5, 12)
    z, v, start = memory.memories.detach().clone(), 0.0, memory.memories
    temperatures = [2.0, 1.5, 1.0]
    learning = Learning(rate=0.2, decay=0.9, momentum=0.5, exponent=2, temperatures=(2.0, 1.0))
    expected = []
    for epoch, t in enumerate(temperatures):
        twin = learned(12, Polynomial(3), Normalised(t), count=4)
        with torch.no_grad():
            twin.memories.copy_(z)
        loss = ((states - twin.predict(states)) ** 4).mean()
        (gradient,) = torch.autograd.grad(loss, twin.memories)
        expected.append(loss.detach())
        v = 0.5 * v + gradient
        z = (z - 0.2 * 0.9**epoch * v / v.abs().amax(1, keepdim=True)).clamp(-1, 1)
    losses = memory.fit(states, learning, epochs=3)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-10, atol=0)
    assert memory.memories is start
    torch.testing.assert_close(memory.memories.detach(), z, rtol=1e-9, atol=1e-10)
    assert memory.scaling == Normalised(1.0)  # the last temperature stays


def test_a_floor_is_of_the_gradient_of_the_summed_loss():
    """Memories with a gradient far below the floor hardly move, and the others as without one."""
    states = signs(5, 12)
    start = learned(12, Polynomial(8), count=4)
    with torch.no_grad():
        start.memories[:2] *= 1e-5
    total = 60 * start.loss(states)
    (gradient,) = torch.autograd.grad(total, start.memories)
    largest = gradient.abs().amax(1)
    assert largest[:2].max() < 1e-30 < largest[2:].min()
    without, floored = copy.deepcopy(start), copy.deepcopy(start)
    without.fit(states, Learning(rate=0.1), epochs=1)
    floored.fit(states, Learning(rate=0.1, floor=1e-30), epochs=1)
    assert torch.equal(floored.memories[2:], without.memories[2:])
    step = (floored.memories - start.memories)[:2]
    torch.testing.assert_close(step, -0.1 * gradient[:2] / 1e-30, rtol=1e-6, atol=1e-21)
    assert (without.memories - start.memories)[:2].abs().amax(1).tolist() == pytest.approx(
        [0.1] * 2
    )


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fit_is_bit_for_bit_the_optimiser_with_its_schedule(momentum):
    memory, states = learned(12, LeakyRectifiedPolynomial(4), count=6, classes=3), signs(5, 15)
    memory.float()
    learning = Learning(rate=0.2, decay=0.97, momentum=momentum, temperatures=(2.0, 0.7))
    twin = copy.deepcopy(memory).double()
    optimizer = NormalisedSGD([twin.memories], lr=0.2, momentum=momentum, free=3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    expected = []
    for epoch in range(20):
        twin.scaling = Normalised(2.0 + (0.7 - 2.0) * (epoch / 19))
        optimizer.zero_grad()
        loss = twin.loss(states)
        loss.backward()
        optimizer.step()
        schedule.step()
        expected.append(loss.detach())
    assert torch.equal(memory.fit(states.float(), learning, epochs=20), torch.stack(expected))
    assert torch.equal(memory.memories, twin.memories.float())
    assert memory.memories[:, 12:].abs().max() > 1 >= memory.memories[:, :12].abs().max()


def test_a_callback_follows_every_epoch_and_may_end_learning():
    memory, states = learned(12, Polynomial(3), count=4), signs(5, 12)
    start, seen = memory.memories.detach().clone(), []

    def watch(epoch, loss, now):
        seen.append((epoch, loss, now.scaling.temperature, now.memories.detach().clone()))
        assert torch.equal(memory.memories, start)
        if epoch == 3:
            raise StopIteration

    losses = memory.fit(states, Learning(temperatures=(4.0, 1.0)), epochs=7, callback=watch)
    epochs, values, temperatures, memories = zip(*seen, strict=True)
    assert epochs == (0, 1, 2, 3)
    assert values == tuple(losses.tolist())
    assert temperatures == (4.0, 3.5, 3.0, 2.5)
    assert torch.equal(memory.memories, memories[-1])
    assert not torch.equal(memories[0], memories[1])
    assert memory.scaling == Normalised(2.5)

    def fail(epoch, loss, now):
        raise KeyError(epoch)

    with pytest.raises(KeyError):
        memory.fit(states, epochs=2, callback=fail)
    assert torch.equal(memory.memories, memories[-1])


def test_fit_leaves_the_rest_of_the_world_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    memory, states = learned(12, Polynomial(3), count=4), signs(5, 12)
    state, before = torch.get_rng_state(), states.clone()
    assert memory.fit(states, epochs=0).shape == (0,)
    with torch.no_grad():
        memory.fit(states, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(states, before)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert memory.memories.grad is None


@pytest.mark.parametrize(
    ("scaling", "n", "loss"),
    [(Normalised(1e-4), 3, 4.0), (Normalised(1e6), 99, 1.0)],
    ids=["saturated", "vanishing"],
)
def test_where_nothing_can_learn_a_warning_says_why(scaling, n, loss):
    memory, states = DenseAssociativeMemory(12, Polynomial(n), scaling=scaling), signs(1, 12)
    memory.double().store(-states)  # which lets every neuron be the opposite, n being odd
    text = f"no memory learns in epoch 0: .*at a loss of {loss:g}\\."
    with pytest.warns(UserWarning, match=text) as caught:
        losses = memory.fit(states, epochs=3)
    assert len([w for w in caught if "learns" in str(w.message)]) == 1
    assert losses.tolist() == [loss] * 3
    assert torch.equal(memory.memories, -states)


def test_memories_of_classes_are_not_clamped():
    memory = learned(4, Polynomial(3), classes=2)
    with torch.no_grad():
        memory.memories.mul_(10)
    start = memory.memories.detach().clone()
    memory.clamp_()
    assert torch.equal(memory.memories[:, :4], start[:, :4].clamp(-1, 1))
    assert torch.equal(memory.memories[:, 4:], start[:, 4:])
    assert (start[:, 4:].abs() > 1).any()


# --------------------------------------------------------------- the rest of torch


def test_store_appends():
    memory, x = learned(6, Polynomial(3), count=2), signs(3, 6)
    start = memory.memories.detach().clone()
    assert memory.store(x) is memory
    assert torch.equal(memory.memories, torch.cat([start, x]))
    x.zero_()
    assert memory.memories[2:].abs().min() == 1  # a copy
    assert isinstance(memory.memories, torch.nn.Parameter)
    assert memory.memories.requires_grad
    frozen = learned(6, Polynomial(3)).requires_grad_(False)
    assert not frozen.store(signs(3, 6)).memories.requires_grad


def test_copies_and_state_dicts_with_more_or_fewer_memories_agree():
    memory, x = learned(6, Polynomial(3)), signs(9, 6)
    twins = [copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    for count in (0, 2, 5, 8):
        for frozen in (False, True):
            twin = DenseAssociativeMemory(6, Polynomial(3), memories=count).double()
            twin.requires_grad_(not frozen)
            before = twin.memories
            twin.load_state_dict(memory.state_dict())
            assert twin.memories.requires_grad is not frozen
            # Where they fit, an optimiser that knows the parameter goes on with it.
            assert (twin.memories is before) == (count == 5)
            twins.append(twin)
    for twin in twins:
        assert torch.equal(twin.energy(x), memory.energy(x))
        assert twin.memories.data_ptr() != memory.memories.data_ptr()
    for other in (DenseAssociativeMemory(7), DenseAssociativeMemory(6, classes=1)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            other.load_state_dict(memory.state_dict())


def test_its_repr_names_what_it_was_made_of():
    memory = DenseAssociativeMemory(6, Polynomial(3), memories=4, classes=2)
    assert repr(memory) == (
        "DenseAssociativeMemory(6, Polynomial(n=3), scaling=Normalised(temperature=1.0), "
        "memories=4, classes=2)"
    )
    assert "classes" not in repr(DenseAssociativeMemory(6))
    assert [memory.inputs, memory.classes, memory.size] == [6, 2, 8]


def test_random_memories_have_the_mean_and_spread_asked_for():
    torch.manual_seed(0)
    memory = DenseAssociativeMemory(200, memories=500, mean=-0.3, std=0.2).memories
    assert memory.mean().item() == pytest.approx(-0.3, abs=0.003)
    assert memory.std().item() == pytest.approx(0.2, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_recalls(dtype):
    patterns = signs(3, 40, dtype=dtype)
    probes = patterns.clone()
    probes[:, :5] *= -1
    for n in (3, 50):
        memory = DenseAssociativeMemory(40, RectifiedPolynomial(n)).to(dtype).store(patterns)
        for updates in (None, Synchronous()):
            value = memory.recall(probes, updates=updates).value
            assert torch.equal(value, patterns)
            assert value.dtype == dtype


# ------------------------------------------------------------------ graded neurons


@every_scaling
@pytest.mark.parametrize("interaction", [f for f in INTERACTIONS if f.is_convex], ids=repr)
def test_eliminated_energy_and_update_of_graded_neurons(interaction, scaling):
    memory, x = learned(8, interaction, scaling), normal(6, 8, seed=2)
    beta, inner = 0.7, memory.factors.inner
    ham = memory.as_ham(beta)
    assert ham.layers == ("state", "memories")
    reduced = eliminate(ham, ["memories"])
    g = torch.tanh(beta * x)
    up, down = (1 + g) / 2, (1 - g) / 2
    dual = (math.log(2) + up * up.log() + down * down.log()).sum(1) / beta
    similarities = inner * (g @ memory.memories.T)
    expected = dual - interaction(similarities).sum(1)
    torch.testing.assert_close(reduced.energy({"state": x}), expected, rtol=1e-11, atol=1e-12)
    update = (inner * interaction.derivative(similarities)) @ memory.memories
    torch.testing.assert_close(reduced.update({"state": x})["state"], update, rtol=1e-11, atol=0)
    # A copy: learning on does not change it.
    with torch.no_grad():
        memory.memories.zero_()
    torch.testing.assert_close(reduced.energy({"state": x}), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "interaction",
    [Polynomial(4), RectifiedPolynomial(3), LeakyRectifiedPolynomial(3), Exponential()],
    ids=repr,
)
def test_graded_neurons_recall_what_binary_ones_do_as_beta_grows(interaction):
    patterns = signs(5, 60)
    memory = DenseAssociativeMemory(60, interaction, scaling=Normalised(0.05)).double()
    memory.store(patterns)
    probes = patterns.clone()
    for i in range(5):
        probes[i, 3 * i : 3 * i + 8] *= -1
    expected = memory.recall(probes).value
    assert torch.equal(expected, patterns)
    energies = []
    for beta in (10.0, 100.0, 1000.0):
        reduced = eliminate(memory.as_ham(beta), ["memories"])
        state = {"state": probes}
        for _ in range(20):
            state = reduced.update(state)
        assert torch.equal(reduced.activations(state)["state"].sign(), expected)
        energies.append((reduced.energy(state) / memory.energy(expected) - 1).abs().max())
    # The entropy's part of N ln 2/β vanishes.
    assert energies[0] > 5 * energies[1] > 25 * energies[2]


def test_what_is_not_convex_has_no_graded_form():
    memory = learned(8, Polynomial(3))
    with pytest.raises(ValueError, match=r"convex function, got Polynomial\(n=3\); use an even n"):
        memory.as_ham()
    with pytest.raises(ValueError, match="memories: expected at least one, got none"):
        DenseAssociativeMemory(8, Polynomial(2)).as_ham()
