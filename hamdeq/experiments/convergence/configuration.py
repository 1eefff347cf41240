"""Configurations of memories that classify: reading them, and options that change them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml

from hamdeq._checks import wrong
from hamdeq.training import HAMClassifier, UntrustedError

__all__ = ["memory_of", "read", "with_sizes"]


def read(path: Path, *, trust: bool = True) -> dict[str, Any]:
    """Read a configuration whose module is a :class:`~hamdeq.training.HAMClassifier`.

    Args:
        path: the file.
        trust: import the module's class, wherever it is; else only from hamdeq.

    Raises:
        ValueError: the configuration of another module, or of none, or a damaged one.
        UntrustedError: the class is not hamdeq's, and ``trust`` is False.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        got = " ".join(str(error).split())
        raise wrong(f"{path}", "a configuration in YAML", got) from None
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
        got = name if model else "one without a model"
        raise wrong(f"{path}", "the configuration of a HAMClassifier", got)
    try:
        memory_of(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def memory_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the DEQ, or CHNDEQ, to read or to change in place."""
    model = config["model"]
    args = model.get("init_args", model)
    deq = args.get("deq") if isinstance(args, dict) else None
    memory = deq.get("init_args", deq) if isinstance(deq, dict) else None
    if not isinstance(memory, dict):
        raise wrong("model.deq", "a memory in the configuration", "none")
    return memory


def with_sizes(config: Path, sizes: str) -> tuple[str, ...]:
    """Return the options that give a chain other sizes, such as ``784-512-10``.

    A list of gains, one for each synapse, is cut, or extended by its last.

    Raises:
        ValueError: text that gives no sizes; a configuration of no chain.
    """
    try:
        numbers = [int(size) for size in sizes.split("-")]
    except ValueError:
        raise wrong("--sizes", "numbers of neurons such as 784-512-10", repr(sizes)) from None
    deq = memory_of(read(config))
    kind = "chn" if "chn" in deq else "ham"
    chain = deq[kind].get("init_args") or {}
    if "sizes" not in chain:
        raise wrong("--sizes", "configurations of chains", f"{config} without sizes")
    options = [f"--model.deq.{kind}.sizes={numbers}"]
    gain = chain.get("gain")
    if isinstance(gain, list):
        gain = [*gain, *[gain[-1]] * len(numbers)][: len(numbers) - 1]
        options.append(f"--model.deq.{kind}.gain={gain}")
    return tuple(options)
