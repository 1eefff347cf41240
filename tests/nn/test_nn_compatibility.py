"""The interface of hflayers 1.0.2: state dicts, attributes, layouts, hooks, dropout, β."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_nn_reference import CLOSE, UNNORMED, D, L, N, S, make, padding_mask, patterns
from torch import Tensor, nn

from hamdeq import Entmax, Softmax, Sparsemax
from hamdeq.nn import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
)
from hamdeq.testing import normal

Shapes = dict[str, tuple[int, ...]]
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


def check_state_dict(module: nn.Module, shapes: Shapes) -> None:
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


@pytest.mark.parametrize("name", TABLE)
def test_a_layer_has_the_names_and_shapes_of_hflayers(name: str) -> None:
    options, shapes = TABLE[name]
    check_state_dict(Hopfield(6, num_heads=2, **options), shapes)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_layer_around_it_has_the_names_and_shapes_of_hflayers(name: str) -> None:
    build, shapes = WRAPPED[name]
    check_state_dict(build(), shapes)


def test_a_missing_tensor_is_named() -> None:
    for lost in DEFAULT:
        given = random(DEFAULT)
        del given[lost]
        with pytest.raises(RuntimeError, match=f"Missing key.*{lost}"):
            Hopfield(6, num_heads=2).double().load_state_dict(given)


@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_static_targets_are_read_out_in_their_own_size(heads, separated):
    layer = HopfieldLayer(
        24,
        hidden_size=5,
        num_heads=heads,
        quantity=3,
        pattern_projection_as_static=True,
        disable_out_projection=True,
        lookup_weights_as_separated=separated,
    )
    state = {name: tuple(x.shape) for name, x in layer.state_dict().items()}
    core = "hopfield.association_core"
    assert state == {
        "lookup_weights": (1, 3, 24),
        **({"target_weights": (1, 3, 24)} if separated else {}),
        f"{core}.in_proj_weight": (2 * 5 * heads, 24),
        f"{core}.in_proj_bias": (3 * 5 * heads,),
        **{
            f"hopfield.norm_{name}.{part}": (24,)
            for name in ("stored_pattern", "state_pattern", "pattern_projection")
            for part in ("weight", "bias")
        },
    }
    assert layer(torch.randn(2, 4, 24)).shape == (2, 4, heads * 24)
    assert layer.output_size == heads * 24
    if heads == 1:
        assert HopfieldEncoderLayer(layer, 16)(torch.randn(2, 4, 24)).shape == (2, 4, 24)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", [Hopfield, HopfieldPooling, HopfieldLayer])
def test_a_layer_built_on_the_meta_device_loads(kind, assign):
    options: dict[str, Any] = {"num_heads": 2, "scaling": torch.tensor([0.5, 2.0])}
    if kind is HopfieldLayer:
        options["quantity"] = 5
    given = kind(D, **options)
    other = kind(D, device="meta", **options)
    if not assign:
        other = other.to_empty(device="cpu")
    other.load_state_dict(given.state_dict(), assign=assign)
    x = normal(2, 4, D).float()
    assert torch.equal(other(x), given(x))


def test_a_trained_beta_is_that_of_the_file():
    given = Hopfield(D, num_heads=2, scaling_as_trainable=True)
    torch.nn.init.constant_(given.association_core.memories.log_beta, 0.3)
    other = Hopfield(D, num_heads=2, scaling_as_trainable=True)
    other.load_state_dict(given.state_dict())
    assert torch.equal(other.scaling, given.scaling)


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (Hopfield, {}),
    (HopfieldPooling, {"quantity": 2}),
    (HopfieldLayer, {"quantity": 5}),
]
all_kinds = pytest.mark.parametrize(
    ("kind", "options"), KINDS, ids=lambda x: getattr(x, "__name__", "")
)


@all_kinds
@pytest.mark.parametrize(
    "given",
    [{}, {"scaling": torch.tensor([0.5, 2.0])}, {"scaling_as_trainable": True}],
    ids=str,
)
@pytest.mark.parametrize("beta", [3.0, torch.tensor([0.7, 3.0])], ids=str)
def test_a_beta_that_is_set_is_as_of_a_layer_built_with_it(kind, options, given, beta):
    options = {"input_size": D, "num_heads": 2, "update_steps_max": 1} | options
    layer, x = make(kind, **options, **given), normal(N, S, D, seed=1)
    expected = make(kind, **options, scaling=beta)
    for name, p in expected.named_parameters():
        p.data = layer.get_parameter(name).data
    before = layer(x)
    layer.scaling = beta
    torch.testing.assert_close(layer(x), expected(x), rtol=1e-6, atol=1e-7)
    assert (layer(x) - before).abs().max() > 1e-3
    torch.testing.assert_close(
        torch.as_tensor(layer.scaling).double().expand(2),
        torch.as_tensor(beta).double().expand(2),
    )
    assert copy.deepcopy(layer)(x).equal(layer(x))


@pytest.mark.parametrize("given", [{}, {"scaling": torch.tensor([0.5, 2.0])}], ids=str)
def test_a_beta_that_was_set_is_in_the_state_dict(given):
    build = lambda: make(HopfieldLayer, input_size=D, num_heads=2, quantity=5, **given)  # noqa: E731
    layer, x = build(), normal(N, S, D)
    names = set(layer.state_dict())
    assert not any("beta" in name for name in names)
    layer.scaling = torch.tensor([1.5, 3.0])
    state = layer.state_dict()
    assert set(state) - names == {"hopfield.association_core.beta"}
    for device in ("cpu", "meta"):
        other = HopfieldLayer(D, num_heads=2, quantity=5, device=device, dtype=torch.float64)
        other.load_state_dict(state, assign=device == "meta")
        assert torch.equal(other(x), layer(x))
        assert torch.equal(other.scaling, layer.scaling)
    trained = HopfieldLayer(D, num_heads=2, quantity=5, scaling_as_trainable=True).double()
    trained.load_state_dict(state)
    torch.testing.assert_close(trained(x), layer(x), rtol=1e-6, atol=1e-6)
    # A file without it is one of weights alone.
    layer.load_state_dict(build().state_dict())
    assert layer.scaling.tolist() == [1.5, 3.0]
    layer.reset_parameters()
    assert set(layer.state_dict()) == names


@all_kinds
@pytest.mark.parametrize(
    ("steps", "memory"), [(0, None), ([2, 0], Sparsemax()), (None, None)], ids=repr
)
def test_output_and_weights_of_one_pass_are_those_of_two(kind, options, memory, steps):
    layer = make(
        kind, input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory, **options
    )
    x = normal(N, S, D, seed=1)
    masks = (padding_mask("bool"), None) if kind is not HopfieldLayer else (None, None)
    output, weights = layer.associate(x, *masks)
    torch.testing.assert_close(output, layer(x, *masks), **CLOSE)
    torch.testing.assert_close(weights, layer.get_association_matrix(x, *masks), **CLOSE)
    alone = layer.associate(x[0])
    assert alone.output.shape == output.shape[1:]
    assert alone.weights.shape == weights.shape[1:]


def test_output_and_weights_of_one_pass_are_differentiable():
    layer = make(input_size=D, num_heads=2, update_steps_max=1, association_activation="tanh")
    x = normal(N, S, D, seed=1).requires_grad_()
    mask = normal(S, S, seed=2)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(layer.associate(x, None, mask))  # type: ignore[return-value]

    assert torch.autograd.gradcheck(both, x, fast_mode=True)


def test_weights_are_those_before_dropout():
    layer = make(input_size=D, num_heads=2, dropout=0.5)
    x = normal(N, S, D, seed=1)
    torch.manual_seed(0)
    output, weights = layer.associate(x)
    assert not torch.allclose(output, layer.eval()(x))
    torch.testing.assert_close(weights, layer.get_association_matrix(x), **CLOSE)


@all_kinds
def test_hooks_of_the_core_see_each_pass(kind, options):
    layer, x = make(kind, input_size=D, num_heads=2, **options), normal(N, S, D, seed=1)
    core = getattr(layer, "hopfield", layer).association_core
    seen: list[Any] = []
    core.register_forward_pre_hook(lambda _, args: seen.append([a.shape for a in args]))
    core.register_forward_hook(lambda _, args, out: seen.append(out))
    core.out_proj.register_forward_hook(lambda _, args, out: seen.append("out_proj"))
    output = layer(x)
    assert len(seen) == 3
    assert seen[1] == "out_proj"
    assert len(seen[0]) == 3
    assert torch.equal(seen[2].reshape(output.shape), output)
    for call in (layer.get_association_matrix, layer.energy, layer.settle, layer.project):
        seen.clear()
        call(x)
        assert len(seen) == 2, call


def test_hooks_may_change_what_goes_in_and_what_comes_out():
    layer, x = make(input_size=D), normal(N, S, D, seed=1)
    plain = layer(x)
    layer.association_core.register_forward_hook(lambda _, args, out: 2 * out)
    torch.testing.assert_close(layer(x), 2 * plain, **CLOSE)
    layer.association_core.register_forward_pre_hook(lambda _, args: tuple(0 * a for a in args))
    assert not torch.allclose(layer(x), 2 * plain)
    gradients: list[Any] = []
    layer.association_core.register_full_backward_hook(lambda *_: gradients.append(1))
    layer(x.requires_grad_()).sum().backward()
    assert gradients


CORE: dict[str, Any] = {
    "embed_dim": 8,
    "kdim": 5,
    "vdim": 6,
    "num_heads": 2,
    "head_dim": 3,
    "pattern_dim": 7,
    "virtual_hopfield_dim": 6,
    "virtual_pattern_dim": 14,
    "out_dim": 10,
    "dropout": 0.25,
    "query_as_static": False,
    "key_as_static": False,
    "value_as_static": False,
    "value_as_connected": False,
    "disable_out_projection": False,
    "static_execution": False,
    "normalize_pattern": True,
    "add_zero_attn": True,
}


def test_the_core_tells_its_sizes():
    layer = Hopfield(
        8,
        3,
        10,
        7,
        2,
        stored_pattern_size=5,
        pattern_projection_size=6,
        dropout=0.25,
        normalize_hopfield_space=True,
        add_zero_association=True,
    )
    for name, expected in CORE.items():
        assert getattr(layer.association_core, name) == expected, name
    layer.association_core.dropout = 0.5
    assert layer.dropout == 0.5


LAYERS = [Hopfield, HopfieldPooling, HopfieldLayer]


def pair(kind: Any) -> tuple[Any, Any, Any]:
    """The same layer with the batch first and second, and an input with the batch first."""
    options = {"input_size": D, "num_heads": 2, "update_steps_max": 1}
    if kind is not Hopfield:
        options["quantity"] = 3
    if kind is HopfieldLayer:
        options["lookup_weights_as_separated"] = True
    first, second = make(kind, **options), make(kind, **options, batch_first=False)
    state = first.state_dict()
    for name in ("pooling_weights", "lookup_weights", "target_weights"):
        if name in state:
            state[name] = state[name].transpose(0, 1)
    second.load_state_dict(state)
    given = patterns({"input_size": D})
    return first, second, {Hopfield: given, HopfieldPooling: given[::2]}.get(kind, given[1])


def over(given: Any, turn: Any) -> Any:
    return turn(given) if isinstance(given, Tensor) else tuple(turn(x) for x in given)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_batch_second_gives_the_same(kind: Any) -> None:
    first, second, given = pair(kind)
    turned = over(given, lambda x: x.transpose(0, 1))
    masks = () if kind is HopfieldLayer else (padding_mask("bool"),)
    expected = first(given, *masks)
    expected = expected if kind is HopfieldPooling else expected.transpose(0, 1)
    torch.testing.assert_close(second(turned, *masks), expected, **CLOSE)
    for method in ("get_association_matrix", "get_projected_pattern_matrix", "energy"):
        one, other = getattr(first, method), getattr(second, method)
        torch.testing.assert_close(other(turned, *masks), one(given, *masks), **CLOSE)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_sample_without_a_batch_gives_the_same(kind: Any, batch_first: bool) -> None:
    first, second, given = pair(kind)
    layer = first if batch_first else second
    padding = None if kind is HopfieldLayer else padding_mask("bool")
    association = normal(N * 2, 3, 3 if kind is HopfieldLayer else S, seed=7)
    for n in range(N):
        alone = over(given, lambda x, n=n: x[n])
        masks = (None if padding is None else padding[n], association[2 * n : 2 * n + 2])
        everything = (padding, association)
        assert torch.isfinite(layer(alone, *masks)).all()
        for method in (
            "forward",
            "get_association_matrix",
            "get_projected_pattern_matrix",
            "energy",
        ):
            expected = getattr(first, method)(given, *everything)[n]
            torch.testing.assert_close(getattr(layer, method)(alone, *masks), expected, **CLOSE)
        torch.testing.assert_close(layer.settle(alone).steps, first.settle(given).steps[n])
        for one, whole in zip(layer.project(alone), first.project(given), strict=True):
            torch.testing.assert_close(one, whole[n], **CLOSE)


def test_inputs_are_not_written_to() -> None:
    layer = make(input_size=D, update_steps_max=1, association_activation="relu")
    given, mask = patterns({"input_size": D}), padding_mask("float")
    before = [x.clone() for x in (*given, mask)]
    layer(given, mask), layer.energy(given, mask), layer.settle(given, mask)
    assert all(torch.equal(a, b) for a, b in zip((*given, mask), before, strict=True))


@pytest.mark.parametrize(
    ("steps", "memory"),
    [(0, Softmax()), (2, Sparsemax()), (None, Softmax()), ([0, 3], Entmax(1.5))],
    ids=repr,
)
def test_dropout_is_of_the_read_out_in_training_alone(steps: Any, memory: Any) -> None:
    # Read out of the unit vectors, the output is the weights themselves.
    n, s, rate = 40, 12, 0.25
    options: dict[str, Any] = {
        "pattern_projection_as_static": True,
        "pattern_size": s,
        "disable_out_projection": True,
        **UNNORMED,
    }
    layer = make(
        input_size=D,
        num_heads=2,
        update_steps_max=steps,
        dropout=rate,
        lagrangian=memory,
        scaling=0.1,
        **options,
    )
    y, r = normal(n, s, D, seed=1), normal(n, L, D, seed=2)
    unit = torch.eye(s, dtype=torch.float64).expand(n, -1, -1)
    torch.manual_seed(0)
    weights = layer.get_association_matrix((y, r, unit))
    torch.testing.assert_close(layer.get_association_matrix((y, r, unit)), weights, **CLOSE)
    found = layer((y, r, unit)).unflatten(-1, (2, s)).transpose(1, 2)
    present = weights > 1e-6
    kept = found != 0
    torch.testing.assert_close(found[kept], weights[kept] / (1 - rate), **CLOSE)
    count = int(present.sum())
    share = float((present & ~kept).sum()) / count
    # Five standard deviations of a binomial share.
    assert abs(share - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
    calm = layer.eval()((y, r, unit)).unflatten(-1, (2, s)).transpose(1, 2)
    torch.testing.assert_close(calm, weights, **CLOSE)


@pytest.mark.parametrize("memory", [Softmax(), Sparsemax()])
def test_dropout_of_everything_leaves_the_bias(memory: Any) -> None:
    layer = make(input_size=D, dropout=1.0, lagrangian=memory)
    bias = layer.association_core.out_proj.bias
    assert torch.equal(layer(patterns({"input_size": D})), bias.expand(N, L, D))


def test_attributes_are_those_of_the_constructor() -> None:
    layer = HopfieldPooling(
        D,
        3,
        4,
        5,
        2,
        0.5,
        7,
        1e-3,
        stored_pattern_size=6,
        pattern_projection_size=9,
        batch_first=False,
        pattern_projection_as_static=True,
        normalize_pattern_projection=False,
        normalize_stored_pattern_affine=False,
        normalize_hopfield_space=True,
    )
    wanted = {
        "input_size": D,
        "hidden_size": 3,
        "output_size": 4,
        "pattern_size": 5,
        "num_heads": 2,
        "scaling": 0.5,
        "update_steps_max": 7,
        "update_steps_eps": 1e-3,
        "state_pattern_dim": D,
        "stored_pattern_dim": 6,
        "pattern_projection_dim": 9,
        "quantity": 1,
        "batch_first": False,
        "stored_pattern_as_static": False,
        "state_pattern_as_static": False,
        "pattern_projection_as_static": True,
        "normalize_stored_pattern": True,
        "normalize_stored_pattern_affine": False,
        "normalize_state_pattern": True,
        "normalize_state_pattern_affine": True,
        "normalize_pattern_projection": False,
        "normalize_pattern_projection_affine": False,
        "normalize_hopfield_space": True,
        "normalize_hopfield_space_affine": False,
    }
    for name, value in wanted.items():
        assert getattr(layer, name) == getattr(layer.hopfield, name, value) == value, name
    assert layer.hopfield.solver.tol == 1e-3


def test_defaults_are_those_of_hflayers() -> None:
    layer = Hopfield(12, num_heads=3)
    assert (layer.hidden_size, layer.pattern_size, layer.output_size) == (4, 4, 12)
    assert layer.scaling == 0.5  # 1/√4
    assert Hopfield(12, 9, num_heads=3).scaling == 1 / 3
    bare = dict.fromkeys(
        ("stored_pattern_as_static", "state_pattern_as_static", "pattern_projection_as_static"),
        True,
    )
    bare = Hopfield(disable_out_projection=True, **bare, **UNNORMED)
    assert bare.scaling == 1.0
    assert not list(bare.parameters())
    x = normal(N, S, 5)
    torch.testing.assert_close(bare(x), torch.softmax(x @ x.mT, -1) @ x, **CLOSE)


def test_weights_are_distributions() -> None:
    for memory in (Softmax(), Sparsemax(), Entmax(1.5)):
        layer = make(input_size=D, num_heads=2, lagrangian=memory, add_zero_association=True)
        weights = layer.get_association_matrix(patterns({"input_size": D}))
        assert weights.shape == (N, 2, L, S + 1)
        assert not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(N, 2, L).double(), **CLOSE)
        assert (weights >= 0).all()
        assert bool((weights == 0).any()) == (not isinstance(memory, Softmax))


@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh, nn.Softplus(beta=3.0)])
def test_an_activation_is_applied_to_the_output(activation: Any) -> None:
    plain, given = make(input_size=D), patterns({"input_size": D})
    layer = make(input_size=D, association_activation=activation)
    named = getattr(nn.functional, activation) if isinstance(activation, str) else activation
    assert torch.equal(layer(given), named(plain(given)))


def test_initial_values_are_those_of_hflayers() -> None:
    torch.manual_seed(0)
    layer = HopfieldPooling(64, num_heads=2, quantity=50, concat_bias_pattern=True)
    for name, p in layer.named_parameters():
        if name.endswith(("weight", "weights", "bias_k", "bias_v")) and "norm" not in name:
            # Of normal numbers, within five standard errors.
            assert abs(p.std().item() / 0.02 - 1) < 5 / (2 * p.numel()) ** 0.5, name
        else:
            assert (p == (1.0 if name.endswith("weight") else 0.0)).all(), name


def test_every_parameter_gets_a_gradient() -> None:
    layer = make(input_size=D, normalize_hopfield_space_affine=True, concat_bias_pattern=True)
    layer(patterns({"input_size": D})).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in layer.parameters())


@pytest.mark.parametrize("name", ["update_steps_max", "num_heads", "normalize_state_pattern"])
def test_attributes_of_the_constructor_cannot_be_set(name: str) -> None:
    for layer in (Hopfield(D), HopfieldPooling(D)):
        with pytest.raises(AttributeError):
            setattr(layer, name, 1)


def test_what_makes_the_state_patterns_has_no_part_in_the_equilibrium() -> None:
    layer = make(input_size=D, num_heads=2, update_steps_max=None)
    layer(normal(N, S, D)).square().sum().backward()
    assert not layer.norm_state_pattern.weight.grad.any()
    rows = layer.association_core.in_proj_weight.grad.split(D)
    assert not rows[0].any()
    assert rows[1].abs().max() > 1e-3
    assert rows[2].abs().max() > 1e-3


def test_pooling_with_the_batch_second_gives_one_row_a_sample() -> None:
    pool = make(HopfieldPooling, input_size=D, quantity=3, batch_first=False)
    x = normal(5, 4, D)
    assert pool(x).shape == (4, 3 * D)
    torch.testing.assert_close(pool(x)[2], pool(x[:, 2]), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", [None, Sparsemax()], ids=repr)
def test_similarities_may_leave_the_range_of_half_precision(dtype, memory):
    layer = Hopfield(D, input_bias=False, scaling=1.0, lagrangian=memory, **UNNORMED, dtype=dtype)
    with torch.no_grad():
        layer.association_core.in_proj_weight.copy_(torch.eye(D).repeat(3, 1))
    x = 200 * normal(N, S, D, seed=1).to(dtype)
    assert float(x.double().square().sum(-1).max()) > torch.finfo(torch.float16).max
    weights = layer.get_association_matrix(x)
    output, own = layer.associate(x)
    assert weights.dtype == own.dtype == dtype
    wide = copy.deepcopy(layer).double()
    torch.testing.assert_close(weights.double(), wide.get_association_matrix(x.double()))
    assert torch.equal(own, weights)
    assert torch.equal(output, layer(x))
    assert layer(x).isfinite().all()
    energy = wide.energy(x.double())
    fits = energy.abs() < torch.finfo(dtype).max
    assert not layer.energy(x).isnan().any()
    torch.testing.assert_close(
        layer.energy(x)[fits].double(),
        energy[fits],
        rtol=1e-2,
        atol=1e-2 * float(x.abs().max()),
    )
