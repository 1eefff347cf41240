"""Messages of the command line: short errors with the nearest name that exists, and plain help."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from argparse import Action
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hamdeq._checks import nearest
from hamdeq.data import InMemoryDataModule
from hamdeq.implicit import Adjoint
from hamdeq.solvers import Solver
from hamdeq.training.checkpoint import CheckpointError
from hamdeq.training.module import OtherArchitectureError

__all__ = ["Parser", "program", "quiet", "refusal", "refuse"]

_MOST_LISTED = 12  # arguments that an error lists

# What jsonargparse says, and what it says around it.
_UNKNOWN_ARGUMENT = re.compile(r"(?:[Kk]ey|[Oo]ption) ['\"]([\w.]+)['\"] is not .*")
_UNKNOWN_OPTION = re.compile(
    r"unrecognized arguments: --([\w.]+).*|Subcommand '\w+' does not accept option '([\w.]+)'.*",
    re.DOTALL,
)
_UNKNOWN_COMMAND = re.compile(r"argument subcommand: invalid choice: '(\w+)'.*", re.DOTALL)
_NO_COMMAND = re.compile(r"expected \"subcommand\" to be one of .* not provided\.?")
_UNKNOWN_CLASS = re.compile(
    r"module '[\w.]+' has no attribute '(\w+)'|Expected a dot import path string: ([\w.]+)"
)
_REQUIRED = re.compile(r"the following arguments are required: (\w+(?:\.\w+)*(?:, \w+(?:\.\w+)*)*)")
_NOISE = re.compile(
    r"(?:- )?(?:Does not validate against any of the Union subtypes|Subtypes: .*|Errors:"
    r"|Expected a path but .* either not accessible or invalid|Expected a <class 'NoneType'>\.?"
    r"|Given value type: .*|Not a valid subclass of .*|Subclass types expect one of:"
    r"|(?:- )?a (?:class path|dict) .*)$"
)
_CALLABLE = re.compile(
    r"Type .* expects a function or a callable class: (.*?)\.? Got value: "
    r"Namespace\(class_path='([\w.]+)'.*",
    re.DOTALL,
)
_WORDED = (
    (re.compile(r"[Ee]xpected a <class 'int'>"), "expected an integer"),
    (re.compile(r"[Ee]xpected a <class 'float'>"), "expected a number"),
    (re.compile(r"[Ee]xpected a <class 'bool'>"), "expected true or false"),
    (re.compile(r"[Ee]xpected a <class 'str'>"), "expected text"),
    (re.compile(r"[Ee]xpected a (?:typing\.)?Literal\[(.*?)\]"), r"expected one of \1"),
    (re.compile(r"Expected a dot import path string: "), "expected the name of a class, got "),
    (
        re.compile(r"Import path does not correspond to a subclass of (\w+)"),
        r"expected a subclass of \1",
    ),
    (re.compile(r"\. Got value: "), ", got "),
    (re.compile(r"File does not exist: "), "expected a file, found none: "),
)


class _PlainHelp(DefaultHelpFormatter):
    """Help without the markup of docstrings."""

    def _expand_help(self, action: Action) -> str:
        return _plain(super()._expand_help(action))


class Parser(LightningArgumentParser):
    """A parser whose errors are short and name the nearest argument, or class, that exists."""

    def __init__(self, *args: Any, description: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _PlainHelp)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, description=_plain(description), **kwargs)

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        group = super().add_argument_group(*args, **kwargs)
        group.title = _plain(group.title or "")
        return group

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        commands = self._commands()
        given = sys.argv[1:] if args is None else args
        self._command = next((str(arg) for arg in given if arg in commands), "")
        if args is not None:
            # jsonargparse reads the null of a class's argument, and hands it on in Python's word.
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", arg) for arg in args]
        return super().parse_args(args, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = self._with_hint(message)
        if not self.exit_on_error:  # of a class's arguments: the caller says where they stand
            super().error(message, ex)
        told, option = _flat(message)
        command = self.prog.replace(" [options]", "") + f" {getattr(self, '_command', '')}".rstrip()
        refuse(self, f"{told}\nFor all options: {command} {option or '--help'}")

    def _with_hint(self, message: str) -> str:
        if match := _UNKNOWN_ARGUMENT.fullmatch(message):
            # The parser of one class, with the class's own arguments.
            wrong = match[1].partition(".")[0]
            return f"no argument {wrong!r}{_did_you_mean(wrong, self._arguments())}"
        if match := _UNKNOWN_OPTION.fullmatch(message):
            return self._unknown_option(match[1] or match[2])
        if match := _UNKNOWN_COMMAND.fullmatch(message):
            return f"no command {match[1]!r}{_did_you_mean(match[1], [*self._commands()])}"
        if _NO_COMMAND.fullmatch(message):
            return f"expected a command, one of {', '.join(self._commands())}"
        if match := _UNKNOWN_CLASS.search(message):
            wrong = (match[1] or match[2]).rpartition(".")[2]
            known = {kind.__name__ for kind in _known_classes()}
            if where := re.search(r"module '([\w.]+)' has no attribute", message):
                known |= {*getattr(sys.modules.get(where[1]), "__all__", ())}
            near = nearest(wrong, known)
            return f"{message}\nDid you mean '{near}'?" if near else message
        return message

    def _arguments(self) -> list[str]:
        """The names of all options but those that show help."""
        names = (action.dest for action in self._actions if action.option_strings)
        return [
            name
            for name in dict.fromkeys(names)
            if name not in ("help", "config") and not re.match(r"print_|.*\.help$", name)
        ]

    def _commands(self) -> dict[str, Parser]:
        """The parsers of the commands, where this one has commands."""
        action = getattr(self, "_subcommands_action", None)
        return {} if action is None else dict(action.choices)

    def _unknown_option(self, wrong: str) -> str:
        """Message for an unknown option, of which the first unknown part is the one to change."""
        parsers = (self, *self._commands().values())
        known = [name.split(".") for parser in parsers for name in parser._arguments()]
        parts = wrong.split(".")
        for depth, part in enumerate(parts):
            names = {name[depth] for name in known if name[:depth] == parts[:depth] != name}
            if part not in names:
                return f"no option --{wrong}{_did_you_mean(part, sorted(names))}"
        return f"no option --{wrong}"


def refuse(parser: LightningArgumentParser, message: str) -> NoReturn:
    """End the program with a message and status 2."""
    parser.exit(2, f"error: {message}\n")
    raise AssertionError("the parser has not ended the program")


def refusal(error: Exception) -> str | None:
    """Message of an error that the user can mend; None of any other, which is a fault."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        # One that is not about a file is a fault of something else.
        return f"{error.filename}: {error.strerror}" if error.filename is not None else None
    if isinstance(
        error, FileNotFoundError | ImportError | OtherArchitectureError | CheckpointError
    ):
        return str(error)
    of_wandb = type(error).__module__.startswith("wandb.")
    if isinstance(error, MisconfigurationException) or of_wandb:
        return _one_line(str(error))
    if isinstance(error, ValueError | TypeError | AttributeError | RuntimeError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        ours = package == "hamdeq" and re.search(r"(^|: )expected ", str(error))
        # Lightning says so of a metric that is not there, or of a module without a learning rate.
        theirs = package == "lightning" and type(error) in (AttributeError, RuntimeError)
        return _one_line(str(error)) if ours or theirs else None
    return None


def _one_line(message: str) -> str:
    return " ".join(message.split())


def quiet() -> None:
    """Leave out what Lightning tells of itself, and warnings that only its authors can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for text in (
        r"(?s).*was deprecated in v[\d.]+ and will be removed in v",  # jsonargparse, to Lightning
        r"(?s).*one JsonargparseDeprecationWarning per type",
        r"Checkpoint directory .* exists and is not empty",  # of the run that goes on
        r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    ):
        warnings.filterwarnings("ignore", message=text)


def program() -> str:
    """The command as which this program was called, for messages."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        spec = sys.modules["__main__"].__spec__
        return f"python -m {spec.name.removesuffix('.__main__')}" if spec else path.parent.name
    return f"python {path.name}" if path.suffix == ".py" else path.name


def _did_you_mean(wrong: str, known: list[str]) -> str:
    near = nearest(wrong, known)
    text = f". Did you mean '{near}'?" if near else ""
    if 0 < len(known) <= _MOST_LISTED:
        text += f"{'' if near else '.'} There are {', '.join(known)}"
    return text


def _flat(message: str) -> tuple[str, str]:
    """A nested message in one line, and the option that shows what the refused object takes."""
    keys: list[str] = []
    kind, value = "", ""
    rest: list[str] = []
    for line in map(str.strip, message.splitlines()):
        if match := re.match(r"(?:- )?Parser key \"([\w.]+)\":\s*(.*)", line):
            keys.append(match[1])
            line = match[2]
        elif match := re.match(r"(?:- )?Problem with given class_path '([\w.]+)':\s*(.*)", line):
            kind, line = match[1], match[2]
        elif match := re.match(r"Given value: (.*)", line):
            value, line = value or match[1], ""
        if line and not _NOISE.match(line):
            rest.append(line.removeprefix("- "))
    if not keys and not _REQUIRED.search(message):
        return message, ""
    told = ". ".join(dict.fromkeys(rest))
    if match := _CALLABLE.fullmatch(told):
        told, kind = match[1], match[2]
    for pattern, words in _WORDED:
        told = pattern.sub(words, told)
    where = f"--{'.'.join(keys)}"
    about = f"{where}.help={kind}" if kind else ""
    if match := _REQUIRED.search(told):
        needed = [name.rpartition(".")[2] for name in match[1].split(", ")]
        if not keys:
            options = ", ".join(f"--{name}" for name in needed)
            return f"expected {options}, or a configuration that has it: --config FILE", ""
        return f"{where}: {kind} needs {', '.join(needed)}", about
    if kind and told.startswith("no argument"):
        return f"{where}: {kind} has {told}", about
    if told.startswith("expected") and not re.search(r"\bgot\b|[{(]|^$", f"{told} {value}"):
        told += f", got {value}"
    return f"{where}: {told}", ""


def _plain(text: str) -> str:
    """Text without the markup of docstrings."""
    text = re.sub(r":\w+:`~?\.?(?:[^`<]*\.)?([^`.<]+)`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_+", r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    return re.sub(r"`([^`]*)`", r"\1", text)


def _known_classes() -> set[type]:
    bases = (Solver, Adjoint, Optimizer, LRScheduler, InMemoryDataModule, Callback, nn.Module)
    kinds = {kind for base in bases for kind in _subclasses(base) if kind.__name__[0] != "_"}
    ours = ("hamdeq.", "torch.optim.", "lightning.pytorch.callbacks.")
    return {kind for kind in kinds if kind.__module__.startswith(ours)}


def _subclasses(base: type) -> set[type]:
    return {base}.union(*(_subclasses(kind) for kind in type.__subclasses__(base)))
