"""Error messages of synapses: the argument, what was expected, what came, what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusals import Refusal, assert_refused

from hamdeq import (
    HAM,
    Association,
    AvgPool2d,
    Bias,
    Composed,
    Conv2d,
    Dense,
    Flatten,
    FunctionSynapse,
    Identity,
    Lateral,
    LayerNorm,
    MaxPool2d,
    Neurons,
    SelfAttention,
    Synapse,
)
from hamdeq.testing import normal


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -(a * b).sum(-1)


def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -(a * b).sum()


A, B = normal(3, 4), normal(3, 4)
Case = tuple[Callable[[], Any], Refusal]

SIZES: list[Case] = [
    (make, (ValueError, name, "a positive integer", f"got {size!r}"))
    for size in (0, -3, 2.0, "4", None)
    for name, make in (
        ("n_from", lambda n=size: Dense(n, 3)),
        ("n_to", lambda n=size: Dense(3, n)),
        ("shape", lambda n=size: Bias((3, n))),
        ("shape", lambda n=size: Bias(n)),
        ("shape", lambda n=size: Neurons(n, Identity())),
        ("shape", lambda n=size: Association(1, n, 2, 2)),
        ("dim", lambda n=size: SelfAttention(n, 1, 1)),
        ("heads", lambda n=size: SelfAttention(1, n, 1)),
        ("head_dim", lambda n=size: SelfAttention(1, 1, n)),
        ("out_channels", lambda n=size: Conv2d(1, n, 1)),
    )
]

WINDOWS: list[Case] = [
    (
        make,
        (
            ValueError,
            name,
            "an integer ≥ 1, or two for height and width",
            f"got {re.escape(repr(size))}",
        ),
    )
    for size in (0, -1, 1.5, True, "same", (1,), (1, 2, 3), (2, 0), None)
    for name, make in (
        ("kernel_size", lambda n=size: Conv2d(1, 1, n)),
        ("kernel_size", lambda n=size: AvgPool2d(n)),
        ("kernel_size", lambda n=size: MaxPool2d(n)),
        ("stride", lambda n=size: Conv2d(1, 1, 1, stride=n)),
        ("dilation", lambda n=size: Conv2d(1, 1, 1, dilation=n)),
    )
]

ARGUMENTS: list[Case] = [
    (lambda: Conv2d(1, 1, 3, padding="same"),  # type: ignore[arg-type]
     (ValueError, "padding", "an integer ≥ 0", "got 'same'")),
    (lambda: Conv2d(3, 4, 1, groups=2),
     (ValueError, "in_channels", "a multiple of groups = 2", "got 3")),
    (lambda: Conv2d(4, 5, 1, groups=2),
     (ValueError, "out_channels", "a multiple of groups = 2", "got 5")),
    *(
        (call, (ValueError, name, "a finite number > 0", "got 0.0"))
        for name, call in (
            ("gain", lambda: Conv2d(1, 1, 1, gain=0.0)),
            ("gain", lambda: Dense(2, 2, gain=0.0)),
            ("gain", lambda: Lateral(2, gain=0.0)),
            ("beta", lambda: SelfAttention(2, 1, 1, beta=0.0)),
        )
    ),
    *(
        (lambda std=std: Bias(3, std=std), (ValueError, "std", "a finite number ≥ 0", f"got {std}"))
        for std in (-1.0, math.nan)
    ),
    *(
        (lambda kind=kind: kind(2, padding=2),
         (ValueError, "padding", r"at most half of kernel_size = \(2, 2\)", "outside of the image"))
        for kind in (AvgPool2d, MaxPool2d)
    ),
    (lambda: Lateral(1), (ValueError, "n", "an integer ≥ 2", "no neuron acts on itself")),
    (Composed, (ValueError, "maps", "at least one", "got none")),
    (lambda: Composed.of([]), (ValueError, "maps", "at least one", "got none")),
    (lambda: Composed(Flatten(), Bias(3)),  # type: ignore[arg-type]
     (TypeError, "maps", "synapses that are maps, such as Conv2d", "got Bias")),
    (lambda: Composed(Flatten),  # type: ignore[arg-type]
     (TypeError, "maps", "synapses that are maps, such as Conv2d", "got the class Flatten")),
    *(
        (lambda f=f: FunctionSynapse(f),  # type: ignore[arg-type]
         (TypeError, "function", "a function of activations", "got "))
        for f in (None, 3, "energy", Flatten)
    ),
    *(
        (lambda places=places: FunctionSynapse(product, linear_in=places),  # type: ignore[arg-type]
         (ValueError, "linear_in", r"places, such as \(0, 1\)", "got "))
        for places in (0, (-1,), (0.0,), (True,), "01", None)
    ),
]  # fmt: skip

CALLS: list[Case] = [
    (lambda: Conv2d(1, 1, 1).output_shape((1, 0, 4)),
     (ValueError, "shape", "a positive integer", "got 0")),
    (lambda: FunctionSynapse(total).energy(A, B),
     (ValueError, "total", r"one scalar a sample, of shape \(3,\)",
      r"got \(\), a sum over the batch; sum over the axes of each sample")),
    (lambda: FunctionSynapse(torch.mul).field(0, A, B),
     (ValueError, "mul", "one scalar a sample", r"got \(3, 4\); sum over the axes of each sample")),
    (lambda: FunctionSynapse(lambda a: 1.0).energy(A),  # type: ignore[arg-type, return-value]
     (TypeError, "<lambda>", r"a tensor of shape \(batch,\)", "got float")),
    (lambda: Dense(4, 4).double().field(2, A, B),
     (ValueError, "to", "place 0 or 1", "got 2")),
    (lambda: Lateral(4).double().field(1, A), (ValueError, "to", "place 0", "got 1")),
]  # fmt: skip

# Of a synapse, between layers a and b of two shapes, or of one layer alone.
CHANGE = "; change the synapse or the neurons$"
LAYERS: list[tuple[Callable[[], Synapse], list[Any], tuple[str, str, str]]] = [
    (lambda: Conv2d(1, 32, 5, stride=2), [(1, 28, 28), (32, 13, 13)],
     ("Conv2d", r"shape \(32, 12, 12\) for layer 'b', to which it maps \(1, 28, 28\)",
      r"got \(32, 13, 13\); give it the shape \(32, 12, 12\)")),
    (lambda: Conv2d(3, 4, 2), [(1, 4, 4), (4, 3, 3)],
     ("layer 'a': Conv2d", r"shape \(3, height, width\)", r"got \(1, 4, 4\)")),
    (lambda: Conv2d(1, 4, 2), [(16,), (4, 3, 3)],
     ("layer 'a': Conv2d", r"shape \(1, height, width\)", r"got \(16,\)")),
    (lambda: Conv2d(1, 4, 3, dilation=2, padding=(0, 1)), [(1, 4, 4), (4, 1, 1)],
     ("layer 'a': Conv2d", "an image of at least 5 × 5",
      r"got \(1, 4, 4\), of 4 × 6 with its padding; choose a smaller kernel or more padding")),
    (lambda: AvgPool2d(2), [(4, 4), (2, 2)],
     ("layer 'a': AvgPool2d", r"shape \(channels, height, width\)", r"got \(4, 4\)")),
    (lambda: MaxPool2d(5), [(1, 4, 4), (1, 1, 1)],
     ("layer 'a': MaxPool2d", "an image of at least 5 × 5", "of 4 × 4 with its padding")),
    (lambda: Composed(Conv2d(1, 2, 3), Flatten(), Dense(9, 3)), [(1, 4, 4), (3,)],
     ("layer 'a': Dense", r"shape \(9,\)", r"got \(8,\)")),
    (Flatten, [(2, 2), (5,)],
     ("Flatten", r"shape \(4,\) for layer 'b'", r"got \(5,\); give it the shape \(4,\)")),
    (lambda: Dense(3, 4), [3, (2, 2)],
     ("Dense", r"shape \(4,\) for layer 'b'", rf"got \(2, 2\){CHANGE}")),
    (lambda: Bias(2), [3], ("Bias", r"shape \(2,\) for layer 'a'", rf"got \(3,\){CHANGE}")),
    (lambda: Dense(3, 3), [3], ("Dense", "2 layers", "got 1 names; give one for each place")),
    (lambda: Bias(3), [3, 3], ("Bias", "1 layers", "got 2 names; give one for each place")),
    *(
        (lambda: SelfAttention(4, 1, 2), [shape],
         ("SelfAttention", r"shape \(tokens, 4\) for layer 'a'", CHANGE))
        for shape in (4, (3, 5), (2, 3, 4))
    ),
    (lambda: FunctionSynapse(product, linear_in=(0, 1)), [3],
     ("linear_in", "places 0 to 0 of 1 layers", r"got \(0, 1\)")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "refusal"), [*SIZES, *WINDOWS, *ARGUMENTS])
def test_an_argument_is_refused(call: Callable[[], Any], refusal: Refusal) -> None:
    assert_refused(refusal, call)


@pytest.mark.parametrize(("call", "refusal"), CALLS)
def test_a_wrong_call_is_refused(call: Callable[[], Any], refusal: Refusal) -> None:
    assert_refused(refusal, call)


@pytest.mark.parametrize(("make", "shapes", "refusal"), LAYERS)
def test_layers_that_do_not_fit_are_refused(
    make: Callable[[], Synapse], shapes: list[Any], refusal: tuple[str, str, str]
) -> None:
    neurons = {a: Neurons(shape, LayerNorm()) for a, shape in zip("ab", shapes, strict=False)}
    name, *message = refusal
    label = rf"connection \({', '.join(map(repr, neurons))},?\): {name}"
    assert_refused((ValueError, label, *message), lambda: HAM(neurons, [(tuple(neurons), make())]))
