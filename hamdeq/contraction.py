"""How strongly a memory's layers act on each other, and how to keep it within one equilibrium.

Let s_A be the largest slope of a layer's activation, so that ∇²L_A ≤ s_A, and ‖W_AB‖ the spectral
norm of what two layers exert on each other. With

    N_AB = √(s_A s_B) ‖W_AB‖

and ρ(N), the largest eigenvalue of this small symmetric matrix, below one, the energy of the free
layers is strictly convex in their activations: whatever is clamped, there is one equilibrium, and
every solver ends there. Plain iteration gets there at the rate ρ(N) a step, and with even-odd
splitting at ρ(N)². The reason: the energy has the Hessian D⁻¹ − S in g, with D = ∇²L ≤ s and S of
blocks W_AB, and D^½ S D^½ has no eigenvalue beyond ρ(N).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from hamdeq.ham import HAM
from hamdeq.lagrangians.base import positive
from hamdeq.synapses import Lateral, Map, Synapse
from hamdeq.synapses.base import Shape

__all__ = ["contract_", "contraction"]


@torch.no_grad()
def contraction(ham: HAM, *, clamped: Collection[str] = ("input",)) -> float:
    """An upper bound ρ(N) of how little a step contracts, whatever is clamped.

    Below one the memory has one equilibrium for every input, at which plain iteration arrives with
    an error that falls by this factor in each step, with even-odd splitting by its square.

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
    """Scale weights down, in place, where needed for ρ(N) ≤ rate: see :func:`contraction`.

    Each synapse between free layers keeps its share c = rate/ρ(A) of the strength N_AB, with A the
    number of synapses between two layers; in a chain of n free layers c = rate/(2 cos(π/(n + 1))).
    Stronger ones are scaled down to it; others, and those of clamped layers, stay as they are.

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
    strongest: dict[Synapse, tuple[float, str, str]] = {}
    for a, b, synapse, strength in found:  # one synapse may act in several places
        strongest[synapse] = max(strongest.get(synapse, (0.0, a, b)), (strength, a, b))
    for synapse, (strength, a, b) in strongest.items():
        if strength > limit:
            weights = [p for p in synapse.parameters() if p.requires_grad]
            if len(weights) != 1:
                raise ValueError(
                    f"{type(synapse).__name__} between {a!r} and {b!r}: expected one weight to "
                    f"scale down, got {len(weights)}"
                )
            weights[0].mul_(limit / strength)
    return limit


def _free(ham: HAM, clamped: Collection[str]) -> list[str]:
    ham.check_names(clamped)
    return [name for name in ham.layers if name not in clamped]


def _couplings(ham: HAM, names: list[str]) -> Iterator[tuple[str, str, Synapse, float]]:
    """The synapses between free layers, and within one, with their strengths √(s_A s_B) ‖W_AB‖."""
    for layers, synapse in ham.connections:
        free = [name for name in layers if name in names]
        if isinstance(synapse, Lateral) and free:
            a, b = free[0], free[0]
            norm = float(torch.linalg.matrix_norm(synapse.matrix(), 2))
        elif len(free) < 2 and all(synapse.is_linear_in(layers.index(name)) for name in free):
            continue  # of one free layer: a constant field
        elif isinstance(synapse, Map) and synapse.linear:
            a, b = free
            norm = spectral_norm(synapse, ham.layer(a).shape)
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
def spectral_norm(synapse: Map, shape: Shape, *, tol: float = 1e-4, max_steps: int = 500) -> float:
    """The largest singular value of a linear map whose first layer has this shape.

    Of a weight matrix from the eigenvalues of its smaller Gram matrix; of others by the power
    method, until it grows by less than ``tol``, relative, in a step.
    """
    weight = getattr(synapse, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        small = weight if weight.shape[0] <= weight.shape[1] else weight.T
        gram = (small @ small.T).float() if weight.dtype != torch.float64 else small @ small.T
        return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))
    like = next(synapse.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    u = torch.randn((1, *shape), generator=generator).to(like)
    size = 0.0
    for _ in range(max_steps):
        u = u / torch.linalg.vector_norm(u)
        u = synapse.adjoint(synapse(u), u)
        last, size = size, float(torch.linalg.vector_norm(u))
        if size <= last * (1 + tol):
            break
    return math.sqrt(size)


def _largest(symmetric: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix without negative numbers; of none, zero."""
    return float(torch.linalg.eigvalsh(symmetric)[-1]) if symmetric.numel() else 0.0
