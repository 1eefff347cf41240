"""The runs of one configuration, each with a seed of its own, each trained once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml
from filelock import lock_descriptor

from hamdeq.training import progress
from hamdeq.training.cli.results import read_results
from hamdeq.training.files import DamagedFileError

__all__ = ["Progress", "Series", "claim"]


@dataclass(frozen=True)
class Series:
    """The runs of one configuration, each with a seed of its own.

    Args:
        config: the configuration's file.
        options: further options of the command line.
        root: folder of all series.
        bookkeeping: options that change no result, such as where the data lie and what is logged.
    """

    config: Path
    options: tuple[str, ...]
    root: Path
    bookkeeping: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The configuration's folder and name."""
        return f"{self.config.resolve().parent.name}/{self.config.stem}"

    @property
    def folder(self) -> Path:
        """The folder of the runs, another one for other options or a configuration with edits."""
        content = "\0".join([self.config.read_text(), *self.options])
        return self.root / self.name / hashlib.sha256(content.encode()).hexdigest()[:8]

    @property
    def length(self) -> int:
        """Epochs of a run, by its options and its configuration; at least 1."""
        for option in reversed(self.options):
            name, _, value = option.partition("=")
            if name == "--trainer.max_epochs" and value.isdigit():
                return max(int(value), 1)
        try:
            trainer = yaml.safe_load(self.config.read_text(encoding="utf-8"))["trainer"]
            return max(int(trainer["max_epochs"]), 1)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, ValueError):
            return 1  # where the configuration is damaged, its training fails and says why

    def run_folder(self, seed: int) -> Path | None:
        """The folder of the run with this seed; None until it has ended."""
        return None if self.results(seed) is None else self._results_file(seed).parent

    def results(self, seed: int) -> dict[str, float] | None:
        """The results of the run with this seed; None until it has ended."""
        try:
            return read_results(self._results_file(seed))
        except (FileNotFoundError, DamagedFileError):
            return None

    def _results_file(self, seed: int) -> Path:
        """The newest file of results, or one that does not exist."""
        root = self.folder / f"seed_{seed}"
        return max(root.glob("version_*/results.json"), key=_version, default=root / "results.json")

    def epochs(self, seed: int) -> int:
        """Epochs that the newest run with this seed has logged."""
        files = (self.folder / f"seed_{seed}").glob("version_*/metrics.csv")
        newest = max(files, key=_version, default=None)
        if newest is None:
            return 0
        # The last row may be half written, and a damaged file counts as far as it can be read.
        head, *rows = newest.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        names = head.split(",")
        logged = [dict(zip(names, row.split(","), strict=False)).get("epoch", "") for row in rows]
        return max((int(epoch) + 1 for epoch in logged if epoch.isdecimal()), default=0)

    def run(
        self, seed: int, *, wait: bool = True, meanwhile: Callable[[], object] = lambda: None
    ) -> dict[str, float] | None:
        """Train and test with this seed, unless that has been done; resume an interrupted run.

        Args:
            seed: of the weights and of the data.
            wait: whether to wait while another process trains the same.
            meanwhile: called about once a second until it is done, here or there.

        Returns:
            The results; None where another process trains the same, and ``wait`` is False.

        Raises:
            RuntimeError: the command line failed.
        """
        if (results := self.results(seed)) is not None:
            return results
        root = self.folder / f"seed_{seed}"
        with claim(root / "lock", wait=wait, meanwhile=meanwhile) as lock:
            if lock is None or (results := self.results(seed)) is not None:
                return results if lock else None
            self._warn_if_damaged(seed)
            command = [sys.executable, "-m", "hamdeq.training", "fit"]
            command += [f"--config={self.config}", f"--seed_everything={seed}"]
            command += [f"--data.seed={seed}", f"--run.root={root}"]
            command += ["--trainer.enable_progress_bar=false", *self.options, *self.bookkeeping]
            if any(root.glob("version_*/checkpoints/last.ckpt")):
                command.append("--ckpt_path=last")
            code, output = _watch(command, lock, meanwhile)
        results = self.results(seed)
        if code or results is None:
            raise RuntimeError(f"{' '.join(command)}\n{output}".rstrip())
        return results

    def _warn_if_damaged(self, seed: int) -> None:
        try:
            read_results(self._results_file(seed))
        except FileNotFoundError:
            pass
        except DamagedFileError as error:
            warnings.warn(f"{error}; the run is tested again", stacklevel=3)


def _version(path: Path) -> int:
    """N of a file in ``version_N``."""
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


@contextmanager
def claim(
    path: Path, *, wait: bool = True, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[IO[str] | None]:
    """Hold the lock on a file, which is created where there is none.

    The operating system frees the lock when the last process that has the file open ends, however
    it ends: a killed process leaves nothing to clear away. A child that inherits the file
    (``pass_fds=[file.fileno()]``, not on Windows) holds the lock as well.

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


def _watch(command: list[str], lock: IO[str], meanwhile: Callable[[], object]) -> tuple[int, str]:
    """Run a command; call ``meanwhile`` about once a second; return its status and its output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        # The child holds the lock too: if it outlives this process, no second one is started.
        locks = [] if os.name == "nt" else [lock.fileno()]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, pass_fds=locks)
        try:
            while True:
                try:
                    code = process.wait(timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    meanwhile()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        return code, output.read()


class Progress(progress.Progress):
    """A bar of epochs and files, counted on disk, whichever process writes them.

    Args:
        runs: series and seeds of what is trained.
        files: written once each, such as measurements.
    """

    def __init__(self, runs: Iterable[tuple[Series, int]], files: Iterable[Path] = ()) -> None:
        self._running = {(one, seed): one.length for one, seed in runs}
        self._missing = set(files)
        self._finished = 0
        super().__init__(sum(self._running.values()) + len(self._missing), done=self._count())

    def doing(self, what: str) -> None:
        """Say what is being done."""
        self.look()
        self.describe(what)

    def look(self) -> None:
        """Count again."""
        self.update(self._count())

    def _count(self) -> int:
        # What is finished stays finished, and is not looked for again.
        found = {path for path in self._missing if path.exists()}
        self._missing -= found
        self._finished += len(found)
        epochs = 0
        for (one, seed), length in [*self._running.items()]:
            if one.results(seed) is not None:
                self._finished += self._running.pop((one, seed))
            else:
                epochs += min(one.epochs(seed), length)
        return self._finished + epochs
