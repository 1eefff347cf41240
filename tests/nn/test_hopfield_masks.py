"""What is left out has no influence, and samples have none on each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts import normal
from test_hopfield import CLOSE, D, L, N, S, make
from torch import Tensor

from hamdeq import ConvergenceError, ConvergenceWarning, Entmax, Softmax, Sparsemax, Status
from hamdeq.nn import Hopfield, HopfieldPooling

STEPS: list[Any] = [0, 2, None, [1, 0], [2, -1]]
MEMORIES = [Softmax(), Sparsemax(), Entmax(1.5)]


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


class TestNothingLeft:
    @pytest.mark.parametrize("memory", MEMORIES, ids=repr)
    @pytest.mark.parametrize("steps", STEPS, ids=str)
    @pytest.mark.parametrize(
        "kind", ["bool sample", "float sample", "bool row", "bool row of heads", "float row"]
    )
    def test_zeros_are_retrieved_with_zero_gradient(
        self, kind: str, steps: Any, memory: Any
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
    def test_energy_and_rest(self, memory: Any) -> None:
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
    def test_numbers_that_are_infinite_in_half_precision(self, memory: Any, dtype: Any) -> None:
        layer = Hopfield(D, num_heads=2, lagrangian=memory, dtype=dtype, update_steps_max=1)
        given = tuple(x.to(dtype) for x in cross())
        mask = torch.zeros(L, S)
        mask[2] = torch.finfo(torch.float32).min
        weights = layer.get_association_matrix(given, None, mask)
        assert torch.equal(weights[:, :, 2], torch.zeros_like(weights[:, :, 2]))
        assert torch.isfinite(layer(given, None, mask)).all()

    @pytest.mark.parametrize("memory", MEMORIES, ids=repr)
    @pytest.mark.parametrize("steps", STEPS, ids=str)
    @pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 4), (0, 3, 4)])
    def test_empty_inputs(self, shape: tuple[int, int, int], steps: Any, memory: Any) -> None:
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


class TestPadding:
    @pytest.mark.parametrize("fill", [0.0, 1e30, torch.nan, torch.inf])
    @pytest.mark.parametrize("steps", STEPS, ids=str)
    @pytest.mark.parametrize("kind", [Hopfield, HopfieldPooling])
    @pytest.mark.parametrize("normed", [True, False])
    def test_never_matters(self, normed: bool, kind: Any, steps: Any, fill: float) -> None:
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

    @pytest.mark.parametrize("steps", STEPS, ids=str)
    @pytest.mark.parametrize("memory", MEMORIES, ids=repr)
    def test_the_order_of_stored_patterns_does_not_matter(self, memory: Any, steps: Any) -> None:
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


class TestSamples:
    @pytest.mark.parametrize("memory", MEMORIES, ids=repr)
    @pytest.mark.parametrize("steps", STEPS, ids=str)
    def test_do_not_depend_on_companions(self, steps: Any, memory: Any) -> None:
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

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    @pytest.mark.parametrize("memory", MEMORIES, ids=repr)
    @pytest.mark.parametrize("steps", STEPS, ids=str)
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_what_is_not_finite_stays_where_it_is(
        self, which: int, steps: Any, memory: Any, bad: float
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
    def test_what_is_not_finite_is_reported(self, which: int) -> None:
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
