"""Retrieval: a query layer whose memory layer has been eliminated.

Two layers, the state x (linear) and the memories (a :class:`~hamdeq.Separation`, most often
softmax), with the stored patterns K as the synapse between them. Eliminating the memories leaves

    E(x) = ½‖x‖² − L(Kx),    x <- Kᵀ ∇L(Kx) = Kᵀ softmax(β K x),

for each state pattern by itself: attention (Ramsauer et al. 2021, equations 2 and 3). Everything in
:mod:`hamdeq.nn` comes down to this step, and to reading other values in place of K at the end.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq.lagrangians import Separation, Softmax

__all__ = ["Retrieval", "folded", "shared", "unfolded"]

# Twice the numbers that the widest registers of a CPU hold.
_LANES = 32


class Retrieval:
    """The energy of state patterns among stored patterns, and the update that lets it fall.

    Args:
        stored: K, ``(…, S, d)``; its first axis may be one that all samples share.
        lagrangian: of the memory layer, used at the β given here.
        beta: inverse temperature β, a number or a tensor that broadcasts with ``(…, L, 1)``.
        mask: which stored patterns are left out, True, or what is added to β K x; broadcasts with
            ``(…, L, S)``. Where all are left out, x <- 0, with zero gradient, and E = ½‖x‖².

    Shape:
        State patterns are ``(…, L, d)``, with the same leading axes as K.
    """

    def __init__(
        self,
        stored: Tensor,
        lagrangian: Separation,
        beta: float | Tensor = 1.0,
        mask: Tensor | None = None,
    ) -> None:
        self.stored = stored
        self.lagrangian = lagrangian
        self.beta = beta
        # ``keep`` is the mask as the kernels want it: True, or 0, for what takes part. ``alive``
        # says in which rows there is such.
        self.keep: Tensor | None
        self.alive: Tensor | None
        self.keep, self.alive = (None, None) if mask is None else _usable(mask, stored.dtype)

    def update(self, x: Tensor) -> Tensor:
        """x <- Kᵀ ∇L(Kx): ``(…, L, d)``."""
        return self.read(x, self.stored)

    def read(self, x: Tensor, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Vᵀ ∇L(Kx), for values V ``(…, S, p)`` in place of K: ``(…, L, p)``."""
        if isinstance(self.lagrangian, Softmax):
            found = self._attend(x, values, dropout)
        elif self.stored.shape[-2] == 0:
            found = self._similarity(x) @ values
        else:
            weights = self.lagrangian.distribution(self._similarity(x))
            found = F.dropout(weights, dropout) @ values
        return found if self.alive is None else torch.where(self.alive, found, 0.0)

    def weights(self, x: Tensor) -> Tensor:
        """∇L(Kx), how much of each stored pattern is read: ``(…, L, S)``."""
        if self.stored.shape[-2] == 0:
            return self._similarity(x)
        weights = self.lagrangian.distribution(self._similarity(x))
        return weights if self.alive is None else torch.where(self.alive, weights, 0.0)

    def energy(self, x: Tensor) -> Tensor:
        """½‖x‖² − L(Kx): ``(…, L)``."""
        return self.quadratic(x) - self.potential(x)

    def quadratic(self, x: Tensor) -> Tensor:
        """½‖x‖²: ``(…, L)``."""
        return 0.5 * (x * x).sum(-1)

    def potential(self, x: Tensor) -> Tensor:
        """L(Kx): ``(…, L)``; 0 where all stored patterns are left out."""
        if self.stored.shape[-2] == 0:
            return x.new_zeros(x.shape[:-1])
        gain = self.lagrangian.potential(self._similarity(x)) / self.beta
        return (gain if self.alive is None else torch.where(self.alive, gain, 0.0)).squeeze(-1)

    def _similarity(self, x: Tensor) -> Tensor:
        """βKx, and the mask: ``(…, L, S)``."""
        z = (self.beta * x).to(x.dtype) @ self.stored.mT
        if self.keep is None:
            return z
        return z + self.keep if self.keep.is_floating_point() else z.where(self.keep, -torch.inf)

    def _attend(self, x: Tensor, values: Tensor, dropout: float) -> Tensor:
        beta = self.beta
        if isinstance(beta, Tensor):
            x, beta = (beta * x).to(x.dtype), 1.0
        stored, keep, lead = self.stored, self.keep, x.shape[:-2]

        def attend(x: Tensor, stored: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
            found = F.scaled_dot_product_attention(
                x, stored, values, attn_mask=keep, dropout_p=dropout, scale=beta
            )
            # A traced graph is for any number of patterns.
            few = torch.compiler.is_compiling() or stored.shape[-2] < _LANES
            return _with_nan(found, x, stored, keep) if few and x.device.type == "cpu" else found

        if len(lead) != 2:  # as the fused kernels want it
            n = math.prod(lead)
            x, stored, values = (t.reshape(n, 1, *t.shape[-2:]) for t in (x, stored, values))
            if keep is not None:
                keep = keep.expand(*lead, *keep.shape[-2:]).reshape(n, 1, *keep.shape[-2:])
            found = attend(x, stored, values, keep)
            return found.reshape(*lead, *found.shape[-2:])
        if keep is None and shared(stored, x) and shared(values, x):
            return unfolded(attend(folded(x), stored, values, None), lead[0])
        stored, values = (t.expand(lead[0], -1, -1, -1) for t in (stored, values))
        return attend(x, stored, values, keep)


def _with_nan(found: Tensor, x: Tensor, stored: Tensor, keep: Tensor | None) -> Tensor:
    """NaN where similarities are: of fewer patterns than it has lanes, the kernel makes zeros."""
    if keep is not None and keep.is_floating_point():
        found = found.masked_fill(keep.isnan().any(-1, keepdim=True), torch.nan)
    if 0 in x.shape or 0 in stored.shape:
        return found
    return found + _nothing(x) + _nothing(stored).sum(-2, keepdim=True)


def _nothing(x: Tensor) -> Tensor:
    """Zero for each row ``(…, 1)``, and NaN for those that hold a number that is not finite."""
    return 0.0 * torch.linalg.vector_norm(x.detach(), torch.inf, dim=-1, keepdim=True)


def shared(stored: Tensor, x: Tensor) -> bool:
    """Whether all of several samples have the same stored patterns."""
    return stored.shape[0] == 1 < x.shape[0]


def folded(x: Tensor) -> Tensor:
    """The state patterns of all samples as those of one: ``(N, H, L, d) -> (1, H, N · L, d)``."""
    return x.transpose(0, 1).flatten(1, 2)[None]


def unfolded(x: Tensor, samples: int) -> Tensor:
    """The inverse of :func:`folded`, for any last axes: ``(1, H, N · L, …) -> (N, H, L, …)``."""
    return x[0].unflatten(1, (samples, -1)).transpose(0, 1)


def _usable(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The mask with True, or 0, where a pattern takes part; and where any of them does.

    Rows that leave out everything are let through here and set to zero at the end, since kernels
    differ in what they make of them.
    """
    if mask.is_floating_point():
        mask = mask.to(dtype)  # in which a number such as −1e9 may be −∞
        alive = (mask != -torch.inf).any(-1, keepdim=True)  # NaN too, which must be seen
        return torch.where(alive, mask, 0.0), alive
    alive = ~mask.all(-1, keepdim=True)
    return ~(mask & alive), alive
