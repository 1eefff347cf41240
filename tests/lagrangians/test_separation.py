"""Separations: the contract, references of forty digits, masks, several β, retrieval."""

import copy
import math
import pickle
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from hamdeq import (
    HAM,
    Anderson,
    ConjugateGradient,
    Dense,
    Entmax,
    Identity,
    Implicit,
    LayerNorm,
    Neurons,
    Picard,
    Separation,
    Softmax,
    Sparsemax,
    Spherical,
    Status,
    Unrolled,
    eliminate,
    fixed_point,
)
from hamdeq.testing import LagrangianContract, derivative, inner, normal

mpmath = pytest.importorskip("mpmath")  # comes with torch, through sympy
pytest.importorskip("entmax")

CLOSE: Any = {"rtol": 1e-12, "atol": 1e-13}
ALPHAS = [1.1, 1.5, 2.0, 2.5, 3.0, 10.0]
KINDS: dict[str, Any] = {
    "softmax": Softmax,
    "entmax(1.3)": lambda *args, **kw: Entmax(1.3, *args, **kw),
    "entmax(1.5)": lambda *args, **kw: Entmax(1.5, *args, **kw),
    "sparsemax": Sparsemax,
    "entmax(3)": lambda *args, **kw: Entmax(3.0, *args, **kw),
}
SPARSE = [kind for kind in KINDS if kind != "softmax"]
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))
sparse = pytest.mark.parametrize("make", [KINDS[k] for k in SPARSE], ids=SPARSE)


# ----------------------------------------------------------------------- the contract
#
# Sparse activations are smooth but where a memory enters or leaves the support. The contract's
# states lie in the open regions between (zeros give all memories the same positive weight), so
# that its derivatives of all orders exist, and the contract holds as it stands.

ONE = {
    "Sparsemax": lambda: Sparsemax(),
    "Entmax(1.5)": lambda: Entmax(),
    "Entmax(1.3)": lambda: Entmax(1.3),
    "Entmax(3)": lambda: Entmax(3.0, 0.3),
    "Sparsemax learnable": lambda: Sparsemax(torch.tensor(0.7), learnable=True),
    "Entmax(1.5) learnable": lambda: Entmax(1.5, 0.7, learnable=True),
    "Entmax(1.3) learnable": lambda: Entmax(1.3, 0.7, learnable=True),
    "Entmax(3) learnable": lambda: Entmax(3.0, 0.3, learnable=True),
    "Softmax(tensor) learnable": lambda: Softmax(torch.tensor([[0.7]]), learnable=True),
}


class TestOneBeta(LagrangianContract):
    @pytest.fixture(autouse=True, params=ONE.values(), ids=list(ONE))
    def kind(self, request):
        self.make = request.param


class TestSeveralBetas(LagrangianContract):
    """Two β, for states with an axis of two before the last."""

    shapes = [(3, 2, 4), (2, 3, 2, 2)]

    @pytest.fixture(params=[False, True], ids=["given", "learnable"])
    def learnable(self, request):
        return request.param

    @pytest.fixture(autouse=True, params=["softmax", "entmax(1.5)", "sparsemax", "entmax(3)"])
    def lagrangian(self, request, learnable):
        beta = torch.tensor([[0.25], [0.75]])
        self.make = lambda: KINDS[request.param](beta, learnable=learnable)
        return self.make().double()

    def test_each_row_has_its_own_beta(self, lagrangian):
        x = normal(3, 2, 4)
        for i, beta in enumerate(lagrangian.beta.detach().flatten().tolist()):
            alone, row = lagrangian.at(beta), x[:, i]
            torch.testing.assert_close(lagrangian.each(x)[:, i], alone(row), **CLOSE)
            torch.testing.assert_close(lagrangian.activation(x)[:, i], alone.activation(row))
        total = sum(
            lagrangian.at(beta).energy(x[:, i])
            for i, beta in enumerate(lagrangian.beta.detach().flatten().tolist())
        )
        torch.testing.assert_close(lagrangian.energy(x), total, **CLOSE)

    def test_all_betas_move_with_the_module(self, lagrangian, learnable):
        assert list(lagrangian.state_dict()) == (["log_beta"] if learnable else [])
        for dtype in (torch.float32, torch.bfloat16):
            assert lagrangian.to(dtype).beta.dtype == dtype
        assert lagrangian.to("meta").beta.is_meta
        assert "beta=Tensor(2, 1)" in repr(lagrangian)


# ----------------------------------------------------- references of forty decimal digits


def hessian_of(lagrangian, x) -> Any:
    """∇²L of a single row."""
    return torch.autograd.functional.hessian(lambda x: lagrangian(x[None]).sum(), x)


def best(row, alpha, beta):
    """The distribution of most ⟨βx, p⟩ − Ω(p): the sum of (α−1)(βxᵢ − τ) to the 1/(α−1) is one.

    By bisection, for t = (largest βx − τ)·(α − 1), between 0 and 1.
    """
    a = mpmath.mpf(alpha) - 1
    largest = max(row)
    y = [a * beta * (x - largest) for x in row]

    def weights(t):
        return [(t + v) ** (1 / a) if t + v > 0 else mpmath.mpf(0) for v in y]

    low, high = mpmath.mpf(0), mpmath.mpf(1)
    for _ in range(int(mpmath.mp.prec)):
        middle = (low + high) / 2
        low, high = (low, middle) if mpmath.fsum(weights(middle)) >= 1 else (middle, high)
    return weights(high)


def entropy(p, alpha):
    return mpmath.fsum(w ** mpmath.mpf(alpha) - w for w in p) / (alpha * (mpmath.mpf(alpha) - 1))


def value(row, p, alpha, beta):
    return mpmath.fsum(x * w for x, w in zip(row, p, strict=True) if w) - entropy(p, alpha) / beta


def worst(found, expected):
    """The largest error in units of one rounding of 1."""
    eps = torch.finfo(found.dtype).eps
    pairs = zip(found.flatten().tolist(), expected, strict=True)
    return max(float(abs(mpmath.mpf(a) - b)) for a, b in pairs) / eps


ROWS = [
    [0.1, 0.2, -0.3, 0.05],
    [0.5, -1.25, 3.0, 0.0, 0.75],
    [1.0, 1.0, 1.0, 1.0, 1.0],  # ties
    [1.0, 0.25, 1.0, 0.25],
    [2.0],
    [1e4, -1e4, 0.0, 1e-30, -1e-30],
    [1e4, 9999.75, 9999.5, 0.0],
    [-1e4, -1e4 - 0.125, -1e4 - 0.0625],
    [1e30, -1e30, 1e30],
    [-1e30, -3e30],
    [0.0, -1e-6, -1e-7, -1e-3],
    [math.ldexp(i * i % 17, -4) for i in range(20)],
]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_distribution_is_right_to_rounding(alpha, dtype):
    """With β = ½, by which states are scaled without rounding."""
    lagrangian = Entmax(alpha, 0.5).to(dtype)
    for row in ROWS:
        x = torch.tensor([row], dtype=dtype)
        with mpmath.workdps(40):
            exact = [mpmath.mpf(v) for v in x[0].tolist()]
            p = best(exact, alpha, mpmath.mpf(0.5))
            height = value(exact, p, alpha, mpmath.mpf(0.5))
            size = max(1.0, abs(float(height)))
            dual = entropy(p, alpha) * 2
        assert worst(lagrangian.activation(x), p) < 4
        assert worst(derivative(lagrangian, x), p) < 4
        assert worst(lagrangian(x), [height]) < 8 * size
        # An error eps of the weights is one of eps·Σ|∂Ω/∂p| in the energy.
        assert worst(lagrangian.energy(x), [dual]) < 8 * (1 + len(row) ** 0.5 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.3, 1.5, 3.0])
def test_the_hessian_is_the_difference_of_the_reference(alpha):
    h = mpmath.mpf("1e-25")
    for row in (ROWS[0], ROWS[2][:3], [1e4, 9999.875, 9999.75, 0.0]):
        x = torch.tensor(row, dtype=torch.float64)
        lagrangian = Entmax(alpha, 0.5)
        found = hessian_of(lagrangian, x)
        with mpmath.workdps(50):
            exact = [mpmath.mpf(v) for v in row]
            for i, column in enumerate(found.T):
                more, less = list(exact), list(exact)
                more[i] += h
                less[i] -= h
                pair = best(more, alpha, mpmath.mpf(0.5)), best(less, alpha, mpmath.mpf(0.5))
                slope = [float((a - b) / (2 * h)) for a, b in zip(*pair, strict=True)]
                torch.testing.assert_close(column, torch.tensor(slope, dtype=x.dtype), **CLOSE)


@pytest.mark.parametrize("alpha", [1.01, 1.001])
def test_alpha_near_one_is_near_softmax(alpha):
    x = normal(4, 6)
    distance = (Entmax(alpha).activation(x) - Softmax().activation(x)).abs().max()
    assert 1e-2 * (alpha - 1) < distance < alpha - 1
    torch.testing.assert_close(Entmax(alpha)(x), Softmax()(x), rtol=2 * (alpha - 1), atol=0)
    torch.testing.assert_close(
        Entmax(alpha).energy(x), Softmax().energy(x), rtol=5 * (alpha - 1), atol=0
    )


def test_alpha_two_is_sparsemax_to_the_bit():
    x = normal(4, 3, 6)
    for f in ("forward", "each", "activation", "energy"):
        assert torch.equal(getattr(Entmax(2, 3.0), f)(x), getattr(Sparsemax(3.0), f)(x))
    # The nearest distribution: no other comes closer to βx.
    g, others = Sparsemax(3.0).activation(x), distributions(200, 6)
    distance = ((3.0 * x - g) ** 2).sum(-1)
    for p in others:
        assert (((3.0 * x - p) ** 2).sum(-1) >= distance).all()


def distributions(count, n):
    """Random ones, dense and sparse."""
    weights = normal(count, n, seed=3).abs() ** torch.linspace(0.2, 5, count)[:, None].double()
    weights[::2] *= normal(count, n, seed=4)[::2] > 0.3
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0)
    return weights / weights.sum(1, keepdim=True)


@kinds
def test_no_distribution_gives_more(make):
    """L(x) = max ⟨x, p⟩ − Ω(p)/β, with Ω by its definition."""
    lagrangian, beta = make(1.7).double(), 1.7
    alpha = getattr(lagrangian, "alpha", None)

    def omega(p):
        if alpha is None:
            return -torch.special.entr(p).sum(-1)
        return (p**alpha - p).sum(-1) / (alpha * (alpha - 1))

    for scale in (0.1, 1.0, 10.0):
        x = scale * normal(5, 6, seed=2)
        most, g = lagrangian(x), lagrangian.activation(x)
        torch.testing.assert_close((x * g).sum(-1) - omega(g) / beta, most, **CLOSE)
        near = [(1 - t) * g + t * p for t in (1e-6, 1e-2, 1.0) for p in distributions(50, 6)]
        for p in near:
            assert ((x * p).sum(-1) - omega(p) / beta <= most + 1e-13 * scale).all()


# ------------------------------------------------------------------- derivatives


@sparse
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_hessian_is_a_projector_of_the_support(make, scale):
    """Symmetric, positive semidefinite, of row sums zero, and zero off the support."""
    lagrangian = make(2.0)
    for x in scale * normal(6, 7, seed=int(10 * scale)):
        g = lagrangian.activation(x[None])[0]
        hessian = hessian_of(lagrangian, x)
        size = max(1.0, float(hessian.abs().max()))
        assert (hessian - hessian.T).abs().max() <= 1e-14 * size
        assert hessian.sum(1).abs().max() <= 1e-14 * size
        assert torch.linalg.eigvalsh(hessian).min() >= -1e-14 * size
        assert (hessian[g == 0] == 0).all()
        assert torch.linalg.matrix_rank(hessian, tol=1e-12) == (g > 0).sum() - 1


@sparse
def test_all_derivatives_are_finite_on_a_sparse_support(make):
    """The package's own second derivative of the activation is NaN there."""
    lagrangian = make(1.0)
    x = torch.tensor([[0.4, 0.1, -3.0, -5.0], [9.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert (lagrangian.activation(x) == 0).sum() >= 5
    for f in (lagrangian, lagrangian.energy, lagrangian.activation):
        x.requires_grad_()
        assert gradcheck(f, (x,))
        assert gradgradcheck(f, (x,))
        y, w = f(x), 1.0
        for order in range(4):
            (y,) = torch.autograd.grad((y * w).sum(), x, create_graph=True)
            assert y.isfinite().all(), order
            w = normal(*y.shape, seed=order)


def test_a_weight_near_zero_has_a_finite_slope():
    """Above α = 2 the slope of one weight alone is infinite at zero; that of the sum is not."""
    for alpha in (3.0, 10.0):
        a = alpha - 1
        # The second is 1e-9 inside the edge of the support of the first.
        p = torch.tensor([1 - 1e-9, 1e-9], dtype=torch.float64)
        x = (p**a / a)[None]
        lagrangian = Entmax(alpha)
        torch.testing.assert_close(lagrangian.activation(x)[0, 0], p[0])
        hessian = hessian_of(lagrangian, x[0])
        expected = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(hessian, expected, rtol=1e-7, atol=1e-7)
    # Where p^(2 − α) overflows float32.
    x = torch.tensor([0.125 * (1 - 1e-6), 0.0], dtype=torch.float32)
    assert 0 < Entmax(9.0).activation(x[None])[0, 1] < 2e-7
    torch.testing.assert_close(hessian_of(Entmax(9.0), x), expected.float(), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------- extremes and masks


@kinds
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_a_masked_memory_is_as_if_it_were_not_there(make, learnable, several):
    """A state of −∞ has weight zero, and all else is that of the other states."""
    beta = torch.tensor([[2.0]]) if several else 2.0
    lagrangian = make(beta, learnable=learnable)
    masked = torch.tensor([[0.5, -torch.inf, 0.75, -torch.inf], [0.0, -torch.inf, 1e4, -torch.inf]])
    left = masked[:, ::2]

    def everything(x):
        x = x.clone().requires_grad_()
        parts = [lagrangian(x), lagrangian.energy(x)]
        g = lagrangian.activation(x)
        parts.append((g[:, 0] - g.amax(1)) * torch.tensor([1.0, 2.0]))
        inputs = [x, *lagrangian.parameters()]
        return g, parts, [torch.autograd.grad(y.sum(), inputs, retain_graph=True) for y in parts]

    (g, parts, grads), (g_left, parts_left, grads_left) = everything(masked), everything(left)
    assert (g[:, 1::2] == 0).all()
    assert torch.equal(g[:, ::2], g_left)
    torch.testing.assert_close(parts, parts_left)
    for (dx, *dbeta), (dx_left, *dbeta_left) in zip(grads, grads_left, strict=True):
        assert (dx[:, 1::2] == 0).all()
        torch.testing.assert_close(dx[:, ::2], dx_left)
        torch.testing.assert_close(dbeta, dbeta_left)
        assert all(d.isfinite().all() for d in dbeta)


@kinds
@pytest.mark.parametrize("learnable", [False, True])
def test_extremes_of_float32_are_finite(make, learnable):
    lagrangian = make(3.0, learnable=learnable)
    rows = [[1e4, -1e4, 0.0], [1e4] * 3, [-1e4] * 3, [1e30, -1e30, 1e30], [-1e30] * 3, [0.0] * 3]
    for x in (torch.tensor(rows), torch.tensor(rows)[:, :1], torch.zeros(2, 3000)):
        g = lagrangian.activation(x)
        torch.testing.assert_close(g.sum(-1), torch.ones(len(x)), rtol=0, atol=1e-6)
        assert (g >= 0).all()
        assert lagrangian(x).isfinite().all()
        assert (lagrangian.energy(x) <= 0).all()
        # The slope of weight against weight is as steep as 1/p² of α = 4, 1e7 here at most.
        for f in (lagrangian, lagrangian.energy, lambda x: inner(lagrangian.activation(x), x)):
            assert derivative(f, x).isfinite().all()
        # Ties share alike.
        torch.testing.assert_close(g[1], torch.full_like(g[1], 1 / x.shape[1]))


@kinds
def test_a_lost_sample_is_lost_alone(make):
    """The package's functions raise an IndexError at NaN, whatever the other samples are."""
    lagrangian, x = make(2.0), normal(4, 5, dtype=torch.float32)
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    for f in (lagrangian, lagrangian.energy, lagrangian.activation):
        found = f(x)
        assert found[1:3].isnan().flatten(1).any(1).all() if found.dim() > 1 else True
        torch.testing.assert_close(found[[0, 3]], f(x[[0, 3]]))
    assert lagrangian.energy(x)[1:3].isnan().all()


@kinds
@pytest.mark.parametrize("beta", ["number", "several", "learnable"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_right_to_its_rounding(make, beta, dtype):
    """Computed in float32 and rounded once: sums of many weights would not survive in half."""
    given = {"number": 2.0, "several": torch.tensor([[0.5], [2.0]]), "learnable": 1.0}[beta]
    lagrangian = make(given, learnable=beta == "learnable")
    half = copy.deepcopy(lagrangian).to(dtype)
    eps = torch.finfo(dtype).eps
    many = normal(2, 2, 1000, dtype=dtype)
    for x in (many, many / 256, 100 * many[..., :9], torch.full((1, 2, 5), 3e4, dtype=dtype)):
        wide = x.double()
        for f in ("each", "activation", "forward", "energy"):
            found, expected = getattr(half, f)(x), getattr(lagrangian, f)(wide)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=2 * eps, atol=eps * eps)
        g = derivative(half, x)
        torch.testing.assert_close(g.double(), lagrangian.activation(wide), rtol=2 * eps, atol=eps)
        assert derivative(half.energy, x).isfinite().all()
    # Products of β and x need not fit in half precision.
    x = torch.full((1, 2, 4), 6e4, dtype=dtype)
    assert torch.equal(make(64.0).activation(x), torch.full_like(x, 0.25))
    assert make(64.0)(x).isfinite().all() == (dtype == torch.bfloat16)  # twice 6e4


# ------------------------------------------------------------------------ retrieval


def retrieval(patterns, lagrangian) -> Any:
    """Query and memories: patterns are (N, d), the weight their transpose."""
    n, d = patterns.shape
    dense = Dense(d, n).double()
    with torch.no_grad():
        dense.weight.copy_(patterns.T)
    neurons = {"query": Neurons(d, Identity()), "memories": Neurons(n, lagrangian)}
    return eliminate(HAM(neurons, [(("query", "memories"), dense)]), ["memories"])


@kinds
@pytest.mark.parametrize("beta", [0.3, 3.0])
def test_updates_never_raise_the_energy(make, beta):
    reduced = retrieval(normal(12, 5), make(beta))
    assert reduced.descends
    x = {"query": 2.0 * normal(10, 5, seed=1)}
    energy, moved = reduced.energy(x), 0
    for _ in range(30):
        x = reduced.update(x)
        new = reduced.energy(x)
        assert (new <= energy + 1e-13 * energy.abs().clamp_min(1.0)).all()
        moved += int((new < energy).sum())
        energy = new
    assert moved > 10


@kinds
def test_a_separated_pattern_is_retrieved_exactly_by_a_sparse_memory(make):
    """Its margin is more than 1/(β(α − 1)): all other memories have weight zero."""
    patterns = F.normalize(normal(6, 32), dim=1)
    queries, beta = patterns + 0.02 * normal(6, 32, seed=1), 10.0
    overlap = queries @ patterns.T
    others = overlap.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf).amax(1)
    lagrangian = make(beta)
    found = retrieval(patterns, lagrangian).update({"query": queries})["query"]
    if isinstance(lagrangian, Softmax):
        assert (found - patterns).norm(dim=1).min() > 1e-4
    else:
        margin = (overlap.diagonal() - others).min()
        assert margin > 1 / (beta * (lagrangian.alpha - 1))
        assert torch.equal(found, patterns)


EXACT = Anderson(tol=1e-13, max_steps=500)


GRADIENTS = {
    "default": Implicit(),
    "conjugate gradients": Implicit(solver=ConjugateGradient(tol=1e-13)),
    "anderson": Implicit(solver=EXACT),
    "unrolled": Unrolled(100),
}
# At which some of seven memories are on the support of the equilibrium, and some are not.
BETAS = {
    "softmax": 0.6,
    "entmax(1.3)": 0.6,
    "entmax(1.5)": 0.3,
    "sparsemax": 0.1,
    "entmax(3)": 0.06,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_implicit_gradient_is_that_of_finite_differences(kind):
    """The weights do not move off their support: ∇²L is singular, and the system still solved."""
    reduced = retrieval(normal(7, 4), KINDS[kind](BETAS[kind], learnable=True).double())
    parameters, start = list(reduced.model.parameters()), normal(3, 4, seed=1)
    weight = normal(3, 4, seed=5)

    def loss(adjoint=None):
        solution = fixed_point(reduced, {"query": start}, solver=EXACT, adjoint=adjoint)
        assert solution.converged.all()
        return (weight * solution.value["query"]).sum(), solution

    settled = {name: x.detach() for name, x in loss()[1].value.items()}
    support = (reduced.model.activations(reduced.restore(settled))["memories"] > 0).sum(1)
    assert all(1 < n < 7 or kind == "softmax" for n in support.tolist())
    found = {}
    for name, adjoint in GRADIENTS.items():
        height, solution = loss(adjoint)
        found[name] = torch.autograd.grad(height, parameters)
        assert all(backward.converged.all() for backward in solution.adjoint)
    h = 1e-6
    for i, p in enumerate(parameters):
        direction, values = normal(*p.shape, seed=7), []
        with torch.no_grad():
            for shift in (h, -2 * h):
                p += shift * direction
                values.append(loss()[0])
            p += h * direction
        expected = (values[0] - values[1]) / (2 * h)
        for name, grads in found.items():
            torch.testing.assert_close(
                (grads[i] * direction).sum(), expected, rtol=1e-6, atol=1e-7, msg=name
            )
            torch.testing.assert_close(grads[i], found["unrolled"][i], rtol=1e-7, atol=1e-9)


def test_a_memory_retrieved_exactly_has_no_gradient_but_its_own():
    """There ∇²L is zero: the equilibrium is the pattern itself, whatever the others are."""
    patterns = 2.0 * F.normalize(normal(6, 16), dim=1)
    reduced = retrieval(patterns, Sparsemax(5.0))
    (weight,) = reduced.model.parameters()
    x = patterns[:2] + 0.05 * normal(2, 16, seed=1)
    solution = fixed_point(reduced, {"query": x}, solver=Picard(tol=1e-12))
    assert torch.equal(solution.value["query"].detach(), patterns[:2])
    assert solution.status.tolist() == [Status.CONVERGED] * 2
    (grad,) = torch.autograd.grad(solution.value["query"].sum(), weight)
    expected = torch.zeros_like(weight)
    expected[:, :2] = 1.0
    assert torch.equal(grad, expected)


# ------------------------------------------------------------------- modules and errors


@kinds
def test_at_is_the_same_function_at_another_temperature(make):
    lagrangian, x = make(0.5), normal(3, 4, 5)
    other = lagrangian.at(2.0)
    assert type(other) is type(lagrangian)
    assert (other.beta, other.learnable) == (2.0, False)
    torch.testing.assert_close(other.activation(x), lagrangian.activation(4.0 * x), **CLOSE)
    heads = lagrangian.at(torch.tensor([0.5, 2.0, 1.0, 3.0]).reshape(4, 1), learnable=True)
    assert heads.learnable
    assert heads.log_beta.shape == (4, 1)
    torch.testing.assert_close(
        heads.double().activation(x)[:, 1], other.activation(x[:, 1]), rtol=1e-6, atol=1e-6
    )
    assert lagrangian.beta == 0.5


def test_the_betas_given_are_copied():
    beta = torch.tensor([[1.0], [2.0]])
    for learnable in (False, True):
        lagrangian = Softmax(beta, learnable=learnable)
        beta.fill_(5.0)
        assert float(lagrangian.beta.detach().amax()) == pytest.approx(2.0)
        beta.copy_(torch.tensor([[1.0], [2.0]]))


@kinds
@pytest.mark.parametrize("learnable", [False, True])
def test_on_the_meta_device(make, learnable):
    with torch.device("meta"):
        one = make(2.0, learnable=learnable)
        several = make(torch.ones(3, 1, 1), learnable=learnable)
    given = make(torch.ones(3, 1, 1, device="meta"), learnable=learnable)
    for module in (one, several, given):
        assert type(module).__name__ in repr(module)
        assert all(p.is_meta for p in module.parameters())
    assert several.beta.shape == given.beta.shape == (3, 1, 1)
    assert several.beta.is_meta
    if learnable:
        trained = make(torch.full((3, 1, 1), 2.0), learnable=True)
        several.load_state_dict(trained.state_dict(), assign=True)
        assert torch.equal(several.beta, trained.beta)


def test_the_printed_form_shows_the_arguments():
    for lagrangian, expected in (
        (Softmax(2.0), "Softmax(beta=2)"),
        (Softmax(torch.tensor(0.125)), "Softmax(beta=0.125)"),
        (Softmax(torch.ones(4, 1, 1)), "Softmax(beta=Tensor(4, 1, 1))"),
        (Sparsemax(0.5), "Sparsemax(beta=0.5)"),
        (Entmax(), "Entmax(alpha=1.5, beta=1)"),
        (Entmax(3, learnable=True), "Entmax(alpha=3, beta=1, learnable=True)"),
        (
            Entmax(1.3, torch.ones(4, 1, 1), learnable=True),
            "Entmax(alpha=1.3, beta=Tensor(4, 1, 1), learnable=True)",
        ),
    ):
        assert repr(lagrangian) == expected


@kinds
@pytest.mark.parametrize("learnable", [False, True])
def test_bad_betas_are_refused(make, learnable):
    def refused(kind, match, beta):
        with pytest.raises(kind, match=match):
            make(beta, learnable=learnable)

    for bad in (0.0, -1.0, math.nan, math.inf):
        number = rf"beta: expected a finite number > 0, got {bad!r}"
        refused(ValueError, number, bad)
        several = rf"beta: expected finite numbers > 0, got {bad!r} among its 3"
        refused(ValueError, several, torch.tensor([1.0, bad, 2.0])[:, None])
        refused(ValueError, "got", torch.tensor(bad))
    refused(
        TypeError,
        r"beta: expected a floating-point .*got torch.int64; .*float\(\)",
        torch.ones(2, 1).long(),
    )
    refused(TypeError, "beta: expected a floating-point .*got torch.bool", torch.ones(1, 1).bool())
    refused(TypeError, "beta: expected a finite number > 0, got str", "1.0")
    refused(TypeError, "beta: expected a finite number > 0, got list", [1.0, 2.0])
    for trained in (nn.Parameter(torch.ones(2, 1)), torch.ones(2, 1, requires_grad=True) * 2):
        refused(TypeError, "requires a gradient; .*learnable=True", trained)
    refused(
        ValueError, r"one entry on its last axis.*got the shape \(4,\); use beta", torch.ones(4)
    )


@kinds
def test_betas_must_broadcast_against_the_states(make):
    lagrangian = make(torch.ones(3, 1, 1))
    for f in (lagrangian, lagrangian.activation, lagrangian.energy, lagrangian.each):
        with pytest.raises(ValueError, match=r"beta: expected .*\(5, 4\), got \(3, 1, 1\)"):
            f(torch.zeros(5, 4))
        assert f(torch.zeros(2, 3, 5, 4)).shape[0] == 2


def test_one_number_is_not_several():
    """No function has an elementwise-scaled layer norm as its gradient."""
    makes: Any = (LayerNorm, lambda gamma: Spherical(gamma=gamma))
    for make in makes:
        with pytest.raises(TypeError, match="expected a finite number > 0, got Tensor"):
            make(torch.ones(3, 1))


@pytest.mark.parametrize("alpha", [1, 1.0, 0.5, 0, -2.0, math.nan, math.inf, -math.inf])
def test_alpha_must_be_above_one(alpha):
    with pytest.raises(
        ValueError, match=r"alpha: expected .* > 1, got .*; for alpha 1 use Softmax"
    ):
        Entmax(alpha)


def test_alpha_must_be_a_number():
    alphas: Any = ("1.5", None, [1.5])
    for alpha in alphas:
        with pytest.raises(TypeError, match=f"alpha: expected .*, got {type(alpha).__name__}"):
            Entmax(alpha)


def test_without_the_package_the_sparse_ones_say_what_to_install(monkeypatch):
    ready = pickle.dumps(Sparsemax())
    monkeypatch.setitem(sys.modules, "entmax", None)
    for make in (Sparsemax, Entmax, lambda: Entmax(1.3)):
        with pytest.raises(ImportError, match=r"entmax, which is not installed: pip install 'ham"):
            make()
    with pytest.raises(ImportError, match="pip install"):
        pickle.loads(ready).activation(torch.zeros(1, 3))
    assert Softmax().activation(torch.zeros(1, 4)).tolist() == [[0.25] * 4]


def test_a_separation_of_ones_own():
    """What a subclass must give; all else is the base class's."""
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (Separation,), {})()
