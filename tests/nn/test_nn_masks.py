"""Masks leave patterns out for good, and no sample has an influence on another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_nn_reference import CLOSE, D, L, N, S, make
from torch import Tensor

from hamdeq import ConvergenceError, ConvergenceWarning, Entmax, Softmax, Sparsemax, Status
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling
from hamdeq.testing import normal

MEMORIES = [Softmax(), Sparsemax(), Entmax(1.5)]
# Each number of updates with each of several memories; [a, b] is one number for each head.
MODES: list[tuple[Any, Any]] = [
    (0, Softmax()),
    (2, Sparsemax()),
    ([1, 0], Entmax(1.5)),
    (None, Softmax()),
    (None, Entmax(1.5)),
    ([2, -1], Softmax()),
    ([2, -1], Sparsemax()),
]
all_modes = pytest.mark.parametrize(("steps", "memory"), MODES, ids=repr)
some_modes = pytest.mark.parametrize(
    ("steps", "memory"), [MODES[k] for k in (0, 2, 4, 6)], ids=repr
)


def cross(stored: int = S) -> tuple[Tensor, Tensor, Tensor]:
    return normal(N, stored, D, seed=1), normal(N, L, D, seed=2), normal(N, stored, D, seed=3)


def left_out(kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Masks that leave out all of sample 1, or all of the state pattern 2, of every head."""
    shape = (N, S) if kind.endswith("sample") else (L, S)
    where = torch.zeros(shape, dtype=torch.bool)
    where[-1] = True
    mask = where if kind.startswith("bool") else torch.zeros(shape).masked_fill(where, -torch.inf)
    if kind.endswith("sample"):
        return mask, None
    return None, mask.expand(2 * N, L, S) if kind.endswith("heads") else mask


@some_modes
@pytest.mark.parametrize(
    "kind", ["bool sample", "float sample", "bool row", "bool row of heads", "float row"]
)
def test_zeros_with_zero_gradient_are_retrieved_where_nothing_is_left(
    kind: str, steps: Any, memory: Any
) -> None:
    layer = make(input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory)
    masks = left_out(kind)
    given = [x.requires_grad_() for x in cross()]
    output = layer(tuple(given), *masks)
    dead = (1, slice(None)) if kind.endswith("sample") else (slice(None), 2)
    bias = layer.association_core.out_proj.bias
    assert torch.equal(output[dead], bias.expand_as(output[dead]))
    weights = layer.get_association_matrix(tuple(given), *masks)
    rows = weights.transpose(1, 2)[dead]
    assert torch.equal(rows, torch.zeros_like(rows))
    assert (weights.transpose(1, 2)[0, 0].sum(-1) - 1).abs().max() < 1e-12

    loss = (output[dead] ** 2).sum()
    grads = torch.autograd.grad(loss, given, retain_graph=True, materialize_grads=True)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)
    (output**2).sum().backward()
    for x in (*given, *layer.parameters()):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
    assert (given[2].grad[0] != 0).any()


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_the_energy_where_nothing_is_left_is_that_of_the_state(memory: Any) -> None:
    layer = make(input_size=D, num_heads=2, lagrangian=memory, scaling_as_trainable=True)
    masks = left_out("bool sample")
    state = layer.project(cross()).state
    energy = layer.energy(cross(), *masks)
    torch.testing.assert_close(energy[1], 0.5 * state[1].square().sum(-1), **CLOSE)
    energy.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    solution = layer.settle(cross(), *masks)
    assert torch.equal(solution.value[1], torch.zeros_like(solution.value[1]))
    assert solution.converged.all()
    assert (solution.steps[1] == 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_a_number_that_is_infinite_in_half_precision_leaves_out(memory: Any, dtype: Any) -> None:
    layer = Hopfield(D, num_heads=2, lagrangian=memory, dtype=dtype, update_steps_max=1)
    given = tuple(x.to(dtype) for x in cross())
    mask = torch.zeros(L, S)
    mask[2] = torch.finfo(torch.float32).min
    weights = layer.get_association_matrix(given, None, mask)
    assert torch.equal(weights[:, :, 2], torch.zeros_like(weights[:, :, 2]))
    assert torch.isfinite(layer(given, None, mask)).all()


@some_modes
@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 4), (0, 3, 4)])
def test_empty_inputs_give_empty_results_and_zero_gradients(
    shape: tuple[int, int, int], steps: Any, memory: Any
) -> None:
    n, states, stored = shape
    layer = make(input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory)
    given = [normal(n, k, D).requires_grad_() for k in (stored, states, stored)]
    for masks in ((), (torch.zeros(n, stored, dtype=torch.bool),)):
        output = layer(tuple(given), *masks)
        assert output.shape == (n, states, D)
        assert torch.equal(output, layer.association_core.out_proj.bias.expand_as(output))
        output.sum().backward()
        assert layer.settle(tuple(given), *masks).converged.all()
        assert layer.energy(tuple(given), *masks).shape == (n, 2, states)
        assert layer.get_association_matrix(tuple(given), *masks).shape == (
            n,
            2,
            states,
            stored,
        )
    assert all(x.grad is None or not x.grad.any() for x in given)


@pytest.mark.parametrize("steps", [0, None, [2, -1]], ids=str)
@pytest.mark.parametrize("kind", [Hopfield, HopfieldPooling])
@pytest.mark.parametrize(
    ("normed", "fill"), [(True, torch.nan), (False, torch.nan), (False, torch.inf), (True, 1e30)]
)
def test_padding_never_matters(normed: bool, kind: Any, steps: Any, fill: float) -> None:
    options = (
        {}
        if normed
        else dict.fromkeys(
            (f"normalize_{name}" for name in ("stored_pattern", "pattern_projection")), False
        )
    )
    layer = make(
        kind,
        input_size=D,
        num_heads=2,
        update_steps_max=steps,
        concat_bias_pattern=True,
        **options,
    )
    y, r, z = cross()
    more = torch.full((N, 3, D), fill, dtype=torch.float64)
    # Padding on both sides, and in a sample's middle.
    order = torch.tensor([4, 0, 1, 5, 2, 3, 6])
    long = [torch.cat([x, more], 1)[:, order] for x in (y, z)]
    mask = (order >= S).expand(N, -1)

    def run(stored: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (stored, values)]
        given = (leaves[0], r, leaves[1]) if kind is Hopfield else tuple(leaves)
        output = layer(given, mask)
        weight = normal(*output.shape, seed=8)
        parameters = [p for p in layer.parameters() if p.requires_grad]
        return output, *torch.autograd.grad((output * weight).sum(), [*leaves, *parameters])

    short, padded = run(y, z, None), run(*long, mask)
    # A converged mode stops by a residual: its tolerance is then that of the gradient's system.
    loose = steps is None or -1 in (steps if isinstance(steps, list) else [])
    close = {"rtol": 1e-9, "atol": 1e-9} if loose else {"rtol": 1e-11, "atol": 1e-12}
    for k, (one, other) in enumerate(zip(short, padded, strict=True)):
        if k in (1, 2):
            assert torch.equal(other[mask], torch.zeros_like(other[mask]))
            other = other[:, (order < S).nonzero()[:, 0]]
        torch.testing.assert_close(other, one, **close)


@all_modes
def test_the_order_of_stored_patterns_does_not_matter(memory: Any, steps: Any) -> None:
    layer = make(
        HopfieldPooling,
        input_size=D,
        update_steps_max=steps,
        num_heads=2,
        lagrangian=memory,
        quantity=2,
    )
    x, order = normal(N, 9, D), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    mask = normal(N, 9, seed=1) > 0.8
    torch.testing.assert_close(layer(x[:, order], mask[:, order]), layer(x, mask), **CLOSE)
    association = normal(N * 2, 2, 9, seed=2)
    torch.testing.assert_close(
        layer(x[:, order], None, association[..., order]), layer(x, None, association), **CLOSE
    )


@all_modes
def test_a_sample_does_not_depend_on_its_companions(steps: Any, memory: Any) -> None:
    layer = make(input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory)
    y, r, z = (normal(6, k, D, seed=k) for k in (5, 3, 5))
    y = y * torch.tensor([0.01, 30.0, 1.0, 1e8, 3.0, 0.3]).double()[:, None, None]
    padding, mask = normal(6, 5, seed=4) > 0.8, normal(12, 3, 5, seed=5)
    whole = layer((y, r, z), padding, mask)
    for n in range(6):
        own = slice(n, n + 1)
        alone = layer((y[own], r[own], z[own]), padding[own], mask[2 * n : 2 * n + 2])
        torch.testing.assert_close(whole[own], alone, rtol=1e-12, atol=1e-12)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    turned = layer(
        (y[order], r[order], z[order]),
        padding[order],
        mask.unflatten(0, (6, 2))[order].flatten(0, 1),
    )
    torch.testing.assert_close(turned, whole[order], rtol=1e-12, atol=1e-12)


@some_modes
@pytest.mark.parametrize(
    ("which", "bad"), [(0, torch.nan), (1, torch.inf), (1, torch.nan), (2, torch.inf)]
)
def test_what_is_not_finite_stays_where_it_is(
    which: int, steps: Any, memory: Any, bad: float
) -> None:
    layer = make(
        input_size=D,
        num_heads=2,
        update_steps_max=steps,
        lagrangian=memory,
        on_failure="ignore",
    )
    good = cross()
    spoilt = [x.clone() for x in good]
    spoilt[which][1, 2, 3] = bad
    leaves = [x.requires_grad_() for x in spoilt]
    expected, got = layer(good), layer(tuple(leaves))
    torch.testing.assert_close(got[0], expected[0], **CLOSE)
    if which == 1:
        assert got[1, 2].isnan().all()
        torch.testing.assert_close(got[1, :2], expected[1, :2], **CLOSE)
    else:
        assert got[1].isnan().all()
    for own, grad in zip(leaves, torch.autograd.grad(got[0].sum(), leaves), strict=True):
        assert torch.isfinite(grad[0]).all(), own.shape


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_reported(which: int) -> None:
    given = [x.clone() for x in cross()]
    given[which][1, 2] = torch.nan
    layer = make(input_size=D, num_heads=2, update_steps_max=None)
    count = 6 if which == 0 else 2
    with pytest.warns(ConvergenceWarning, match=f"{count} of 12 samples: the given state"):
        layer(tuple(given))
    layer(tuple(given))  # once is enough
    solution = layer.settle(tuple(given))
    invalid = torch.zeros(N, 2, L, dtype=torch.bool)
    invalid[1, :, slice(None) if which == 0 else 2] = True
    assert torch.equal(solution.status == Status.INVALID, invalid)
    assert torch.equal(solution.value.isnan().all(-1), invalid)
    assert torch.equal(solution.residual.isnan(), invalid)
    assert torch.equal(solution.converged, ~invalid)
    for alike in (given, [x[1] for x in given]):
        layer = make(input_size=D, update_steps_max=None, on_failure="raise")
        with pytest.raises(ConvergenceError, match="infinity or a NaN"):
            layer(tuple(alike))


# The kernel for CPUs makes zeros of NaN where there are fewer patterns than it has lanes.
@pytest.mark.parametrize(("count", "bad"), [(1, torch.nan), (7, torch.inf), (20, torch.nan)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_state_pattern_that_is_not_finite_is_lost_and_no_other(count, dtype, bad):
    layer = Hopfield(D, num_heads=2, update_steps_max=1, dtype=dtype)
    stored, state = normal(2, count, D).to(dtype), normal(2, 4, D, seed=1).to(dtype)
    whole = layer((stored, state, stored))
    state[0, 2, 1] = bad
    found = layer((stored, state, stored))
    assert found[0, 2].isnan().all()
    others = [found[1], found[0, [0, 1, 3]]]
    for x, expected in zip(others, [whole[1], whole[0, [0, 1, 3]]], strict=True):
        assert torch.equal(x, expected)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_stored_pattern_of_nan_is_lost_for_all_that_see_it(count):
    layer = Hopfield(D, normalize_stored_pattern=False)
    stored, state = normal(2, count, D).float(), normal(2, 4, D, seed=1).float()
    stored[0, 0, 0] = torch.nan
    found = layer((stored, state, torch.ones_like(stored)))
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("steps", [0, 1, None])
def test_weights_that_have_diverged_are_seen(steps):
    layer = HopfieldLayer(D, quantity=4, update_steps_max=steps, on_failure="ignore")
    torch.nn.init.constant_(layer.hopfield.association_core.in_proj_weight[:D], torch.nan)
    assert layer(normal(2, 3, D).float()).isnan().all()


def test_a_mask_of_nan_is_seen():
    layer, mask = Hopfield(D), torch.zeros(4, 4)
    mask[1, 2] = torch.nan
    found = layer(normal(2, 4, D).float(), None, mask)
    assert found[:, 1].isnan().all()
    assert found[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("memory", [Softmax(), Sparsemax()], ids=repr)
def test_padding_of_shared_patterns_reaches_none_but_those_that_see_it(memory):
    layer = Hopfield(D, num_heads=2, lagrangian=memory)
    stored, state = normal(1, S, D).float(), normal(3, L, D, seed=1).float()
    padding = torch.zeros(3, S, dtype=torch.bool)
    padding[:2, 2] = True
    expected = layer((stored, state, stored), padding)
    stored[0, 2] = torch.nan
    found = layer((stored, state, stored), padding)
    torch.testing.assert_close(found[:2], expected[:2])
    assert found[2].isnan().all()
    each = layer((stored.expand(3, -1, -1), state, stored.expand(3, -1, -1)), padding)
    torch.testing.assert_close(found, each, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("steps", "memory"), [(1, None), (None, Sparsemax())], ids=repr)
def test_the_lowest_number_of_a_dtype_leaves_out(steps, memory, dtype):
    layer = make(input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory)
    layer = layer.float() if dtype == torch.float32 else layer
    x = normal(N, S, D, seed=1).to(next(layer.parameters()))
    out = torch.tensor([[False, False, True, False], [True] * S])
    lowest = torch.zeros(N, S, dtype=dtype).masked_fill(out, torch.finfo(dtype).min)
    state, results = normal(N, L, D, seed=2).to(x), []
    for mask in (out, lowest):
        stored = x.masked_fill(out[..., None], torch.nan).requires_grad_()
        output = layer((stored, state, stored), mask)
        leaves = [stored, *layer.parameters()]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)
    # Both masks together, each with its lowest number.
    association = torch.zeros(L, S, dtype=dtype)
    association[:, 2] = torch.finfo(dtype).min
    output = layer((stored, state, stored), lowest, association)
    torch.testing.assert_close(output, results[0][0])


SHARING = {
    "no updates": {},
    "updates": {"update_steps_max": 2},
    "settled": {"update_steps_max": None},
    "by head": {"update_steps_max": [0, 3]},
    "β by head": {"update_steps_max": 1, "scaling": torch.tensor([0.5, 3.0])},
    "sparse": {"update_steps_max": 1, "lagrangian": Sparsemax()},
}


def made(kind, **options):
    torch.manual_seed(0)
    options = {"num_heads": 2, "normalize_hopfield_space": True} | options
    return kind(6, **options).double()


@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING.keys())
@pytest.mark.parametrize("batch_first", [True, False])
def test_shared_patterns_are_those_of_every_sample(options, batch_first):
    layer = made(Hopfield, batch_first=batch_first, **options)
    axis = 0 if batch_first else 1
    state, stored = normal(4, 3, 6), normal(1, 5, 6, seed=1)
    repeated = stored.expand(4, -1, -1).contiguous()
    if not batch_first:
        state, stored, repeated = (x.transpose(0, 1) for x in (state, stored, repeated))
    one, each = (stored, state, stored), (repeated, state, repeated)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(layer(one), layer(each), **close)
    for method in ("get_association_matrix", "get_projected_pattern_matrix", "energy"):
        found, expected = (getattr(layer, method)(x) for x in (one, each))
        torch.testing.assert_close(found, expected, **close)
    found, expected = layer.settle(one), layer.settle(each)
    torch.testing.assert_close(found.value, expected.value, **close)
    assert torch.equal(found.steps, expected.steps)
    assert found.trace.shape == expected.trace.shape
    assert found.steps.shape == (4, 2, 3)
    assert layer(one).shape[axis] == 4


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_shared_patterns_are_the_sums_over_samples(masked):
    layer = made(Hopfield, update_steps_max=1)
    state = normal(4, 3, 6)
    padding = None
    if masked:
        padding = torch.tensor([[False, False, True, False, False]] * 4)
        padding[1, 0] = True
    grads = []
    for copies in (1, 4):
        stored = normal(1, 5, 6, seed=1).requires_grad_()
        repeated = stored.expand(copies, -1, -1)
        layer((repeated, state, repeated), padding).square().sum().backward()
        grads.append(stored.grad)
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-14)


def test_learned_patterns_are_projected_once():
    """What grows with the number of samples must not grow with the memory."""
    layer = HopfieldLayer(6, quantity=50)
    rows = []
    layer.hopfield.norm_stored_pattern.register_forward_hook(
        lambda module, given, result: rows.append(result.shape[:2].numel())
    )
    layer(torch.randn(40, 1, 6))
    assert rows == [50]


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("options", SHARING.values(), ids=SHARING.keys())
def test_padding_that_is_not_finite_reaches_nothing(options, additive):
    layer = made(Hopfield, **options)
    padding = torch.tensor([[False, False, True, True], [False, False, False, True]])
    mask = torch.zeros(2, 4).masked_fill(padding, -torch.inf) if additive else padding
    results = []
    for rest in (0.0, torch.nan, torch.inf):
        x = normal(2, 4, 6).masked_fill(padding[..., None], rest)
        layer.zero_grad()
        output = layer(x, mask)[~padding]
        output.square().sum().backward()
        grads = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        results.append([output.detach(), *grads])
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_finite_padding_is_a_state_pattern_like_any_other():
    """As in attention: what it retrieves is in the output."""
    layer, x = made(Hopfield), normal(1, 4, 6)
    padding = torch.tensor([[False, False, True, True]])
    apart = layer((x[:, :2], x, x[:, :2]))
    torch.testing.assert_close(layer(x, padding), apart, rtol=1e-12, atol=1e-14)
