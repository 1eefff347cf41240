"""Error messages of ``hamdeq.nn``: the argument, what was expected, what came, what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusals import Refusal, assert_refused
from torch import nn

from hamdeq import Anderson, Softmax
from hamdeq.nn import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
    functional,
)
from hamdeq.nn.inputs import elementwise
from hamdeq.testing import normal

D, N, S = 8, 2, 4
X = normal(N, S, D)
INF, NAN = math.inf, math.nan
BARE: dict[str, Any] = {
    **{
        f"{name}_as_static": True
        for name in ("stored_pattern", "state_pattern", "pattern_projection")
    },
    "disable_out_projection": True,
}
NO_NORMS = {
    f"normalize_{name}": False for name in ("stored_pattern", "state_pattern", "pattern_projection")
}
# Arguments of Hopfield, beside an input size of 8 and 2 heads.
ARGUMENTS: list[tuple[dict[str, Any], Refusal]] = [
    *(
        ({"association_activation": name},
         (ValueError, "association_activation", "the name of an elementwise function",
          f"such as relu.*got {name!r}"))
        for name in ("zeros", "reluu", "sum", "softmax", "normalize", "fliplr", "rand_like", "nn",
                     "", "float32", "relu6 ", "relu_", "detach", "cumsum", "tensor", "triu")
    ),
    ({"association_activation": 3},
     (TypeError, "association_activation", "a name or a function", "got int")),
    ({"num_heads": 3}, (ValueError, "num_heads", "a divisor of input_size = 8", "3; .*hidden")),
    *(
        ({name: value}, (ValueError, name, "a positive integer", f"got {value!r}"))
        for name, value in (("num_heads", 0), ("num_heads", 2.0), ("hidden_size", -1),
                            ("pattern_size", "3"), ("num_heads", None))
    ),
    ({"input_size": None}, (ValueError, "input_size", "the size of the state patterns", "None")),
    ({"pattern_projection_as_connected": True, "stored_pattern_size": 5},
     (ValueError, "pattern_projection_as_connected",
      "stored patterns and pattern projections of one size", "5 and 8")),
    ({"pattern_projection_as_connected": True, "pattern_projection_as_static": True,
      "pattern_size": 3}, (ValueError, "pattern_size", "hidden_size", "3 and hidden_size 4")),
    *(
        ({"scaling": beta},
         (ValueError, "scaling", "a finite inverse temperature β > 0", "sharply"))
        for beta in (0, -1.0, INF, NAN, torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0]),
                     torch.tensor([1.0, NAN]))
    ),
    *(
        ({"scaling": torch.ones(shape)},
         (ValueError, "scaling", r"one β for each of 2 heads, shape \(2,\)", ""))
        for shape in ((1,), (3,), (2, 1))
    ),
    *(
        ({"scaling": beta}, (TypeError, "scaling", "a number β > 0 or a tensor", ""))
        for beta in ("1", True)
    ),
    *(
        ({"update_steps_max": n}, (TypeError, "update_steps_max", ".*integer", "got"))
        for n in (1.5, "3", True, [1.0, 2], [True, 1], [1, "2"], torch.tensor([1.0, 2.0]))
    ),
    *(
        ({"update_steps_max": n},
         (ValueError, "update_steps_max", "one integer for each of 2 heads", f"got {len(n)}"))
        for n in ([1], (1, 2, 3), torch.tensor([1, 2, 3]), [])
    ),
    *(
        ({"update_steps_eps": eps}, (kind, "update_steps_eps", "a finite number > 0", "1e-4"))
        for eps, kind in ((0, ValueError), (-1e-3, ValueError), (NAN, ValueError),
                          (INF, ValueError), ("a", TypeError), (None, TypeError))
    ),
    ({"update_steps_eps": torch.ones(3)},
     (ValueError, "update_steps_eps", "one number, or one for each of 2 heads", "(3,)")),
    ({"update_steps_eps": 1e-2, "solver": Anderson()},
     (ValueError, "update_steps_eps", "the tolerance once",
      r"0\.01 here and 0\.0001 in the solver.*Anderson\(tol=0\.01\)")),
    *(
        ({"dropout": p}, (kind, "dropout", "a finite number ≥ 0 and ≤ 1", "probability"))
        for p, kind in ((-0.1, ValueError), (1.1, ValueError), (NAN, ValueError),
                        ("0.1", TypeError), (None, TypeError))
    ),
    ({"lagrangian": "softmax"},
     (TypeError, "lagrangian", r"a hamdeq\.Separation, such as Softmax", "got str")),
    ({"lagrangian": Softmax(2.0)}, (ValueError, "lagrangian", "beta 1", "scaling")),
    ({"lagrangian": Softmax(learnable=True)},
     (ValueError, "lagrangian", "beta 1", "scaling_as_trainable=True")),
    ({"solver": "picard"}, (TypeError, "solver", r"a hamdeq\.Solver", "got str")),
    ({"adjoint": "implicit"}, (TypeError, "adjoint", r"a hamdeq\.Adjoint", "got str")),
    ({"on_failure": "explode"}, (ValueError, "on_failure", "'warn', 'raise' or 'ignore'", "")),
    (BARE | {"input_size": None},
     (ValueError, "normalize_stored_pattern", "the size of the patterns", "give it, or")),
    (BARE | NO_NORMS | {"concat_bias_pattern": True},
     (ValueError, "concat_bias_pattern", "the sizes of the patterns", "give both")),
    (BARE | NO_NORMS | {"normalize_hopfield_space": True, "normalize_hopfield_space_affine": True},
     (ValueError, "normalize_hopfield_space_affine", "the size of the association space",
      "give hidden_size")),
]  # fmt: skip

# Inputs and masks of a Hopfield of size 8 with 2 heads.
CALLS: list[tuple[Callable[[Any], Any], Refusal]] = [
    (lambda m: m(X.long()),
     (TypeError, "stored patterns", "a floating-point tensor", r"int64.*x\.float\(\)")),
    (lambda m: m(X.float()),
     (TypeError, "input", r"torch\.float64 as of the weights", r"torch\.float32; .*\.to\(")),
    (lambda m: m((X, X)), (TypeError, "input", "a tensor, or three", r"\['Tensor', 'Tensor'\]")),
    (lambda m: m((X,) * 4), (TypeError, "input", "a tensor, or three", "")),
    (lambda m: m((X, None, X)), (TypeError, "input", "a tensor, or three", "NoneType")),
    (lambda m: m(X.to_sparse()),
     (TypeError, "stored patterns", "a dense tensor", r"sparse.*x\.to_dense")),
    (lambda m: m(X[0, 0]), (ValueError, "input", "tensors of three axes", r"shapes \[\(8,\)")),
    (lambda m: m((X, X[0], X)), (ValueError, "input", "tensors of three axes", r"\(4, 8\)")),
    (lambda m: m(X[..., :5]),
     (ValueError, "stored patterns", "size 8 on the last axis", r"\(2, 4, 5\)")),
    (lambda m: m((X, X[..., :5], X)), (ValueError, "state patterns", "size 8", "")),
    (lambda m: m((X, X, X[..., :5])), (ValueError, "pattern projections", "size 8", "")),
    (lambda m: m((X, X[[0, 1, 0]], X)), (ValueError, "input", "one batch size", "2, 3 and 2")),
    (lambda m: m((X, X, X[:, :3])),
     (ValueError, "pattern projections", "one for each of the 4 stored patterns", "got 3")),
    (lambda m: m(X, torch.zeros(N, S, dtype=torch.uint8)),
     (TypeError, "stored_pattern_padding_mask", "a boolean mask", r"uint8.*mask\.bool\(\)")),
    (lambda m: m(X, torch.tensor([[1, 1, 1, 0]] * N)),
     (TypeError, "stored_pattern_padding_mask", "a boolean mask",
      r"1 means keep .* give mask == 0; .*mask\.bool\(\)")),
    (lambda m: m(X, None, torch.zeros(S, S, dtype=torch.long)),
     (TypeError, "association_mask", "a boolean mask", "int64")),
    (lambda m: m(X, [[True] * S] * N),
     (TypeError, "stored_pattern_padding_mask", "a tensor", "got list")),
    (lambda m: m(X, torch.zeros(S, N)),
     (ValueError, "stored_pattern_padding_mask", r"shape \(N, S\) = \(2, 4\)", r"got \(4, 2\)")),
    (lambda m: m(X, None, torch.zeros(N, S, S)),
     (ValueError, "association_mask",
      r"shape \(L, S\) = \(4, 4\) or \(N·H, L, S\) = \(4, 4, 4\)", "got")),
    (lambda m: m(X, None, torch.zeros(2, 2, 4, 4)),
     (ValueError, "association_mask", "shape", r"got \(2, 2, 4, 4\)")),
]  # fmt: skip

# The states are (2, 3, 8), the stored patterns (2, 5, 8).
R, Y = normal(2, 3, D), normal(2, 5, D)
FUNCTIONS: list[tuple[dict[str, Any], Refusal]] = [
    ({"state": R[0, 0]},
     (ValueError, "state", r"a tensor \(…, patterns, size\)", r"\(8,\); .*pattern\[None")),
    ({"stored": Y.long()}, (TypeError, "stored", "a floating-point tensor", "int64")),
    ({"state": [1.0]}, (TypeError, "state", "a floating-point tensor", "got list")),
    ({"state": R[..., :3]},
     (ValueError, "state", r"patterns of the size and dtype.*\(8, torch.float64\)", r"\(3")),
    ({"state": R.float()}, (ValueError, "state", "patterns of the size and dtype", "float32")),
    ({"state": R[:1].expand(3, 3, D)},
     (ValueError, "state", r"leading axes.*\(2,\)", r"got \(3,\)")),
    *(
        ({"beta": beta}, (ValueError, "beta", "(a finite number|finite numbers) > 0", "got"))
        for beta in (0, -1.0, INF, NAN, torch.tensor(NAN), torch.tensor(-1.0))
    ),
    ({"beta": "1"}, (TypeError, "beta", "a finite number > 0", "got str")),
    *(
        ({"beta": torch.ones(shape)},
         (ValueError, "beta", r"a shape that broadcasts to \(2, 3, 1\)", "got"))
        for shape in ((4,), (3,), (2, 3, 4), (1, 2, 3, 1))
    ),
    *(
        ({"mask": torch.zeros(shape)},
         (ValueError, "mask", r"a shape that broadcasts to \(2, 3, 5\)", "got"))
        for shape in ((3,), (2, 5), (3, 3, 5), (1, 2, 3, 5))
    ),
    ({"mask": torch.zeros(3, 5, dtype=torch.uint8)},
     (TypeError, "mask", "a boolean mask", r"uint8; .*mask == 0; .*mask\.bool\(\)")),
    ({"mask": [True] * 5}, (TypeError, "mask", "a boolean mask", "got list")),
    ({"lagrangian": "softmax"},
     (TypeError, "lagrangian", r"a hamdeq\.Separation such as Sparsemax", "got str")),
    ({"lagrangian": Softmax(2.0)}, (ValueError, "lagrangian", "one at beta 1", "as beta")),
    ({"lagrangian": Softmax(learnable=True)}, (ValueError, "lagrangian", "one at beta 1", "")),
]  # fmt: skip

OWN = Hopfield(D)
LEARNED: list[tuple[Callable[[], Any], Refusal]] = [
    (lambda: Hopfield(**BARE, **NO_NORMS)((X, X[..., :5], X)),
     (ValueError, "static patterns", "state and stored patterns of one size", "5 and 8")),
    (lambda: Hopfield(D, hidden_size=3, stored_pattern_as_static=True, **NO_NORMS)(X.float()),
     (ValueError, "stored patterns", "size 3", "static patterns enter every head")),
    (lambda: Hopfield(**BARE, **NO_NORMS).as_ham(3),
     (ValueError, "as_ham", "the size of the association space", "give hidden_size")),
    (lambda: OWN.energy(X.float(), steps=-1), (ValueError, "steps", "an integer ≥ 0", "got -1")),
    *(
        (lambda kind=kind, n=n: kind(D, quantity=n),
         (ValueError, "quantity", "a positive integer", f"got {n!r}"))
        for kind in (HopfieldPooling, HopfieldLayer) for n in (0, 1.5, True, None)
    ),
    (lambda: HopfieldPooling(D)((X, X, X)), (TypeError, "input", "a tensor, or two", "Tensor")),
    (lambda: HopfieldLayer(D)((X, X)),
     (TypeError, "input", "a tensor of state patterns", "got tuple")),
    *(
        (lambda kind=kind: kind(D)(X[..., :5].float()), (ValueError, ".*", "size 8", r"4, 5\)"))
        for kind in (HopfieldPooling, HopfieldLayer)
    ),
    (lambda: setattr(HopfieldPooling(D, num_heads=2), "scaling", torch.ones(3)),
     (ValueError, "scaling", "one β for each of 2 heads", "")),
    (lambda: setattr(OWN, "scaling", "1"), (TypeError, "scaling", "a number β > 0", "")),
    (lambda: functional.retrieve(R, Y, 1.0, -1),
     (ValueError, "steps", "an integer ≥ 0, or None", "got -1")),
    (lambda: functional.retrieve(R, Y, 1.0, 1.5), (ValueError, "steps", "an integer ≥ 0", "")),
    (lambda: functional.error_bound(Y[:, :0]), (ValueError, "stored", "at least one", "")),
    (lambda: functional.metastability(torch.tensor([1.5, -0.5])),
     (ValueError, "weights", "none that is negative", r"-0\.5.*not their sim")),
    *(
        (lambda mass=mass: functional.metastability(torch.ones(3) / 3, mass=mass),
         (ValueError, "mass", "a finite number > 0 and ≤ 1", "got"))
        for mass in (0, -0.1, 1.1, NAN)
    ),
    *(
        (lambda build=build: build(), (ValueError, "hopfield_association",
         "an output of the size of its input", "output_size"))
        for build in (
            lambda: HopfieldEncoderLayer(Hopfield(D, output_size=4)),
            lambda: HopfieldEncoderLayer(Hopfield(D, 3, disable_out_projection=True)),
        )
    ),
    (lambda: HopfieldDecoderLayer(OWN, Hopfield(4)),
     (ValueError, "hopfield_association_cross", "the input size of .*, 8", "got 4")),
    (lambda: HopfieldDecoderLayer(OWN, Hopfield(D, batch_first=False)),
     (ValueError, "hopfield_association_cross", "batch_first as of .*, True", "got False")),
    (lambda: HopfieldEncoderLayer(nn.MultiheadAttention(D, 2)),  # type: ignore[arg-type]
     (TypeError, "hopfield_association", "a Hopfield or a HopfieldLayer", "MultiheadAttention")),
    (lambda: HopfieldEncoderLayer(HopfieldPooling(D)),  # type: ignore[arg-type]
     (TypeError, "hopfield_association", "a Hopfield or a HopfieldLayer", "one vector of a seq")),
    (lambda: HopfieldDecoderLayer(HopfieldPooling(D), OWN),  # type: ignore[arg-type]
     (TypeError, "hopfield_association_self", "a Hopfield or a HopfieldLayer", "one vector")),
    (lambda: HopfieldDecoderLayer(OWN, HopfieldLayer(D)),  # type: ignore[arg-type]
     (TypeError, "hopfield_association_cross", "a Hopfield", "stored patterns of its own")),
    *(
        (lambda build=build: build(), (ValueError, "activation", "the name of an elementwise", ""))
        for build in (
            lambda: HopfieldEncoderLayer(OWN, activation="rleu"),
            lambda: HopfieldDecoderLayer(OWN, OWN, activation="softmax"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "row"), ARGUMENTS)
def test_an_argument_is_refused(arguments: dict[str, Any], row: Refusal) -> None:
    assert_refused(row, lambda: Hopfield(**{"input_size": D, "num_heads": 2, **arguments}))


@pytest.mark.parametrize(("call", "row"), CALLS)
def test_an_input_is_refused_by_every_method(call: Any, row: Refusal) -> None:
    layer = Hopfield(D, num_heads=2, dtype=torch.float64)
    for method in (layer, layer.get_association_matrix, layer.energy, layer.settle):
        assert_refused(row, lambda method=method: call(method))


@pytest.mark.parametrize(("changed", "row"), FUNCTIONS)
def test_an_argument_is_refused_by_every_function(changed: dict[str, Any], row: Refusal) -> None:
    for function in (functional.retrieve, functional.settle, functional.energy):
        assert_refused(row, lambda f=function: f(**{"state": R, "stored": Y, **changed}))


@pytest.mark.parametrize(("call", "row"), LEARNED)
def test_a_wrong_call_is_refused(call: Callable[[], Any], row: Refusal) -> None:
    assert_refused(row, call)


@pytest.mark.parametrize("name", ["quantities", "normalise", "reset"])
def test_an_unknown_keyword_is_refused(name: str) -> None:
    for kind in (Hopfield, HopfieldPooling, HopfieldLayer):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            kind(D, **{name: 3})


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_with_what_to_do(layout: torch.layout) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.nested.nested_tensor([torch.rand(3, D), torch.rand(5, D)], layout=layout)
        for kind in (Hopfield, HopfieldPooling, HopfieldLayer):
            with pytest.raises(TypeError, match=r"expected a dense tensor, got a nested .*to_pad"):
                kind(D)(x)
        with pytest.raises(TypeError, match=r"expected a dense tensor .*to_padded"):
            functional.retrieve(x, torch.rand(5, D))


def test_the_check_of_an_activation_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="rand_like"):
        Hopfield(D, association_activation="rand_like")
    assert torch.equal(torch.rand(3), expected)


def test_elementwise_functions_are_taken_without_a_warning() -> None:
    for name in ("relu", "gelu", "tanh", "sigmoid", "celu", "silu", "softplus", "log", "exp"):
        assert elementwise("activation", name) in (
            getattr(torch, name, None),
            getattr(nn.functional, name, None),
        )


def test_a_tolerance_may_be_given_twice_where_it_is_the_same() -> None:
    assert Hopfield(D, update_steps_eps=1e-2, solver=Anderson(tol=1e-2)).solver.tol == 1e-2
