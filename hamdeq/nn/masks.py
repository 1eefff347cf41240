"""Masks as users give them, made one that broadcasts over samples and heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["INTEGERS", "Cover", "causal_mask", "combined_mask", "without_padding"]


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
            out = _leaves_out(mask)
            if mask.dtype != dtype:  # in which a number such as −1e9 may be −∞
                mask = mask.to(dtype)
                out = out | _leaves_out(mask)
            alive = ~out.all(-1, keepdim=True)
            return torch.where(alive, mask, 0.0), alive
        alive = ~mask.all(-1, keepdim=True)
        return ~(mask & alive), alive


def combined_mask(
    padding: Tensor | None,
    association: Tensor | None,
    *,
    batch: int,
    heads: int,
    states: int,
    stored: int,
    extra: int = 0,
) -> Cover | None:
    """What leaves stored patterns out, for each sample, head and state pattern.

    Args:
        padding: ``(N, S)``, for each sample the stored patterns to leave out.
        association: ``(L, S)``, or ``(N·H, L, S)`` with the heads of a sample side by side.
        batch, heads, states, stored: N, H, L, S.
        extra: patterns appended by the layer itself, which always take part.

    Returns:
        masks that broadcast with ``(N, H, L, S + extra)``; None for none.

    Raises:
        TypeError: a mask that is neither boolean nor of floating point.
        ValueError: a mask of another shape.
    """
    masks = []
    if padding is not None:
        _check(padding, "stored_pattern_padding_mask", {"(N, S)": (batch, stored)})
        masks.append(padding[:, None, None, :])
    if association is not None:
        shapes = {"(L, S)": (states, stored), "(N·H, L, S)": (batch * heads, states, stored)}
        _check(association, "association_mask", shapes)
        each = (batch, heads) if association.dim() == 3 else (1, 1)
        masks.append(association.reshape(*each, states, stored))
    return Cover(*masks, extra=extra) if masks else None


def causal_mask(size: int, device: torch.device) -> Tensor:
    """True where a stored pattern comes after the state pattern: ``(size, size)``."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


def without_padding(
    padding: Tensor, stored: Tensor, projection: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The patterns, with zeros for padding that is not finite: zero times that would be NaN.

    State patterns are left as they are, unless they are the stored ones; one tensor stays one.
    """
    left_out = _leaves_out(padding)
    clean, lost = _filled(stored, left_out)
    read, lost_too = (clean, None) if projection is stored else _filled(projection, left_out)
    state = clean if state is stored else state
    for rows in (lost, lost_too):
        if rows is not None:
            state = torch.where(rows[:, None, None], torch.nan, state)
    return clean, read, state


def _leaves_out(mask: Tensor) -> Tensor:
    """Where a mask leaves a pattern out: True, −∞, or the lowest number of its dtype.

    That number serves as −∞ in many libraries, and what is added to it matters as little.
    """
    return mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2


def _filled(x: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Zeros for padding that is not finite; and the samples for which it is no padding.

    That can be of patterns that all samples share, where the mask differs.
    """
    finite = x.isfinite()
    if x.shape[0] == left_out.shape[0]:
        return x.masked_fill(left_out[..., None] & ~finite, 0.0), None
    lost = (~finite.all(-1) & ~left_out).any(1)
    return x.masked_fill(left_out.any(0)[:, None] & ~finite, 0.0), lost


def _both(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == b.dtype == torch.bool:
        return a | b
    return _added(a) + _added(b)


def _added(mask: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -torch.inf)


INTEGERS = (
    "where 1 means keep and 0 padding, as in the attention_mask of a tokenizer, give mask == 0; "
    "where 1 means leave out, give mask.bool()"
)


def _check(mask: Tensor, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{name}: expected a boolean mask, True to leave a pattern out, or one of floating "
            f"point that is added to the similarities, got {mask.dtype}; {INTEGERS}"
        )
    if tuple(mask.shape) not in shapes.values():
        wanted = " or ".join(f"{label} = {shape}" for label, shape in shapes.items())
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(mask.shape)}")
