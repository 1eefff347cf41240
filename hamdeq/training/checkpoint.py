"""Checkpoints: read as data that can run no code, put into a module, and written as a whole."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from hamdeq._checks import wrong
from hamdeq.training.files import write_file

__all__ = [
    "CheckpointError",
    "MovedCheckpoints",
    "WholeCheckpointIO",
    "load_weights",
    "read_checkpoint",
    "restore",
    "save_weights",
]

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
        remedy = "a run writes best.ckpt and last.ckpt into version_N/checkpoints"
        raise wrong(str(path), "a checkpoint", "no such file", remedy, kind=FileNotFoundError)
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
            expected, remedy = "tensors and plain data", "save weights alone, by save_weights"
            got = "pickled objects, which may run any code when they are loaded"
            raise wrong(str(path), expected, got, remedy, kind=CheckpointError) from None
        raise _damaged(path, "a file that is cut off, damaged, or no checkpoint") from None
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        expected = "a checkpoint of Lightning with a 'state_dict' of tensors"
        remedy = "give one that trainer.save_checkpoint or a run wrote"
        raise wrong(str(path), expected, "another file of torch", remedy, kind=CheckpointError)
    return checkpoint


def _damaged(path: Path, got: str) -> CheckpointError:
    others = sorted(p.name for p in path.parent.glob("*.ckpt") if p.name != path.name)
    remedy = f"try {others[0]} beside it" if others else "train again"
    return wrong(str(path), "a checkpoint", got, remedy, kind=CheckpointError)


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

    Its metadata hold the module's configuration: ``load_from_checkpoint`` reads this file as well.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: the path does not end in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise wrong("path", "a name that ends in .safetensors", repr(path.name))
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


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, brings it to disk, and renames it.

    A run that is killed while it saves keeps the checkpoint before. Lightning's own class moves a
    file out of the temporary folder: where that is on another file system, the old checkpoint is
    overwritten in place, and a kill loses both. The command line uses this class; a Trainer of your
    own gets it as ``L.Trainer(plugins=[WholeCheckpointIO()])``.

    Paths with a protocol, such as ``s3://``, are written as Lightning does.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full, or the file cannot be written for another reason; the error
                names the file, which is as it was before.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_file(Path(path), buffer.getbuffer())


class MovedCheckpoints(Callback):
    """Lets a run whose folder was moved go on with the best checkpoint that moved with it.

    Lightning looks for it in the folder where it was written. Not finding it there, it takes the
    first epoch of the resumed run for the best one, and overwrites a better checkpoint.
    """

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                self._move(callback, checkpoint)

    def _move(self, ours: ModelCheckpoint, checkpoint: dict[str, Any]) -> None:
        assert ours.dirpath is not None
        state = checkpoint["callbacks"].get(ours.state_key)
        here = Path(ours.dirpath)
        # A checkpoint of another run has no file of its own here.
        best = (state or {}).get("best_model_path")
        if state is None or (best and not (here / Path(best).name).is_file()):
            return

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        checkpoint["callbacks"][ours.state_key] = {
            **state,
            **{name: moved(path) for name, path in state.items() if name.endswith("_path")},
            "dirpath": ours.dirpath,
            "best_k_models": {moved(k): v for k, v in state["best_k_models"].items()},
        }
