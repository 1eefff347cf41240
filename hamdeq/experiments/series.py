"""The runs of one configuration, each with a seed of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hamdeq.experiments.claim import claim
from hamdeq.training.cli.results import read_results
from hamdeq.training.files import DamagedFileError

__all__ = ["Series"]


@dataclass(frozen=True)
class Series:
    """The runs of one configuration, each with a seed of its own.

    Args:
        config: the configuration's file.
        options: further options of the command line.
        root: folder of all comparisons.
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

    def run_folder(self, seed: int) -> Path | None:
        """The folder of the run with this seed; None as long as it has not ended."""
        return None if self.results(seed) is None else self._results_file(seed).parent

    def results(self, seed: int) -> dict[str, float] | None:
        """What the run with this seed has measured; None as long as it has not ended."""
        try:
            return read_results(self._results_file(seed))
        except (FileNotFoundError, DamagedFileError):
            return None

    def _results_file(self, seed: int) -> Path:
        """That of the newest run that has one, or else one that is not there."""
        root = self.folder / f"seed_{seed}"
        return max(root.glob("version_*/results.json"), key=_version, default=root / "results.json")

    def epochs(self, seed: int) -> int:
        """Epochs that the newest run with this seed has logged."""
        files = (self.folder / f"seed_{seed}").glob("version_*/metrics.csv")
        newest = max(files, key=_version, default=None)
        if newest is None:
            return 0
        # The last row may be half written, and none of a damaged file matters here.
        head, *rows = newest.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        names = head.split(",")
        logged = [dict(zip(names, row.split(","), strict=False)).get("epoch", "") for row in rows]
        return max((int(epoch) + 1 for epoch in logged if epoch.isdecimal()), default=0)

    def run(
        self, seed: int, *, wait: bool = True, meanwhile: Callable[[], object] = lambda: None
    ) -> dict[str, float] | None:
        """Train and test with this seed, unless that has been done; go on where it was cut off.

        Args:
            seed: of the weights and of the data.
            wait: whether to wait while another process trains the same.
            meanwhile: called about once a second until it is done, here or there.

        Returns:
            what the run has measured; None where another process trains it.

        Raises:
            RuntimeError: the command line failed.
        """
        if (results := self.results(seed)) is not None:
            return results
        root = self.folder / f"seed_{seed}"
        with claim(root / "lock", wait=wait, meanwhile=meanwhile) as lock:
            if lock is None or (results := self.results(seed)) is not None:
                return results if lock else None
            _warn_if_damaged(self._results_file(seed))
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


def _version(path: Path) -> int:
    """N of a file in ``version_N``."""
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def _warn_if_damaged(results: Path) -> None:
    try:
        read_results(results)
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        warnings.warn(f"{error}; the run is tested again", stacklevel=3)


def _watch(command: list[str], lock: IO[str], meanwhile: Callable[[], object]) -> tuple[int, str]:
    """Run a command, and look about once a second; its exit status and what it printed."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        # With the lock of its own, a command that outlives this process still is the only one.
        # (Windows has no such thing.)
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
