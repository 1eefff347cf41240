"""Two-layer memories: models A, B and C of Krotov & Hopfield.

Feature neurons v with Lagrangian L_v and memory neurons h with L_h, and the K stored patterns
ξ ``(K, N)`` as the weights between them, used both ways:

    τ_v dv/dt = ξᵀ f − v,   f = ∇L_h(h),        τ_h dh/dt = ξ g − h,   g = ∇L_v(v),
    E = [⟨v, g⟩ − L_v(v)] + [⟨h, f⟩ − L_h(h)] − fᵀ ξ g.

Where the memory neurons are fast (τ_h → 0) they can be eliminated, by
``eliminate(memory, ["memories"])``, which leaves

    v <- ξᵀ ∇L_h(ξ g),      E = L*_v(g) − L_h(ξ g).

- A: features Σ|v|, here smoothed to ln cosh(βv)/β; memories Σ_μ F(h_μ). What is left is
  E = −Σ_μ F(ξ_μ·g) with g = sign(v), the dense associative memory.
- B: features ½‖v‖²; memories log-sum-exp. Left is E = ½‖v‖² − lse(β, ξv), attention.
- C: features √(‖v‖² + ε); memories Σ_μ F(h_μ). Left is E = −Σ_μ F(ξ_μ·v/‖v‖).

Source: Krotov & Hopfield, "Large Associative Memory Problem in Neurobiology and Machine Learning"
(ICLR 2021), equations 1 and 2, and section 3 for the three models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq._checks import whole
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Neurons
from hamdeq.energy.prepared import prepared
from hamdeq.lagrangians import Identity, Lagrangian, RePU, Softmax, Spherical, Tanh
from hamdeq.synapses import Dense

__all__ = ["TwoLayer"]


class TwoLayer(HAM):
    """Layers ``features`` (N neurons) and ``memories`` (K neurons), with K patterns between.

    The models A, B and C are made by :meth:`model_a`, :meth:`model_b` and :meth:`model_c`; any
    other pair of Lagrangians by the constructor.

    Args:
        patterns: the stored patterns ξ ``(K, N)``, of floating point, which are copied; or the
            two numbers ``(K, N)``, for patterns to learn, which start random and small (those of
            a :class:`~hamdeq.Dense`).
        features: Lagrangian of the features.
        memories: Lagrangian of the memories.
        trainable: whether the patterns get a gradient.

    Shape:
        States are ``{"features": (batch, N), "memories": (batch, K)}``.

    Raises:
        ValueError: patterns that are no matrix, empty, or not finite.
        TypeError: patterns that are not of floating point.

    Example:
        >>> patterns = torch.sign(torch.randn(5, 64))
        >>> memory = eliminate(TwoLayer.model_a(patterns), ["memories"])
        >>> memory.update({"features": patterns[:1] + torch.randn(1, 64)})["features"].shape
        torch.Size([1, 64])
    """

    def __init__(
        self,
        patterns: Tensor | Sequence[int],
        features: Lagrangian,
        memories: Lagrangian,
        *,
        trainable: bool = True,
    ) -> None:
        count, size, given = _patterns(patterns)
        if given is None:
            synapse = Dense(size, count)
        else:
            with torch.random.fork_rng(devices=[]):  # its initial weights are of no use
                synapse = Dense(size, count)
            synapse.weight = nn.Parameter(given.mT.contiguous())
        synapse.weight.requires_grad_(trainable)
        super().__init__(
            {"features": Neurons(size, features), "memories": Neurons(count, memories)},
            [(("features", "memories"), synapse)],
        )

    @property
    def patterns(self) -> Tensor:
        """The stored patterns ξ, ``(K, N)``."""
        return prepared(self.synapses[0]).weight.mT  # type: ignore[return-value, union-attr]

    @classmethod
    def model_a(
        cls,
        patterns: Tensor | Sequence[int],
        memories: Lagrangian | None = None,
        *,
        beta: float = 10.0,
        trainable: bool = True,
    ) -> TwoLayer:
        """Model A: sign-like features, additive memories: a dense associative memory.

        Eliminated, v <- Σ_μ ξ_μ F′(ξ_μ·g) with g = tanh(βv), and E = L*_v(g) − Σ_μ F(ξ_μ·g).
        The paper's features are β → ∞, with g = sign(v) and L*_v = 0; here 0 ≤ L*_v ≤ N ln 2/β,
        the upper end being reached where all features are saturated.

        Args:
            patterns, trainable: as of :class:`TwoLayer`; patterns of ±1 are meant.
            memories: the Lagrangian Σ_μ F(h_μ), default ``RePU(3)``, F(x) = max(x, 0)³/3;
                ``Exp(beta)`` for an exponential F, with β near 1/√N lest it overflow.
            beta: inverse temperature β of the features, per unit of v.
        """
        lagrangian = RePU(3) if memories is None else memories
        return cls(patterns, Tanh(beta), lagrangian, trainable=trainable)

    @classmethod
    def model_b(
        cls,
        patterns: Tensor | Sequence[int],
        *,
        beta: float = 1.0,
        learnable: bool = False,
        trainable: bool = True,
    ) -> TwoLayer:
        """Model B: linear features, softmax memories: the modern Hopfield network, attention.

        Eliminated, v <- ξᵀ softmax(β ξ v), and E = ½‖v‖² − ln Σ_μ exp(β ξ_μ·v)/β. The paper has
        β = 1. :func:`hamdeq.nn.functional.energy` adds the constants ln K/β + ½ max_μ ‖ξ_μ‖².

        Args:
            patterns, trainable: as of :class:`TwoLayer`.
            beta: inverse temperature β, per unit of similarity.
            learnable: whether β is trained.
        """
        return cls(patterns, Identity(), Softmax(beta, learnable=learnable), trainable=trainable)

    @classmethod
    def model_c(
        cls,
        patterns: Tensor | Sequence[int],
        memories: Lagrangian | None = None,
        *,
        eps: float = 1e-5,
        trainable: bool = True,
    ) -> TwoLayer:
        """Model C: features on the sphere, additive memories.

        Eliminated, v <- Σ_μ ξ_μ F′(ξ_μ·g) with g = v/√(‖v‖² + ε), and
        E = −Σ_μ F(ξ_μ·g) − ε/√(‖v‖² + ε). The paper has ε = 0.

        Args:
            patterns, trainable: as of :class:`TwoLayer`.
            memories: the Lagrangian Σ_μ F(h_μ), default ``RePU(3)``, F(x) = max(x, 0)³/3.
            eps: ε > 0, in units of v²; it makes the sphere smooth at v = 0.
        """
        lagrangian = RePU(3) if memories is None else memories
        return cls(patterns, Spherical(eps), lagrangian, trainable=trainable)


def _patterns(patterns: Tensor | Sequence[int]) -> tuple[int, int, Tensor | None]:
    """K, N, and a copy of the patterns where these are given."""
    if not isinstance(patterns, Tensor):
        sizes = list(patterns) if isinstance(patterns, Sequence) else None
        counts = [n for n in map(whole, sizes or ()) if n is not None and n > 0]
        if sizes is None or not len(sizes) == len(counts) == 2:
            raise ValueError(
                "patterns: expected a tensor (K, N), or two positive integers, such as (100, 64) "
                f"for 100 random patterns of 64 features, got {patterns!r}"
            )
        return counts[0], counts[1], None
    if not patterns.is_floating_point():
        raise TypeError(
            f"patterns: expected floating-point numbers, got {patterns.dtype}; "
            "convert them by patterns.float()"
        )
    if patterns.dim() != 2 or 0 in patterns.shape:
        raise ValueError(
            "patterns: expected a tensor (K, N), a row for each of at least one pattern, got "
            f"shape {tuple(patterns.shape)}"
        )
    bad = (~patterns.isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"patterns: expected finite numbers, got NaN or infinity in rows {bad[:8]}"
        )
    return patterns.shape[0], patterns.shape[1], patterns.detach().clone()
