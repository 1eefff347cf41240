"""Convolution as a synapse: one kernel, used in both directions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamdeq._checks import integer, number, wrong
from hamdeq.synapses.windows import Pair, Windowed

__all__ = ["Conv2d"]


class Conv2d(Windowed):
    """Convolution between two layers of images: E = −⟨W ∗ g₁, g₂⟩.

    The fields are the convolution ``I₂ = W ∗ g₁``, as of :class:`torch.nn.Conv2d` without bias,
    and its transpose, ``I₁ = W ∗ᵀ g₂``, exact for every size of image.

    Args:
        in_channels, out_channels: channels of the first and the second layer.
        kernel_size: height and width of the kernel, or one number for both; so are the others.
        stride: how far the kernel moves from one place to the next.
        padding: zeros on each side of the image.
        dilation: distance of the pixels that the kernel takes.
        groups: into how many groups the channels of both layers are divided, without connections
            between groups.
        gain: factor on the initial weights, as of :class:`~hamdeq.Dense`.

    Shape:
        The first layer is ``(in_channels, height, width)``, the second what
        :meth:`~hamdeq.Map.output_shape` says; :class:`~hamdeq.HAM` checks it. ``weight`` is
        ``(out_channels, in_channels / groups, *kernel_size)``, initialised uniformly in
        ±gain·√(6/(n₁ + n₂)) after Glorot & Bengio ("Xavier", 2010), with n₁ and n₂ the weights
        that act on a neuron of the second and of the first layer: with a stride of s, each of the
        latter lies under only one in s² of the kernel's weights.

    Raises:
        ValueError: sizes that are no positive integers, channels that the groups do not divide.

    Example:
        >>> conv = Conv2d(1, 32, 5, stride=2)
        >>> conv.output_shape((1, 28, 28))
        (32, 12, 12)

    Source: Krotov, "Hierarchical Associative Memory" (2021), for convolutions in a
    memory; Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (2016), chapter
    4, for the sizes of transposed ones.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation)
        self.in_channels: int = integer("in_channels", in_channels)
        self.out_channels: int = integer("out_channels", out_channels)
        self.groups: int = integer("groups", groups)
        for name, n in (("in_channels", in_channels), ("out_channels", out_channels)):
            if n % groups:
                raise wrong(name, f"a multiple of groups = {groups}", n)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        taps = math.prod(self.kernel_size)
        onto_second = taps * in_channels // groups
        onto_first = taps * out_channels / groups / math.prod(self.stride)
        bound = number("gain", gain, above=0) * math.sqrt(6 / (onto_second + onto_first))
        self.weight: nn.Parameter = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, g: Tensor) -> Tensor:
        return F.conv2d(g, self.weight, None, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, h: Tensor, g: Tensor) -> Tensor:
        # Rows and columns at the end of the image that no kernel reaches, less than a stride: as
        # many sizes as a stride has pixels give the same h, and only the layer tells which it is.
        sizes = zip(
            g.shape[-2:], h.shape[-2:], self._spans(), self.stride, self.padding, strict=True
        )
        rest = [n - ((m - 1) * s - 2 * p + k) for n, m, k, s, p in sizes]
        return F.conv_transpose2d(
            h, self.weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )

    def _channels(self) -> int:
        return self.in_channels

    def _out_channels(self, channels: int) -> int:
        return self.out_channels

    def extra_repr(self) -> str:
        groups = f", groups={self.groups}" if self.groups != 1 else ""
        return f"{self.in_channels}, {self.out_channels}, {super().extra_repr()}{groups}"
