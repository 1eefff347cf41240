"""The runs of one configuration, each with a seed of its own."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hamdeq.experiments.claim import claim

__all__ = ["Series"]


@dataclass(frozen=True)
class Series:
    """The runs of one configuration, each with a seed of its own.

    Args:
        config: the configuration's file.
        options: further options of the command line.
        root: folder of all comparisons.
    """

    config: Path
    options: tuple[str, ...]
    root: Path

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
        found = sorted((self.folder / f"seed_{seed}").glob("version_*/results.json"))
        return found[-1].parent if found else None

    def results(self, seed: int) -> dict[str, float] | None:
        """What the run with this seed has measured; None as long as it has not ended."""
        folder = self.run_folder(seed)
        return None if folder is None else json.loads((folder / "results.json").read_text())

    def run(
        self, seed: int, *, on_epoch: Callable[[int], None] | None = None, wait: bool = True
    ) -> dict[str, float] | None:
        """Train and test with this seed, unless that has been done; go on where it was cut off.

        Args:
            seed: of the weights and of the data.
            on_epoch: is told the number of epochs done, once in a while.
            wait: whether to wait while another process trains the same.

        Returns:
            what the run has measured; None where another process trains it.

        Raises:
            RuntimeError: the command line failed.
        """
        if (results := self.results(seed)) is not None:
            return results
        root = self.folder / f"seed_{seed}"
        with claim(root / "lock", wait=wait) as lock:
            if lock is None or (results := self.results(seed)) is not None:
                return results if lock else None
            command = [sys.executable, "-m", "hamdeq.training", "fit"]
            command += [f"--config={self.config}", f"--seed_everything={seed}"]
            command += [f"--data.seed={seed}", f"--run.root={root}"]
            command += ["--trainer.enable_progress_bar=false", *self.options]
            if any(root.glob("version_*/checkpoints/last.ckpt")):
                command.append("--ckpt_path=last")
            code, output = _watch(command, lock, lambda: on_epoch and on_epoch(_epochs(root)))
        results = self.results(seed)
        if code or results is None:
            raise RuntimeError(f"{' '.join(command)}\n{output}".rstrip())
        return results


def _watch(command: list[str], lock: IO[str], look: Callable[[], object]) -> tuple[int, str]:
    """Run a command, and look once a second; its exit status and what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        # With the lock of its own, a command that outlives this process still is the only one.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()]
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    look()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        return code, output.read()


def _epochs(root: Path) -> int:
    """Epochs that the newest run has logged."""
    files = sorted(root.glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return 0
    with files[-1].open(newline="") as file:
        return max((int(row["epoch"]) + 1 for row in csv.DictReader(file)), default=0)
