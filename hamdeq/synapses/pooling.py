"""Pooling as a synapse: the mean or the maximum of each window, and the way back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import require
from hamdeq.synapses.windows import Pair, Windowed

__all__ = ["AvgPool2d", "MaxPool2d"]


class _Pool(Windowed):
    """Windows on each channel by itself, by default side by side."""

    def __init__(self, kernel_size: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> None:
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding)
        fits = all(2 * p <= k for p, k in zip(self.padding, self.kernel_size, strict=True))
        expected = f"at most half of kernel_size = {self.kernel_size}"
        remedy = "with more of it a window may lie outside of the image"
        require(fits, "padding", expected, repr(padding), remedy)


class AvgPool2d(_Pool):
    """The mean of each window: E = −⟨A g₁, g₂⟩, with A g₁ the windows' means.

    The fields are ``I₂ = A g₁`` and ``I₁ = Aᵀ g₂``, which spreads each number evenly over its
    window. A is linear, and either layer can be eliminated.

    Args:
        kernel_size: height and width of a window, or one number for both; so are the others.
        stride: how far the window moves from one place to the next, by default its own size.
        padding: zeros on each side of the image, which count in the means.

    Shape:
        The first layer is ``(channels, height, width)``, the second what
        :meth:`~hamdeq.Map.output_shape` says. Rows and columns at the end that no
        window reaches get no field.

    Raises:
        ValueError: sizes that are no positive integers, padding of more than half a window.

    Source: Krotov, "Hierarchical Associative Memory" (2021), for pooling in a memory.
    """

    def forward(self, g: Tensor) -> Tensor:
        return F.avg_pool2d(g, self.kernel_size, self.stride, self.padding)

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        # On a CPU six times as fast as a transposed convolution with equal weights.
        batch, channels = h.shape[:2]
        taps = math.prod(self.kernel_size)
        spread = (h / taps).flatten(2)[:, :, None].expand(-1, -1, taps, -1)
        columns = spread.reshape(batch, channels * taps, spread.shape[-1])
        size = tuple(g.shape[-2:])
        return F.fold(columns, size, self.kernel_size, 1, self.padding, self.stride)


class MaxPool2d(_Pool):
    """The maximum of each window: E = −⟨A(g₁), g₂⟩, with A(g₁) the windows' maxima.

    The field on the second layer is ``I₂ = A(g₁)``; that on the first sends each number of g₂
    back to the place of its window's maximum (of several, to one of them).

    E is linear in the second layer alone. Therefore the second layer can be eliminated, the first
    cannot, and ``splitting="even-odd"`` refuses the synapse unless the first is clamped: use
    ``splitting="sweep"``, or :func:`~hamdeq.eliminate` with the layers that can be. Where no
    activation of the second layer is negative (sigmoid, softmax, rectifiers), E is concave in g₁,
    its tangent lies above it, and the update of the first layer by itself never raises the
    energy. With negative ones it may. Where two pixels of a window are equal the field jumps: a
    solver may step to and fro there, and damping helps only towards ever smaller steps.

    Args:
        kernel_size, stride, padding: as of :class:`AvgPool2d`; the padding never is the maximum.

    Shape:
        As of :class:`AvgPool2d`.

    Raises:
        ValueError: sizes that are no positive integers, padding of more than half a window.

    Source: Laborieux et al. (2021), as of :class:`Composed`, for its way back.
    """

    linear = False

    def forward(self, g: Tensor) -> Tensor:
        return F.max_pool2d(g, self.kernel_size, self.stride, self.padding)

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        _, places = F.max_pool2d(
            g, self.kernel_size, self.stride, self.padding, return_indices=True
        )
        # One pixel may be the maximum of several windows, which add up.
        image = torch.zeros_like(g).flatten(2)
        return image.scatter_add(2, places.flatten(2), h.flatten(2)).reshape(g.shape)
