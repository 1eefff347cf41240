"""Objects as plain data and back: describe them, and build them from harmless classes alone."""

from __future__ import annotations

import inspect
import pkgutil
import sys
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import lightning as L
from jsonargparse import ArgumentError, Namespace
from jsonargparse import _common as jsonargparse_common
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hamdeq._recorded import Recorded
from hamdeq.implicit import Adjoint
from hamdeq.memories import Interaction, Scaling
from hamdeq.solvers import Solver

__all__ = [
    "CannotDescribeError",
    "UntrustedError",
    "build",
    "describe",
    "import_path",
    "innermost",
]

# Imports of these alone run no code that somebody else may have written.
_PACKAGES = ("hamdeq", "torch.nn", "torch.optim", "lightning.pytorch")
_KINDS = (
    *(nn.Module, Optimizer, LRScheduler, L.LightningDataModule, Callback),
    *(Solver, Adjoint, Interaction, Scaling, Recorded),
)
# Others are not made to be called by a stranger: some load files, or run commands.
_FUNCTIONS = {
    *(
        "hamdeq.energy.ham.HAM.chain",
        "hamdeq.chn.network.CHN.chain",
        "hamdeq.synapses.maps.Composed.of",
    ),
    *(f"hamdeq.elimination.two_layer.TwoLayer.model_{letter}" for letter in "abc"),
}


class UntrustedError(ValueError):
    """A configuration (`source`) names a class or a function that is not known to be harmless."""

    def __init__(self, source: object, name: str, remedy: str = "trust=True") -> None:
        super().__init__(
            f"{source}: expected classes of hamdeq, torch.nn, torch.optim and Lightning, got "
            f"{name}, which may run any code; if you trust where the file comes from, give {remedy}"
        )


def build(
    parser: LightningArgumentParser, config: Mapping[str, Any], *, trust: bool, source: str
) -> Any:
    """The objects of a configuration, by the names of its sections.

    Args:
        parser: knows the sections; made with ``exit_on_error=False``.
        config: plain data.
        trust: make objects of any class. Else only of classes of hamdeq, of modules, optimisers and
            schedules of torch and Lightning, and by a few functions such as ``hamdeq.HAM.chain``.
        source: the file that the configuration comes from, for error messages.

    Raises:
        UntrustedError: another class or function is named, which is not imported.
        ValueError: the configuration does not fit the classes.
    """
    with warnings.catch_warnings():
        # What jsonargparse has to say to Lightning, whose parser this is.
        warnings.simplefilter("ignore", DeprecationWarning)
        with _only_known(trust):
            try:
                parsed = parser.parse_object(dict(config))
                if not trust:
                    _check(parsed)
                return parser.instantiate_classes(parsed)
            except jsonargparse_common.ImportDenied as error:
                raise UntrustedError(source, str(error).split("'")[1]) from None
            except _RefusedError as error:
                raise UntrustedError(source, str(error)) from None
            except (ArgumentError, TypeError, ValueError, ImportError, AttributeError) as error:
                if denied := _denied(error):
                    raise UntrustedError(source, denied) from None
                raise ValueError(f"{source}: {innermost(error)}") from error


class _RefusedError(Exception):
    """Holds the import path of what is refused."""


_lock = threading.RLock()


@contextmanager
def _only_known(trust: bool) -> Iterator[None]:
    """Let jsonargparse import nothing of which we do not know what it does.

    Its list is one for the whole process, and can be extended by its users, but not taken back.
    """
    settings = jsonargparse_common.parsing_settings
    verdicts = {} if trust else {"*": False}
    verdicts |= dict.fromkeys(_PACKAGES, True)
    with _lock:
        before = dict(settings)
        settings.update(import_path_verdicts=verdicts, import_paths_enforced=True)
        try:
            yield
        finally:
            settings.update(before)


def _check(value: Any) -> None:
    """Refuse what came through by the package that it is in, but not by what it is."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str):
            _check(_resolved(path))
        for item in value.values():
            _check(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _check(item)
    elif inspect.isclass(value):
        own = value.__module__.partition(".")[0] == "hamdeq" and is_dataclass(value)
        if not (own or issubclass(value, _KINDS)):
            raise _RefusedError(f"{value.__module__}.{value.__qualname__}")
    elif inspect.isroutine(value):
        name = f"{value.__module__}.{value.__qualname__}"
        if name not in _FUNCTIONS:
            raise _RefusedError(name)


def _resolved(path: str) -> Any:
    if not path.startswith(tuple(f"{name}." for name in _PACKAGES)):
        raise _RefusedError(path)
    return pkgutil.resolve_name(path)


def _denied(error: BaseException | None) -> str | None:
    """The import path that was denied somewhere in a chain of errors."""
    while error is not None:
        if isinstance(error, jsonargparse_common.ImportDenied):
            return str(error).split("'")[1]
        error = error.__cause__ or error.__context__
    return None


def innermost(error: BaseException) -> str:
    """The message at the root of a chain of errors, where the value itself was refused."""
    while True:
        under = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if under is None:
            return str(error)
        error = under


# ------------------------------------------------------------------------------- descriptions


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
        if is_dataclass(value) and not inspect.isclass(value):
            given = {
                field.name: getattr(value, field.name) for field in fields(value) if field.init
            }
            return self._made(type(value), given)
        if isinstance(value, partial) and not value.args:
            return self._made(value.func, value.keywords)
        if inspect.isclass(value) or inspect.isroutine(value):
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
        for name, parameter in inspect.signature(type(value)).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and name in arguments:
                # A configuration names all arguments: such a class has a constructor `of`.
                return self._made(type(value), arguments, constructor=".of")
        return self._made(type(value), arguments)

    def _made(self, kind: Any, arguments: Mapping[str, Any], constructor: str = "") -> Any:
        described = {name: self.describe(value) for name, value in arguments.items()}
        return {"class_path": import_path(kind) + constructor, "init_args": described}
