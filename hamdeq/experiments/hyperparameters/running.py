"""Maps in several processes, with a bar of what is left."""

from __future__ import annotations

import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from hamdeq.experiments.hyperparameters.protocol import Protocol
from hamdeq.experiments.hyperparameters.results import Results, load, run
from hamdeq.training.files import DamagedFileError
from hamdeq.training.progress import Progress

__all__ = ["run_all"]


def run_all(
    protocols: list[Protocol],
    folder: Path,
    *,
    workers: int,
    compiled: bool,
    failed: Callable[[Protocol, Exception], object],
) -> Iterator[Results]:
    """Measure what has not been, and yield each map once its file is written.

    Args:
        protocols: of the maps.
        folder: of the results' files.
        workers: processes of one thread each; with 1 all is done in this one.
        compiled: whether to compile, where there is a compiler.
        failed: called with what a map failed of. The others are measured all the same.
    """
    left = [protocol for protocol in protocols if not _is_measured(protocol, folder)]
    done = len(protocols) - len(left)
    if done:
        print(f"{done} of {len(protocols)} maps have been measured before", file=sys.stderr)
    if not left:
        return
    with Progress(sum(p.work for p in left), counted=False) as bar:
        bar.describe(f"{done} of {len(protocols)} maps")
        maps = _here(left, folder, bar, compiled) if workers == 1 else None
        for protocol, found in maps or _elsewhere(left, folder, bar, workers, compiled):
            try:
                result = found()
            except Exception as error:
                failed(protocol, error)
                continue
            done += 1
            bar.describe(f"{done} of {len(protocols)} maps")
            yield result


def _is_measured(protocol: Protocol, folder: Path) -> bool:
    try:
        return load(protocol, folder) is not None
    except DamagedFileError as error:
        warnings.warn(f"{error}; it is measured again", stacklevel=3)
        return False


_Found = tuple[Protocol, Callable[[], Results]]
"""A map, and what gives its results, or raises what it failed of."""


def _here(left: list[Protocol], folder: Path, bar: Any, compiled: bool) -> Iterator[_Found]:
    for protocol in left:
        yield protocol, partial(_measured, protocol, folder, compiled, bar.advance)


def _elsewhere(
    left: list[Protocol], folder: Path, bar: Any, workers: int, compiled: bool
) -> Iterator[_Found]:
    context = get_context("spawn")
    progress = context.Queue()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(progress,)
    ) as pool:
        maps = {pool.submit(_work, protocol, folder, compiled): protocol for protocol in left}
        running = set(maps)
        try:
            while running:
                ended, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        bar.advance(progress.get_nowait())
                    except queue.Empty:
                        break
                for each in ended:
                    yield maps[each], each.result
        except BaseException:
            # Interrupted: those that have not begun need not.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measured(
    protocol: Protocol, folder: Path, compiled: bool, progress: Callable[[int], Any]
) -> Results:
    results = run(protocol, compiled=compiled, progress=progress)
    results.save(folder)
    return results


_progress: Any = None


def _start(progress: Any) -> None:
    """Set up a process: one thread, as two of them would wait for each other's cores."""
    global _progress
    _progress = progress
    torch.set_num_threads(1)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: Any) -> None:
    """End with the parent, also where that is killed and can tell no one."""
    connection.wait([sentinel])
    os._exit(1)


def _work(protocol: Protocol, folder: Path, compiled: bool) -> Results:
    return _measured(protocol, folder, compiled, _progress.put)
