"""Strength of the coupling between a memory's layers, and a bound that keeps one equilibrium.

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
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hamdeq._checks import number
from hamdeq.energy.ham import HAM, check_ham
from hamdeq.energy.prepared import is_plain, prepared
from hamdeq.energy.spectral import clip_, cut_, largest, matrix_norm, spectral_norm, weight_matrix
from hamdeq.synapses import Lateral, Map
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
        clamped: the layers that are clamped, which do not count.

    Raises:
        ValueError: an unknown layer; one whose activation may be infinitely steep.
        TypeError: no HAM; a synapse between free layers that is neither a linear map nor lateral.
    """
    names = _free(ham, clamped)
    bounds = torch.zeros(len(names), len(names), dtype=torch.float64)
    for each in _couplings(ham, names):
        a, b = names.index(each.a), names.index(each.b)
        bounds[a, b] = bounds[b, a] = bounds[a, b] + each.strength
    return largest(bounds)


@torch.no_grad()
def contract_(ham: HAM, *, clamped: Collection[str] = ("input",), rate: float = 0.99) -> float:
    """Weaken weights, in place, where needed for ρ(N) ≤ rate: see :func:`contraction`.

    Each synapse between free layers keeps its share c = rate/ρ(A) of the strength N_AB, with A the
    number of synapses between two layers; in a chain of n free layers c = rate/(2 cos(π/(n + 1))).
    Of stronger weight matrices the singular values beyond c are set to c, so that what they do in
    other directions is kept: the nearest matrix within the bound. Convolutions and other maps lose
    what makes them strongest, by a few steps that each lower the largest singular value with the
    smallest change of the weights, and are scaled down by what is left; lateral weights are scaled
    down, and so are those that are computed from others (``weight_norm``, pruning,
    parametrizations), by way of the parameters that set their size. Weaker synapses, and those of
    clamped layers, stay as they are.

    Args:
        ham: the memory.
        clamped: the layers that are clamped, whose synapses are left alone.
        rate: the bound to keep, > 0; below one for one equilibrium.

    Returns:
        the bound c on the strength √(s_A s_B) ‖W_AB‖ of one synapse.

    Raises:
        ValueError: as :func:`contraction`; a rate that is no number > 0; a synapse that is too
            strong and has no weights that require a gradient, or only some whose size does not
            matter, as with ``spectral_norm``.
        TypeError: as :func:`contraction`.
    """
    rate = number("rate", rate, above=0)
    names = _free(ham, clamped)
    found = [*_couplings(ham, names)]
    counts = torch.zeros(len(names), len(names), dtype=torch.float64)
    for each in found:
        a, b = names.index(each.a), names.index(each.b)
        counts[a, b] = counts[b, a] = counts[a, b] + 1
    limit = rate / largest(counts) if found else math.inf
    acting: dict[tuple[Tensor, ...], list[_Coupling]] = {}  # the same weights, in several places
    for each in found:
        weights = tuple(p for p in each.synapse.parameters() if p.requires_grad)
        if each.strength > limit and not weights:
            raise ValueError(
                f"{type(each.synapse).__name__} between {each.a!r} and {each.b!r}: expected a "
                f"strength of at most {limit:.4g}, or weights to weaken, got {each.strength:.4g} "
                "and none; let layers have activations that are less steep, or raise the rate"
            )
        acting.setdefault(weights, []).append(each)
    for weights, places in acting.items():
        if max(each.strength for each in places) > limit:
            _weaken_(weights, places, limit)
    # A change that made a map weaker may have made another stronger that has a weight of it.
    owners = Counter(weight for weights in acting for weight in weights)
    for weights, places in acting.items():
        if any(owners[weight] > 1 for weight in weights):
            _scale_down_(weights, places, limit)
    return limit


def _weaken_(weights: tuple[Tensor, ...], places: list[_Coupling], limit: float) -> None:
    """Bring weights that are too strong within the limit, wherever they act."""
    if all(is_plain(each.synapse) for each in places):
        if len(weights) == 1 and all(weight_matrix(each.synapse) is weights[0] for each in places):
            clip_(weights[0], min(limit / each.steepness for each in places))
            return
        for each in places:
            if isinstance(each.synapse, Map):
                cut_(each.synapse, each.shape, limit / each.steepness)
    _scale_down_(weights, places, limit)


def _scale_down_(weights: tuple[Tensor, ...], places: list[_Coupling], limit: float) -> None:
    """Scale weights down until they are within the limit; scaled down, they are weaker everywhere.

    Raises:
        ValueError: the strength does not follow their size, and they are left as they were.
    """

    def strength() -> float:
        return max(each.measured().strength for each in places)

    def scale(powers: list[float]) -> float:
        for weight, power in zip(weights, powers, strict=True):
            if power:
                weight.div_((size / limit) ** (1 / sum(powers)))
        return strength()

    def restore() -> None:
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(kept)

    rounding = max(_ROUNDING, *(8 * torch.finfo(weight.dtype).eps for weight in weights))
    size, before = strength(), [weight.clone() for weight in weights]
    if size <= limit:
        return
    # Of maps one after the other an equal part each.
    if abs(scale([1.0] * len(weights)) / limit - 1) <= rounding:
        return
    restore()
    # The strength goes with another power of their size, or the direction of some alone counts.
    for _ in range(_TRIES):
        powers = [_power(weight, size, strength) for weight in weights]
        if not any(powers):
            break
        size = scale(powers)
        if size <= limit * (1 + rounding):
            return
    restore()
    each = max(places, key=lambda each: each.measured().strength)
    raise ValueError(
        f"{type(each.synapse).__name__} between {each.a!r} and {each.b!r}: expected weights that "
        f"are weaker when they are smaller, to lower a strength of {size:.4g} to {limit:.4g}, got "
        "normalised ones, as of spectral_norm; remove the normalisation, let layers have "
        "activations that are less steep, or raise the rate"
    )


def _power(weight: Tensor, size: float, strength: Callable[[], float]) -> float:
    """The power of a weight's size with which a strength goes; 0 where it hardly does."""
    kept = weight.clone()
    weight.mul_(0.5)
    power = math.log2(size / max(strength(), _ROUNDING * size))
    weight.copy_(kept)
    return power if power > 0.5 else 0.0


# Of float32, in a product of matrices.
_ROUNDING = 1e-5
_TRIES = 5


def _free(ham: HAM, clamped: Collection[str]) -> list[str]:
    check_ham(ham)
    ham.check_names(clamped)
    return [name for name in ham.layers if name not in clamped]


class _Coupling(NamedTuple):
    """Effect of a synapse between two free layers, or within one.

    ``steepness`` is √(s_A s_B), ``norm`` is ‖W_AB‖, ``shape`` that of the synapse's first layer.
    """

    a: str
    b: str
    synapse: Map | Lateral
    shape: Shape
    steepness: float
    norm: float

    @property
    def strength(self) -> float:
        return self.steepness * self.norm

    def measured(self) -> _Coupling:
        """The same, of the weights as they are now."""
        synapse = prepared(self.synapse)
        if isinstance(synapse, Lateral):
            return self._replace(norm=matrix_norm(synapse.matrix()))
        return self._replace(norm=spectral_norm(synapse, self.shape))


def _couplings(ham: HAM, names: list[str]) -> Iterator[_Coupling]:
    """The synapses between free layers, and within one."""
    for layers, synapse in ham.connections:
        free = [name for name in layers if name in names]
        if isinstance(synapse, Lateral) and free:
            a = b = free[0]
        elif len(free) < 2 and all(synapse.is_linear_in(layers.index(name)) for name in free):
            continue  # of one free layer: a constant field
        elif isinstance(synapse, Map) and synapse.linear:
            a, b = free
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
        steepness = math.sqrt(slopes[0] * slopes[1])
        if a == b and isinstance(synapse, Map):
            steepness *= 2  # from a layer to itself it acts both ways at once, as A + Aᵀ
        yield _Coupling(a, b, synapse, ham.layer(a).shape, steepness, math.nan).measured()
