"""State dicts of hflayers 1.0.2: the same names and shapes, and the values where they belong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq.nn import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
)

Shapes = dict[str, tuple[int, ...]]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

# Of an input of size 6 and two heads, thus of size 3 each. Rows of the projections are those of
# the queries, the keys and the values, H · d, H · d and H · p.
NORMS: Shapes = {
    f"norm_{name}.{part}": (6,)
    for name in ("stored_pattern", "state_pattern", "pattern_projection")
    for part in ("weight", "bias")
}
OUT: Shapes = {"out_proj.weight": (6, 6), "out_proj.bias": (6,)}
OUT_OF_12: Shapes = {"out_proj.weight": (6, 12), "out_proj.bias": (6,)}
JOINT: Shapes = {"in_proj_weight": (18, 6), "in_proj_bias": (18,)}


def core(*parts: Shapes) -> Shapes:
    return {f"association_core.{name}": shape for part in parts for name, shape in part.items()}


def within(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def separate(q: Any, k: Any, v: Any, bias: int) -> Shapes:
    """Of projections that are held apart; None of what is not projected."""
    weights = {"q_proj_weight": q, "k_proj_weight": k, "v_proj_weight": v}
    return {name: shape for name, shape in weights.items() if shape} | {"in_proj_bias": (bias,)}


TABLE: dict[str, tuple[dict[str, Any], Shapes]] = {
    "default": ({}, core(JOINT, OUT) | NORMS),
    "hidden_size, output_size": (
        {"hidden_size": 4, "output_size": 5},
        core(
            {"in_proj_weight": (24, 6), "in_proj_bias": (24,)},
            {"out_proj.weight": (5, 8), "out_proj.bias": (5,)},
        )
        | NORMS,
    ),
    "pattern_size": (
        {"pattern_size": 4},
        core(
            separate((6, 6), (6, 6), (8, 6), 20),
            {"out_proj.weight": (6, 8), "out_proj.bias": (6,)},
        )
        | NORMS,
    ),
    "pattern_size as it is anyway": (
        {"pattern_size": 3},
        core(separate((6, 6), (6, 6), (6, 6), 18), OUT) | NORMS,
    ),
    "sizes of all three": (
        {"stored_pattern_size": 5, "pattern_projection_size": 4},
        core(separate((6, 6), (6, 5), (6, 4), 18), OUT)
        | NORMS
        | {f"norm_stored_pattern.{part}": (5,) for part in ("weight", "bias")}
        | {f"norm_pattern_projection.{part}": (4,) for part in ("weight", "bias")},
    ),
    "sizes of all three, as they are anyway": (
        {"stored_pattern_size": 6, "pattern_projection_size": 6},
        core(JOINT, OUT) | NORMS,
    ),
    "static states": (
        {"hidden_size": 6, "state_pattern_as_static": True},
        core({"in_proj_weight": (24, 6), "in_proj_bias": (24,)}, OUT_OF_12) | NORMS,
    ),
    "static stored patterns": (
        {"hidden_size": 6, "stored_pattern_as_static": True},
        core({"in_proj_weight": (24, 6), "in_proj_bias": (24,)}, OUT_OF_12) | NORMS,
    ),
    "static projections": (  # whose bias is there all the same
        {"hidden_size": 6, "pattern_projection_as_static": True},
        core({"in_proj_weight": (24, 6), "in_proj_bias": (36,)}, OUT_OF_12) | NORMS,
    ),
    "static states and stored patterns": (
        {"hidden_size": 6, "state_pattern_as_static": True, "stored_pattern_as_static": True},
        core({"in_proj_weight": (12, 6), "in_proj_bias": (12,)}, OUT_OF_12) | NORMS,
    ),
    "static states of their own size": (
        {"hidden_size": 6, "state_pattern_as_static": True, "stored_pattern_size": 5},
        core(separate(None, (12, 5), (12, 6), 24), OUT_OF_12)
        | NORMS
        | {f"norm_stored_pattern.{part}": (5,) for part in ("weight", "bias")},
    ),
    "all static": (
        {
            "hidden_size": 6,
            "state_pattern_as_static": True,
            "stored_pattern_as_static": True,
            "pattern_projection_as_static": True,
        },
        core(OUT_OF_12) | NORMS,
    ),
    "all static, no output projection": (
        {
            "state_pattern_as_static": True,
            "stored_pattern_as_static": True,
            "pattern_projection_as_static": True,
            "disable_out_projection": True,
        },
        NORMS,
    ),
    "connected": (
        {"pattern_projection_as_connected": True},
        core(separate((6, 6), (6, 6), (6, 6), 18), OUT) | NORMS,
    ),
    "connected, hidden_size, pattern_size": (
        {"hidden_size": 4, "pattern_size": 5, "pattern_projection_as_connected": True},
        core(
            separate((8, 6), (8, 6), (10, 8), 26),
            {"out_proj.weight": (6, 10), "out_proj.bias": (6,)},
        )
        | NORMS,
    ),
    "connected, static stored patterns": (
        {
            "hidden_size": 6,
            "stored_pattern_as_static": True,
            "pattern_projection_as_connected": True,
        },
        core(separate((12, 6), None, (12, 6), 24), OUT_OF_12) | NORMS,
    ),
    "connected, static projections": (
        {
            "hidden_size": 6,
            "pattern_projection_as_static": True,
            "pattern_projection_as_connected": True,
        },
        core(separate((12, 6), (12, 6), None, 36), OUT_OF_12) | NORMS,
    ),
    "no output projection": ({"disable_out_projection": True}, core(JOINT) | NORMS),
    "no bias": (
        {"input_bias": False},
        core({"in_proj_weight": (18, 6), "out_proj.weight": (6, 6)}) | NORMS,
    ),
    "norms in the association space": (
        {
            "hidden_size": 3,
            "normalize_hopfield_space": True,
            "normalize_hopfield_space_affine": True,
        },
        core(JOINT, OUT, {"p_norm_weight": (3,), "p_norm_bias": (3,)}) | NORMS,
    ),
    "those without scale": ({"normalize_hopfield_space": True}, core(JOINT, OUT) | NORMS),
    "bias pattern": (
        {"concat_bias_pattern": True},
        core(JOINT, OUT, {"bias_k": (1, 1, 6), "bias_v": (1, 1, 6)}) | NORMS,
    ),
    "zero pattern": ({"add_zero_association": True}, core(JOINT, OUT) | NORMS),
    "norms without scale": (
        {
            "normalize_stored_pattern_affine": False,
            "normalize_state_pattern_affine": False,
            "normalize_pattern_projection": False,
            "normalize_pattern_projection_affine": False,
        },
        core(JOINT, OUT),
    ),
}
DEFAULT = TABLE["default"][1]


def encoder() -> nn.Module:
    return HopfieldEncoderLayer(Hopfield(6, num_heads=2), dim_feedforward=7)


def decoder() -> nn.Module:
    association = Hopfield(6, num_heads=2)
    return HopfieldDecoderLayer(association, association, dim_feedforward=7)


FEEDFORWARD: Shapes = {
    "linear_residual.weight": (7, 6),
    "linear_residual.bias": (7,),
    "linear_output.weight": (6, 7),
    "linear_output.bias": (6,),
    "norm_output.weight": (6,),
    "norm_output.bias": (6,),
}
WRAPPED: dict[str, tuple[Callable[[], nn.Module], Shapes]] = {
    "pooling": (
        lambda: HopfieldPooling(6, num_heads=2, quantity=3),
        within("hopfield", DEFAULT) | {"pooling_weights": (1, 3, 6)},
    ),
    "pooling, batch second": (
        lambda: HopfieldPooling(6, num_heads=2, quantity=3, batch_first=False),
        within("hopfield", DEFAULT) | {"pooling_weights": (3, 1, 6)},
    ),
    "pooling by static states": (
        lambda: HopfieldPooling(
            6,
            hidden_size=4,
            num_heads=2,
            normalize_state_pattern=False,
            state_pattern_as_static=True,
        ),
        within(
            "hopfield",
            core(
                {"in_proj_weight": (16, 6), "in_proj_bias": (16,)},
                {"out_proj.weight": (6, 8), "out_proj.bias": (6,)},
            )
            | {name: shape for name, shape in NORMS.items() if "state" not in name},
        )
        | {"pooling_weights": (1, 1, 4)},
    ),
    "lookup": (
        lambda: HopfieldLayer(6, num_heads=2, quantity=5),
        within("hopfield", DEFAULT) | {"lookup_weights": (1, 5, 6)},
    ),
    "lookup, separate targets": (
        lambda: HopfieldLayer(6, num_heads=2, quantity=5, lookup_weights_as_separated=True),
        within("hopfield", DEFAULT) | {"lookup_weights": (1, 5, 6), "target_weights": (1, 5, 6)},
    ),
    "lookup, sizes of all three": (
        lambda: HopfieldLayer(
            6,
            num_heads=2,
            quantity=5,
            lookup_weights_as_separated=True,
            stored_pattern_size=5,
            pattern_projection_size=4,
            batch_first=False,
        ),
        within("hopfield", TABLE["sizes of all three"][1])
        | {"lookup_weights": (5, 1, 5), "target_weights": (5, 1, 4)},
    ),
    "encoder": (
        encoder,
        within("hopfield_association", DEFAULT)
        | FEEDFORWARD
        | {"norm_residual.weight": (6,), "norm_residual.bias": (6,)},
    ),
    "decoder": (
        decoder,
        within("hopfield_association_self", DEFAULT)
        | within("hopfield_association_cross", DEFAULT)
        | FEEDFORWARD
        | {
            f"norm_residual_{name}.{part}": (6,)
            for name in ("self", "cross")
            for part in ("weight", "bias")
        },
    ),
}


def random(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def check(module: nn.Module, shapes: Shapes) -> None:
    found = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert found == shapes
    given = random(shapes)
    kept = dict(given)
    result = module.double().load_state_dict(given, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert given == kept  # the same tensors under the same names
    for name, value in module.state_dict().items():
        assert torch.equal(value, given[name]), name


class TestNamesAndShapes:
    @pytest.mark.parametrize("name", TABLE)
    def test_of_hopfield(self, name: str) -> None:
        options, shapes = TABLE[name]
        check(Hopfield(6, num_heads=2, **options), shapes)

    @pytest.mark.parametrize("name", WRAPPED)
    def test_of_what_wraps_it(self, name: str) -> None:
        build, shapes = WRAPPED[name]
        check(build(), shapes)

    @pytest.mark.parametrize("lost", DEFAULT)
    def test_a_missing_one_is_named(self, lost: str) -> None:
        given = random(DEFAULT)
        del given[lost]
        with pytest.raises(RuntimeError, match=f"Missing key.*{lost}"):
            Hopfield(6, num_heads=2).double().load_state_dict(given)


def projected(
    x: Tensor, state: dict[str, Tensor], norm: str, weight: Tensor, bias: Tensor
) -> Tensor:
    """Layer norm and projection of a sample's patterns, by the names of hflayers: ``(S, rows)``."""
    scale, shift = state[f"norm_{norm}.weight"], state[f"norm_{norm}.bias"]
    return F.layer_norm(x, x.shape[-1:], scale, shift) @ weight.T + bias


def associated(
    q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor], beta: float | Tensor
) -> Tensor:
    """Two heads' association of one sample, and its output projection."""
    heads = []
    for head in range(2):
        each = [x.chunk(2, dim=-1)[head] for x in (q, k, v)]
        b = beta[head] if isinstance(beta, Tensor) else beta
        heads.append(torch.softmax(b * each[0] @ each[1].T, -1) @ each[2])
    weight, bias = (state[f"association_core.out_proj.{name}"] for name in ("weight", "bias"))
    return torch.cat(heads, -1) @ weight.T + bias


def inputs(*sizes: int) -> list[Tensor]:
    """Stored patterns, states and projections of three samples."""
    generator = torch.Generator().manual_seed(1)
    counts = (4, 2, 4)
    return [
        torch.randn(3, n, size, generator=generator, dtype=torch.float64)
        for n, size in zip(counts, sizes, strict=True)
    ]


def joint_weights(state: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    parts = [state[f"association_core.in_proj_{name}"].split(6) for name in ("weight", "bias")]
    return [*zip(*parts, strict=True)]


class TestValues:
    """A forward pass is what the numbers say by the rules of hflayers."""

    def loaded(
        self, module: nn.Module, shapes: Shapes, prefix: str = ""
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        state = random(shapes)
        module.double().load_state_dict(state)
        return module, {name.removeprefix(prefix): value for name, value in state.items()}

    def test_joint(self) -> None:
        layer, state = self.loaded(Hopfield(6, num_heads=2), DEFAULT)
        stored, states, projections = inputs(6, 6, 6)
        (wq, bq), (wk, bk), (wv, bv) = joint_weights(state)
        found = layer((stored, states, projections))
        alone = layer(stored)
        for i in range(3):
            k = projected(stored[i], state, "stored_pattern", wk, bk)
            for q_of, v_of, result in (
                (states[i], projections[i], found[i]),
                (stored[i], stored[i], alone[i]),
            ):
                q = projected(q_of, state, "state_pattern", wq, bq)
                v = projected(v_of, state, "pattern_projection", wv, bv)
                expected = associated(q, k, v, state, 1 / math.sqrt(3))
                torch.testing.assert_close(result, expected, **CLOSE)

    @pytest.mark.parametrize(
        ("name", "sizes", "rows", "beta"),
        [
            ("pattern_size", (6, 6, 6), (6, 6, 8), 3),
            ("sizes of all three", (5, 6, 4), (6, 6, 6), 3),
            ("connected, hidden_size, pattern_size", (6, 6, 6), (8, 8, 10), 4),
        ],
    )
    def test_separate(
        self, name: str, sizes: tuple[int, ...], rows: tuple[int, ...], beta: int
    ) -> None:
        options, shapes = TABLE[name]
        layer, state = self.loaded(Hopfield(6, num_heads=2, **options), shapes)
        wq, wk, wv = (state[f"association_core.{name}_proj_weight"] for name in "qkv")
        bq, bk, bv = state["association_core.in_proj_bias"].split(rows)
        stored, states, projections = inputs(*sizes)
        found = layer((stored, states, projections))
        for i in range(3):
            q = projected(states[i], state, "state_pattern", wq, bq)
            k = projected(stored[i], state, "stored_pattern", wk, bk)
            if name.startswith("connected"):
                v = projected(projections[i], state, "pattern_projection", wk, bk) @ wv.T + bv
            else:
                v = projected(projections[i], state, "pattern_projection", wv, bv)
            expected = associated(q, k, v, state, 1 / math.sqrt(beta))
            torch.testing.assert_close(found[i], expected, **CLOSE)

    def test_static_projections(self) -> None:
        # They enter both heads as they are, and their bias is not used.
        options, shapes = TABLE["static projections"]
        layer, state = self.loaded(Hopfield(6, num_heads=2, **options), shapes)
        wq, wk = state["association_core.in_proj_weight"].split(12)
        bq, bk, _ = state["association_core.in_proj_bias"].split(12)
        stored, states, projections = inputs(6, 6, 6)
        found = layer((stored, states, projections))
        one, zero = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for i in range(3):
            q = projected(states[i], state, "state_pattern", wq, bq)
            k = projected(stored[i], state, "stored_pattern", wk, bk)
            v = projected(projections[i], state, "pattern_projection", one, zero)
            expected = associated(q, k, v.repeat(1, 2), state, 1 / math.sqrt(6))
            torch.testing.assert_close(found[i], expected, **CLOSE)

    def test_pooling(self) -> None:
        build, shapes = WRAPPED["pooling"]
        layer, state = self.loaded(build(), shapes, "hopfield.")
        (wq, bq), (wk, bk), (wv, bv) = joint_weights(state)
        patterns, _, projections = inputs(6, 6, 6)
        found = layer((patterns, projections))
        q = projected(state["pooling_weights"][0], state, "state_pattern", wq, bq)
        for i in range(3):
            k = projected(patterns[i], state, "stored_pattern", wk, bk)
            v = projected(projections[i], state, "pattern_projection", wv, bv)
            expected = associated(q, k, v, state, 1 / math.sqrt(3)).flatten()
            torch.testing.assert_close(found[i], expected, **CLOSE)

    def test_lookup(self) -> None:
        build, shapes = WRAPPED["lookup, separate targets"]
        layer, state = self.loaded(build(), shapes, "hopfield.")
        (wq, bq), (wk, bk), (wv, bv) = joint_weights(state)
        _, states, _ = inputs(6, 6, 6)
        found = layer(states)
        k = projected(state["lookup_weights"][0], state, "stored_pattern", wk, bk)
        v = projected(state["target_weights"][0], state, "pattern_projection", wv, bv)
        for i in range(3):
            q = projected(states[i], state, "state_pattern", wq, bq)
            expected = associated(q, k, v, state, 1 / math.sqrt(3))
            torch.testing.assert_close(found[i], expected, **CLOSE)
