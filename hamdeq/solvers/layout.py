"""The layout of a state (tensor, tuple or dict), and its way to one row a sample and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["StateLayout"]


class StateLayout:
    """The layout of a state (tensor, tuple or dict), and its way to ``(batch, n)`` and back."""

    def __init__(self, x0: Any) -> None:
        self.keys: tuple[str, ...] | None = tuple(x0) if isinstance(x0, dict) else None
        self.kind: type[Any] = type(x0) if isinstance(x0, Tensor | tuple | list | dict) else Tensor
        leaves = self._leaves(x0, "x0")
        if not leaves:
            raise ValueError("x0: expected at least one tensor, got none")
        for leaf in leaves:
            if not leaf.is_floating_point() or leaf.dim() == 0:
                raise TypeError(
                    "x0: expected floating-point tensors (batch, *shape), got "
                    f"{leaf.dtype} of shape {tuple(leaf.shape)}"
                )
        self.batch: int = len(leaves[0])
        self.dtype: torch.dtype = leaves[0].dtype
        self.shapes: list[torch.Size] = [leaf.shape[1:] for leaf in leaves]
        self.sizes: list[int] = [math.prod(shape) for shape in self.shapes]
        self._check(leaves, "x0")

    def rows(self, f: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
        """f as a map of rows: ``(batch, n) -> (batch, n)``."""
        return lambda x: self.flatten(f(self.unflatten(x)))

    def flatten(self, x: Any) -> Tensor:
        """One row a sample: ``(batch, n)``."""
        leaves = self._leaves(x, "f")
        self._check(leaves, "f")
        return self.join(leaves)

    def join(self, leaves: Iterable[Tensor]) -> Tensor:
        """:meth:`flatten` for what is known to have this layout."""
        flat = [
            leaf.reshape(self.batch, n).to(self.dtype)
            for leaf, n in zip(leaves, self.sizes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def unflatten(self, flat: Tensor) -> Any:
        """The rows in the form of x0."""
        parts = flat.split(self.sizes, dim=1) if len(self.sizes) > 1 else (flat,)
        leaves = [
            part.reshape(len(flat), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        if self.keys is not None:
            return dict(zip(self.keys, leaves, strict=True))
        return leaves[0] if issubclass(self.kind, Tensor) else tuple(leaves)

    def of_batch(self, batch: int) -> StateLayout:
        """The same form of another number of samples."""
        layout = copy.copy(self)
        layout.batch = batch
        return layout

    def _leaves(self, x: Any, who: str) -> list[Tensor]:
        if self.keys is not None:
            if not isinstance(x, dict) or set(x) != set(self.keys):
                got = list(x) if isinstance(x, dict) else type(x).__name__
                raise ValueError(f"{who}: expected a dict of {list(self.keys)}, got {got}")
            leaves = [x[key] for key in self.keys]
        elif issubclass(self.kind, Tensor):
            leaves = [x]
        else:
            leaves = list(x) if isinstance(x, tuple | list) else [x]
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{who}: expected floating-point tensors (batch, *shape), alone or in a tuple "
                    f"or dict as in x0, got {type(leaf).__name__}"
                )
        return leaves

    def _check(self, leaves: list[Tensor], who: str) -> None:
        wanted = [(self.batch, *shape) for shape in self.shapes]
        got = [tuple(leaf.shape) for leaf in leaves]
        if got != wanted:
            raise ValueError(f"{who}: expected it to keep the shapes {wanted} of x0, got {got}")
        if torch.is_autocast_enabled(leaves[0].device.type):
            return  # which lets products come out in another dtype; flatten turns them back
        if any(leaf.dtype != self.dtype for leaf in leaves):
            raise TypeError(
                f"{who}: expected the dtype {self.dtype}, with which x0 begins, throughout, got "
                f"{[leaf.dtype for leaf in leaves]}"
            )
