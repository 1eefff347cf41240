"""Lightning's trainer, whose commands are described in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

__all__ = ["Trainer"]


class Trainer(L.Trainer):
    """Lightning's trainer: the docstrings of its commands are the command line's help."""

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, and test the best epoch.

        Args:
            ckpt_path: checkpoint to go on from: a file, or last or best of the runs below run.root.
            weights_only: whether a checkpoint may hold nothing but tensors and plain numbers.
        """
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def validate(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measure a checkpoint on the validation images.

        Args:
            ckpt_path: checkpoint to measure: a file, or last or best of the runs below run.root.
            weights_only: whether a checkpoint may hold nothing but tensors and plain numbers.
        """
        return super().validate(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Measure a checkpoint on the test images.

        Args:
            ckpt_path: checkpoint to measure: a file, or last or best of the runs below run.root.
            weights_only: whether a checkpoint may hold nothing but tensors and plain numbers.
        """
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)
