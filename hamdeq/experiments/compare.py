"""Several seeds of several configurations, and a table of their means.

    python -m hamdeq.experiments.compare configs/bags/*.yaml --seeds 5 --data.root FOLDER

Each run is one of the command line's, ``fit`` with the configuration, the seed for weights and
data, and whatever other options are given. A run that has its results is not run again, and one
that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

__all__ = ["Series", "compare", "main", "table"]

_COLUMNS = {
    "test/accuracy": ("accuracy", "{:.3f}"),
    "test/auc": ("AUC", "{:.3f}"),
    "fit_seconds": ("seconds of a fit", "{:.0f}"),
}


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

    def results(self, seed: int) -> dict[str, float] | None:
        """What the run with this seed has measured; None as long as it has not ended."""
        found = sorted((self.folder / f"seed_{seed}").glob("version_*/results.json"))
        return json.loads(found[-1].read_text()) if found else None

    def run(self, seed: int) -> dict[str, float]:
        """Train and test with this seed, unless that has been done.

        Raises:
            RuntimeError: the command line failed.
        """
        if (results := self.results(seed)) is not None:
            return results
        root = self.folder / f"seed_{seed}"
        command = [sys.executable, "-m", "hamdeq.training", "fit"]
        command += [f"--config={self.config}", f"--seed_everything={seed}", f"--data.seed={seed}"]
        command += [f"--run.root={root}", "--trainer.enable_progress_bar=false", *self.options]
        if any(root.glob("version_*/checkpoints/last.ckpt")):
            command.append("--ckpt_path=last")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        results = self.results(seed)
        if done.returncode or results is None:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
        return results


def compare(series: list[Series], seeds: int) -> dict[Series, list[dict[str, float]]]:
    """The results of each configuration for the seeds 0 to seeds − 1, run where they are missing.

    Raises:
        RuntimeError: a run failed.
    """
    found: dict[Series, list[dict[str, float]]] = {one: [] for one in series}
    with tqdm(total=len(series) * seeds, unit="run") as bar:
        for seed in range(seeds):
            for one in series:
                bar.set_description(f"{one.name}, seed {seed}")
                found[one].append(one.run(seed))
                bar.update()
    return found


def table(found: dict[Series, list[dict[str, float]]]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds (with n − 1)."""
    heads = ["configuration", "runs", *(head for head, _ in _COLUMNS.values())]
    lines = [heads, ["---"] * len(heads)]
    for one, results in found.items():
        cells = [one.name, str(len(results))]
        for key, (_, form) in _COLUMNS.items():
            values = [result[key] for result in results if key in result]
            cell = form.format(statistics.mean(values)) if values else "–"
            if len(values) > 1:
                cell += f" ± {form.format(statistics.stdev(values))}"
            cells.append(cell)
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(args: list[str] | None = None) -> None:
    """Run the comparison; the arguments are the process's own by default."""
    parser = argparse.ArgumentParser(
        prog="python -m hamdeq.experiments.compare",
        description="Train configurations with several seeds, and compare the test results.",
        epilog="Every other option goes to the command line of the runs.",
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", type=Path, help="configurations to compare")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--root", type=Path, default=Path("runs/compare"), help="where runs go")
    known, options = parser.parse_known_args(args)
    if known.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {known.seeds}; give a number of runs")
    if missing := [str(path) for path in known.configs if not path.is_file()]:
        parser.error(f"expected files of configurations, got {', '.join(missing)}")
    series = [Series(path, tuple(options), known.root) for path in known.configs]
    try:
        text = table(compare(series, known.seeds))
    except RuntimeError as error:
        raise SystemExit(f"error: a run failed: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on where this one stopped") from None
    path = known.root / "table.md"
    path.write_text(text)
    print(text, path, sep="\n")


if __name__ == "__main__":
    main()
