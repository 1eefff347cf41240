"""Elementwise functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["elementwise"]

_COMMON = ("relu", "gelu", "tanh", "sigmoid", "selu", "celu", "silu", "softplus")


def elementwise(name: str, given: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of this name in :mod:`torch` or :mod:`torch.nn.functional`, or the one given.

    Raises:
        ValueError: there is none, or it is not elementwise.
        TypeError: neither a name nor a function.
    """
    if callable(given):
        return given
    if not isinstance(given, str):
        raise TypeError(f"{name}: expected a name or a function, got {type(given).__name__}")
    function: Any = getattr(torch, given, None) or getattr(F, given, None)
    if function is None or not _keeps_shape(function):
        raise ValueError(
            f"{name}: expected the name of an elementwise function of torch or "
            f"torch.nn.functional, such as {', '.join(_COMMON)}, got {given!r}"
        )
    return function


def _keeps_shape(function: Callable[[Tensor], Any]) -> bool:
    """Whether a tensor alone is turned into one of its shape."""
    x = torch.zeros(2, 3, device="cpu")
    try:
        y = function(x)
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, NotImplementedError):
        return False
    return isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype
