"""Several seeds of several configurations, and a table of their means.

    python -m hamdeq.experiments.compare configs/bags/*.yaml --seeds 5 --data.root FOLDER

Each run is one of the command line's, ``fit`` with the configuration, the seed for weights and
data, and all other options that are given. A run that has its results is not run again, and an
interrupted one is resumed.
"""

from __future__ import annotations

from pathlib import Path

from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.experiments.series import Progress, Series
from hamdeq.experiments.tables import markdown, mean_and_deviation
from hamdeq.training.cli.configurations import configuration
from hamdeq.training.files import described, write_file

__all__ = ["compare", "main", "table"]

_COLUMNS = {
    "test/accuracy": ("accuracy", "{:.3f}"),
    "test/auc": ("AUC", "{:.3f}"),
    "fit_seconds": ("seconds of a fit", "{:.0f}"),
}


def compare(
    series: list[Series], seeds: int
) -> tuple[dict[Series, list[dict[str, float]]], list[str]]:
    """Run each configuration with the seeds 0 to seeds − 1, where results are missing.

    Returns:
        The results of each configuration, and why some runs failed.
    """
    found: dict[Series, list[dict[str, float]]] = {one: [] for one in series}
    failures: list[str] = []
    with Progress((one, seed) for one in series for seed in range(seeds)) as bar:
        for seed in range(seeds):
            for one in series:
                bar.doing(f"train {one.name}, seed {seed}")
                try:
                    results = one.run(seed, meanwhile=bar.look)
                    assert results is not None  # it waits for what another process trains
                    found[one].append(results)
                except RuntimeError as error:
                    failures.append(f"a run failed: {error}")
                except OSError as error:
                    failures.append(described(error))
    return found, failures


def table(found: dict[Series, list[dict[str, float]]]) -> str:
    """Return a Markdown table of mean ± standard deviation over the seeds (with n − 1)."""
    heads = ["configuration", "runs", *(head for head, _ in _COLUMNS.values())]
    rows = []
    for one, results in found.items():
        cells = [one.name, str(len(results))]
        for key, (_, form) in _COLUMNS.items():
            values = [result[key] for result in results if key in result]
            cells.append(mean_and_deviation(values, form))
        rows.append(cells)
    return markdown(heads, rows)


def main(args: list[str] | None = None) -> None:
    """Run the comparison; the arguments are the process's own by default."""
    parser = Parser(
        "compare",
        "Train configurations with several seeds, and compare the test results.",
        operands="CONFIG...",
        epilog="Every other option, --name value or --name=value, goes to the command line of the "
        "trainings.",
    )
    parser.add_argument(
        "configs", nargs="+", type=configuration, metavar="CONFIG", help="configurations to compare"
    )
    parser.add_argument(
        "--seeds",
        type=checked(int),
        default=5,
        help="train with the seeds from 0 to one less than this",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("runs/compare"), help="folder for the runs"
    )
    known, options = parser.parse_split(args)
    if missing := [str(path) for path in known.configs if not path.is_file()]:
        parser.error(f"expected files of configurations, got {', '.join(missing)}")
    series = [Series(path, options, known.root) for path in known.configs]
    with tidy(resumes=True):
        found, failures = compare(series, known.seeds)
    text, path = table(found), known.root / "table.md"
    try:
        write_file(path, text)
    except OSError as error:
        failures.append(described(error))
    print(text, path, sep="\n")
    if failures:
        raise SystemExit("\n".join(f"error: {failure}" for failure in failures))


if __name__ == "__main__":
    main()
