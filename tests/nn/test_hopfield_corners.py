"""Corners of the layers: numbers that are not finite, shared padding, checkpoints, exports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts import normal
from test_nn_reference import (
    CLOSE,
    D,
    L,
    N,
    S,
    assert_agrees,
    association_mask,
    make,
    padding_mask,
    reference,
)
from torch.export import Dim

from hamdeq import Entmax, Picard, Softmax, Sparsemax
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling, functional


class TestNotFinite:
    """The kernel for CPUs makes zeros of NaN where there are fewer patterns than it has lanes."""

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    @pytest.mark.parametrize("count", [1, 3, 7, 20])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_a_state_pattern_is_lost_and_no_other(self, count, dtype, bad):
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
    def test_a_stored_pattern_is_lost_for_all_that_see_it(self, count):
        layer = Hopfield(D, normalize_stored_pattern=False)
        stored, state = normal(2, count, D).float(), normal(2, 4, D, seed=1).float()
        stored[0, 0, 0] = torch.nan
        found = layer((stored, state, torch.ones_like(stored)))
        assert found[0].isnan().all()
        assert found[1].isfinite().all()

    @pytest.mark.parametrize("steps", [0, 1, None])
    def test_weights_that_have_diverged_are_seen(self, steps):
        layer = HopfieldLayer(D, quantity=4, update_steps_max=steps, on_failure="ignore")
        torch.nn.init.constant_(layer.hopfield.association_core.in_proj_weight[:D], torch.nan)
        assert layer(normal(2, 3, D).float()).isnan().all()

    def test_a_mask_of_nan_is_seen(self):
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


class TestCheckpoints:
    """β of each head, not trained, is in no file."""

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("kind", [Hopfield, HopfieldPooling, HopfieldLayer])
    def test_of_a_layer_built_on_the_meta_device(self, kind, assign):
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

    def test_a_trained_beta_is_that_of_the_file(self):
        given = Hopfield(D, num_heads=2, scaling_as_trainable=True)
        torch.nn.init.constant_(given.association_core.memories.log_beta, 0.3)
        other = Hopfield(D, num_heads=2, scaling_as_trainable=True)
        other.load_state_dict(given.state_dict())
        assert torch.equal(other.scaling, given.scaling)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5])
def test_pooling_and_look_up_are_the_loop_for_any_number_of_updates(steps):
    arguments = {"input_size": D, "num_heads": 2, "update_steps_max": steps, "scaling": 1.5}
    mask = padding_mask("bool"), association_mask("bool", 2)
    x = normal(N, S, D, seed=1)
    pool = make(HopfieldPooling, quantity=L, **arguments)
    state = pool.pooling_weights.expand(N, -1, -1)
    expected = reference(pool, arguments, x, state, x, *mask)
    assert_agrees(pool, x, mask, expected._replace(output=expected.output.flatten(1)))
    layer, x = make(HopfieldLayer, quantity=S, **arguments), normal(N, L, D, seed=2)
    stored = layer.lookup_weights.expand(N, -1, -1)
    assert_agrees(layer, x, mask, reference(layer, arguments, stored, x, stored, *mask))


def test_an_export_with_padding_ties_no_sizes_together():
    layer = HopfieldLayer(D, quantity=4).eval()
    n, length = Dim("n"), Dim("length")
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[1, 2] = True
    given = (normal(3, 6, D).float(), padding)
    program = torch.export.export(
        layer, given, dynamic_shapes=({0: n, 1: length}, {0: n}), strict=False
    )
    for count, size in ((2, 4), (5, 9)):
        other = (normal(count, size, D, seed=5).float(), padding[[1] * count])
        torch.testing.assert_close(program.module()(*other), layer(*other), **CLOSE)


def test_steep_entmax_is_compiled_in_one_graph():
    def read(x):
        return functional.metastability(Entmax(3.0).activation(x))

    x = normal(4, 6)
    torch.testing.assert_close(
        torch.compile(read, fullgraph=True, backend="eager")(x), read(x), **CLOSE
    )


def test_a_solver_without_a_trace_finds_the_same():
    stored, state = normal(1, 5, D), normal(2, 3, D, seed=1)
    with_trace, without = (
        functional.settle(state, stored, 4.0, solver=Picard(trace=trace)) for trace in (True, False)
    )
    assert with_trace.trace.shape == (with_trace.n_evals, 2, 3)
    assert without.trace.shape == (0, 2, 3)
    assert without.n_evals == with_trace.n_evals
    assert torch.equal(without.value, with_trace.value)
    assert torch.equal(without.steps, with_trace.steps)


def test_weights_need_not_sum_to_one():
    assert functional.metastability(torch.tensor([2.0, 2.0])) == pytest.approx(2.0)
