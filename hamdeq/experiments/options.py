"""The command lines of the experiments: short errors, and options that go on to trainings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hamdeq._checks import integer, nearest, number
from hamdeq.training.files import described

__all__ = ["Parser", "checked", "describe_data", "tidy"]

_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class Parser(argparse.ArgumentParser):
    """A parser of one experiment.

    Args:
        name: the experiment's module, below ``hamdeq.experiments``.
        description: what the experiment does.
        operands: arguments without a name, for the line of usage.
        epilog: what follows the list of options.
    """

    def __init__(
        self, name: str, description: str, *, operands: str = "", epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=f"python -m hamdeq.experiments.{name}",
            usage=f"%(prog)s {operands} [options]" if operands else "%(prog)s [options]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
        )

    def parse_split(
        self, args: Sequence[str] | None = None
    ) -> tuple[argparse.Namespace, tuple[str, ...]]:
        """Parse the experiment's own options, and leave the others, as ``--name=value``.

        All others have a value, which may also follow after a space.
        """
        own: list[str] = []
        others: list[str] = []
        left = [*(sys.argv[1:] if args is None else args)]
        while left:
            arg = left.pop(0)
            if not arg.startswith("--") or arg.partition("=")[0] in self._option_string_actions:
                own.append(arg)
            elif "=" not in arg and left and not left[0].startswith("--"):
                others.append(f"{arg}={left.pop(0)}")
            else:
                others.append(arg)
        return self.parse_intermixed_args(own), tuple(others)

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(f"{prefix}--"):
            wrong = message.removeprefix(prefix).split()[0].partition("=")[0]
            near = nearest(wrong, self._option_string_actions)
            message = f"no option {wrong}" + (f". Did you mean {near}?" if near else "")
        self.exit(2, f"error: {message}\nFor all options: {self.prog} --help\n")


def checked(kind: type[int] | type[float], **bounds: float) -> Callable[[str], Any]:
    """Return a type for argparse: an integer, by default at least 1, or a finite number.

    Args:
        kind: int or float.
        bounds: those of :func:`hamdeq._checks.integer` or :func:`hamdeq._checks.number`.
    """

    def parse(text: str) -> Any:
        check: Any = integer if kind is int else number
        try:
            value: object = kind(text)
        except ValueError:
            value = text
        try:
            return check("", value, **bounds)
        except (TypeError, ValueError) as error:
            expected = str(error).partition(", got ")[0].removeprefix(": ")
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}") from None

    return parse


@contextmanager
def tidy(*, resumes: bool = False) -> Iterator[None]:
    """End the program with one line instead of a traceback.

    Ctrl-C ends it with status 130, and a file that cannot be written with status 1.

    Args:
        resumes: whether the same command goes on where this one stopped, which the line then says.
    """
    try:
        yield
    except KeyboardInterrupt:
        hint = "; the same command goes on where this one stopped" if resumes else ""
        print(f"interrupted{hint}", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    except OSError as error:
        raise SystemExit(f"error: {described(error)}") from None


def describe_data(name: str, what: str) -> None:
    """Print the help of a data module of the examples that is called as a program."""
    parser = Parser(
        f"examples.{name}",
        what,
        epilog=f"There is nothing to run here. Train on these data with: python train.py fit "
        f"--config configs/{name}/NAME.yaml. Compare configurations over several seeds with: "
        f"python -m hamdeq.experiments.compare configs/{name}/*.yaml",
    )
    parser.parse_args()
    parser.print_help()
