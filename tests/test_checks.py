"""Numbers of NumPy are taken wherever numbers of Python are, and kept as those of Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hamdeq as h
from hamdeq._checks import boolean, floating, instance, integer, number, one_of, whole
from hamdeq.memories import (
    DenseAssociativeMemory,
    HopfieldNetwork,
    Learning,
    Normalised,
    RectifiedPolynomial,
)
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling, functional

n, r = np.int64, np.float32
SIZES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Any]] = {
    "Neurons": (lambda: h.Neurons((n(4), n(2)), h.Identity()), lambda m: m.shape, (4, 2)),
    "Dense": (lambda: h.Dense(n(4), n(3)), lambda m: tuple(m.weight.shape), (4, 3)),
    "Bias": (lambda: h.Bias(n(4)), lambda m: tuple(m.bias.shape), (4,)),
    "chain": (
        lambda: h.HAM.chain(np.array([4, 3])),
        lambda m: tuple(m.synapses[0].weight.shape),
        (4, 3),
    ),
    "Conv2d": (
        lambda: h.Conv2d(n(2), n(3), (n(3), n(1)), stride=n(2)),
        lambda m: (m.out_channels, m.kernel_size, m.stride),
        (3, (3, 1), (2, 2)),
    ),
    "TwoLayer": (
        lambda: h.TwoLayer.model_b((n(5), n(3))),
        lambda m: sum(p.numel() for p in m.parameters()),
        15,
    ),
    "FunctionSynapse": (
        lambda: h.FunctionSynapse(lambda a, b: (a * b).sum(1), linear_in=[n(1)]),
        lambda m: m.linear_in,
        (1,),
    ),
    "HopfieldNetwork": (lambda: HopfieldNetwork(n(10)), lambda m: m.size, 10),
    "DenseAssociativeMemory": (
        lambda: DenseAssociativeMemory(n(10), RectifiedPolynomial(n(3)), memories=n(2)),
        lambda m: (m.size, m.interaction.n),
        (10, 3),
    ),
    "Learning": (lambda: Learning(exponent=n(2)), lambda m: m.exponent, 2),
    "Picard": (lambda: h.Picard(max_steps=n(4)), lambda m: m.max_steps, 4),
    "Anderson": (lambda: h.Anderson(history=n(4), patience=n(3)), lambda m: m.history, 4),
    "Broyden": (lambda: h.Broyden(history=n(4)), lambda m: m.history, 4),
    "Unrolled": (lambda: h.Unrolled(n(4)), lambda m: m.steps, 4),
    "Hopfield": (
        lambda: Hopfield(n(8), num_heads=n(2), hidden_size=n(3), update_steps_max=n(2)),
        lambda m: (m.input_size, m.num_heads, m.hidden_size, tuple(m(torch.ones(1, 4, 8)).shape)),
        (8, 2, 3, (1, 4, 8)),
    ),
    "updates of each head": (
        lambda: Hopfield(8, num_heads=2, update_steps_max=np.array([2, 1])),
        lambda m: m._groups,
        [((0,), 2), ((1,), 1)],
    ),
    "HopfieldPooling": (lambda: HopfieldPooling(n(8), quantity=n(2)), lambda m: m.quantity, 2),
    "HopfieldLayer": (lambda: HopfieldLayer(n(8), quantity=n(2)), lambda m: m.quantity, 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_integers_of_numpy_are_sizes(name):
    build, look, expected = SIZES[name]
    found = look(build())
    assert found == expected
    assert "int64" not in repr(found)


@pytest.mark.parametrize(
    "build",
    [
        lambda: h.Sigmoid(r(4), r(0.5)),
        lambda: h.Softmax(r(4)),
        lambda: h.HAM.chain([4, 3], gain=r(0.5)),
        lambda: Normalised(r(0.5)),
        lambda: Hopfield(8, scaling=r(0.5), dropout=r(0.5), update_steps_eps=r(0.5)),
        lambda: functional.retrieve(torch.ones(2, 3), torch.ones(4, 3), r(0.5), n(2)),
    ],
)
def test_real_numbers_of_numpy_are_numbers(build):
    build()


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    *(
        (lambda v=v: integer("a", v), ValueError, f"a: expected a positive integer, got {v!r}")
        for v in (True, np.True_, 1.0, np.float64(1.0), "1", None, 0, n(0))
    ),
    (lambda: integer("a", -1, least=0), ValueError, "a: expected an integer ≥ 0, got -1"),
    (lambda: number("a", "1"), TypeError, "a: expected a finite number, got str"),
    (lambda: number("a", True, above=0), TypeError, "a: expected a finite number > 0, got bool"),
    (lambda: number("a", 0.0, above=0), ValueError, "a: expected a finite number > 0, got 0.0"),
    (lambda: number("a", torch.inf), ValueError, "a: expected a finite number, got inf"),
    (lambda: number("a", torch.tensor(-1.0), least=0), ValueError, "a finite number ≥ 0, got -1.0"),
    (
        lambda: number("a", 1, above=0, below=1, remedy="halve it"),
        ValueError,
        "a: expected a finite number > 0 and < 1, got 1; halve it",
    ),
    (lambda: number("a", 1.5, most=1), ValueError, "a: expected a finite number ≤ 1, got 1.5"),
    (lambda: one_of("a", "x", ("b", "c")), ValueError, "a: expected 'b' or 'c', got 'x'"),
    (lambda: one_of("a", 3, (1, 2, 4)), ValueError, "a: expected 1, 2 or 4, got 3"),
    (lambda: one_of("a", "x", ("b",)), ValueError, "a: expected 'b', got 'x'"),
    (lambda: instance("a", 1, h.HAM), TypeError, "a: expected a HAM, got int"),
    (lambda: instance("a", h.HAM, h.Adjoint), TypeError, "an Adjoint, got the class HAM"),
    (lambda: floating("a", torch.ones(1).long()), TypeError, "tensor, got torch.int64"),
    (lambda: floating("a", 1.0, "wrap it"), TypeError, "point tensor, got float; wrap it"),
    (lambda: boolean("a", torch.ones(1)), TypeError, "a boolean tensor, got torch.float32"),
    (lambda: boolean("a", True), TypeError, "a: expected a boolean tensor, got bool"),
]


@pytest.mark.parametrize(("check", "kind", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_what_is_refused_is_named_with_what_was_expected(check, kind, message):
    with pytest.raises(kind) as found:
        check()
    assert str(found.value).endswith(message)
    assert str(found.value).startswith("a: expected ")


def test_what_fits_comes_back_in_the_type_that_the_code_goes_on_with():
    assert type(whole(n(3))) is type(integer("size", np.uint8(3))) is int
    assert type(number("rate", n(3))) is type(number("rate", torch.tensor(0.5))) is float
    assert number("rate", 1, least=1, most=1) == 1.0
    x = torch.ones(2)
    assert floating("x", x) is x
    assert boolean("mask", x > 0).all()
    assert one_of("way", "b", ("b", "c")) == "b"
