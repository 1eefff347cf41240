"""Spectral norms of linear maps, and changes of their weights that keep these within a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hamdeq.synapses import Composed, Dense, Flatten, Map, Synapse
from hamdeq.synapses.base import Shape

__all__ = ["clip_", "cut_", "largest", "matrix_norm", "spectral_norm", "weight_matrix"]


@torch.no_grad()
def spectral_norm(synapse: Map, shape: Shape) -> float:
    """The largest singular value of a linear map whose first layer has this shape.

    Of a weight matrix from the eigenvalues of its smaller Gram matrix, of others by the method of
    Lanczos, to about six digits.
    """
    matrix = weight_matrix(synapse)
    return _lanczos(synapse, shape)[0] if matrix is None else matrix_norm(matrix)


def weight_matrix(synapse: Synapse) -> Tensor | None:
    """The weight matrix of a synapse that is one, if of an image laid out as a vector."""
    if isinstance(synapse, Composed):
        plain = [each for each in synapse.maps if not isinstance(each, Flatten)]
        return weight_matrix(plain[0]) if len(plain) == 1 else None  # type: ignore[arg-type]
    if isinstance(synapse, Dense) and type(synapse).forward is Dense.forward:
        return synapse.weight
    return None


def matrix_norm(matrix: Tensor) -> float:
    """The largest singular value of a matrix."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    small = small if small.dtype == torch.float64 else small.float()
    return math.sqrt(max(largest(small @ small.T), 0.0))


def largest(symmetric: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix; of an empty one, zero."""
    return float(torch.linalg.eigvalsh(symmetric)[-1]) if symmetric.numel() else 0.0


@torch.no_grad()
def clip_(weight: Tensor, bound: float) -> None:
    """Set the singular values of a matrix beyond the bound to it: the nearest matrix within it.

    From the eigenvectors of the smaller Gram matrix, of which only those of too large singular
    values matter: these are the accurate ones.
    """
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    wide = wide if wide.dtype == torch.float64 else wide.float()
    squares, directions = torch.linalg.eigh(wide @ wide.T)
    sizes = squares.clamp_min(0.0).sqrt()
    beyond = sizes > bound
    u, excess = directions[:, beyond], 1.0 - bound / sizes[beyond]
    wide = wide - (u * excess) @ (u.T @ wide)
    weight.copy_(wide if weight.shape[0] <= weight.shape[1] else wide.T)


@torch.no_grad()
def cut_(synapse: Map, shape: Shape, bound: float, *, times: int = 3) -> None:
    """Lower the largest singular value of a linear map, by little else than what makes it large.

    The largest singular value σ = ⟨u, A v⟩ has the derivative G = ∂⟨u, A v⟩/∂W in the map's
    weights. ``W −= (σ − bound) G/‖G‖²`` is the smallest change that lowers it to the bound, to
    first order. Of a matrix, where G = u vᵀ, it is exact; of a convolution, whose σ is a convex
    function of the kernel, σ comes down to the bound from above, and what is changed comes nearer
    to every kernel within it.

    Args:
        synapse: the map; its weights that require a gradient are changed.
        shape: of the map's first layer.
        bound: what the largest singular value is to be.
        times: steps at most. Several singular values may be too large, and each step sees one, so
            that afterwards the bound may not be met yet.

    Source: Polyak, "Minimization of unsmooth functionals" (1969), whose step this is.
    """
    weights = [p for p in synapse.parameters() if p.requires_grad]
    for _ in range(times):
        size, v = _lanczos(synapse, shape)
        if size <= bound:
            return
        with torch.enable_grad():
            h = synapse(v)
            u = (h / torch.linalg.vector_norm(h)).detach()
            slopes = torch.autograd.grad((u * h).sum(), weights)
        steepness = sum(float(slope.square().sum()) for slope in slopes)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.sub_(slope, alpha=(size - bound) / steepness)


def _lanczos(
    synapse: Map, shape: Shape, *, tol: float = 1e-6, max_steps: int = 200
) -> tuple[float, Tensor]:
    """The largest singular value of a linear map and the direction that it stretches most.

    By the method of Lanczos, from below, until it grows by less than ``tol``, relative, in ten
    steps. The direction has the shape ``(1, *shape)`` and norm one.

    Source: Golub & Kahan, "Calculating the singular values and pseudo-inverse of a matrix" (1965).
    """
    like = next(synapse.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    v = torch.randn((1, *shape), generator=generator).to(like)
    v, u, beta = v / torch.linalg.vector_norm(v), None, 0.0
    # A V = U B, with B upper bidiagonal: its singular values approach those of A, the largest
    # first. Rounding makes it find some of them again, which does not matter here.
    directions, diagonal, above, sizes = [], [], [], [0.0]
    for _ in range(min(max_steps, math.prod(shape))):
        h = synapse(v) if u is None else synapse(v) - beta * u
        alpha = float(torch.linalg.vector_norm(h))
        directions.append(v)
        diagonal.append(alpha)
        sizes.append(float(torch.linalg.matrix_norm(_bidiagonal(diagonal, above), 2)))
        if alpha == 0 or (len(sizes) > 10 and sizes[-1] <= sizes[-11] * (1 + tol)):
            break
        u = h / alpha
        w = synapse.adjoint(u, v) - alpha * v
        beta = float(torch.linalg.vector_norm(w))
        if beta <= torch.finfo(w.dtype).eps * sizes[-1]:  # nothing is left to be found
            break
        above.append(beta)
        v = w / beta
    weights = torch.linalg.svd(_bidiagonal(diagonal, above))[2][0].to(like)
    v = torch.einsum("k,k...->...", weights, torch.stack(directions))
    return sizes[-1], v / torch.linalg.vector_norm(v)


def _bidiagonal(diagonal: Sequence[float], above: Sequence[float]) -> Tensor:
    n = len(diagonal)
    matrix = torch.tensor(diagonal, dtype=torch.float64).diag()
    if n > 1:
        matrix += torch.tensor(above[: n - 1], dtype=torch.float64).diag(1)
    return matrix
