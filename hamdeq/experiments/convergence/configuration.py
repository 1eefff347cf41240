"""Configurations of memories that classify: what this experiment reads and changes in them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml

from hamdeq.training import HAMClassifier, UntrustedError

__all__ = ["epochs_of", "memory_of", "read", "with_sizes"]


def read(path: Path, *, trust: bool = True) -> dict[str, Any]:
    """A configuration whose module is a :class:`~hamdeq.training.HAMClassifier`.

    Args:
        path: the file.
        trust: import the module's class, wherever it is; else only from hamdeq.

    Raises:
        ValueError: it is that of another module, or of none, or damaged.
        UntrustedError: its class is not hamdeq's, and ``trust`` is False.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        got = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a configuration in YAML, got {got}") from None
    model = config.get("model") if isinstance(config, dict) else None
    model = model if isinstance(model, dict) else None
    # One that names no class holds the arguments of a HAMClassifier.
    name = (model or {}).get("class_path", "hamdeq.training.HAMClassifier")
    module, _, kind = str(name).rpartition(".")
    if not trust and module.partition(".")[0] not in ("", "hamdeq"):
        raise UntrustedError(path, name, "--trust")
    try:
        found = getattr(importlib.import_module(module or "hamdeq.training"), kind, None)
    except ImportError:
        found = None
    if not model or not (isinstance(found, type) and issubclass(found, HAMClassifier)):
        raise ValueError(
            f"{path}: expected the configuration of a HAMClassifier, whose memory settles on "
            f"images, got {name if model else 'one without a model'}"
        )
    try:
        memory_of(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def memory_of(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the DEQ, or CHNDEQ, to read or to change in place."""
    model = config["model"]
    args = model.get("init_args", model)
    deq = args.get("deq") if isinstance(args, dict) else None
    memory = deq.get("init_args", deq) if isinstance(deq, dict) else None
    if not isinstance(memory, dict):
        raise ValueError("model.deq: expected a memory in the configuration, got none")
    return memory


def epochs_of(config: dict[str, Any], options: tuple[str, ...]) -> int:
    """The epochs of a training, by its options and its configuration; at least 1."""
    for option in reversed(options):
        name, _, value = option.partition("=")
        if name == "--trainer.max_epochs" and value.isdigit():
            return max(int(value), 1)
    return max(int((config.get("trainer") or {}).get("max_epochs") or 1), 1)


def with_sizes(config: Path, sizes: str) -> tuple[str, ...]:
    """The options that give a chain other sizes, such as ``784-512-10``.

    A list of gains, one for each synapse, is cut, or goes on with its last.

    Raises:
        ValueError: what are no sizes; a configuration of what is no chain.
    """
    try:
        numbers = [int(size) for size in sizes.split("-")]
    except ValueError:
        raise ValueError(
            f"--sizes: expected numbers of neurons such as 784-512-10, got {sizes!r}"
        ) from None
    deq = memory_of(read(config))
    kind = "chn" if "chn" in deq else "ham"
    chain = deq[kind].get("init_args") or {}
    if "sizes" not in chain:
        raise ValueError(f"--sizes: expected configurations of chains, got {config} without sizes")
    options = [f"--model.deq.{kind}.sizes={numbers}"]
    gain = chain.get("gain")
    if isinstance(gain, list):
        gain = [*gain, *[gain[-1]] * len(numbers)][: len(numbers) - 1]
        options.append(f"--model.deq.{kind}.gain={gain}")
    return tuple(options)
