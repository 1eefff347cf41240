"""Masks of attention: the stored patterns that a state pattern is not compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Cover", "leaves_out"]


class Cover:
    """Masks that leave stored patterns out, of which a block at a time can be made use of.

    The parts are combined late: together they may be as large as all similarities.

    Args:
        parts: masks ``(N, H, L, S)``, each axis but the last possibly of size one: True to leave a
            pattern out, or added to the similarities.
        extra: patterns that follow on S and always take part.
    """

    def __init__(self, *parts: Tensor, extra: int = 0) -> None:
        self.parts = parts
        self.extra = extra
        self._made: tuple[Tensor, Tensor] | None = None

    @property
    def lead(self) -> torch.Size:
        """The axes before the last, of all parts together."""
        return torch.broadcast_shapes(*(part.shape[:-1] for part in self.parts))

    @property
    def requires_grad(self) -> bool:
        """Whether some part is to get a gradient."""
        return any(part.requires_grad for part in self.parts)

    def heads(self, chosen: list[int]) -> Cover:
        """The masks of some heads."""
        parts = (x if x.shape[1] == 1 else x[:, chosen] for x in self.parts)
        return Cover(*parts, extra=self.extra)

    def anew(self) -> Cover:
        """The same masks, without what has been made of them."""
        return Cover(*self.parts, extra=self.extra)

    def folded(self, samples: int, states: int) -> Cover:
        """For the state patterns of all samples as those of one: ``(1, H, N · L, S)``."""

        def fold(part: Tensor) -> Tensor:
            if part.shape[0] == part.shape[2] == 1:
                return part
            part = part.expand(samples, -1, states, -1).transpose(0, 1)
            return part.reshape(1, part.shape[0], samples * states, part.shape[3])

        return Cover(*map(fold, self.parts), extra=self.extra)

    def flat(self, samples: int, heads: int) -> Cover:
        """With one leading axis for samples and heads, and one for the kernels."""

        def flatten(part: Tensor) -> Tensor:
            if part.shape[0] == part.shape[1] == 1:
                return part
            part = part.expand(samples, heads, -1, -1)
            return part.reshape(samples * heads, 1, *part.shape[2:])

        return Cover(*map(flatten, self.parts), extra=self.extra)

    def kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mask with True, or 0, where a pattern takes part; and where any of them does.

        Rows that leave out everything are let through and set to zero at the end, since kernels
        differ in what they make of them.
        """
        if self._made is not None:
            return self._made
        made = self._kernel(dtype)
        # Without its graph, as a solver runs, it is of no use to the gradient that follows.
        if torch.is_grad_enabled() or not self.requires_grad:
            self._made = made
        return made

    def _kernel(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mask = self.parts[0]
        for part in self.parts[1:]:
            mask = _both(mask, part)
        mask = F.pad(mask, (0, self.extra)) if self.extra else mask
        if mask.is_floating_point():
            out = leaves_out(mask)
            if mask.dtype != dtype:  # in which a number such as −1e9 may be −∞
                mask = mask.to(dtype)
                out = out | leaves_out(mask)
            alive = ~out.all(-1, keepdim=True)
            return torch.where(alive, mask, 0.0), alive
        alive = ~mask.all(-1, keepdim=True)
        return ~(mask & alive), alive


def leaves_out(mask: Tensor) -> Tensor:
    """Where a mask leaves a pattern out: True, −∞, or the lowest number of its dtype.

    That number serves as −∞ in many libraries, and what is added to it matters as little.
    """
    return mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2


def _both(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == b.dtype == torch.bool:
        return a | b
    return _added(a) + _added(b)


def _added(mask: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -torch.inf)
