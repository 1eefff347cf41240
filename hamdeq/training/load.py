"""A run, read back: the module with the weights it has learned, and its data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from hamdeq.data import InMemoryDataModule

__all__ = ["load_run"]


def load_run(
    folder: str | Path,
    checkpoint: str = "best",
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Any, InMemoryDataModule]:
    """The module of a run, with the weights of a checkpoint, in evaluation mode; and its data.

    Args:
        folder: the run folder, ``<root>/version_N``, with ``config.yaml`` and ``checkpoints/``.
        checkpoint: ``"best"`` or ``"last"``.
        change: is given the configuration, to change it in place before anything is made of it:
            another solver for the same weights, or another folder of data.

    Raises:
        FileNotFoundError: the folder has no such files.
        RuntimeError: the weights do not fit the changed configuration.

    Example:
        >>> module, data = load_run("runs/digits/version_0")  # doctest: +SKIP
        >>> module.deq({"input": data.split("test")[0]})  # doctest: +SKIP
    """
    folder = Path(folder)
    weights = folder / "checkpoints" / f"{checkpoint}.ckpt"
    for path in (folder / "config.yaml", weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a run's file {path}, found none; give the folder version_N that a fit "
                "printed at its end"
            )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config = {name: config[name] for name in ("model", "data")}
    if change is not None:
        change(config)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(InMemoryDataModule, "data", subclass_mode=True)
    with warnings.catch_warnings():
        # What jsonargparse has to say to Lightning, whose parser this is.
        warnings.simplefilter("ignore", DeprecationWarning)
        made: Any = parser.instantiate_classes(parser.parse_object(config))
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    made.model.load_state_dict(state)
    return made.model.eval(), made.data
