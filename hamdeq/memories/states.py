"""What is refused as a state of binary neurons."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["check_states", "signs"]


class _Placed(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...


def signs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """+1 where x ≥ 0, −1 below: ``sign`` with sign(0) = +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(dtype)


def check_states(name: str, x: Any, size: int, like: _Placed, *, binary: bool = True) -> None:
    """Refuse what is not ``(batch, size)``, each ±1, of the dtype and on the device of ``like``.

    Everything that is wrong is named at once.

    Args:
        name: of the argument.
        x: the states.
        size: neurons.
        like: the memory.
        binary: whether other numbers than ±1 are refused; if not, only what is not finite.

    Raises:
        TypeError: not a tensor.
        ValueError: anything else.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor (batch, {size}), got {type(x).__name__}")
    wrong = []
    if x.dim() != 2:
        remedy = "; give one state as x[None]" if x.dim() == 1 else "; flatten them to (batch, N)"
        wrong.append(f"expected shape (batch, {size}), got {tuple(x.shape)}{remedy}")
    elif x.shape[1] != size:
        wrong.append(f"expected {size} neurons, got {x.shape[1]}")
    if x.dtype != like.dtype:
        wrong.append(f"expected the memory's {like.dtype}, got {x.dtype}; use .to(memory.dtype)")
    if x.device != like.device:
        wrong.append(
            f"expected the memory's device {like.device}, got {x.device}; use .to(memory.device)"
        )
    if not x.is_meta and x.dtype != torch.bool:
        fine = x.abs() == 1 if binary else x.isfinite()
        if not bool(fine.all()):
            some = x[~fine].flatten()[0].item()
            kind = "±1" if binary else "finite numbers"
            remedy = "; bits become states by 2 * x - 1" if some == 0 and binary else ""
            wrong.append(f"expected {kind}, got {some:g} among them{remedy}")
    if wrong:
        raise ValueError(f"{name}: " + "; ".join(wrong))
