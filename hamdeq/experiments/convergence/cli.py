"""``python -m hamdeq.experiments.convergence``"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

from hamdeq.experiments.convergence.plan import (
    SOLVERS,
    SPLITTINGS,
    Plan,
    Setting,
    Source,
    with_sizes,
)
from hamdeq.experiments.convergence.running import Experiment, Tracking
from hamdeq.experiments.series import Series

__all__ = ["main"]

_DEFAULT = Path("configs/digits.yaml")


def main(args: list[str] | None = None) -> None:
    """Run the experiment; the arguments are the process's own by default."""
    parser = _parser()
    known, options = parser.parse_known_args(args)
    try:
        plan = _plan(known, tuple(options))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    tracking = Tracking(known.wandb, known.project, known.group or known.root.name)
    experiment = Experiment(plan, known.root, tracking, batch_size=known.batch_size)
    try:
        experiment.run()
    except RuntimeError as error:
        raise SystemExit(f"error: a run failed: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on where this one stopped") from None
    print(experiment.report(with_published=known.published), known.root, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hamdeq.experiments.convergence",
        description="Train memories, or take those of runs that there are, and measure how their "
        "test images settle: iterations, evaluations, multiplications, time, accuracy.",
        epilog="Every other option goes to the command line of the trainings. The same command "
        "goes on where it was interrupted, and several processes share the work.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("configs", nargs="*", type=Path, default=[], help="configurations to train")
    add("--config", action="append", type=Path, default=[], help="one more, as a sweep gives it")
    add("--adopt", action="append", default=[], metavar="NAME=FOLDER", help="a run that there is")
    add("--seeds", type=int, default=2, help="number of seeds, from 0 on")
    add("--seed", type=int, nargs="+", help="these seeds instead")
    add("--solvers", nargs="+", choices=SOLVERS, help="to settle with, instead of as trained")
    add("--splittings", nargs="+", choices=SPLITTINGS, help="the same of splittings")
    add("--tol", type=float, help="relative residual at which a sample has settled")
    add("--max_steps", type=int, help="iterations at most")
    add("--sizes", nargs="+", help="of chains, such as 784-512-10, instead of the configured ones")
    add("--train", choices=("once", "each"), default="once", help="once, or with every setting")
    add("--devices", type=int, help="processes, or devices, of each training")
    add("--batch_size", type=int, default=64, help="images that settle at once")
    add("--published", action="store_true", help="published figures beside the measured ones")
    add("--wandb", choices=("offline", "online", "disabled"), default="offline")
    add("--project", default="hamdeq", help="wandb project")
    add("--group", help="wandb group; by default the name of the root")
    add("--root", type=Path, default=Path("runs/convergence"), help="where everything goes")
    return parser


def _plan(known: argparse.Namespace, options: tuple[str, ...]) -> Plan:
    configs = [*known.configs, *known.config]
    solvers, splittings = known.solvers or [None], known.splittings or [None]
    if not configs and not known.adopt:
        configs = [_DEFAULT]
        solvers = known.solvers or ["picard", "anderson", "broyden"]
        splittings = known.splittings or ["none", "even-odd"]
    if missing := [str(path) for path in configs if not path.is_file()]:
        raise FileNotFoundError(f"expected files of configurations, got {', '.join(missing)}")
    for name in ("seeds", "batch_size"):
        if getattr(known, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(known, name)}")
    if known.devices is not None:
        options += (f"--trainer.devices={known.devices}",)
    # In a sweep the process's one run in wandb is the measurement.
    wandb = "disabled" if "WANDB_SWEEP_ID" in os.environ else known.wandb
    options += (f"--run.wandb={wandb}", f"--run.project={known.project}")
    series = [
        Series(config, (*options, *(with_sizes(config, sizes) if sizes else ())), known.root)
        for config, sizes in itertools.product(configs, known.sizes or [None])
    ]
    settings = [
        Setting(solver, splitting, known.tol, known.max_steps)
        for splitting, solver in itertools.product(splittings, solvers)
    ]
    seeds = known.seed or [*range(known.seeds)]
    adopted = [_adopted(text) for text in known.adopt]
    return Plan.of(series, seeds, settings, adopted=adopted, train_each=known.train == "each")


def _adopted(text: str) -> Source:
    """The run ``NAME=FOLDER``, or ``FOLDER`` by the name of the folder that it is in."""
    name, found, folder = text.rpartition("=")
    path = Path(folder).resolve()
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(
            f"--adopt: expected a run's folder version_N with its config.yaml, got {folder}"
        )
    return Source(name if found else path.parent.name, adopted=path)
