"""Configurations of objects that there are: plain data from which they can be built again."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import Parameter, isclass, isroutine, signature
from typing import Any

from torch import Tensor, nn

from hamdeq._recorded import Recorded

__all__ = ["CannotDescribeError", "describe", "import_path"]


class CannotDescribeError(ValueError):
    """An object cannot be built again from plain data."""


def describe(value: Any) -> Any:
    """The configuration of a value, as it would stand in a YAML file.

    Numbers, strings and tensors are themselves, collections lists and dicts, classes and functions
    their import paths; an object of hamdeq is ``{"class_path": …, "init_args": …}``, with the
    arguments of its constructor.

    Raises:
        CannotDescribeError: the value holds a lambda, or an object that does not tell what it was
            made from; or two objects share parameters, which a configuration cannot say.
    """
    return _Describer().describe(value)


def import_path(value: Any) -> str:
    """The shortest path by which a class or a function can be imported.

    Raises:
        CannotDescribeError: it is defined within a function, or is a lambda.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
    parts = (module or "torch").split(".")  # functions of torch in C are in no module
    for end in range(1, len(parts) + 1):
        found = sys.modules.get(".".join(parts[:end]))
        if getattr(found, name, None) is value:
            return ".".join([*parts[:end], name])
    raise CannotDescribeError(f"{getattr(value, '__qualname__', value)} has no import path")


class _Describer:
    """One description; it remembers which modules it has met."""

    def __init__(self) -> None:
        self._met: set[int] = set()

    def describe(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, Recorded):
            return self._recorded(value)
        if is_dataclass(value) and not isclass(value):
            given = {
                field.name: getattr(value, field.name) for field in fields(value) if field.init
            }
            return self._made(type(value), given)
        if isinstance(value, partial) and not value.args:
            return self._made(value.func, value.keywords)
        if isclass(value) or isroutine(value):
            return import_path(value)
        if isinstance(value, nn.Module):
            raise CannotDescribeError(f"{type(value).__name__} does not tell its arguments")
        if isinstance(value, Mapping):
            return {str(name): self.describe(item) for name, item in value.items()}
        if isinstance(value, Collection):
            return [self.describe(item) for item in value]
        raise CannotDescribeError(f"{type(value).__name__} does not tell its arguments")

    def _recorded(self, value: Recorded) -> dict[str, Any]:
        if isinstance(value, nn.Module) and next(value.parameters(), None) is not None:
            if id(value) in self._met:
                raise CannotDescribeError(f"a {type(value).__name__} is shared")
            self._met.add(id(value))
        arguments = value.constructor_arguments()
        for name, parameter in signature(type(value)).parameters.items():
            if parameter.kind is Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
            elif parameter.kind is Parameter.VAR_POSITIONAL and name in arguments:
                # A configuration names all arguments: such a class has a constructor `of`.
                return self._made(type(value), arguments, constructor=".of")
        return self._made(type(value), arguments)

    def _made(self, kind: Any, arguments: Mapping[str, Any], constructor: str = "") -> Any:
        described = {name: self.describe(value) for name, value in arguments.items()}
        return {"class_path": import_path(kind) + constructor, "init_args": described}
