"""Base of convolution and pooling: windows that slide over an image."""

from __future__ import annotations

from collections.abc import Sequence

from hamdeq._checks import require, whole
from hamdeq.synapses.base import Shape, layer_shape
from hamdeq.synapses.maps import Map

__all__ = ["Pair", "Windowed"]

Pair = int | tuple[int, int]
"""One number for both axes of an image, or one for each: (vertical, horizontal)."""


class Windowed(Map):
    """A map of images ``(channels, height, width)``, one number for each place of a window.

    Along each axis a window of ``kernel_size`` numbers, ``dilation`` apart, moves by ``stride``
    over the image with ``padding`` on both sides, and has

        ⌊(size + 2·padding − dilation·(kernel_size − 1) − 1) / stride⌋ + 1

    places.
    """

    def __init__(
        self, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
    ) -> None:
        super().__init__()
        self.kernel_size: tuple[int, int] = _pair("kernel_size", kernel_size, least=1)
        self.stride: tuple[int, int] = _pair("stride", stride, least=1)
        self.padding: tuple[int, int] = _pair("padding", padding, least=0)
        self.dilation: tuple[int, int] = _pair("dilation", dilation, least=1)

    def output_shape(self, shape: int | Sequence[int]) -> Shape:
        shape = layer_shape(shape)
        kind, channels = type(self).__name__, self._channels()
        fits = len(shape) == 3 and channels in (None, shape[0])
        wanted = "channels" if channels is None else channels
        require(fits, kind, f"shape ({wanted}, height, width)", shape)
        spans = self._spans()
        room = [n + 2 * p for n, p in zip(shape[1:], self.padding, strict=True)]
        fits = all(n >= span for n, span in zip(room, spans, strict=True))
        expected = f"an image of at least {spans[0]} × {spans[1]}, as the windows are"
        got = f"{shape}, of {room[0]} × {room[1]} with its padding"
        require(fits, kind, expected, got, "choose a smaller kernel or more padding")
        places = zip(room, spans, self.stride, strict=True)
        return (self._out_channels(shape[0]), *((n - k) // s + 1 for n, k, s in places))

    def _channels(self) -> int | None:
        """Channels that the first layer must have, None where any number will do."""
        return None

    def _out_channels(self, channels: int) -> int:
        return channels

    def _spans(self) -> tuple[int, int]:
        """Height and width of the window, with the gaps that dilation leaves."""
        (k, m), (d, e) = self.kernel_size, self.dilation
        return d * (k - 1) + 1, e * (m - 1) + 1

    def extra_repr(self) -> str:
        """Kernel and stride, and what is not as it is by default."""
        shown = [f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        if self.padding != (0, 0):
            shown.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            shown.append(f"dilation={self.dilation}")
        return ", ".join(shown)


def _pair(name: str, value: object, *, least: int) -> tuple[int, int]:
    values = value if isinstance(value, list | tuple) else (value, value)
    numbers = [n for n in map(whole, values) if n is not None and n >= least]
    fits = len(values) == len(numbers) == 2
    require(fits, name, f"an integer ≥ {least}, or two for height and width", repr(value))
    return numbers[0], numbers[1]
