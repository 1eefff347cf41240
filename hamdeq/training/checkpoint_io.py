"""Writing of Lightning's checkpoints, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hamdeq.training.files import write_file

__all__ = ["MovedCheckpoints", "WholeCheckpointIO"]


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, brings it to disk, and renames it.

    A run that is killed while it saves keeps the checkpoint before. Lightning's own class moves a
    file out of the temporary folder instead: where that lies on another file system, the old
    checkpoint is overwritten in place, and a kill then loses both. The command line uses this
    class; a Trainer of your own gets it as ``L.Trainer(plugins=[WholeCheckpointIO()])``.

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
        ours = trainer.checkpoint_callback
        if not isinstance(ours, ModelCheckpoint) or ours.dirpath is None:
            return
        state = checkpoint["callbacks"].get(ours.state_key)
        here = Path(ours.dirpath)
        # A checkpoint of another run has no file of its own here.
        best = (state or {}).get("best_model_path")
        if state is None or not best or not (here / Path(best).name).is_file():
            return

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        checkpoint["callbacks"][ours.state_key] = {
            **state,
            **{name: moved(path) for name, path in state.items() if name.endswith("_path")},
            "dirpath": ours.dirpath,
            "best_k_models": {moved(k): v for k, v in state["best_k_models"].items()},
        }
