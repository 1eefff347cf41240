"""Files that are on disk whole or not at all, even if their writer is killed."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = [
    "DamagedFileError",
    "append_text",
    "described",
    "is_whole_png",
    "save_figure",
    "write_csv",
    "write_file",
]

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_ASIDE = re.compile(r"\.([0-9a-f]{8})-(\d+)-\d+\.tmp$")
_DAY = 24 * 60 * 60
_PNG_END = b"IEND\xaeB`\x82"

_counter = itertools.count()  # threads may write one file at once
_written: set[str] = set()  # temporary files of this process
_cleared: set[str] = set()  # folders that this process has looked through


class DamagedFileError(ValueError):
    """A file does not hold what hamdeq writes there: it was cut off, emptied, or is another's."""

    def __init__(self, path: Path, expected: str, got: object) -> None:
        super().__init__(f"{path}: expected {expected}, got {got}")


def write_file(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file as a whole or not at all; a folder that is missing is made.

    The content goes to a temporary file in the same folder, is brought to disk, and only then takes
    the file's name, so that whoever reads the file finds the old content or the new one. The first
    write into a folder removes the temporary files of processes that were killed there.

    Args:
        path: the file.
        content: text, which is written in UTF-8, or bytes.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason; the error names
            the file, which is as it was before.
    """
    data = content.encode() if isinstance(content, str) else content
    mark = f"{_HOST}-{os.getpid()}-{next(_counter)}"
    aside = os.path.abspath(path.with_name(f"{path.name}.{mark}.tmp"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(os.path.dirname(aside))
        _written.add(aside)
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise
        finally:
            _written.discard(aside)
    except OSError as error:
        raise _not_written(path, error) from None
    _sync_folder(path.parent)


def append_text(path: Path, text: str) -> None:
    """Add text at the end of a file, all of it or none.

    Raises:
        OSError: as of :func:`write_file`.
    """
    size = None
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            data = memoryview(text.encode())
            while data:
                data = data[file.write(data) :]
    except OSError as error:
        if size is not None:
            with suppress(OSError):
                os.truncate(path, size)
        raise _not_written(path, error) from None


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as by :func:`write_file`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(heads)
    writer.writerows(rows)
    write_file(path, text.getvalue())


def save_figure(figure: Any, path: Path) -> None:
    """Write a Matplotlib figure as by :func:`write_file`, in the format of the file's suffix."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:])
    write_file(path, buffer.getbuffer())


def is_whole_png(path: Path) -> bool:
    """Return whether there is a PNG file that was not cut off."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # none, or a shorter one
        return False


def described(error: OSError) -> str:
    """Return the message of an error without its number, after the name of the file."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"


def _not_written(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    message = f"expected to write the file, got {reason!r}; it is as it was before"
    if not isinstance(error, PermissionError):
        message += "; free some space there, or write elsewhere"
    return OSError(error.errno, message, str(path))


def _clear(folder: str) -> None:
    """Remove what killed processes have left in a folder."""
    if folder in _cleared:
        return
    _cleared.add(folder)
    for name in os.listdir(folder):
        aside = os.path.join(folder, name)
        with suppress(OSError):  # Another process may have removed it.
            if (match := _ASIDE.search(name)) and not _is_in_use(aside, match[1], int(match[2])):
                os.unlink(aside)


def _is_in_use(aside: str, host: str, pid: int) -> bool:
    if time.time() - os.stat(aside).st_mtime > _DAY:
        return False  # no write takes that long
    if host != _HOST:
        return True
    if pid == os.getpid():
        return aside in _written  # or of an earlier process that had the same number
    if os.name == "nt":
        return False  # Windows itself keeps a file that is open from being removed.
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to disk, where a folder can be opened for that."""
    if os.name != "nt":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
