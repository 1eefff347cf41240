"""Hopfield layers equal a reference written in loops: values, weights, energies and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hopfield_reference import Expected, hopfield, sparse_potential, sparsemax
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from hamdeq import Separation, Softmax, Sparsemax
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling
from hamdeq.testing import normal

N, L, S, D = 2, 3, 4, 8
# Sums of some tens of float64 terms of unit size.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
UNNORMED = {
    "normalize_stored_pattern": False,
    "normalize_state_pattern": False,
    "normalize_pattern_projection": False,
}


def make(kind: type[nn.Module] = Hopfield, *, seed: int = 0, **arguments: Any) -> Any:
    """A float64 layer whose parameters are all random, so that each of them matters."""
    layer = kind(**arguments, dtype=torch.float64)
    with torch.no_grad():
        for k, (name, p) in enumerate(layer.named_parameters()):
            if not name.endswith("log_beta"):
                p.copy_((0.6 if p.dim() == 2 else 1.0) * normal(*p.shape, seed=100 * seed + k))
    return layer


def patterns(arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Stored patterns, state patterns and pattern projections of the sizes that are asked for."""
    heads, size = arguments.get("num_heads", 1), arguments["input_size"]
    hidden = arguments.get("hidden_size") or size // heads
    k = hidden if arguments.get("stored_pattern_as_static") else None
    q = hidden if arguments.get("state_pattern_as_static") else size
    v = arguments.get("pattern_projection_size") or size
    if arguments.get("pattern_projection_as_static") and not arguments.get(
        "pattern_projection_as_connected"
    ):
        v = arguments.get("pattern_size") or hidden
    k = k or arguments.get("stored_pattern_size") or size
    return normal(N, S, k, seed=1), normal(N, L, q, seed=2), normal(N, S, v, seed=3)


def reference(layer: Any, arguments: dict[str, Any], *inputs: Any, **kwargs: Any) -> Expected:
    core = getattr(layer, "hopfield", layer)
    return hopfield(arguments, dict(core.state_dict()), *inputs, **kwargs)


def assert_agrees(layer: Any, given: Any, masks: tuple[Any, Any], expected: Expected) -> None:
    torch.testing.assert_close(layer(given, *masks), expected.output, **CLOSE)
    torch.testing.assert_close(
        layer.get_association_matrix(given, *masks), expected.weights, **CLOSE
    )
    torch.testing.assert_close(layer.get_projected_pattern_matrix(given), expected.values, **CLOSE)


BOTH = {
    "stored_pattern_size": 5,
    "pattern_projection_size": 6,
    "hidden_size": 3,
    "pattern_size": 7,
    "output_size": 10,
}
CONNECTED = {"pattern_projection_as_connected": True}
STATIC = {"num_heads": 2, "hidden_size": 4, **UNNORMED}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "heads": {"num_heads": 2},
    "four heads": {"num_heads": 4, "update_steps_max": 1},
    "five steps": {"num_heads": 2, "update_steps_max": 5},
    "steps of heads": {"num_heads": 4, "update_steps_max": [3, 0, 1, 3]},
    "steps of heads, tensor": {"num_heads": 2, "update_steps_max": torch.tensor([0, 2])},
    "sizes": {"num_heads": 2, "update_steps_max": 1, **BOTH},
    "hidden size": {"num_heads": 2, "hidden_size": 5},
    "heads that do not divide": {"num_heads": 3, "hidden_size": 2, "update_steps_max": 1},
    "pattern size": {"num_heads": 2, "pattern_size": 3},
    "beta": {"num_heads": 2, "scaling": 1.7, "update_steps_max": 2},
    "betas": {"num_heads": 4, "scaling": torch.tensor([0.2, 2.0, 0.7, 4.0], dtype=torch.float64)},
    "betas and steps": {
        "num_heads": 2,
        "scaling": torch.tensor([0.2, 3.0], dtype=torch.float64),
        "update_steps_max": [1, 3],
    },
    "betas and steps of groups": {
        "num_heads": 4,
        "scaling": torch.tensor([0.2, 2.0, 0.7, 4.0], dtype=torch.float64),
        "update_steps_max": [1, 0, 1, 0],
    },
    "no norms": {"num_heads": 2, "update_steps_max": 1, **UNNORMED},
    "plain norms": {
        "num_heads": 2,
        **{f"{name}_affine": False for name in UNNORMED},
        **{f"{name}_eps": eps for name, eps in zip(UNNORMED, (0.1, 0.3, 0.5), strict=True)},
    },
    "one norm": {**UNNORMED, "normalize_stored_pattern": True},
    "norm in the space": {
        "num_heads": 2,
        "update_steps_max": 2,
        "normalize_hopfield_space": True,
        "normalize_hopfield_space_eps": 0.2,
        "concat_bias_pattern": True,
    },
    "affine norm in the space": {
        "num_heads": 2,
        "normalize_hopfield_space": True,
        "normalize_hopfield_space_affine": True,
    },
    "bias pattern": {"num_heads": 2, "concat_bias_pattern": True, "update_steps_max": 2, **BOTH},
    "zero": {"num_heads": 2, "add_zero_association": True, "update_steps_max": 2},
    "both appended": {"concat_bias_pattern": True, "add_zero_association": True, "num_heads": 4},
    "no bias": {"num_heads": 2, "input_bias": False, "update_steps_max": 1},
    "no bias, sizes": {"num_heads": 2, "input_bias": False, **BOTH},
    "no output projection": {"num_heads": 2, "disable_out_projection": True, "pattern_size": 3},
    "static state": {**STATIC, "state_pattern_as_static": True, "update_steps_max": 2},
    "static stored": {**STATIC, "stored_pattern_as_static": True, "update_steps_max": 2},
    "static projection": {**STATIC, "pattern_projection_as_static": True},
    "static projection, sizes": {
        **STATIC,
        "pattern_projection_as_static": True,
        "pattern_projection_size": 3,
        "pattern_size": 3,
        "concat_bias_pattern": True,
    },
    "static pair": {
        **STATIC,
        "stored_pattern_as_static": True,
        "pattern_projection_as_static": True,
        "update_steps_max": 1,
    },
    "static in all": {
        **STATIC,
        "stored_pattern_as_static": True,
        "state_pattern_as_static": True,
        "pattern_projection_as_static": True,
        "update_steps_max": 1,
    },
    "connected": {"num_heads": 2, "pattern_size": 3, "update_steps_max": 1, **CONNECTED},
    "connected, normed": {"num_heads": 2, "normalize_hopfield_space": True, **CONNECTED},
    "connected, static stored": {**STATIC, "stored_pattern_as_static": True, **CONNECTED},
    "connected, static projection": {**STATIC, "pattern_projection_as_static": True, **CONNECTED},
    "connected, both static": {
        **STATIC,
        "stored_pattern_as_static": True,
        "pattern_projection_as_static": True,
        "pattern_projection_size": 4,
        **CONNECTED,
    },
}
# Those whose masks are to get gradients.
MASKED = ("beta", "sizes", "betas and steps", "bias pattern", "zero", "steps of heads")


def padding_mask(kind: str) -> Tensor | None:
    if kind == "bool":
        return torch.tensor([[True, False, False, True], [False, False, True, False]])
    if kind == "float":
        mask = normal(N, S, seed=11)
        mask[1, 2] = -torch.inf
        return mask
    return None


def association_mask(kind: str, heads: int) -> Tensor | None:
    if not kind:
        return None
    shape = (N * heads, L, S) if kind.endswith("each") else (L, S)
    where = normal(*shape, seed=12) > 0.4
    if kind.startswith("bool"):
        return where
    return (2 * normal(*shape, seed=13)).masked_fill(where, -torch.inf)


def lagrangian(name: str) -> tuple[Separation, dict[str, Any]]:
    if name == "softmax":
        return Softmax(), {}
    return Sparsemax(), {"distribution": sparsemax, "potential": sparse_potential}


def assert_close_to_reference(
    layer: Any, arguments: dict[str, Any], given: Any, *masks: Any, **functions: Any
) -> Expected:
    """Values, and the gradients to the inputs, the masks and all parameters."""
    three = given if isinstance(given, tuple) else (given,) * 3
    leaves = [x.requires_grad_() for x in three]
    leaves += [m.requires_grad_() for m in masks if m is not None and m.is_floating_point()]
    leaves += layer.parameters()
    parameters = dict(getattr(layer, "hopfield", layer).named_parameters())
    expected = hopfield(arguments, parameters, *three, *masks, **functions)
    detached = Expected(*(x.detach() for x in expected))
    masks = (*masks, *[None] * (2 - len(masks)))
    assert_agrees(layer, given, masks, detached)
    output, weight = layer(given, *masks), normal(*expected.output.shape, seed=20)
    wanted = torch.autograd.grad((expected.output * weight).sum(), leaves, materialize_grads=True)
    got = torch.autograd.grad((output * weight).sum(), leaves, materialize_grads=True)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    return detached


@pytest.mark.parametrize("name", CASES)
def test_an_association_of_three_inputs_is_the_loop(name: str) -> None:
    arguments = {"input_size": D, **CASES[name]}
    layer, given = make(**arguments), patterns(arguments)
    expected = assert_close_to_reference(layer, arguments, given)
    torch.testing.assert_close(layer.project(given).values, expected.values, **CLOSE)
    steps = arguments.get("update_steps_max", 0)
    if isinstance(steps, int):
        torch.testing.assert_close(layer.energy(given, steps=steps), expected.energy, **CLOSE)
    # What is compared is sharp enough to tell one pattern from another, one head from another.
    assert expected.weights.max() > 0.3
    if layer.num_heads > 1 and name != "static in all":
        assert (expected.weights[:, 0] - expected.weights[:, 1]).abs().max() > 1e-2
    if name in MASKED:
        masks = padding_mask("float"), association_mask("float each", layer.num_heads)
        assert_close_to_reference(layer, arguments, given, *masks)


@pytest.mark.parametrize("name", ["plain", "betas and steps", "both appended", "no norms"])
def test_a_self_association_is_the_loop(name: str) -> None:
    arguments = {"input_size": D, **CASES[name]}
    assert_close_to_reference(make(**arguments), arguments, normal(N, S, D, seed=4))


@pytest.mark.parametrize("name", ["beta", "no norms", "sizes"])
def test_stored_patterns_that_are_read_out_are_the_loop(name: str) -> None:
    arguments = {"input_size": D, **CASES[name], "pattern_projection_size": None}
    arguments["stored_pattern_size"] = None
    y, r = normal(N, S, D, seed=5), normal(N, L, D, seed=6)
    assert_close_to_reference(make(**arguments), arguments, (y, r, y))


# Each kind of either mask, with each kind of memory and of the other mask at least once.
MASKS = [
    ("", "bool"), ("", "float"), ("bool", ""), ("bool each", "bool"), ("float", "bool"),
    ("float each", "float"), ("float", ""), ("bool", "float"), ("float each", "bool"),
]  # fmt: skip


@pytest.mark.parametrize(("association", "padding"), MASKS)
@pytest.mark.parametrize("memory", ["softmax", "sparsemax"])
def test_masked_retrieval_is_the_loop(memory: str, association: str, padding: str) -> None:
    for name in ("betas and steps of groups", "both appended"):
        arguments = {"input_size": D, **CASES[name]}
        own, functions = lagrangian(memory)
        layer, given = make(**arguments, lagrangian=own), patterns(arguments)
        masks = padding_mask(padding), association_mask(association, layer.num_heads)
        assert_agrees(layer, given, masks, reference(layer, arguments, *given, *masks, **functions))
        unmoved = {**arguments, "update_steps_max": 0}
        energy = reference(layer, unmoved, *given, *masks, **functions).energy
        torch.testing.assert_close(layer.energy(given, *masks), energy, **CLOSE)


def test_the_gradient_of_a_trained_beta_is_the_loop_s() -> None:
    beta = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    arguments = {"input_size": D, "num_heads": 2, "update_steps_max": [1, 2]}
    layer = make(**arguments, scaling=nn.Parameter(beta.detach()))
    given = patterns(arguments)
    weight = normal(N, L, D, seed=20)
    expected = hopfield({**arguments, "scaling": beta}, dict(layer.named_parameters()), *given)
    (wanted,) = torch.autograd.grad((expected.output * weight).sum(), beta)
    (layer(given) * weight).sum().backward()
    got = layer.association_core.memories.log_beta.grad.flatten()
    # dℓ/d ln β = β dℓ/dβ.
    torch.testing.assert_close(got, beta.detach() * wanted, rtol=1e-11, atol=1e-13)
    assert (got.abs() > 1e-3).all()


@pytest.mark.parametrize("memory", ["softmax", "sparsemax"])
def test_gradients_are_those_of_finite_differences(memory: str) -> None:
    arguments = {"input_size": 4, "num_heads": 2, "update_steps_max": [0, 2]}
    layer = make(**arguments, lagrangian=lagrangian(memory)[0], scaling_as_trainable=True)
    names = [name for name, _ in layer.named_parameters()]
    given = [normal(1, n, 4, seed=k).requires_grad_() for k, n in enumerate((3, 2, 3))]
    mask = normal(2, 3, seed=9).requires_grad_()

    def compute(y: Tensor, r: Tensor, z: Tensor, mask: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return functional_call(layer, parameters, ((y, r, z), None, mask))

    assert gradcheck(compute, (*given, mask, *layer.parameters()), fast_mode=True)


def test_beta_is_one_of_each_head_not_of_each_feature() -> None:
    betas = torch.tensor([0.3, 4.0], dtype=torch.float64)
    layer, given = make(input_size=D, num_heads=2, scaling=betas), patterns({"input_size": D})
    state, stored, _ = layer.project(given)
    got = layer.get_association_matrix(given)
    right = (betas[:, None, None] * state) @ stored.mT
    torch.testing.assert_close(right.softmax(-1), got, **CLOSE)
    wrong = (state * betas.repeat(D // 4)) @ stored.mT
    assert (wrong.softmax(-1) - got).abs().max() > 0.1


@pytest.mark.parametrize("trained", [False, True])
def test_beta_is_as_exact_as_given(trained: bool) -> None:
    betas = torch.tensor([0.1, 0.7], dtype=torch.float64)
    layer = make(input_size=D, num_heads=2, scaling=betas, scaling_as_trainable=trained)
    torch.testing.assert_close(layer.scaling, betas, rtol=1e-15, atol=0)
    with torch.no_grad():
        layer.association_core.memories.beta.mul_(2.0)
    layer.reset_parameters()
    torch.testing.assert_close(layer.scaling, betas, rtol=1e-15, atol=0)


OPTIONS = {"num_heads": 2, "output_size": 5, "scaling": 1.5}


@pytest.mark.parametrize("steps", [0, 2, 5])
@pytest.mark.parametrize("static", [False, True])
def test_pooling_is_the_loop(static: bool, steps: int) -> None:
    arguments = {"input_size": D, "update_steps_max": steps, **OPTIONS}
    if static:
        arguments |= {**STATIC, "state_pattern_as_static": True}
    layer = make(HopfieldPooling, quantity=3, **arguments)
    assert layer.pooling_weights.shape == (1, 3, 4 if static else D)
    x, z = normal(N, S, D, seed=1), normal(N, S, D, seed=2)
    state = layer.pooling_weights.expand(N, -1, -1)
    mask = padding_mask("bool"), association_mask("float each", 2)
    for given, pair in ((x, (x, x)), ((x, z), (x, z))):
        expected = reference(layer, arguments, pair[0], state, pair[1], *mask)
        assert_agrees(layer, given, mask, expected._replace(output=expected.output.flatten(1)))
        torch.testing.assert_close(
            layer.energy(given, *mask, steps=steps), expected.energy, **CLOSE
        )


@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"update_steps_max": 0},
        {"update_steps_max": 4},
        {"stored_pattern_size": 6, "pattern_projection_size": 6},
        {**STATIC, "stored_pattern_as_static": True, "pattern_projection_size": 4},
        {**STATIC, "pattern_projection_as_static": True, "stored_pattern_size": 4},
    ],
)
def test_a_look_up_is_the_loop(separated: bool, sizes: dict[str, Any]) -> None:
    arguments = {"input_size": D, "update_steps_max": 2, **OPTIONS, **sizes}
    layer = make(HopfieldLayer, quantity=S, lookup_weights_as_separated=separated, **arguments)
    x = normal(N, L, D, seed=1)
    stored = layer.lookup_weights.expand(N, -1, -1)
    values = layer.target_weights.expand(N, -1, -1) if separated else stored
    mask = padding_mask("bool"), association_mask("bool", 2)
    assert_agrees(layer, x, mask, reference(layer, arguments, stored, x, values, *mask))


@pytest.mark.parametrize("trainable", [False, True])
def test_learned_patterns_get_gradients_where_trained(trainable: bool) -> None:
    pool = make(HopfieldPooling, input_size=D, trainable=trainable)
    layer = make(
        HopfieldLayer,
        input_size=D,
        quantity=3,
        trainable=trainable,
        lookup_weights_as_separated=True,
        lookup_targets_as_trainable=not trainable,
    )
    (pool(normal(N, S, D)).sum() + layer(normal(N, L, D)).square().sum()).backward()
    for p, trained in (
        (pool.pooling_weights, trainable),
        (layer.lookup_weights, trainable),
        (layer.target_weights, not trainable),
    ):
        assert p.requires_grad == trained
        assert (p.grad is not None and bool((p.grad != 0).any())) == trained
