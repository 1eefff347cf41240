"""Binary memories against exact arithmetic: ties are ties, and what overflows is said to."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hamdeq.memories import (
    Asynchronous,
    DenseAssociativeMemory,
    Exponential,
    FeedForward,
    Interaction,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    Scaling,
    Synchronous,
)
from hamdeq.memories.fields import fields
from hamdeq.memories.states import signs


def states(size: int) -> Tensor:
    return torch.tensor([*itertools.product([-1.0, 1.0], repeat=size)])


def exact(memories: Tensor, x: Tensor, n: int, eps: str, scale: Fraction) -> list[list[Fraction]]:
    """Σ_μ [F(ON) − F(OFF)] of every state and neuron, in rational numbers."""

    def f(s: int) -> Fraction:
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
    ("n", "eps"), [(1, "0.5"), (1, "0.1"), (2, "0.25"), (2, "0.3"), (3, "1"), (40, "0.01")]
)
@pytest.mark.parametrize("scaling", [Normalised(), Normalised(0.7), Original()], ids=str)
def test_leaky_fields_have_the_exact_sign(n: int, eps: str, scaling: Scaling) -> None:
    ties = 0
    for size in (3, 4):
        inside = 1 / (size * Fraction(str(scaling.temperature)))
        scale = inside if isinstance(scaling, Normalised) else Fraction(1)
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            memories = torch.randint(0, 2, (5, size), generator=generator) * 2.0 - 1
            function = LeakyRectifiedPolynomial(n, float(eps))
            memory = DenseAssociativeMemory(size, function, scaling=scaling).store(memories)
            x = states(size)
            wanted = exact(memories, x, n, eps, scale)
            expected = torch.tensor([[1.0 if d >= 0 else -1.0 for d in row] for row in wanted])
            ties += sum(d == 0 for row in wanted for d in row)
            assert torch.equal(signs(memory.fields(x), x.dtype), expected)
            # One neuron at a time, and many networks at once, decide alike.
            once = {"max_steps": 1, "on_failure": "ignore"}
            together = memory.recall(x, updates=Synchronous(), **once).value
            assert torch.equal(together, expected)
            for i in range(size if size == 3 else 0):
                others = torch.arange(size) != i
                turned = memory.recall(x, clamped=others, updates=Asynchronous(), **once).value
                assert torch.equal(turned[:, i], expected[:, i])
            inner = torch.full((2, 1, 1), float(scale), dtype=torch.float64)
            both = fields(
                memories.expand(2, -1, -1), x.expand(2, -1, -1), function,
                inner if scaling.is_gauged else 1.0, gauged=scaling.is_gauged,
            )  # fmt: skip
            assert torch.equal(signs(both, x.dtype), expected.expand(2, -1, -1))
    assert ties > 0 or (n, eps) != (1, "0.5")


OVERFLOWS: list[tuple[Interaction, Scaling]] = [
    (Polynomial(100), Original()),
    (Polynomial(100), Original(0.5)),
    (RectifiedPolynomial(100), Original()),
    (LeakyRectifiedPolynomial(100), Original()),
    (Polynomial(200), Original(0.5)),
    (Exponential(), Normalised(1e-3)),
]


@pytest.mark.parametrize(("interaction", "scaling"), OVERFLOWS, ids=str)
def test_what_overflows_is_never_a_number(interaction: Interaction, scaling: Scaling) -> None:
    size, classes = 12, 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (6, size), generator=generator) * 2.0 - 1
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    memory = DenseAssociativeMemory(size, interaction, scaling=scaling).store(x)
    for path in (memory.energy, memory.predict, memory.loss):
        with pytest.raises(OverflowError, match="overflows"):
            path(x)
    answers = torch.ones(6, classes)
    memory = DenseAssociativeMemory(size, interaction, scaling=scaling, classes=classes)
    memory.store(torch.cat([x, answers], 1))
    for path in (memory.classify, lambda x: memory.class_loss(x, labels)):
        with pytest.raises(OverflowError, match="overflows"):
            path(x)
    layered = FeedForward(memory)
    for path in (layered.classify, lambda x: layered.class_loss(x, labels)):
        with pytest.raises(OverflowError, match="overflows"):
            path(x)


def test_a_factor_that_overflows_is_never_a_number() -> None:
    """Of states that say nothing of each other, whose margins are zero, it would be NaN."""
    memory = DenseAssociativeMemory(2, Polynomial(200), scaling=Original(0.5)).store(
        torch.tensor([[1.0, 1.0]])
    )
    memory.memories.data.fill_(0.0)
    for path in (memory.predict, memory.loss):
        with pytest.raises(OverflowError, match="factor"):
            path(torch.ones(1, 2))


@pytest.mark.parametrize("exponent", [1, 3])
def test_what_does_not_overflow_is_learned_as_before(exponent: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (6, 12), generator=generator) * 2.0 - 1
    memory = DenseAssociativeMemory(12, Polynomial(3), memories=4)
    loss = memory.loss(x, exponent)
    loss.backward()
    again = ((x - memory.predict(x)) ** (2 * exponent)).mean()
    (gradient,) = torch.autograd.grad(again, memory.memories)
    torch.testing.assert_close(loss, again)
    torch.testing.assert_close(memory.memories.grad, gradient)


@pytest.mark.parametrize("function", [Polynomial(43), RectifiedPolynomial(43)], ids=str)
def test_an_infinite_margin_is_no_perfect_prediction(function: Interaction) -> None:
    """F overflows at a state that is stored, and with a neuron turned over does not."""
    memory = DenseAssociativeMemory(8, function, scaling=Original()).store(torch.ones(1, 8))
    with pytest.raises(OverflowError, match="overflows"):
        memory.loss(torch.ones(1, 8))
    memory = DenseAssociativeMemory(7, function, scaling=Original(), classes=1)
    memory.store(torch.ones(1, 8))
    with pytest.raises(OverflowError, match="overflows"):
        memory.class_loss(torch.ones(1, 7), torch.tensor([0]))
