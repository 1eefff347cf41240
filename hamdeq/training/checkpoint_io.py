"""How Lightning's checkpoints come to disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hamdeq.training.files import write_file

__all__ = ["WholeCheckpointIO"]


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
