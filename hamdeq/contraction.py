"""How strongly a memory's layers act on each other, and how to keep it within one equilibrium.

Let s_A be the largest slope of a layer's activation, so that ∇²L_A ≤ s_A, and ‖W_AB‖ the spectral
norm of what two layers exert on each other. With

    N_AB = √(s_A s_B) ‖W_AB‖

and ρ(N), the largest eigenvalue of this small symmetric matrix, below one, the energy of the free
layers is strictly convex in their activations: whatever is clamped, there is one equilibrium, and
every solver ends there. The reason: the energy has the Hessian D⁻¹ − S in g, with D = ∇²L ≤ s and
S of blocks W_AB, and D^½ S D^½ has no eigenvalue beyond ρ(N).

A step of plain iteration brings any two states x and y closer by the factor ρ(N) at least, in

    ‖x − y‖² = Σ_A s_A ‖x_A − y_A‖²,

the sum being over free layers; a step of even-odd splitting by ρ(N)², with the sum over those that
are left. The reason: with n_A = √s_A ‖x_A − y_A‖, no layer moves its neighbours apart by more than
N n, and N has no negative number. In other norms that holds up to a constant.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from hamdeq.ham import HAM
from hamdeq.lagrangians.base import positive
from hamdeq.synapses import Composed, Dense, Flatten, Lateral, Map, Synapse
from hamdeq.synapses.base import Shape

__all__ = ["contract_", "contraction"]


@torch.no_grad()
def contraction(ham: HAM, *, clamped: Collection[str] = ("input",)) -> float:
    """An upper bound ρ(N) of how little a step contracts, whatever the states of what is clamped.

    Below one the memory has one equilibrium for every input, at which plain iteration arrives with
    an error that falls by this factor at least in each step, with even-odd splitting by its square:
    in the norm √(Σ s_A ‖x_A‖²), with s_A the largest slope of a layer's activation.

    Args:
        ham: the memory.
        clamped: the layers that are held, which do not count.

    Raises:
        ValueError: an unknown layer; one whose activation may be infinitely steep.
        TypeError: a synapse between free layers that is neither a linear map nor lateral.
    """
    names = _free(ham, clamped)
    bounds = torch.zeros(len(names), len(names), dtype=torch.float64)
    for a, b, _, strength in _couplings(ham, names):
        bounds[names.index(a), names.index(b)] += strength
        if a != b:
            bounds[names.index(b), names.index(a)] += strength
    return _largest(bounds)


@torch.no_grad()
def contract_(ham: HAM, *, clamped: Collection[str] = ("input",), rate: float = 0.99) -> float:
    """Weaken weights, in place, where needed for ρ(N) ≤ rate: see :func:`contraction`.

    Each synapse between free layers keeps its share c = rate/ρ(A) of the strength N_AB, with A the
    number of synapses between two layers; in a chain of n free layers c = rate/(2 cos(π/(n + 1))).
    Of stronger weight matrices the singular values beyond c are set to c, so that what they do in
    other directions is kept: the nearest matrix within the bound. Other stronger synapses are
    scaled down; weaker ones, and those of clamped layers, stay as they are.

    Args:
        ham: the memory.
        clamped: the layers that are held, whose synapses are left alone.
        rate: the bound to keep, > 0; below one for one equilibrium.

    Returns:
        the bound c on the strength √(s_A s_B) ‖W_AB‖ of one synapse.

    Raises:
        ValueError: as :func:`contraction`; a rate that is no number > 0; a synapse that is too
            strong and has no weights.
        TypeError: as :func:`contraction`.
    """
    rate = positive("rate", rate)
    names = _free(ham, clamped)
    found = [*_couplings(ham, names)]
    counts = torch.zeros(len(names), len(names), dtype=torch.float64)
    for a, b, _, _ in found:
        counts[names.index(a), names.index(b)] += 1
        if a != b:
            counts[names.index(b), names.index(a)] += 1
    limit = rate / _largest(counts) if found else math.inf
    strongest: dict[tuple[Tensor, ...], float] = {}  # the same weights may act in several places
    plain: dict[tuple[Tensor, ...], bool] = {}
    for a, b, synapse, strength in found:
        weights = tuple(p for p in synapse.parameters() if p.requires_grad)
        if strength > limit and not weights:
            raise ValueError(
                f"{type(synapse).__name__} between {a!r} and {b!r}: expected a strength of at most "
                f"{limit:.4g}, or weights to scale down, got {strength:.4g} and none; let layers "
                "have activations that are less steep, or raise the rate"
            )
        strongest[weights] = max(strongest.get(weights, 0.0), strength)
        plain[weights] = plain.get(weights, True) and _matrix(synapse) is not None
    for weights, strength in strongest.items():
        if strength > limit and plain[weights]:
            (weight,) = weights
            weight.copy_(_clipped(weight, limit / strength))
        elif strength > limit:
            for weight in weights:  # several of maps one after the other: an equal part each
                weight.mul_((limit / strength) ** (1 / len(weights)))
    return limit


def _free(ham: HAM, clamped: Collection[str]) -> list[str]:
    ham.check_names(clamped)
    return [name for name in ham.layers if name not in clamped]


def _couplings(ham: HAM, names: list[str]) -> Iterator[tuple[str, str, Synapse, float]]:
    """The synapses between free layers, and within one, with their strengths √(s_A s_B) ‖W_AB‖."""
    for layers, synapse in ham.connections:
        free = [name for name in layers if name in names]
        if isinstance(synapse, Lateral) and free:
            a = b = free[0]
            norm = _matrix_norm(synapse.matrix())
        elif len(free) < 2 and all(synapse.is_linear_in(layers.index(name)) for name in free):
            continue  # of one free layer: a constant field
        elif isinstance(synapse, Map) and synapse.linear:
            a, b = free
            # From a layer to itself it acts both ways at once, as A + Aᵀ.
            norm = spectral_norm(synapse, ham.layer(a).shape) * (2 if a == b else 1)
        else:
            raise TypeError(
                f"{type(synapse).__name__} {layers}: expected linear maps between free layers, "
                "such as Dense or Conv2d, or Lateral; no bound is known of others"
            )
        slopes = [ham.layer(name).lagrangian.max_slope for name in (a, b)]
        for name, slope in zip((a, b), slopes, strict=True):
            if not math.isfinite(slope):
                kind = type(ham.layer(name).lagrangian).__name__
                raise ValueError(
                    f"layer {name!r}: expected an activation of bounded slope, such as Tanh or "
                    f"Sigmoid, got {kind}, of which none is known"
                )
        yield a, b, synapse, math.sqrt(slopes[0] * slopes[1]) * norm


@torch.no_grad()
def spectral_norm(synapse: Map, shape: Shape, *, tol: float = 1e-6, max_steps: int = 200) -> float:
    """The largest singular value of a linear map whose first layer has this shape.

    Of a weight matrix from the eigenvalues of its smaller Gram matrix; of others by the method of
    Lanczos, from below, until it grows by less than ``tol``, relative, in ten steps.

    Source: Golub & Kahan, "Calculating the singular values and pseudo-inverse of a matrix" (1965).
    """
    matrix = _matrix(synapse)
    if matrix is not None:
        return _matrix_norm(matrix)
    like = next(synapse.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    v = torch.randn((1, *shape), generator=generator).to(like)
    v, u, beta = v / torch.linalg.vector_norm(v), None, 0.0
    # A V = U B, with B upper bidiagonal: its singular values approach those of A, the largest
    # first. Rounding makes it find some of them again, which does not matter here.
    diagonal, above, sizes = [], [], [0.0]
    for _ in range(min(max_steps, math.prod(shape))):
        h = synapse(v) if u is None else synapse(v) - beta * u
        alpha = float(torch.linalg.vector_norm(h))
        diagonal.append(alpha)
        bidiagonal = torch.tensor(diagonal, dtype=torch.float64).diag()
        if above:
            bidiagonal += torch.tensor(above, dtype=torch.float64).diag(1)
        sizes.append(float(torch.linalg.matrix_norm(bidiagonal, 2)))
        if alpha == 0 or (len(sizes) > 10 and sizes[-1] <= sizes[-11] * (1 + tol)):
            break
        u = h / alpha
        w = synapse.adjoint(u, v) - alpha * v
        beta = float(torch.linalg.vector_norm(w))
        if beta <= torch.finfo(w.dtype).eps * sizes[-1]:  # nothing is left to be found
            break
        above.append(beta)
        v = w / beta
    return sizes[-1]


def _matrix(synapse: Synapse) -> Tensor | None:
    """The weight matrix of a synapse that is one, if of an image laid out as a vector."""
    if isinstance(synapse, Composed):
        plain = [each for each in synapse.maps if not isinstance(each, Flatten)]
        return _matrix(plain[0]) if len(plain) == 1 else None  # type: ignore[arg-type]
    if isinstance(synapse, Dense) and type(synapse).forward is Dense.forward:
        return synapse.weight
    return None


def _clipped(matrix: Tensor, share: float) -> Tensor:
    """The matrix with no singular value beyond this share of the largest.

    From the eigenvectors of the smaller Gram matrix, of which only those of too large singular
    values matter: these are the accurate ones.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide if wide.dtype == torch.float64 else wide.float()
    squares, directions = torch.linalg.eigh(wide @ wide.T)
    sizes = squares.clamp_min(0.0).sqrt()
    bound = share * sizes[-1]
    beyond = sizes > bound
    u, excess = directions[:, beyond], 1.0 - bound / sizes[beyond]
    wide = wide - (u * excess) @ (u.T @ wide)
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)


def _matrix_norm(matrix: Tensor) -> float:
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    small = small if small.dtype == torch.float64 else small.float()
    return math.sqrt(max(_largest(small @ small.T), 0.0))


def _largest(symmetric: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix; of an empty one, zero."""
    return float(torch.linalg.eigvalsh(symmetric)[-1]) if symmetric.numel() else 0.0
