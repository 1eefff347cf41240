"""What a Hopfield layer refuses: the message says what was expected, what came, what to do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from contracts import normal
from test_hopfield import D, N, S, make

from hamdeq import Anderson, Softmax
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling

X = normal(N, S, D)
BAD_CALLS: dict[str, tuple[type[Exception], str, Any]] = {
    "integers": (
        TypeError,
        r"stored patterns: .*floating-point.*int64.*x\.float\(\)",
        lambda m: m(X.long()),
    ),
    "two tensors": (
        TypeError,
        r"expected a tensor, or three.*\['Tensor', 'Tensor'\]",
        lambda m: m((X, X)),
    ),
    "four tensors": (TypeError, "expected a tensor, or three", lambda m: m((X,) * 4)),
    "none": (TypeError, "NoneType", lambda m: m((X, None, X))),
    "one axis": (ValueError, r"three axes.*shapes \[\(8,\)", lambda m: m(X[0, 0])),
    "axes": (ValueError, r"three axes.*\(4, 8\)", lambda m: m((X, X[0], X))),
    "size": (ValueError, r"stored patterns: expected size 8.*\(2, 4, 5\)", lambda m: m(X[..., :5])),
    "state size": (ValueError, "state patterns: expected size 8", lambda m: m((X, X[..., :5], X))),
    "projection size": (
        ValueError,
        "pattern projections: expected size 8",
        lambda m: m((X, X, X[..., :5])),
    ),
    "batches": (ValueError, "one batch size.*2, 3 and 2", lambda m: m((X, X[[0, 1, 0]], X))),
    "number": (
        ValueError,
        "one for each of the 4 stored patterns, got 3",
        lambda m: m((X, X, X[:, :3])),
    ),
    "mask of bytes": (
        TypeError,
        r"padding_mask: .*boolean.*uint8.*mask\.bool\(\)",
        lambda m: m(X, torch.zeros(N, S, dtype=torch.uint8)),
    ),
    "mask of integers": (
        TypeError,
        r"association_mask: .*int64.*mask\.bool\(\)",
        lambda m: m(X, None, torch.zeros(S, S, dtype=torch.long)),
    ),
    "mask of lists": (
        TypeError,
        "padding_mask: expected a tensor, got list",
        lambda m: m(X, [[True] * S] * N),
    ),
    "padding shape": (
        ValueError,
        r"padding_mask: .*\(N, S\) = \(2, 4\), got \(2, 3\)",
        lambda m: m(X, torch.zeros(N, 3)),
    ),
    "padding turned": (
        ValueError,
        r"\(N, S\) = \(2, 4\), got \(4, 2\)",
        lambda m: m(X, torch.zeros(S, N)),
    ),
    "association shape": (
        ValueError,
        r"\(L, S\) = \(4, 4\) or \(N·H, L, S\) = \(4, 4, 4\), got",
        lambda m: m(X, None, torch.zeros(N, S, S)),
    ),
    "association axes": (
        ValueError,
        r"got \(2, 2, 4, 4\)",
        lambda m: m(X, None, torch.zeros(2, 2, 4, 4)),
    ),
}
BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(
        ({"association_activation": name}, ValueError, f"elementwise.*such as relu.*got '{name}'")
        for name in (
            "zeros",
            "reluu",
            "sum",
            "softmax",
            "softmin",
            "normalize",
            "fliplr",
            "rand_like",
            "tensor",
            "nn",
            "",
            "float32",
            "relu6 ",
        )
    ),
    ({"association_activation": 3}, TypeError, "expected a name or a function, got int"),
    (
        {"num_heads": 3},
        ValueError,
        "num_heads: expected a divisor of input_size = 8, got 3; .*hidden",
    ),
    ({"num_heads": 0}, ValueError, "num_heads: expected a positive integer, got 0"),
    ({"num_heads": 2.0}, TypeError, "num_heads: expected a positive integer, got 2.0"),
    ({"hidden_size": -1}, ValueError, "hidden_size: expected a positive integer, got -1"),
    ({"pattern_size": "3"}, TypeError, "pattern_size: expected a positive integer, got '3'"),
    ({"input_size": None}, ValueError, "input_size: expected the size of the state patterns"),
    *(
        (
            {"scaling": beta},
            ValueError,
            r"scaling: expected a finite inverse temperature β > 0, got",
        )
        for beta in (
            0,
            0.0,
            -1.0,
            float("inf"),
            float("nan"),
            torch.tensor([1.0, -1.0]),
            torch.tensor([0.0, 1.0]),
            torch.tensor([1.0, float("nan")]),
        )
    ),
    *(
        ({"scaling": torch.ones(shape)}, ValueError, r"2 heads, shape \(2,\), got")
        for shape in ((1,), (3,), (2, 1))
    ),
    ({"scaling": "1"}, TypeError, "scaling: expected a number β > 0 or a tensor"),
    ({"scaling": True}, TypeError, "scaling: expected a number β > 0 or a tensor"),
    *(
        ({"update_steps_max": n}, TypeError, "update_steps_max: expected .*integer")
        for n in (1.5, "3", True, [1.0, 2], [True, 1], [1, "2"], torch.tensor([1.0, 2.0]))
    ),
    *(
        ({"update_steps_max": n}, ValueError, f"one integer for each of 2 heads, got {len(n)}")
        for n in ([1], (1, 2, 3), torch.tensor([1, 2, 3]), [])
    ),
    *(
        (
            {"update_steps_eps": eps},
            ValueError,
            "update_steps_eps: expected .*> 0, such as 1e-4, got",
        )
        for eps in (0, -1e-3, float("nan"), float("inf"), "a", None)
    ),
    *(
        ({"dropout": p}, ValueError, "dropout: expected a probability, 0 to 1, got")
        for p in (-0.1, 1.1, float("nan"), "0.1", None)
    ),
    ({"lagrangian": "softmax"}, TypeError, r"lagrangian: expected a hamdeq.Separation.*'softmax'"),
    ({"lagrangian": Softmax(2.0)}, ValueError, "expected beta 1.*scaling"),
    ({"lagrangian": Softmax(learnable=True)}, ValueError, "scaling_as_trainable=True"),
    ({"solver": "picard"}, TypeError, r"solver: expected a hamdeq.Solver.*'picard'"),
    ({"adjoint": "implicit"}, TypeError, r"adjoint: expected a hamdeq.Adjoint, got 'implicit'"),
    ({"on_failure": "explode"}, ValueError, "on_failure: expected 'warn', 'raise' or 'ignore'"),
    (
        {"pattern_projection_as_connected": True, "stored_pattern_size": 5},
        ValueError,
        "stored patterns and pattern projections of one size, got 5 and 8",
    ),
    ({"quantity": 3}, TypeError, "quantity"),
    ({"normalise": True}, TypeError, "normalise"),
]


class TestMistakes:
    @pytest.mark.parametrize("name", BAD_CALLS)
    def test_of_a_call(self, name: str) -> None:
        kind, message, call = BAD_CALLS[name]
        layer = make(input_size=D, num_heads=2)
        for method in (layer, layer.get_association_matrix, layer.energy, layer.settle):
            with pytest.raises(kind, match=message):
                call(method)

    @pytest.mark.parametrize(("arguments", "kind", "message"), BAD_ARGUMENTS)
    def test_of_an_argument(self, arguments: Any, kind: Any, message: str) -> None:
        with pytest.raises(kind, match=message):
            Hopfield(**{"input_size": D, "num_heads": 2, **arguments})

    def test_drawing_for_the_check_of_a_name_leaves_the_generator_alone(self) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="rand_like"):
            Hopfield(D, association_activation="rand_like")
        assert torch.equal(torch.rand(3), expected)

    def test_of_what_has_no_size(self) -> None:
        bare: dict[str, Any] = {
            f"{name}_as_static": True
            for name in ("stored_pattern", "state_pattern", "pattern_projection")
        } | {"disable_out_projection": True}
        with pytest.raises(ValueError, match="normalize_stored_pattern: expected the size"):
            Hopfield(**bare)
        bare |= {f"normalize_{name}": False for name in ("stored_pattern", "state_pattern")}
        bare["normalize_pattern_projection"] = False
        with pytest.raises(ValueError, match=r"as_ham: expected the size.*give hidden_size"):
            Hopfield(**bare).as_ham(3)
        with pytest.raises(ValueError, match="concat_bias_pattern: expected the sizes"):
            Hopfield(**bare, concat_bias_pattern=True)
        norms = {"normalize_hopfield_space": True, "normalize_hopfield_space_affine": True}
        with pytest.raises(ValueError, match=r"space_affine: expected the size.*give hidden_size"):
            Hopfield(**bare, **norms)
        with pytest.raises(ValueError, match="state and stored patterns of one size, got 5 and 8"):
            Hopfield(**bare)((X, X[..., :5], X))

    @pytest.mark.parametrize("kind", [HopfieldPooling, HopfieldLayer])
    def test_of_learned_patterns(self, kind: Any) -> None:
        for quantity in (0, -1):
            with pytest.raises(ValueError, match=f"quantity: expected .*got {quantity}"):
                kind(D, quantity=quantity)
        for quantity in (1.5, True, None):
            with pytest.raises(TypeError, match="quantity: expected a positive integer"):
                kind(D, quantity=quantity)
        with pytest.raises(TypeError, match="unexpected keyword argument 'quantities'"):
            kind(D, quantities=3)
        with pytest.raises(TypeError, match="input: expected a tensor"):
            kind(D)((X, X, X))
        with pytest.raises(ValueError, match="expected size 8"):
            kind(D)(X[..., :5].float())

    def test_tolerance_twice(self) -> None:
        with pytest.raises(
            ValueError, match=r"0\.01 here and 0\.0001 in the solver.*Anderson\(tol"
        ):
            Hopfield(D, update_steps_eps=1e-2, solver=Anderson())
        assert Hopfield(D, update_steps_eps=1e-2, solver=Anderson(tol=1e-2)).solver.tol == 1e-2

    def test_layers_are_made_without_a_word(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in (
                "relu",
                "gelu",
                "tanh",
                "sigmoid",
                "celu",
                "silu",
                "softplus",
                "log",
                "exp",
            ):
                Hopfield(D, association_activation=name)
