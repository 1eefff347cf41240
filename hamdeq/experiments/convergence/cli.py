"""``python -m hamdeq.experiments.convergence``"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

from hamdeq.experiments.convergence.configuration import read, with_sizes
from hamdeq.experiments.convergence.plan import (
    SOLVERS,
    SPLITTINGS,
    Setting,
    Source,
    adopted,
    plan,
    solver_class,
)
from hamdeq.experiments.convergence.running import Experiment
from hamdeq.experiments.convergence.tracking import Tracking
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.experiments.series import Series
from hamdeq.training.cli.configurations import configuration
from hamdeq.training.cli.run import check_wandb
from hamdeq.training.files import described

__all__ = ["main"]

_DEFAULT = "digits"


def main(args: list[str] | None = None) -> None:
    """Run the experiment; the arguments are the process's own by default."""
    parser = _parser()
    known, options = parser.parse_split(args)
    try:
        experiment = Experiment(
            _plan(known, options),
            known.root,
            Tracking(known.wandb, known.project, known.group or known.root.resolve().name),
            batch_size=known.batch_size,
            data_root=known.data_root,
            with_published=known.published,
            trust=known.trust,
        )
        if known.wandb == "online":
            check_wandb()
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(described(error))
    with tidy(resumes=True):
        experiment.run()
        print(experiment.report(), known.root, sep="\n")
    if experiment.failures:
        raise SystemExit("\n".join(f"error: failed: {failure}" for failure in experiment.failures))


def _parser() -> Parser:
    parser = Parser(
        "convergence",
        "Measure how fast memories converge: iterations, evaluations, multiplications, time and "
        "accuracy on the test images. Memories are trained first, or taken from finished runs.",
        operands="[CONFIG...]",
        epilog="Every other option, --name value or --name=value, goes to the command line of the "
        "trainings. The same command goes on where it was interrupted, and several processes share "
        "the work.",
    )
    add, count = parser.add_argument, checked(int)
    text = "configurations to train"
    add("configs", nargs="*", type=configuration, default=[], metavar="CONFIG", help=text)
    text = "one more configuration, as a sweep gives it"
    add("--config", action="append", type=configuration, default=[], help=text)
    text = "measure finished runs, too"
    add("--adopt", action="append", default=[], metavar="NAME=FOLDER", help=text)
    add("--trust", action="store_true", help="adopt runs of any classes, which may run any code")
    add("--seeds", type=count, default=2, help="train with the seeds from 0 to one less than this")
    add("--seed", type=int, nargs="+", help="train with these seeds instead")
    text = (
        f"solvers to compare, instead of the one trained with: {', '.join(SOLVERS)}, or a class of "
        "your own, such as mypackage.MySolver"
    )
    add("--solvers", nargs="+", type=_solver, metavar="SOLVER", help=text)
    add("--splittings", nargs="+", choices=SPLITTINGS, help="splittings to compare")
    text = "relative residual at which a sample has converged"
    add("--tol", type=checked(float, above=0.0), help=text)
    add("--max_steps", type=count, help="largest number of iterations")
    add("--sizes", nargs="+", help="sizes of chains to train, such as 784-512-10")
    text = "train once, or anew for each solver and splitting"
    add("--train", choices=("once", "each"), default="once", help=text)
    add("--devices", type=count, help="devices, or processes, of each training")
    add("--data.root", dest="data_root", help="folder of the data, for finished runs as well")
    add("--batch_size", type=count, default=64, help="images of a batch that is measured")
    add("--published", action="store_true", help="show published figures beside the measured ones")
    text = "whether wandb records, and where to"
    add("--wandb", choices=("offline", "online", "disabled"), default="offline", help=text)
    add("--project", default="hamdeq", help="wandb project")
    add("--group", help="wandb group, by default the name of the root folder")
    add("--root", type=Path, default=Path("runs/convergence"), help="folder for everything")
    return parser


def _plan(known: argparse.Namespace, options: tuple[str, ...]) -> list[tuple[Source, Setting]]:
    configs = [*known.configs, *known.config]
    solvers, splittings = known.solvers or [None], known.splittings or [None]
    if not configs and not known.adopt:
        configs = [configuration(_DEFAULT)]
        solvers = known.solvers or ["picard", "anderson", "broyden"]
        splittings = known.splittings or ["none", "even-odd"]
    if missing := [str(path) for path in configs if not path.is_file()]:
        raise FileNotFoundError(f"expected files of configurations, got {', '.join(missing)}")
    if options and not configs:
        raise ValueError(f"expected no options of trainings, as nothing is trained, got {options}")
    for config in configs:
        read(config)
    if known.devices is not None:
        options += (f"--trainer.devices={known.devices}",)
    series = [
        Series(
            config,
            (*options, *(with_sizes(config, sizes) if sizes else ())),
            known.root,
            _bookkeeping(known),
        )
        for config, sizes in itertools.product(configs, known.sizes or [None])
    ]
    settings = [
        Setting(solver, splitting, known.tol, known.max_steps)
        for splitting, solver in itertools.product(splittings, solvers)
    ]
    seeds = known.seed or [*range(known.seeds)]
    found = [source for text in known.adopt for source in adopted(text, trust=known.trust)]
    return plan(series, seeds, settings, adopted=found, train_each=known.train == "each")


def _bookkeeping(known: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of the trainings that change no result."""
    # In a sweep the process's one run in wandb is the measurement.
    wandb = "disabled" if "WANDB_SWEEP_ID" in os.environ else known.wandb
    data = () if known.data_root is None else (f"--data.root={known.data_root}",)
    return (f"--run.wandb={wandb}", f"--run.project={known.project}", *data)


def _solver(name: str) -> str:
    try:
        solver_class(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name
