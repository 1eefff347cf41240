"""A run, read back: the module with the weights it has learned, and its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from hamdeq.data import InMemoryDataModule
from hamdeq.training.building import build
from hamdeq.training.checkpoint import read_checkpoint, restore

__all__ = ["load_run"]


def load_run(
    folder: str | Path,
    checkpoint: str = "best",
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
    trust: bool = False,
) -> tuple[Any, InMemoryDataModule]:
    """The module of a run, with the weights of a checkpoint, in evaluation mode; and its data.

    Args:
        folder: the run folder, ``<root>/version_N``, with ``config.yaml`` and ``checkpoints/``.
        checkpoint: ``"best"`` or ``"last"``.
        change: is given the configuration, to change it in place before anything is made of it:
            another solver for the same weights, or another folder of data.
        trust: make objects of any class that ``config.yaml`` names, which may run any code; else
            only of those of hamdeq, torch.nn, torch.optim and Lightning.

    Raises:
        FileNotFoundError: the folder has no such files.
        CheckpointError: the checkpoint is damaged.
        OtherArchitectureError: the weights do not fit the changed configuration.
        UntrustedError: the configuration names other classes, and ``trust`` is False.
        ValueError: the configuration is damaged, or does not fit the classes.

    Example:
        >>> module, data = load_run("runs/digits/version_0")  # doctest: +SKIP
        >>> module(data.split("test")[0]).value["output"]  # doctest: +SKIP
    """
    path = Path(folder) / "config.yaml"
    weights = Path(folder) / "checkpoints" / f"{checkpoint}.ckpt"
    for file in (path, weights):
        if not file.is_file():
            raise FileNotFoundError(
                f"expected a run's file {file}, found none; give the folder version_N that a fit "
                "printed at its end"
            )
    config = _read(path)
    if change is not None:
        change(config)
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(InMemoryDataModule, "data", subclass_mode=True)
    made = build(parser, config, trust=trust, source=str(path))
    restore(made.model, read_checkpoint(weights))
    return made.model.eval(), made.data


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: config[name] for name in ("model", "data")}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise ValueError(
            f"{path}: expected the configuration of a run with the sections 'model' and 'data', "
            "got another or a damaged file; train again, or put the run's own config.yaml there"
        ) from None
