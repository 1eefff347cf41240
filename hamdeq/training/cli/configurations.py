"""The configurations that come with hamdeq, by name: ``digits``, ``mnist/ham_eo_deq``."""

from __future__ import annotations

import difflib
from pathlib import Path

import hamdeq

__all__ = ["configuration", "names", "with_files"]


def names() -> list[str]:
    """The names of the configurations, which are those of their files in ``configs``."""
    folder = _folder()
    files = sorted(folder.rglob("*.yaml"))
    found = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return [name for name in found if not name.startswith("sweeps/")]  # these are wandb's


def configuration(name: str) -> Path:
    """The file of a configuration: a file that there is, or one of hamdeq's by its name.

    Where there is neither, it is the path as given.
    """
    given = Path(name)
    known = _folder() / f"{name}.yaml"
    return known if not given.is_file() and name in names() else given


def with_files(args: list[str]) -> list[str]:
    """Arguments of the command line with the files of the configurations they name.

    Raises:
        FileNotFoundError: a name, without the ending of a file, that there is not.
    """
    found = [*args]
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option not in ("-c", "--config"):
            continue
        if equals:
            found[i] = f"{option}={_file(value)}"
        elif i + 1 < len(args):
            found[i + 1] = _file(args[i + 1])
    return found


def _file(name: str) -> str:
    path = configuration(name)
    if not path.is_file() and not path.suffix:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise FileNotFoundError(
            f"--config: expected a file or the name of a configuration, got {name}; {hint}"
        )
    return str(path)


def _folder() -> Path:
    """Folder of configurations: in the wheel within the package, in the repository beside it."""
    package = Path(hamdeq.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
