"""The converged mode: the limit of many updates, for each state pattern by itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn_reference import D, L, N, S, association_mask, make, padding_mask
from torch import Tensor
from torch.func import functional_call

from hamdeq import (
    DEQ,
    Anderson,
    Broyden,
    ConjugateGradient,
    ConvergenceWarning,
    Entmax,
    Implicit,
    Newton,
    Phantom,
    Picard,
    Softmax,
    Solver,
    Sparsemax,
    Status,
    Unrolled,
    clamp,
    eliminate,
)
from hamdeq.elimination.attention import Retrieval
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling, functional
from hamdeq.nn.settling import Rows
from hamdeq.testing import normal

EXACT = Picard(tol=1e-13, max_steps=5000)
MEMORIES = [Softmax(), Sparsemax(), Entmax(1.5)]
BETAS = torch.tensor([0.2, 1.5], dtype=torch.float64)


def cross(batch: int = N) -> tuple[Tensor, Tensor, Tensor]:
    return normal(batch, S, D, seed=1), normal(batch, L, D, seed=2), normal(batch, S, D, seed=3)


def settling(solver: Solver = EXACT, **options: Any) -> Any:
    options = {"input_size": D, "num_heads": 2, "scaling": BETAS, **options}
    return make(**options, update_steps_max=None, solver=solver)


def memory_of(layer: Any, patterns: Any, *masks: Any) -> Retrieval:
    """The energy model that the layer's state patterns converge in."""
    return layer._associate(patterns, *(masks or (None, None)), lambda memory, _: memory)


class TestLimit:
    @pytest.mark.parametrize(
        ("masked", "memory"),
        [
            ("", Softmax()),
            ("bool", Entmax(1.5)),
            ("bool each", Sparsemax()),
            ("float", Softmax()),
            ("float each", Softmax()),
            ("float each", Entmax(1.5)),
        ],
        ids=repr,
    )
    def test_of_many_updates(self, masked: str, memory: Any) -> None:
        masks = padding_mask(masked[:5].strip()), association_mask(masked, 2)
        options = {"input_size": D, "num_heads": 2, "scaling": BETAS, "lagrangian": memory}
        many = make(**options, update_steps_max=120)
        layer = settling(lagrangian=memory, on_failure="raise")
        found = layer(cross(), *masks)
        # A contraction that is slow leaves more than the residual.
        torch.testing.assert_close(found, many(cross(), *masks), rtol=1e-10, atol=1e-10)
        assert (found - make(**options)(cross(), *masks)).abs().max() > 1e-2
        solution = layer.settle(cross(), *masks)
        energy = many.energy(cross(), *masks, steps=120)
        state = solution.value
        own = memory_of(layer, cross(), *masks)
        torch.testing.assert_close(own.energy(state), energy, rtol=1e-12, atol=1e-12)
        residual = (own.update(state) - state).norm(dim=-1)
        assert (residual <= 1e-12 * state.norm(dim=-1)).all()
        # The residual that is reported is that of the state.
        loose = settling(Picard(tol=1e-2, max_steps=50), lagrangian=memory).settle(cross(), *masks)
        fx = own.update(loose.value)
        ratio = (fx - loose.value).norm(dim=-1) / fx.norm(dim=-1).clamp_min(1e-300)
        torch.testing.assert_close(loose.residual, ratio, rtol=1e-6, atol=1e-14)

    @pytest.mark.parametrize(
        ("solver", "memory"),
        [(Anderson, Softmax()), (Broyden, Sparsemax()), (Newton, Softmax()), (Newton, Entmax(1.5))],
        ids=repr,
    )
    def test_whatever_the_solver(self, memory: Any, solver: Any) -> None:
        masks = padding_mask("bool"), association_mask("float each", 2)
        # A β at which there is one equilibrium only.
        options: Any = {"lagrangian": memory, "scaling": 0.05, "on_failure": "raise"}
        expected = settling(**options)(cross(), *masks)
        layer = settling(solver(tol=1e-12, max_steps=500), **options)
        torch.testing.assert_close(layer(cross(), *masks), expected, rtol=1e-9, atol=1e-9)

    def test_each_step_of_the_default_is_an_update(self) -> None:
        layer = make(input_size=D, scaling=0.3, update_steps_max=None, update_steps_eps=1e-6)
        solution = layer.settle(cross())
        assert solution.converged.all()
        assert (solution.residual < 1e-6).all()
        memory = memory_of(layer, cross())
        x = layer.project(cross()).state
        for step in range(1, int(solution.steps.max()) + 1):
            there = solution.steps == step
            # The state is scaled by √β and back.
            torch.testing.assert_close(x[there], solution.value[there], rtol=1e-12, atol=1e-14)
            x = memory.update(x)
        assert solution.steps.min() > 3

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_any_precision(self, dtype: torch.dtype) -> None:
        layer = make(input_size=D, num_heads=2, scaling=BETAS, update_steps_max=None)
        exact = layer(cross())
        low = layer.to(dtype)
        given = tuple(x.to(dtype) for x in cross())
        solution = low.settle(given)
        assert solution.converged.all()
        assert (solution.steps < 100).all()
        assert solution.value.dtype == dtype
        # Some tens of rounded numbers of unit size, amplified by weights of up to 4.
        error = (low(given).double() - exact).abs().max() / exact.abs().max()
        assert error < 30 * torch.finfo(dtype).eps


class TestEachByItself:
    def uneven(self, batch: int = 7) -> tuple[Any, tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """State patterns that stop at very different times, with a mask for each of them."""
        layer = settling(
            Picard(tol=1e-9, max_steps=400), scaling=torch.tensor([0.02, 0.6]).double()
        )
        y, r, z = normal(batch, 6, D, seed=1), normal(batch, 5, D, seed=2), normal(batch, 6, D)
        padding = normal(batch, 6, seed=3) > 1.0
        mask = normal(2 * batch, 5, 6, seed=4).masked_fill(
            normal(2 * batch, 5, 6, seed=5) > 0.5, -torch.inf
        )
        return layer, (y, r, z), (padding, mask)

    @pytest.mark.parametrize("kind", ["each", "all"])
    def test_not_of_the_batch_or_of_other_state_patterns(self, kind: str) -> None:
        layer, (y, r, z), (padding, mask) = self.uneven()
        masks: dict[str, tuple[Any, Any]] = {
            "each": (padding, mask),
            "all": (None, mask[3]),
        }
        padding, mask = masks[kind]
        whole = layer.settle((y, r, z), padding, mask)
        output = layer((y, r, z), padding, mask)
        counts = whole.steps.unique()
        assert len(counts) > 5
        assert counts.max() > 3 * counts.min()
        for n in range(len(y)):
            for place in range(5):
                row, at = slice(n, n + 1), slice(place, place + 1)
                own = (
                    None if padding is None else padding[row],
                    None if mask is None
                    else mask[at] if mask.dim() == 2 else mask[2 * n : 2 * n + 2, at],
                )  # fmt: skip
                alone = layer.settle((y[row], r[row, at], z[row]), *own)
                assert torch.equal(alone.steps[0, :, 0], whole.steps[n, :, place])
                torch.testing.assert_close(
                    alone.value[0, :, 0], whole.value[n, :, place], rtol=1e-12, atol=1e-13
                )
                found = layer((y[row], r[row, at], z[row]), *own)[0, 0]
                torch.testing.assert_close(found, output[n, place], rtol=1e-12, atol=1e-12)

    @given(st.data())
    @settings(max_examples=30, deadline=None, derandomize=True)
    def test_rows_that_are_left_are_those_rows(self, data: st.DataObject) -> None:
        blocks, count, size = 4, 3, 5
        kind = data.draw(st.sampled_from(["none", "rows", "blocks", "all", "one"]))
        shape = {
            "rows": (blocks, 1, count, size),
            "blocks": (blocks, 1, 1, size),
            "all": (1, 1, count, size),
            "one": (1, 1, 1, size),
        }.get(kind)
        mask = None if shape is None else normal(*shape, seed=1) > 0.0
        if mask is not None and data.draw(st.booleans()):
            mask = normal(*shape, seed=2).masked_fill(mask, -torch.inf)
        lagrangian = data.draw(st.sampled_from(MEMORIES))
        memory = Retrieval(normal(blocks, 1, size, 2, seed=3), lagrangian, 1.0, mask)
        rows, x = Rows(memory, count), normal(blocks * count, 2, seed=4)
        expected = torch.cat([rows.update({"state": x})["state"], rows._terms({"state": x}).T], 1)
        left = torch.arange(blocks * count)
        for _ in range(3):  # some leave, then more of those that are left
            chosen = data.draw(st.lists(st.sampled_from(range(len(left))), min_size=1, unique=True))
            chosen = torch.tensor(sorted(chosen))
            rows, left = rows.select(chosen), left[chosen]
            state = {"state": x[left]}
            terms = rows.step(state).terms()
            got = torch.cat([rows.update(state)["state"], terms.T], 1)
            torch.testing.assert_close(got, expected[left], rtol=1e-13, atol=1e-14)
            assert len(rows.memory.stored) == len((left // count).unique())

    @pytest.mark.parametrize("solver", [Picard, Anderson, Broyden, Newton])
    def test_the_cap_is_hard_and_said_once(self, solver: Any) -> None:
        calls = []
        layer = settling(solver(tol=1e-15, max_steps=3, fallback_steps=0))
        update = Retrieval.update
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(Retrieval, "update", lambda m, x: calls.append(1) or update(m, x))
            with pytest.warns(ConvergenceWarning, match="12 of 12 samples: .*max_steps") as seen:
                layer(cross())
        assert len(seen) == 1
        assert len(calls) == 3 or solver is Newton  # which evaluates for its Jacobian too
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(cross())
            solution = layer.settle(cross())
        assert (solution.status == Status.MAX_STEPS).all()
        assert (solution.steps == 3).all()
        assert solution.n_evals == 3


class TestGradient:
    OPTIONS: dict[str, Any] = {"scaling": None, "scaling_as_trainable": True}

    def gradients(self, layer: Any, masks: list[Tensor], memory: Any = None) -> list[Tensor]:
        given = [x.requires_grad_() for x in cross()]
        masks = [mask.detach().requires_grad_() for mask in masks]
        output = layer(tuple(given), *masks)
        leaves = [*given, *masks, *layer.parameters()]
        weight = normal(*output.shape, seed=9)
        return list(torch.autograd.grad((output * weight).sum(), leaves, materialize_grads=True))

    def masks(self) -> list[Tensor]:
        return [padding_mask("float"), association_mask("float each", 2)]  # type: ignore[list-item]

    @pytest.mark.parametrize(
        ("adjoint", "memory"),
        [
            (Implicit(), Softmax()),
            (Implicit(), Sparsemax()),
            (Implicit(), Entmax(1.5)),
            (Implicit(solver=Broyden(tol=1e-12, max_steps=500)), Entmax(1.5)),
            (Implicit(solver=ConjugateGradient(tol=1e-12)), Softmax()),
            (Unrolled(60), Sparsemax()),
            (Phantom(150), Softmax()),
        ],
        ids=lambda x: repr(x)[:40],
    )
    def test_is_that_of_many_updates(self, adjoint: Any, memory: Any) -> None:
        options = {"input_size": D, "num_heads": 2, "lagrangian": memory, **self.OPTIONS}
        many = make(**options, update_steps_max=80)
        layer = settling(**self.OPTIONS, lagrangian=memory, adjoint=adjoint)
        expected = self.gradients(many, self.masks())
        for one, other in zip(self.gradients(layer, self.masks()), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)

    def test_is_that_of_finite_differences(self) -> None:
        layer = settling(**self.OPTIONS)
        names = [name for name, _ in layer.named_parameters()]
        grads = self.gradients(layer, self.masks())
        values = [*cross(), *self.masks(), *layer.parameters()]
        weight = normal(N, L, D, seed=9)

        def loss(values: list[Tensor]) -> Tensor:
            parameters = dict(zip(names, values[5:], strict=True))
            with torch.no_grad():
                return (
                    functional_call(layer, parameters, (tuple(values[:3]), *values[3:5])) * weight
                ).sum()

        labels = ["stored", "state", "projection", "padding", "association", *names]
        for k, (label, grad) in enumerate(zip(labels, grads, strict=True)):
            direction = normal(*values[k].shape, seed=50 + k)
            ends = [
                loss([*values[:k], values[k] + sign * 1e-5 * direction, *values[k + 1 :]])
                for sign in (1, -1)
            ]
            expected = (ends[0] - ends[1]) / 2e-5
            # Truncation 1e-10 times a third derivative; rounding 1e-13/1e-5 in a loss of size 100.
            torch.testing.assert_close(
                (grad * direction).sum(),
                expected,
                rtol=1e-6,
                atol=1e-6,
                msg=lambda m, n=label: n + m,
            )

    def test_the_first_state_has_none_of_the_equilibrium(self) -> None:
        layer, given = settling(), [x.requires_grad_() for x in cross()]
        value = layer.settle(tuple(given)).value
        grads = torch.autograd.grad(value.sum(), given, materialize_grads=True)
        assert torch.equal(grads[1], torch.zeros_like(grads[1]))
        assert (grads[0] != 0).any()
        assert not grads[2].any()


class TestEnergy:
    @given(st.integers(0, 10**6), st.floats(0.05, 8.0), st.sampled_from(MEMORIES))
    @settings(max_examples=12, deadline=None, derandomize=True)
    def test_never_rises(self, seed: int, beta: float, memory: Any) -> None:
        betas = beta * torch.tensor([1.0, 0.1], dtype=torch.float64)
        layer = make(input_size=D, num_heads=2, scaling=betas, lagrangian=memory, seed=seed % 97)
        given = tuple(normal(3, n, D, seed=seed + k) for k, n in enumerate((5, 4, 5)))
        masks = normal(3, 5, seed=seed) > 1.0, normal(6, 4, 5, seed=seed + 9)
        if seed % 2:
            masks = (masks[0], masks[1] > 1.0)
        energy = torch.stack([layer.energy(given, *masks, steps=k) for k in range(8)])
        assert energy.shape == (8, 3, 2, 4)
        noise = 1e-13 * energy.abs().amax(0).clamp_min(1.0)
        assert (energy.diff(dim=0) <= noise).all()
        assert (energy[1] < energy[0] - noise).any()
        settled = layer.settle(given, *masks)
        own = memory_of(layer, given, *masks)
        assert (own.energy(settled.value) <= energy[0] + noise).all()


KINDS: dict[str, Any] = {
    "association": (Hopfield, {}, (S + 1, L)),
    "pooling": (HopfieldPooling, {"quantity": L}, (S + 1,)),
    "lookup": (HopfieldLayer, {"quantity": S}, (L,)),
}


def core_of(layer: Any) -> Any:
    return getattr(layer, "hopfield", layer).association_core


class TestMemory:
    """The layer as a memory of three layers, of which one is eliminated."""

    def parts(self, kind: str, memory: Any = None, **options: Any) -> tuple[Any, Any, Any, Any]:
        maker, own, sizes = KINDS[kind]
        options = {"scaling": BETAS, "update_steps_eps": 1e-12, **options}
        layer = make(
            maker,
            input_size=D,
            num_heads=2,
            update_steps_max=None,
            lagrangian=memory,
            concat_bias_pattern=True,
            **own,
            **options,
        )
        y, r, z = cross()
        given: Any = {"association": (y, r, z), "pooling": (y, z), "lookup": r}[kind]
        return layer, given, layer.as_ham(*sizes), layer.project(given)

    @pytest.mark.parametrize(
        ("kind", "memory"),
        [*((kind, Softmax()) for kind in KINDS), *(("lookup", m) for m in MEMORIES[1:])],
        ids=repr,
    )
    def test_its_update_is_that_of_the_layer(self, memory: Any, kind: str) -> None:
        layer, given, ham, patterns = self.parts(kind, memory)
        assert ham.layers == ("state", "stored", "memories")
        reduced = eliminate(clamp(ham, {"stored": patterns.stored}), ["memories"])
        state = {"state": patterns.state}
        once = reduced.update(state)["state"]
        beta = BETAS[:, None, None]
        weights = memory.distribution(beta * patterns.state @ patterns.stored.mT)
        torch.testing.assert_close(once, weights @ patterns.stored, rtol=1e-12, atol=1e-13)
        # The same energy, but for what the clamped patterns add.
        energy = [reduced.energy(s) for s in (state, {"state": once})]
        own = [layer.energy(given, steps=k).sum((1, 2)) for k in (0, 1)]
        torch.testing.assert_close(energy[1] - energy[0], own[1] - own[0], rtol=1e-11, atol=1e-12)
        assert (own[1] < own[0]).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_deq_of_it_ends_where_the_layer_does(self, kind: str) -> None:
        layer, given, ham, patterns = self.parts(kind)
        deq = DEQ(ham, clamped=("stored",), solver=Picard(tol=1e-13, max_steps=3000))
        assert deq.hidden == ("memories",)
        solution = deq({"stored": patterns.stored}, init={"state": patterns.state})
        settled = layer.settle(given)
        assert settled.converged.all()
        torch.testing.assert_close(solution.value["state"], settled.value, rtol=1e-9, atol=1e-9)
        weights = layer.get_association_matrix(given)
        torch.testing.assert_close(
            core_of(layer).memories.activation(solution.value["memories"]),
            weights,
            rtol=1e-9,
            atol=1e-9,
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_they_share_a_trained_beta(self, kind: str) -> None:
        layer, given, ham, patterns = self.parts(kind, scaling_as_trainable=True)
        beta = core_of(layer).memories.log_beta
        assert [p is beta for p in ham.parameters()] == [True]
        weight = normal(*patterns.state.shape, seed=4)
        (own,) = torch.autograd.grad((layer.settle(given).value * weight).sum(), beta)
        clamped = {"stored": patterns.stored.detach()}
        solver = Picard(tol=1e-13, max_steps=3000)
        solution = DEQ(ham, ("stored",), solver=solver)(clamped, init={"state": patterns.state})
        (other,) = torch.autograd.grad((solution.value["state"] * weight).sum(), beta)
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
        assert (own.abs() > 1e-4).all()


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
