"""Modules read back whole, from a checkpoint or a run: their configuration and their weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from typing_extensions import Self

from hamdeq._checks import wrong
from hamdeq._recorded import Recorded
from hamdeq.data import InMemoryDataModule
from hamdeq.training.building import CannotDescribeError, build, describe, import_path
from hamdeq.training.checkpoint import CheckpointError, read_checkpoint, restore

__all__ = ["Restorable", "load_run", "model_section"]


class Restorable(Recorded, L.LightningModule):
    """Base of the modules that ``load_from_checkpoint`` builds again.

    Attributes:
        configured: constructor arguments as a configuration has given them, in plain data. A
            checkpoint has them where an argument cannot tell what it was made from.
    """

    configured: Mapping[str, Any] = MappingProxyType({})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        described, unknown = {}, {}
        for name, value in self.constructor_arguments().items():
            try:
                described[name] = describe(value)
            except CannotDescribeError as error:
                if name in self.configured:
                    described[name] = self.configured[name]
                else:
                    unknown[name] = str(error)
        checkpoint["configuration"] = {
            "class_path": _name(type(self)),
            "init_args": described,
            "unknown": unknown,
        }

    @_restricted_classmethod
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        checkpoint_path: str | Path,
        map_location: str | torch.device | None = None,
        *,
        strict: bool = True,
        trust: bool = False,
        **arguments: Any,
    ) -> Self:
        """Build the module that a checkpoint was written of, with its weights.

        Args:
            checkpoint_path: a checkpoint of a run or of ``trainer.save_checkpoint``, or a file of
                :func:`~hamdeq.training.save_weights`.
            map_location: the device of the module; default the CPU.
            strict: refuse weights that are missing, or that there is no place for.
            trust: build it from any classes, which may run any code; else only from those of
                hamdeq, torch.nn, torch.optim and Lightning.
            arguments: arguments of the constructor, instead of those in the checkpoint. Those that
                no plain data describes have to be given: ``deq`` where its energy is a function of
                your own. An optimiser only to go on training.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, no checkpoint, or one of another module.
            UntrustedError: it names other classes, and ``trust`` is False.
            OtherArchitectureError: the weights do not fit the arguments given.
            ValueError: an argument is missing.
        """
        arguments.pop("weights_only", None)  # of Lightning's method: no other files are read
        if arguments.pop("hparams_file", None) is not None:
            remedy = "give arguments by name, such as load_from_checkpoint(…, learning_rate=0.1)"
            raise wrong("hparams_file", "none", "a file", remedy, kind=TypeError)
        checkpoint = read_checkpoint(checkpoint_path)
        section = checkpoint.get("configuration") or _beside(Path(checkpoint_path)) or {}
        _check_class(cls, section.get("class_path"), checkpoint_path)
        arguments |= _placeholders(cls, section, arguments, checkpoint_path)
        parser = LightningArgumentParser(exit_on_error=False)
        skip: Any = {*arguments}
        parser.add_class_arguments(cls, "model", skip=skip, instantiate=False, fail_untyped=False)
        stored = {k: v for k, v in section.get("init_args", {}).items() if k not in arguments}
        made = build(parser, {"model": stored}, trust=trust, source=str(checkpoint_path))
        module = cls(**(vars(made.model) if "model" in made else {}), **arguments)
        module.configured = stored
        restore(module, checkpoint, strict=strict)
        return module if map_location is None else module.to(map_location)


def model_section(config: dict[str, Any]) -> dict[str, Any]:
    """The section ``model`` of a configuration, with its class and its arguments.

    One that names no class holds the arguments of a HAMClassifier.
    """
    model = config.get("model") or {}
    if "class_path" in model:
        return model
    return {"class_path": "hamdeq.training.HAMClassifier", "init_args": model}


def _beside(checkpoint: Path) -> dict[str, Any] | None:
    """The configuration in the run folder of a checkpoint that holds none itself."""
    path = checkpoint.parent.parent / "config.yaml"
    if checkpoint.parent.name != "checkpoints" or not path.is_file():
        return None
    return model_section(yaml.safe_load(path.read_text(encoding="utf-8")))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(kind: type) -> str:
    try:
        return import_path(kind)
    except CannotDescribeError:  # a class within a function: to compare with, not to import
        return _full_name(kind)


def _check_class(cls: type, stored: Any, path: str | Path) -> None:
    names = {name for kind in cls.__mro__ for name in (_name(kind), _full_name(kind))}
    if stored is not None and stored not in names:
        remedy = f"call {str(stored).rpartition('.')[2]}.load_from_checkpoint"
        expected, got = f"a checkpoint of {cls.__name__}", f"one of {stored}"
        raise wrong(str(path), expected, got, remedy, kind=CheckpointError)


def _placeholders(
    cls: type, section: dict[str, Any], given: Iterable[str], path: str | Path
) -> dict[str, Any]:
    """Placeholders of arguments that are neither stored nor given."""
    unknown: dict[str, str] = section.get("unknown", {})
    parameters = inspect.signature(cls).parameters
    stored = {*section.get("init_args", {}), *unknown, *given}
    needed = {n: "it holds none" for n, p in parameters.items() if p.default is p.empty}
    missing = {name: why for name, why in needed.items() if name not in stored} | unknown
    found: dict[str, Any] = {}
    for name, why in missing.items():
        if name in given:
            continue
        if name not in ("optimizer", "scheduler"):
            remedy = f"give it: {cls.__name__}.load_from_checkpoint(…, {name}=…)"
            expected = f"a description of the argument {name!r}"
            raise wrong(str(path), expected, f"none ({why})", remedy)
        found[name] = _NotStored(name, why)
    return found


class _NotStored:
    """An optimiser or a schedule that no plain data describes: training cannot go on without."""

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        got = f"none from the checkpoint ({self.why})"
        remedy = f"give it: load_from_checkpoint(…, {self.name}=…)"
        raise wrong(self.name, "one to train with", got, remedy, kind=RuntimeError)


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
            remedy = "give the folder version_N that a fit printed at its end"
            raise wrong(str(file), "a run's file", "none", remedy, kind=FileNotFoundError)
    config = _read_run(path)
    if change is not None:
        change(config)
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(InMemoryDataModule, "data", subclass_mode=True)
    made = build(parser, config, trust=trust, source=str(path))
    restore(made.model, read_checkpoint(weights))
    return made.model.eval(), made.data


def _read_run(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: config[name] for name in ("model", "data")}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        expected = "the configuration of a run with the sections 'model' and 'data'"
        remedy = "train again, or put the run's own config.yaml there"
        raise wrong(str(path), expected, "another or a damaged file", remedy) from None
