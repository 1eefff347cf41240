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
        found = sorted((self.folder / f"seed_{seed}").glob("version_*/results.json"))
        return found[-1].parent if found else None

    def results(self, seed: int) -> dict[str, float] | None:
        """What the run with this seed has measured; None as long as it has not ended."""
        folder = self.run_folder(seed)
        return None if folder is None else json.loads((folder / "results.json").read_text())

    def epochs(self, seed: int) -> int:
        """Epochs that the newest run with this seed has logged."""
        files = (self.folder / f"seed_{seed}").glob("version_*/metrics.csv")
        newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            return 0
        with newest.open(newline="") as file:
            # The last row may be half written.
            logged = [row.get("epoch") or "" for row in csv.DictReader(file)]
        return max((int(epoch) + 1 for epoch in logged if epoch.isdigit()), default=0)

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


def _watch(command: list[str], lock: IO[str], meanwhile: Callable[[], object]) -> tuple[int, str]:
    """Run a command, and look about once a second; its exit status and what it printed."""
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
                    meanwhile()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        return code, output.read()
