"""One bit turned over: margins, signs and gradients, against both states of a neuron."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hamdeq.memories import (
    Asynchronous,
    DenseAssociativeMemory,
    Exponential,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    Synchronous,
    flips,
)
from hamdeq.memories.fields import fields as binary_fields
from hamdeq.memories.interactions import Factors
from hamdeq.testing import normal

INTERACTIONS = [
    Polynomial(2),
    Polynomial(5),
    RectifiedPolynomial(3),
    LeakyRectifiedPolynomial(3, 0.1),
    Exponential(),
]
INNER = 0.3  # similarities of a few units: neither flat nor steep
NEURONS = [slice(None), slice(4, None), slice(0, 1)]  # all, several, and few of eight


def signs(*shape, seed=0, dtype=torch.float64):
    return torch.where(normal(*shape, seed=seed) >= 0, 1.0, -1.0).to(dtype)


def from_scratch(memories, states, interaction, inner=1.0, neurons=slice(None)):
    """Σ_μ [F(ON) − F(OFF)] with both states of each neuron written out: ``(…, M, n)``."""
    results = []
    for i in range(states.shape[-1])[neurons]:
        on, off = states.clone(), states.clone()
        on[..., i], off[..., i] = 1.0, -1.0
        both = [interaction(inner * (x @ memories.mT)).sum(-1) for x in (on, off)]
        results.append(both[0] - both[1])
    return torch.stack(results, -1)


def networks(lead, count=5, size=8, batch=6):
    memories = 0.5 * normal(*lead, count, size)
    return memories, signs(*lead, batch, size, seed=1)


def fields_of(memories, states, interaction, scaling, size):
    """The fields of a memory with this scaling."""
    inner = scaling.factors(size, interaction).inner
    return binary_fields(memories, states, interaction, inner, gauged=scaling.is_gauged)


@pytest.mark.parametrize("neurons", NEURONS, ids=str)
@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize("interaction", INTERACTIONS, ids=repr)
def test_margins_are_those_of_both_states(interaction, lead, neurons):
    memories, states = networks(lead)
    expected = from_scratch(memories, states, interaction, INNER, neurons)
    margins = flips.margins(memories, states, interaction, INNER, neurons)
    torch.testing.assert_close(margins, expected, rtol=1e-12, atol=1e-13)
    if lead:  # a scale for each network
        inner = torch.rand(*lead, 1, 1, dtype=torch.float64) + 0.1
        margins = flips.margins(memories, states, interaction, inner, neurons)
        expected = from_scratch(memories, states, interaction, inner, neurons)
        torch.testing.assert_close(margins, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("interaction", INTERACTIONS, ids=repr)
@pytest.mark.parametrize("scaling", [Normalised(0.7), Original(2.0)], ids=repr)
def test_fields_are_margins_up_to_a_positive_factor_for_each_state(interaction, scaling):
    memories, states = networks(())
    inner = scaling.factors(8, interaction).inner
    expected = from_scratch(memories, states, interaction, inner)
    ratio = fields_of(memories, states, interaction, scaling, 8) / expected
    assert (ratio > 0).all()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-9, atol=0)
    if scaling == Original(2.0):
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-9, atol=0)


# ------------------------------------------------------------------ signs


def power_tables(n, reach):
    x = range(-reach, reach + 1)
    yield Polynomial(n), np.array([i**n for i in x], dtype=object)
    yield RectifiedPolynomial(n), np.array([max(i, 0) ** n for i in x], dtype=object)


def exact(memories, states, table):
    """The margins in integers of any length."""
    z, x, reach = memories.long().numpy(), states.long().numpy(), len(table) // 2
    total = np.zeros(x.shape, dtype=object)
    for row in z:
        own = (x @ row)[:, None]
        difference = table[own + reach] - table[own - 2 * x * row + reach]
        total = total + np.where(x > 0, difference, -difference)
    return torch.tensor((total >= 0).astype(bool))


@pytest.mark.parametrize("n", [2, 5, 20, 100])
def test_signs_are_those_of_long_integers(n):
    torch.manual_seed(n)
    size = 100
    memories, states = signs(12, size, dtype=torch.float32), signs(200, size, seed=1).float()
    for interaction, table in power_tables(n, size + 2):
        expected = exact(memories, states, table)
        memory = DenseAssociativeMemory(size, interaction).store(memories)
        assert torch.equal(memory.fields(states) >= 0, expected)
        walk = memory._walk(states)  # one neuron at a time
        for i in range(0, size, 9):
            assert torch.equal(walk.field(i) >= 0, expected[:, i])
        if n <= 5:  # the original one, where float64 has room for every digit
            original = DenseAssociativeMemory(size, interaction, scaling=Original()).double()
            fields = original.store(memories.double()).fields(states.double())
            assert torch.equal(fields >= 0, expected)


@pytest.mark.parametrize(("size", "copies"), [(7, 3), (30, 6), (99, 7), (100, 11)])
def test_memories_that_cancel_leave_the_word_to_the_faint_ones(size, copies):
    wrong = 0
    for seed in range(3):
        # Memories with neuron 0 up and down in equal number, and few that are far from both.
        a = signs(1, size, seed=seed)
        b = a.clone()
        b[0, 0] *= -1
        faint = a * torch.where(normal(3, size, seed=seed + 50) < -0.6, -1.0, 1.0)
        memories = torch.cat([a.expand(copies, -1), faint, b.expand(copies, -1)])
        for n in (20, 51, 100):
            for interaction, table in power_tables(n, size + 2):
                expected = exact(memories, a, table)
                memory = DenseAssociativeMemory(size, interaction).double().store(memories)
                wrong += int(((memory.fields(a) >= 0) != expected).sum())
                wrong += int(((memory._walk(a).field(0) >= 0) != expected[:, 0]).sum())
    assert wrong == 0


@pytest.mark.parametrize("temperature", [0.3, 0.9, 7.0])
@pytest.mark.parametrize("interaction", [Exponential(), LeakyRectifiedPolynomial(3)], ids=repr)
def test_ties_are_exact_whatever_the_scale_inside(interaction, temperature):
    for size in (2, 3, 7, 20, 33, 59):
        down = signs(1, size, seed=size)
        down[0, 0] = -1.0
        up = down.clone()
        up[0, 0] = 1.0
        memory = DenseAssociativeMemory(size, interaction, scaling=Normalised(temperature))
        memory.double().store(torch.cat([down, up]))
        # Either memory is as near: the neuron takes +1.
        assert memory.fields(down)[0, 0] == 0
        assert memory._walk(down).field(0) == 0


def rational(memories, x, n, eps, scale):
    """Σ_μ [F(ON) − F(OFF)] of every state and neuron, in rational numbers."""

    def f(s):
        return (scale * s) ** n if s >= 0 else -Fraction(eps) * scale * s

    found = []
    for state in x.int().tolist():
        row = []
        for i, own in enumerate(state):
            total = Fraction(0)
            for memory in memories.int().tolist():
                rest = sum(a * b for a, b in zip(memory, state, strict=True)) - memory[i] * own
                total += f(rest + memory[i]) - f(rest - memory[i])
            row.append(total)
        found.append(row)
    return found


@pytest.mark.parametrize(
    ("n", "eps"),
    [(1, "0.5"), (1, "-0.1"), (2, "0.3"), (3, "1"), (3, "-0.5"), (40, "0.01"), (40, "-0.01")],
)
@pytest.mark.parametrize("scaling", [Normalised(0.7), Original()], ids=str)
def test_leaky_fields_have_the_exact_sign(n, eps, scaling):
    ties = 0
    for size in (3, 4):
        inside = 1 / (size * Fraction(str(scaling.temperature)))
        scale = inside if isinstance(scaling, Normalised) else Fraction(1)
        for seed in range(1):
            generator = torch.Generator().manual_seed(seed)
            memories = torch.randint(0, 2, (5, size), generator=generator) * 2.0 - 1
            function = LeakyRectifiedPolynomial(n, float(eps))
            memory = DenseAssociativeMemory(size, function, scaling=scaling).store(memories)
            x = torch.tensor([*itertools.product([-1.0, 1.0], repeat=size)])
            wanted = rational(memories, x, n, eps, scale)
            expected = torch.tensor([[1.0 if d >= 0 else -1.0 for d in row] for row in wanted])
            ties += sum(d == 0 for row in wanted for d in row)
            assert torch.equal(torch.where(memory.fields(x) >= 0, 1.0, -1.0), expected)
            # One neuron at a time, and many networks at once, decide alike.
            once = {"max_steps": 1, "on_failure": "ignore"}
            together = memory.recall(x, updates=Synchronous(), **once).value
            assert torch.equal(together, expected)
            for i in range(size if size == 3 else 0):
                others = torch.arange(size) != i
                turned = memory.recall(x, clamped=others, updates=Asynchronous(), **once).value
                assert torch.equal(turned[:, i], expected[:, i])
            inner = torch.full((2, 1, 1), float(scale), dtype=torch.float64)
            both = binary_fields(
                memories.expand(2, -1, -1), x.expand(2, -1, -1), function,
                inner if scaling.is_gauged else 1.0, gauged=scaling.is_gauged,
            )  # fmt: skip
            assert torch.equal(torch.where(both >= 0, 1.0, -1.0), expected.expand(2, -1, -1))
    assert ties > 0 or (n, eps) != (1, "0.5")


@pytest.mark.parametrize("n", [2, 3, 20, 100])
def test_scale_inside_a_power_leaves_every_sign(n):
    memories = normal(12, 100).clamp(-1, 1)  # learned ones are no integers
    states = signs(100, 100, seed=1)
    for interaction in (Polynomial(n), RectifiedPolynomial(n)):
        fields = [
            fields_of(memories, states, interaction, scaling, 100)
            for scaling in (Original(), Normalised(), Normalised(0.01))
        ]
        assert all(torch.equal(f >= 0, fields[0] >= 0) for f in fields[1:])
        # And without the gauge: F of the scaled similarities themselves.
        plain = flips.margins(memories, states, interaction, 1 / 90)
        assert torch.equal(plain >= 0, fields[0] >= 0)


def test_scale_inside_an_exponential_turns_an_update_over():
    # One memory that is the state, and three that agree with half of it and not with neuron 0.
    memories = torch.ones(4, 8)
    memories[1:, 0] = -1.0
    memories[1:, 5:] = -1.0
    state = torch.ones(1, 8)
    assert (state @ memories.T).tolist() == [[8.0, 0.0, 0.0, 0.0]]
    results = {}
    for scaling in (Original(), Normalised(1 / 8), Normalised()):
        memory = DenseAssociativeMemory(8, Exponential(), scaling=scaling).store(memories)
        results[scaling] = float(memory.fields(state)[0, 0])
    # e⁸ − e⁶ − 3(e² − 1) > 0, but with an eighth of each exponent e − e^¾ − 3(e^¼ − 1) < 0.
    assert results[Original()] > 0
    assert results[Normalised(1 / 8)] > 0
    assert results[Normalised()] < 0
    for interaction in (Polynomial(3), RectifiedPolynomial(3)):
        for scaling in results:
            memory = DenseAssociativeMemory(8, interaction, scaling=scaling).store(memories)
            assert memory.fields(state)[0, 0] > 0


@pytest.mark.parametrize("size", [1e-70, 1e-20, 1e60])
def test_tiny_and_huge_memories_neither_vanish_nor_overflow(size):
    memories, states = networks(())
    for interaction in (Polynomial(5), RectifiedPolynomial(101)):
        expected = fields_of(memories, states, interaction, Normalised(), 8)
        fields = fields_of(size * memories, states, interaction, Normalised(), 8)
        assert torch.equal(fields >= 0, expected >= 0)
        assert fields.isfinite().all()
        assert fields.any(1).all()


# ------------------------------------------------------- loss and gradient


def error_from_scratch(memories, states, targets, interaction, factors, exponent, neurons):
    margins = from_scratch(memories, states, interaction, factors.inner, neurons)
    predicted = torch.tanh(factors.outer * margins)
    return ((targets - predicted) ** (2 * exponent)).sum((-2, -1)), predicted


@pytest.mark.parametrize("neurons", NEURONS, ids=str)
@pytest.mark.parametrize("exponent", [1, 3])
@pytest.mark.parametrize("interaction", INTERACTIONS, ids=repr)
def test_gradient_is_that_of_autograd_and_of_finite_differences(interaction, exponent, neurons):
    memories, states = networks((2,))
    memories.requires_grad_()
    inner = torch.tensor([0.3, 0.2], dtype=torch.float64).reshape(2, 1, 1)
    factors = Factors(inner, inner + 0.1)  # type: ignore[arg-type]
    targets = signs(*states[..., neurons].shape, seed=2)
    rest = (states, targets, interaction, factors, exponent, neurons)
    loss, gradient, predicted = flips.loss_and_gradient(memories.detach(), *rest)
    expected, of_scratch = error_from_scratch(memories, *rest)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(predicted, of_scratch.detach(), rtol=1e-12, atol=1e-13)
    (by_autograd,) = torch.autograd.grad(expected.sum(), memories)
    torch.testing.assert_close(gradient, by_autograd, rtol=1e-11, atol=1e-12)
    assert gradient.flatten(1).abs().amax(1).min() > 1e-3
    # Margins are differentiable too.
    c = torch.tanh(factors.outer * flips.margins(memories, states, interaction, inner, neurons))
    of_margins = ((targets - c) ** (2 * exponent)).sum()
    (by_autograd,) = torch.autograd.grad(of_margins, memories)
    torch.testing.assert_close(gradient, by_autograd, rtol=1e-11, atol=1e-12)
    # A kink of F may lie within the step, so that ratios are compared where there is none.
    step, direction = 1e-6, normal(*memories.shape, seed=3)
    plus, minus = (
        flips.loss_and_gradient(memories.detach() + sign * step * direction, *rest)[0]
        for sign in (1, -1)
    )
    slope = (gradient * direction).sum((1, 2))
    torch.testing.assert_close((plus - minus) / (2 * step), slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize("exponent", [1, 3])
@pytest.mark.parametrize("interaction", [Polynomial(3), LeakyRectifiedPolynomial(4)])
def test_gradient_of_few_neurons_is_that_of_a_block(lead, exponent, interaction, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    factors = Factors(0.2 + draw(1, 1).abs() if lead else 0.3, 0.7)  # type: ignore[arg-type]
    given = (0.3 * draw(7, 60), draw(11, 60), draw(11, 4).sign())
    rest = (interaction, factors, exponent, slice(56, None))
    wanted = flips.loss_and_gradient(*given, *rest, kernel=flips.error_of_block)
    for block, span in ((2**18, 2**22), (60, 2**22), (60, 35)):
        monkeypatch.setattr(flips, "_BLOCK", block)
        monkeypatch.setattr(flips, "_SPAN", span)
        for one, other in zip(flips.loss_and_gradient(*given, *rest), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    memories, states = networks((2,))
    targets = signs(*states.shape, seed=2)
    interaction, factors = RectifiedPolynomial(3), Factors(INNER, 1.0)
    results = []
    assert [flips.are_few(memories, s) for s in NEURONS] == [False, False, True]
    for block, rows in ((2**18, 3276), (200, 2), (1, 1)):  # states at a time
        monkeypatch.setattr(flips, "_BLOCK", block)
        assert flips._rows(memories, slice(None)) == rows
        results.append(
            [
                *flips.loss_and_gradient(memories, states, targets, interaction, factors),
                *flips.loss_and_gradient(
                    memories, states, targets[..., 7:], interaction, factors, 1, slice(7, None)
                ),
                flips.margins(memories, states, interaction),
                fields_of(memories, states, interaction, Normalised(), 8),
            ]
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_networks_side_by_side_do_not_see_one_another():
    memories, states = networks((3,))
    targets = signs(*states.shape, seed=2)
    inner = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    factors = Factors(inner.reshape(3, 1, 1), 1 / inner.reshape(3, 1, 1))  # type: ignore[arg-type]
    together = flips.loss_and_gradient(memories, states, targets, Polynomial(3), factors, 2)
    for i, x in enumerate(inner.tolist()):
        alone = flips.loss_and_gradient(
            memories[i], states[i], targets[i], Polynomial(3), Factors(x, 1 / x), 2
        )
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-14)
    # The same states for all need no copies.
    shared = (states[0], targets[0], Polynomial(3), factors)
    copied = (states[:1].expand(3, -1, -1), targets[:1].expand(3, -1, -1), Polynomial(3), factors)
    for a, b in zip(
        flips.loss_and_gradient(memories, *shared),
        flips.loss_and_gradient(memories, *copied),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_no_states_have_no_loss_and_no_gradient():
    memories, _ = networks((2,))
    none = memories.new_zeros(2, 0, 8)
    loss, gradient, predicted = flips.loss_and_gradient(
        memories, none, none, Polynomial(3), Factors(1.0, 1.0)
    )
    assert torch.equal(loss, memories.new_zeros(2))
    assert torch.equal(gradient, torch.zeros_like(memories))
    assert predicted.shape == none.shape
    assert flips.margins(memories, none, Polynomial(3)).shape == none.shape


def test_second_derivative_of_the_loss_is_refused():
    memory = DenseAssociativeMemory(8, memories=5).double()
    (gradient,) = torch.autograd.grad(memory.loss(signs(6, 8)), memory.memories, create_graph=True)
    with pytest.raises(RuntimeError, match="no derivative; make the loss from predict"):
        torch.autograd.grad(gradient.sum(), memory.memories, retain_graph=True)
    # Nor is it zero in silence when something else is differentiated along with it.
    with pytest.raises(RuntimeError, match="no derivative"):
        (memory.memories.sum() + gradient.square().sum()).backward()
    # That of predictions is there.
    loss = (signs(6, 8) - memory.predict(signs(6, 8))).square().mean()
    (again,) = torch.autograd.grad(loss, memory.memories, create_graph=True)
    torch.testing.assert_close(again, gradient, rtol=1e-12, atol=1e-15)
    (second,) = torch.autograd.grad(again.square().sum(), memory.memories)
    assert second.any()


class Largest(TorchDispatchMode):
    """The most elements that any tensor has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("interaction", [Polynomial(20), Exponential()], ids=repr)
def test_no_tensor_grows_with_both_states_and_neurons_squared(interaction):
    size = count = batch = 100
    memory = DenseAssociativeMemory(size, interaction, memories=count)
    binary = DenseAssociativeMemory(size, interaction).store(signs(count, size).float())
    states = signs(batch, size, seed=1).float()
    with Largest() as watch:
        memory.loss(states).backward()
        memory.predict(states)
        memory.fields(states)
        binary.fields(states)  # where terms cancel
    # All at once would be a million for each of N·N·K and of batch·K·N.
    assert watch.elements <= 2 * flips._BLOCK
    assert watch.elements >= size * count
