"""Elementwise functions by name."""

from __future__ import annotations

import warnings
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
    if isinstance(function, type | None) or not _is_elementwise(function):
        raise ValueError(
            f"{name}: expected the name of an elementwise function of torch or "
            f"torch.nn.functional, such as {', '.join(_COMMON)}, got {given!r}"
        )
    return function


def _is_elementwise(function: Callable[[Tensor], Any]) -> bool:
    """Whether each number of a tensor is turned into one, by itself, and not all into the same."""
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        x = torch.tensor([[0.5, 0.25, 0.75], [0.125, 0.625, 0.375]], device="cpu")
        x.requires_grad_()
        # What warns of a tensor alone wants more than that, an axis for instance.
        warnings.simplefilter("error")
        try:
            y = function(x)
            alone = torch.cat([function(each[None, None]) for each in x.flatten()])
        except Exception:  # whatever the functions of torch raise, those in place for one
            return False
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return False
    # y lacks a gradient where a function cuts the graph.
    distinct = y.requires_grad and len(y.unique()) > 1
    return distinct and torch.allclose(y, alone.reshape(y.shape), equal_nan=True)
