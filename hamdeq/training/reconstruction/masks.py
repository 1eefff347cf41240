"""Masks drawn at random: which part of an image is observed, and whether the label is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamdeq._checks import number, one_of, require
from hamdeq._recorded import Recorded

__all__ = ["MaskSampler", "Observed", "all_channels", "generator"]

_SHARES = {"half": 0.3, "block": 0.2, "pixels": 0.2, "label": 0.15, "image": 0.15}


class Observed(NamedTuple):
    """Observed pixels and labels of each sample.

    Attributes:
        pixels: which pixels are observed: ``(n, channels · height · width)``, boolean.
        label: whether the label is observed: ``(n,)``, boolean.
        kind: the kind of mask, as an index into :attr:`MaskSampler.kinds`: ``(n,)``.
    """

    pixels: Tensor
    label: Tensor
    kind: Tensor


class MaskSampler(Recorded):
    """Draws what is observed of each sample; the rest is to be recalled.

    ========== ============================================ =========
    kind       observed of the image                           label
    ========== ============================================ =========
    ``half``   the left, right, upper or lower half         sometimes
    ``block``  all but a rectangle, ¼ to ¾ of either side   sometimes
    ``pixels`` 10 to 90 % of the pixels, scattered          sometimes
    ``label``  nothing                                      observed
    ``image``  everything                                   unknown
    ========== ============================================ =========

    Args:
        shares: kind -> how often it is drawn, relative to the others; kinds left out never are.
        label_observed: how often the label is observed besides part of an image.

    Raises:
        ValueError: an unknown kind, a share below zero, none above; a probability outside [0, 1].
    """

    def __init__(
        self, shares: Mapping[str, float] | None = None, label_observed: float = 0.25
    ) -> None:
        shares = dict(_SHARES if shares is None else shares)
        for kind, share in shares.items():
            one_of("shares", kind, _PIXELS.keys())
            number(f"shares[{kind!r}]", share, least=0)
        some = sum(shares.values()) > 0
        require(some, "shares", "at least one above 0", shares, "give some, such as {'half': 1.0}")
        self.shares: dict[str, float] = {kind: share for kind, share in shares.items() if share > 0}
        self.label_observed: float = number("label_observed", label_observed, least=0, most=1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are drawn, in the order of their indices."""
        return tuple(self.shares)

    def draw(self, n: int, shape: tuple[int, ...], generator: torch.Generator) -> Observed:
        """Masks of n samples, images ``(height, width)`` or ``(channels, height, width)``.

        All channels of a pixel are observed, or none.
        """
        height, width = shape[-2:]
        weights = torch.tensor([*self.shares.values()])
        kind = torch.multinomial(weights, n, replacement=True, generator=generator)
        label = torch.rand(n, generator=generator) < self.label_observed
        pixels = torch.zeros(n, height, width, dtype=torch.bool)
        for index, name in enumerate(self.kinds):
            rows = (kind == index).nonzero().flatten()
            pixels[rows] = _PIXELS[name](len(rows), (height, width), generator)
            if name in ("label", "image"):
                label[rows] = name == "label"
        return Observed(all_channels(pixels, shape), label, kind)

    def __repr__(self) -> str:
        return f"MaskSampler({self.shares}, label_observed={self.label_observed})"


def all_channels(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat a mask of pixels ``(n, height, width)`` for each channel: ``(n, numbers)``."""
    return pixels[:, None].expand(-1, *shape[:-2] or (1,), -1, -1).flatten(1)


def generator(*numbers: int) -> torch.Generator:
    """A generator whose draws depend on these numbers ≥ 0 alone, such as seed, epoch and batch.

    A run that is resumed then draws what the uninterrupted one would have.
    """
    # Neighbouring numbers, as those of batches, must not give related streams.
    words = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _half(n: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    height, width = shape
    upper = (torch.arange(height) < (height + 1) // 2)[:, None].expand(shape)
    left = (torch.arange(width) < (width + 1) // 2).expand(shape)
    sides = torch.stack([upper, ~upper, left, ~left])
    return sides[torch.randint(4, (n,), generator=generator)]


def _block(n: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    inside = []
    for size in shape:
        sides = 0.25 + 0.5 * torch.rand(n, 1, generator=generator)
        length = (sides * size).round().clamp(1, size)
        first = (torch.rand(n, 1, generator=generator) * (size - length + 1)).floor()
        place = torch.arange(size)
        inside.append((place >= first) & (place < first + length))
    rows, columns = inside
    return ~(rows[:, :, None] & columns[:, None, :])


def _scattered(n: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    share = 0.1 + 0.8 * torch.rand(n, 1, 1, generator=generator)
    return torch.rand(n, *shape, generator=generator) < share


_PIXELS: dict[str, Callable[[int, tuple[int, int], torch.Generator], Tensor]] = {
    "half": _half,
    "block": _block,
    "pixels": _scattered,
    "label": lambda n, shape, _: torch.zeros(n, *shape, dtype=torch.bool),
    "image": lambda n, shape, _: torch.ones(n, *shape, dtype=torch.bool),
}
