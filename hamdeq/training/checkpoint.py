"""Checkpoints: read as data that can run no code, and what they hold put into a module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hamdeq.training.files import write_file

__all__ = ["CheckpointError", "load_weights", "read_checkpoint", "restore", "save_weights"]

_METADATA = "hamdeq"
_TENSOR = "torch.tensor"


class CheckpointError(ValueError):
    """A file is no checkpoint, or a damaged one."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU: tensors and plain data, never objects.

    Args:
        path: a checkpoint of Lightning, or a file of :func:`save_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is empty, cut off, or something else than a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a checkpoint, found no such file; a run writes best.ckpt and "
            "last.ckpt into version_N/checkpoints"
        )
    if not path.stat().st_size:
        raise _damaged(path, "an empty file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except (ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:
        # A cut-off file fails in many ways, of which none says so: OSError, EOFError, KeyError, …
        if "weights_only" in str(error) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path}: expected tensors and plain data, got pickled objects, which may run any "
                "code when they are loaded; save weights alone, by hamdeq.training.save_weights"
            ) from None
        raise _damaged(path, "a file that is cut off, damaged, or no checkpoint") from None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(
            f"{path}: expected a checkpoint of Lightning with a 'state_dict' of tensors, got "
            "another file of torch; give one that trainer.save_checkpoint or a run wrote"
        )
    return checkpoint


def _damaged(path: Path, got: str) -> CheckpointError:
    others = sorted(p.name for p in path.parent.glob("*.ckpt") if p.name != path.name)
    remedy = f"try {others[0]} beside it" if others else "train again"
    return CheckpointError(f"{path}: expected a checkpoint, got {got}; {remedy}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
        extra = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    return _tensors(extra) | {"state_dict": weights}


def restore(module: L.LightningModule, checkpoint: dict[str, Any], *, strict: bool = True) -> None:
    """Put the weights of a checkpoint into a module, and what else it has kept in it.

    The module takes on the precision of the weights.

    Raises:
        OtherArchitectureError: the weights do not fit.
    """
    weights = checkpoint["state_dict"]
    kinds = {weights[name].dtype for name, _ in module.named_parameters() if name in weights}
    if len(kinds) == 1 and (kind := kinds.pop()).is_floating_point:
        module.to(kind)
    module.strict_loading = strict
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(weights, strict=strict)


def save_weights(module: L.LightningModule, path: str | Path) -> None:
    """Write the weights of a module to a file of safetensors, which other programs can read, too.

    The file's metadata holds what a checkpoint would besides: the configuration of a module of
    hamdeq, so that ``load_from_checkpoint`` reads this file as well.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the path does not end in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a name that ends in .safetensors, got {path.name!r}")
    from safetensors.torch import save

    extra: dict[str, Any] = {}
    module.on_save_checkpoint(extra)
    # Each tensor by itself: the format has none that share memory.
    weights = {name: w.detach().cpu().clone() for name, w in module.state_dict().items()}
    weights = {name: w.contiguous() for name, w in weights.items()}
    metadata = {_METADATA: json.dumps(_plain(extra))}
    write_file(path, save(weights, metadata=metadata))


def _plain(value: Any) -> Any:
    """Data as JSON has it."""
    if isinstance(value, Tensor):
        return {_TENSOR: value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return torch.tensor(value[_TENSOR], dtype=getattr(torch, value["dtype"]))
        return {name: _tensors(item) for name, item in value.items()}
    return [_tensors(item) for item in value] if isinstance(value, list) else value


def load_weights(module: L.LightningModule, path: str | Path) -> None:
    """Read weights into a module that there is, from safetensors or a checkpoint of Lightning.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no checkpoint.
        OtherArchitectureError: the weights do not fit the module.
    """
    restore(module, read_checkpoint(path))
