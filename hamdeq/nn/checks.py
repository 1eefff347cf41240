"""What is refused as an argument of the functions of retrieval."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from hamdeq.elimination.attention import transformed

__all__ = ["check_beta", "check_fits", "check_patterns", "readable"]


def check_beta(beta: float | Tensor) -> None:
    """Refuse what is no inverse temperature, or tensor of them."""
    if not isinstance(beta, Real | Tensor):
        raise TypeError(f"beta: expected a number or a tensor, got {type(beta).__name__}")
    if isinstance(beta, Tensor):
        sound = not readable(beta) or bool(((beta > 0) & beta.isfinite()).all())
    else:
        sound = math.isfinite(beta) and beta > 0
    if not sound:
        raise ValueError(f"beta: expected a finite inverse temperature > 0, got {beta!r}")


def readable(x: Tensor) -> bool:
    """Whether values can be looked at, without waiting for a device."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed())


def check_fits(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that does not broadcast to a shape."""
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > len(shape) or not all(n in (1, size) for n, size in pairs):
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {shape}, got {tuple(x.shape)}"
        )


def check_patterns(name: str, patterns: Tensor) -> None:
    """Refuse what are no patterns ``(…, patterns, size)`` of floating point."""
    if isinstance(patterns, Tensor) and patterns.is_nested:
        raise ValueError(
            f"{name}: expected a dense tensor (…, patterns, size), got a nested one; give "
            "torch.nested.to_padded_tensor(x, 0.0) with a mask that is True where it pads"
        )
    if not isinstance(patterns, Tensor) or not patterns.is_floating_point() or patterns.dim() < 2:
        got = (
            f"{patterns.dtype} of shape {tuple(patterns.shape)}"
            if isinstance(patterns, Tensor)
            else type(patterns).__name__
        )
        raise ValueError(
            f"{name}: expected a floating-point tensor (…, patterns, size), got {got}; give one "
            "pattern as pattern[None]"
        )
