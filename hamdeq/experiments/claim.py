"""A piece of work that one process at a time may do, also of those on other machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

__all__ = ["claim"]


@contextmanager
def claim(
    path: Path, *, wait: bool = True, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[IO[str] | None]:
    """Hold the lock on a file, which is made where there is none.

    The operating system lets go of the lock when the last process that has the file open ends,
    however that happens: a killed process leaves nothing to clear away. A child that is given the
    file (``pass_fds=[file.fileno()]``, not on Windows) holds the lock as well, for as long as it
    runs.

    Args:
        path: the file.
        wait: whether to wait for the lock, or else to yield None where another process has it.
        meanwhile: called about once a second while waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while not lock_descriptor(file.fileno(), blocking=False):
            if not wait:
                yield None
                return
            meanwhile()
            time.sleep(1.0)
        yield file
