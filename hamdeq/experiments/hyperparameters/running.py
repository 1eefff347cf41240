"""Measuring maps, in several processes if asked for, with a bar of the work that is left."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from hamdeq.experiments.hyperparameters.protocol import Protocol
from hamdeq.experiments.hyperparameters.results import Results, load, run
from hamdeq.training.files import DamagedFileError, described
from hamdeq.training.progress import Progress

__all__ = ["run_all"]


def run_all(
    protocols: list[Protocol],
    folder: Path,
    *,
    workers: int,
    compiled: bool,
    failed: Callable[[Protocol, str], object],
) -> Iterator[Results]:
    """Measure what has not been measured, and yield each map once its file is written.

    Args:
        protocols: of the maps.
        folder: of the results' files.
        workers: processes of one thread each; with 1 all is done in this process.
        compiled: whether to compile, where there is a compiler.
        failed: called with a map that fails and why; the others are measured all the same.
    """
    left = [protocol for protocol in protocols if not _is_measured(protocol, folder)]
    done = len(protocols) - len(left)
    if done:
        print(f"{done} of {len(protocols)} maps have been measured before", file=sys.stderr)
    if not left:
        return
    with Progress(sum(p.work for p in left), counted=False) as bar:
        bar.describe(f"{done} of {len(protocols)} maps")
        alone = workers == 1
        parent, advance = (None, bar.advance) if alone else (os.getpid(), None)
        jobs = (delayed(_measured)(p, folder, compiled, advance, parent) for p in left)
        pool: Any = Parallel(workers, return_as="generator_unordered")
        open_maps = {*left}
        try:
            for protocol, outcome in pool(jobs):
                open_maps.remove(protocol)
                if not alone:
                    bar.advance(protocol.work)
                if isinstance(outcome, str):
                    failed(protocol, outcome)
                    continue
                done += 1
                bar.describe(f"{done} of {len(protocols)} maps")
                yield outcome
        except BrokenExecutor:
            for protocol in (p for p in left if p in open_maps):
                failed(protocol, "a process was killed, perhaps for want of memory")


def _is_measured(protocol: Protocol, folder: Path) -> bool:
    try:
        return load(protocol, folder) is not None
    except DamagedFileError as error:
        warnings.warn(f"{error}; it is measured again", stacklevel=3)
        return False


def _measured(
    protocol: Protocol,
    folder: Path,
    compiled: bool,
    progress: Callable[[int], Any] | None,
    parent: int | None,
) -> tuple[Protocol, Results | str]:
    """Measure a map and write its file; return its results, or why it failed."""
    if parent is not None:
        _set_up(parent)
    try:
        results = run(protocol, compiled=compiled, progress=progress)
        results.save(folder)
    except Exception as error:
        told = described(error) if isinstance(error, OSError) else str(error)
        return protocol, told or type(error).__name__
    return protocol, results


@functools.cache
def _set_up(parent: int) -> None:
    """Set up a process: one thread, as two would wait for each other's cores, and a short life."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it

    def follow() -> None:
        """End with the parent, also where it is killed and can tell no one."""
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
