"""Error messages of the command line: the nearest name that exists, and the cause at the root."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer

from hamdeq.data import InMemoryDataModule
from hamdeq.ham import HAM
from hamdeq.implicit import Adjoint
from hamdeq.solvers import Solver

__all__ = ["Parser", "innermost"]

_UNKNOWN_KEY = re.compile(
    r"(?:[Kk]ey|[Oo]ption) ['\"]([\w.]+)['\"] is not|[Uu]nrecognized arguments: --([\w.]+)"
)
_UNKNOWN_CLASS = re.compile(
    r"module '[\w.]+' has no attribute '(\w+)'|Expected a dot import path string: (\w+)"
)


class Parser(LightningArgumentParser):
    """Errors name the nearest key, or class, that exists."""

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        super().error(_with_near_match(message, self), *args, **kwargs)


def innermost(error: BaseException) -> str:
    """The message at the root of a chain of errors, where the value itself was refused."""
    while (before := error.__cause__ or error.__context__) and not _is_final(error):
        error = before
    return str(error)


def _is_final(error: BaseException) -> bool:
    """Whether an error was raised ``from None``, to be read without what led to it."""
    return error.__cause__ is None and error.__suppress_context__


def _with_near_match(message: str, parser: LightningArgumentParser) -> str:
    if "Did you mean" in message:  # a nested key, already answered
        return message
    if match := _UNKNOWN_KEY.search(message):
        wrong, known = (match[1] or match[2]).rpartition(".")[2], _known_keys(parser)
    elif match := _UNKNOWN_CLASS.search(message):
        wrong, known = match[1] or match[2], {kind.__name__ for kind in _known_classes()}
    else:
        return message
    near = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.6)
    return f"{message}\nDid you mean '{near[0]}' instead of '{wrong}'?" if near else message


def _known_keys(parser: LightningArgumentParser) -> set[str]:
    """Last names of all options: of the parser, and of the library's own classes."""
    keys = {part for action in parser._actions for part in action.dest.split(".")}
    for thing in (HAM.chain, *_known_classes()):
        keys |= set(inspect.signature(thing).parameters)
    return keys


def _known_classes() -> set[type]:
    bases = (Solver, Adjoint, Optimizer, InMemoryDataModule, nn.Module)
    kinds = {kind for base in bases for kind in _subclasses(base) if kind.__name__[0] != "_"}
    return {kind for kind in kinds if kind.__module__.startswith(("hamdeq.", "torch.optim."))}


def _subclasses(base: type) -> set[type]:
    return {base}.union(*(_subclasses(kind) for kind in type.__subclasses__(base)))
