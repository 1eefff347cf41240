"""Retrieval as functions: against brute force, and the theorems that they quote."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hopfield_reference import log_sum_exp, softmax, sparse_potential, sparsemax
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from hamdeq import Anderson, ConvergenceWarning, Entmax, Picard, Softmax, Sparsemax, Status
from hamdeq.nn.functional import (
    energy,
    error_bound,
    jacobian_bound,
    metastability,
    pattern_separation,
    retrieve,
    settle,
)
from hamdeq.testing import normal

CLOSE = {"rtol": 1e-12, "atol": 1e-13}
MEMORIES: dict[str, Any] = {
    "softmax": (None, softmax, log_sum_exp),
    "sparsemax": (Sparsemax(), sparsemax, sparse_potential),
}


def by_hand(
    x: Tensor, stored: Tensor, beta: Any, mask: Tensor | None, steps: int, memory: str
) -> tuple[Tensor, Tensor]:
    """The updated state patterns and their energies, one by one."""
    _, distribution, potential = MEMORIES[memory]
    lead = torch.broadcast_shapes(x.shape[:-2], stored.shape[:-2])
    count, size = x.shape[-2], stored.shape[-2]
    x = x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
    stored = stored.expand(*lead, *stored.shape[-2:]).reshape(-1, *stored.shape[-2:])
    betas = torch.as_tensor(beta, dtype=torch.float64).expand(*lead, count, 1).reshape(-1, count)
    masks = torch.zeros(()) if mask is None else mask
    if masks.dtype == torch.bool:
        masks = torch.zeros(masks.shape).masked_fill(masks, -torch.inf)
    masks = masks.expand(*lead, count, size).reshape(-1, count, size)
    states, energies = [], []
    for n in range(len(x)):
        for place in range(count):
            q, b, m = x[n, place], betas[n, place], masks[n, place]
            kept = m > -torch.inf
            k, m = stored[n][kept], m[kept]
            for _ in range(steps):
                q = distribution(b * k @ q + m) @ k if len(k) else torch.zeros_like(q)
            states.append(q)
            value = 0.5 * q @ q
            if len(k):
                value = value - potential(b * k @ q + m) / b + potential(m.double()) / b
            largest = (k if len(k) else stored[n]).square().sum(1).max()
            energies.append(value + 0.5 * largest)
    return (
        torch.stack(states).reshape(*lead, count, -1),
        torch.stack(energies).reshape(*lead, count),
    )


LEADS = [((), ()), ((3,), (3,)), ((2, 3), (2, 3)), ((3,), ()), ((), (3,)), ((2, 1), (3,)),
         ((2, 1, 3), (2, 2, 1))]  # fmt: skip
MASKS = ["none", "bool", "bool of patterns", "bool of all", "float", "float of patterns", "dead"]


def some_mask(kind: str, *shape: int) -> Tensor | None:
    if kind == "none":
        return None
    shape = shape if kind.endswith("all") else shape[-2:]
    shape = shape[-1:] if kind.endswith("patterns") else shape
    where = normal(*shape, seed=5) > 0.3
    where[..., 0] = False
    if kind == "dead":
        where[0] = True
    return normal(*shape, seed=6).masked_fill(where, -torch.inf) if "float" in kind else where


class TestBruteForce:
    @pytest.mark.parametrize(
        ("leads", "kind", "memory"),
        [
            (leads, MASKS[(k + shift) % len(MASKS)], memory)
            for k, leads in enumerate(LEADS)
            for shift, memory in ((0, "softmax"), (2, "sparsemax"), (5, "softmax"))
        ],
        ids=str,
    )
    def test_values(self, leads: Any, kind: str, memory: str) -> None:
        x, stored = normal(*leads[0], 3, 4, seed=1), normal(*leads[1], 5, 4, seed=2)
        lead = torch.broadcast_shapes(*leads)
        mask = some_mask(kind, *lead, 3, 5)
        own = MEMORIES[memory][0]
        for beta in (1.3, normal(*lead, 3, 1, seed=3).exp()):
            for steps in (0, 2):
                got = retrieve(x, stored, beta, steps, mask=mask, lagrangian=own)
                state, low = by_hand(x, stored, beta, mask, steps, memory)
                torch.testing.assert_close(got, state, **CLOSE)
                value = energy(got, stored, beta, mask=mask, lagrangian=own)
                torch.testing.assert_close(value, low, **CLOSE)
                assert (value >= -1e-13).all()

    @pytest.mark.parametrize(
        ("leads", "memory"),
        [(LEADS[1], None), (LEADS[3], Sparsemax()), (LEADS[5], None), (LEADS[4], Entmax(1.5))],
        ids=str,
    )
    def test_settle_ends_where_many_updates_end(self, leads: Any, memory: Any) -> None:
        x, stored = normal(*leads[0], 3, 4, seed=1), normal(*leads[1], 5, 4, seed=2)
        lead = torch.broadcast_shapes(*leads)
        exact = Picard(tol=1e-13, max_steps=300)
        for mask in (some_mask("float of all", *lead, 3, 5), some_mask("dead", 3, 5)):
            for beta in (0.4, 0.5 * normal(*lead, 3, 1, seed=3).exp()):
                options: Any = {"mask": mask, "lagrangian": memory}
                solution = settle(x, stored, beta, **options, solver=exact, on_failure="raise")
                assert solution.steps.shape == solution.status.shape == (*lead, 3)
                assert solution.residual.shape == solution.converged.shape == (*lead, 3)
                assert solution.trace.shape == (solution.n_evals, *lead, 3)
                expected = retrieve(x, stored, beta, solution.n_evals, **options)
                torch.testing.assert_close(solution.value, expected, rtol=1e-10, atol=1e-10)
        loose = retrieve(x, stored, 0.4, None, lagrangian=memory)
        expected = settle(x, stored, 0.4, lagrangian=memory, solver=exact).value
        assert (loose - expected).abs().max() < 1e-2

    @pytest.mark.parametrize("shape", [((), 0, 3), ((2,), 0, 3), ((2, 2), 0, 3), ((), 4, 0),
                                       ((2,), 4, 0), ((0,), 4, 3), ((2, 0), 4, 3)])  # fmt: skip
    @pytest.mark.parametrize("memory", [None, Sparsemax()], ids=repr)
    def test_nothing_to_retrieve(self, memory: Any, shape: Any) -> None:
        lead, stored, states = shape
        x = normal(*lead, states, 4).requires_grad_()
        patterns = normal(*lead, stored, 4)
        for steps in (1, 2, None):
            found = retrieve(x, patterns, 1.0, steps, lagrangian=memory)
            assert found.shape == x.shape
            assert torch.equal(found, torch.zeros_like(found))
            found.sum().backward()
        assert not x.grad.any()
        value = energy(x, patterns, lagrangian=memory)
        torch.testing.assert_close(value, 0.5 * x.square().sum(-1), **CLOSE)

    @pytest.mark.parametrize("memory", [None, Sparsemax(), Entmax(1.5)], ids=repr)
    def test_gradients(self, memory: Any) -> None:
        x, stored = normal(2, 2, 3, seed=1), normal(2, 4, 3, seed=2)
        beta, mask = normal(2, 2, 1, seed=3).exp(), normal(2, 4, seed=4)
        leaves = [t.requires_grad_() for t in (x, stored, beta, mask)]
        for steps in (1, 2):
            assert gradcheck(
                lambda x, k, b, m, n=steps: retrieve(x, k, b, n, mask=m, lagrangian=memory),
                leaves,
                fast_mode=True,
            )
        assert gradcheck(
            lambda x, k, b, m: energy(x, k, b, mask=m, lagrangian=memory), leaves, fast_mode=True
        )
        exact = Anderson(tol=1e-13, max_steps=3000)

        def rest(x: Tensor, k: Tensor, b: Tensor, m: Tensor) -> Tensor:
            return settle(x, k, b, mask=m, lagrangian=memory, solver=exact).value

        assert gradcheck(rest, leaves, fast_mode=True)

    @given(st.integers(0, 10**6), st.floats(0.05, 20.0), st.sampled_from([0.1, 1.0, 10.0]))
    @settings(max_examples=10, deadline=None, derandomize=True)
    def test_energy_is_positive_and_falls(self, seed: int, beta: float, scale: float) -> None:
        x, stored = scale * normal(2, 4, seed=seed), scale * normal(6, 4, seed=seed + 1)
        mask = some_mask("float" if seed % 2 else "none", 2, 6)
        for memory in (Softmax(), Sparsemax(), Entmax(1.5)):
            states = [retrieve(x, stored, beta, n, mask=mask, lagrangian=memory) for n in range(6)]
            values = torch.stack(
                [energy(q, stored, beta, mask=mask, lagrangian=memory) for q in states]
            )
            # Rounding, in units of the energy's own terms.
            noise = 1e-14 * (values + scale**2 * 20 + 10 / beta)
            assert (values >= -noise).all()
            assert (values.diff(dim=0) <= noise[1:]).all()


class TestSeparation:
    def test_by_hand(self) -> None:
        stored = normal(2, 5, 3, seed=1)
        got = pattern_separation(stored)
        for n in range(2):
            for i in range(5):
                own = stored[n, i] @ stored[n, i]
                others = max(float(stored[n, i] @ stored[n, j]) for j in range(5) if j != i)
                assert got[n, i].item() == pytest.approx(own.item() - others, abs=1e-13)
        assert pattern_separation(normal(1, 3)).tolist() == [math.inf]
        assert pattern_separation(normal(2, 0, 3)).shape == (2, 0)

    @pytest.mark.parametrize("size", [2, 8, 64])
    @pytest.mark.parametrize("count", [2, 5, 40])
    @pytest.mark.parametrize("distance", [0.0, 0.05, 0.3])
    def test_one_update_is_within_the_bound(self, distance: float, count: int, size: int) -> None:
        stored = math.sqrt(size) * unit(normal(count, size, seed=count))
        step = distance * unit(normal(20, count, size, seed=1))
        for beta in (0.1, 1.0, 3.0, 30.0):
            error = (retrieve(stored + step, stored, beta) - stored).norm(dim=-1)
            bound = error_bound(stored, beta, distance)
            # A relative rounding of 1e-13 on either side.
            assert (error <= bound + 1e-13 * math.sqrt(size)).all()
        if distance == 0 and size == 64:
            assert (bound < 1e-6).all()

    def test_the_bound_is_nearly_reached(self) -> None:
        # Two opposite patterns: the separation is that of theorem 5, 2M², and the distance is 2M.
        stored = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        for beta in (2.0, 5.0):
            error = (retrieve(stored, stored, beta) - stored).norm(dim=-1)
            bound = error_bound(stored, beta)
            assert (bound < 0.1).all()
            assert (error > 0.98 * bound).all()
            torch.testing.assert_close(error, bound / (1 + math.exp(-2 * beta)), **CLOSE)
        moved = stored - 0.1 * stored
        error = (retrieve(moved, stored, 5.0) - stored).norm(dim=-1)
        torch.testing.assert_close(error, error_bound(stored, 5.0, 0.1), rtol=1e-3, atol=0)

    def test_distances_of_patterns(self) -> None:
        stored, distance = normal(2, 5, 3), normal(2, 5).abs()
        whole = error_bound(stored, 0.5, distance)
        assert whole.shape == (2, 5)
        for i in range(5):
            largest = stored.norm(dim=-1).amax(-1)
            gap = pattern_separation(stored)[:, i] - 2 * distance[:, i] * largest
            torch.testing.assert_close(whole[:, i], 8 * torch.exp(-0.5 * gap) * largest, **CLOSE)

    def test_converges_in_one_update_where_well_separated(self) -> None:
        stored = 8 * torch.eye(8, dtype=torch.float64)
        solution = settle(stored + 0.1 * normal(8, 8), stored)
        assert (solution.steps <= 3).all()
        assert (solution.value - stored).norm(dim=-1).max() <= error_bound(stored, 1.0, 0.3).max()


class TestJacobianBound:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("distance", [0.0, 0.1, 0.5])
    def test_holds_of_the_true_jacobian(self, distance: float, seed: int) -> None:
        count, size = 12, 48
        stored = 3 * unit(normal(count, size, seed=seed))
        state = stored + distance * unit(normal(count, size, seed=seed + 10))
        for beta in (0.1, 1.0, 4.0):
            bound = jacobian_bound(stored, beta, distance)
            for i in (0, count - 1):
                jacobian = torch.autograd.functional.jacobian(
                    lambda x, beta=beta: retrieve(x[None], stored, beta)[0], state[i]
                )
                assert isinstance(jacobian, Tensor)
                norm = torch.linalg.matrix_norm(jacobian, 2)
                assert norm <= bound[i] * (1 + 1e-9) + 1e-13
                assert norm > 0
        if distance < 0.5:
            assert (bound < 1e-3).all()  # at β = 4 they are well separated

    def test_an_update_comes_closer_to_its_fixed_point_by_it(self) -> None:
        stored = 3 * unit(normal(12, 48))
        state = stored + 0.2 * unit(normal(12, 48, seed=1))
        fixed = retrieve(state, stored, 2.0, steps=60)
        farthest = torch.maximum((state - stored).norm(dim=-1), (fixed - stored).norm(dim=-1))
        bound = jacobian_bound(stored, 2.0, farthest)
        assert (bound < 1).all()
        left = (retrieve(state, stored, 2.0) - fixed).norm(dim=-1)
        assert (left <= bound * (state - fixed).norm(dim=-1) + 1e-13).all()

    def test_by_hand(self) -> None:
        # Two opposite patterns: Δ = 2, M = 1, N = 2.
        stored = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        expected = 2 * 3.0 * 2 * math.exp(-3.0 * (2 - 2 * 0.1))
        assert jacobian_bound(stored, 3.0, 0.1).tolist() == pytest.approx([expected] * 2)
        betas = torch.tensor([[[3.0]], [[1.0]]], dtype=torch.float64)
        both = jacobian_bound(stored.expand(2, 2, 2), betas, 0.1)
        assert both[0].tolist() == pytest.approx([expected] * 2)
        assert both[1].tolist() == pytest.approx(jacobian_bound(stored, 1.0, 0.1).tolist())
        assert jacobian_bound(normal(1, 3)).tolist() == [0.0]  # one pattern: f is constant


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class TestMetastability:
    @pytest.mark.parametrize("count", [1, 2, 3, 10])
    def test_counts_equal_weights(self, count: int) -> None:
        weights = torch.zeros(3, 2, 10, dtype=torch.float64)
        weights[..., :count] = 1 / count
        assert metastability(weights).shape == (3, 2)
        torch.testing.assert_close(
            metastability(weights), torch.full((3, 2), float(count)).double(), **CLOSE
        )
        # The last pattern is needed for more than (count − 1)/count, not for less.
        share = (count - 0.5) / count
        assert (metastability(weights, mass=share) == count).all()
        assert (metastability(weights, mass=1.0) == count).all()
        if count > 1:
            assert (metastability(weights, mass=(count - 1.5) / count) == count - 1).all()

    def test_least_number_for_a_share(self) -> None:
        weights = torch.tensor([[0.05, 0.6, 0.25, 0.1], [0.01, 0.01, 0.97, 0.01]])
        for mass, expected in ((0.5, [1, 1]), (0.8, [2, 1]), (0.9, [3, 1]), (0.99, [4, 3])):
            assert metastability(weights, mass=mass).tolist() == expected
        # Of what there is, as after dropout.
        assert metastability(0.5 * weights, mass=0.9).tolist() == [3, 1]

    def test_between(self) -> None:
        p = normal(4, 6).softmax(-1)
        torch.testing.assert_close(metastability(p), (p**-p).prod(-1), **CLOSE)
        assert gradcheck(metastability, (p.requires_grad_(),))


class TestNotFinite:
    def test_what_is_not_finite_is_reported(self) -> None:
        X, Y = normal(2, 3, 4), normal(2, 5, 4)
        bad = Y.clone()
        bad[1, 0, 0] = math.nan
        with pytest.warns(ConvergenceWarning, match="3 of 6 samples: the given state"):
            solution = settle(X, bad)
        assert solution.status.tolist() == [[Status.CONVERGED] * 3, [Status.INVALID] * 3]
        torch.testing.assert_close(solution.value[0], settle(X, Y).value[0], **CLOSE)
        assert solution.value[1].isnan().all()


def test_large_patterns_of_half_precision_give_numbers():
    x = (200 * normal(4, 8)).half()
    assert not pattern_separation(x).isnan().any()
    assert not energy(x, x).isnan().any()
    assert not error_bound(x).isnan().any()


def test_weights_need_not_sum_to_one() -> None:
    assert metastability(torch.tensor([2.0, 2.0])) == pytest.approx(2.0)
