"""``python -m hamdeq.experiments.hyperparameters``."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hamdeq.experiments.hyperparameters.protocol import (
    INTERACTIONS,
    Protocol,
    axes,
    papers_maps,
)
from hamdeq.experiments.hyperparameters.report import (
    draw,
    draw_overviews,
    table,
    write_csv,
    write_table,
)
from hamdeq.experiments.hyperparameters.results import Results, load
from hamdeq.experiments.hyperparameters.running import run_all
from hamdeq.experiments.hyperparameters.tracking import log
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.training.cli.run import check_wandb
from hamdeq.training.files import DamagedFileError, is_whole_png, write_file

__all__ = ["main"]

# Options of which several values may be given: there is a map for each of their combinations.
_CROSSED = ("eps", "floor", "unit", "decay", "momentum", "exponent")


def main(args: Sequence[str] | None = None) -> None:
    """Draw the heat maps; the arguments are the process's own by default."""
    parser = _parser()
    options = parser.parse_args(args)
    protocols = _protocols(parser, options)
    if options.wandb == "online":
        try:
            check_wandb()
        except ValueError as error:
            parser.error(str(error))
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: expected a folder that can be written, got {error.strerror}")
    print(_summary(protocols, options.full))
    start = time.perf_counter()
    failures: list[str] = []
    with tidy(resumes=True):
        for results in run_all(
            protocols,
            out / "maps",
            workers=options.workers,
            compiled=options.kernel == "auto",
            failed=lambda map_, why: failures.append(f"error: failed: {map_.name}: {why}"),
        ):
            _publish(results, out, options)
        found = _report(protocols, out, options)
    kernels = ", ".join(sorted({results.kernel for results in found}))
    print(table(found))
    print(
        f"{out}: table.md, table.csv, cells.csv, maps/, figures/; kernels: {kernels}; "
        f"this call took {(time.perf_counter() - start) / 60:.1f} minutes, all maps "
        f"{sum(r.cpu_seconds for r in found) / 60:.1f} minutes of the processor"
    )
    if failures:
        raise SystemExit("\n".join(failures))


def _report(protocols: list[Protocol], out: Path, options: argparse.Namespace) -> list[Results]:
    """Write everything but the maps; return their results."""
    found: list[Results] = []
    for protocol in protocols:
        with suppress(DamagedFileError):  # where it could not be measured again
            if (results := load(protocol, out / "maps")) is not None:
                found.append(results)
    for results in found:  # also of earlier calls that were killed before this
        _publish(results, out, options)
    draw_overviews(found, out / "figures")
    write_csv(found, out / "cells.csv")
    write_table(found, out / "table.csv")
    write_file(out / "table.md", table(found))
    return found


def _publish(results: Results, out: Path, options: argparse.Namespace) -> None:
    """Draw a map and log it, unless that has been done."""
    picture = out / "figures" / f"{results.protocol.name}.png"
    if not is_whole_png(picture):
        draw(results, picture.parent)
    log(results, picture, out, project=options.project, mode=options.wandb)


def _summary(protocols: list[Protocol], full: bool) -> str:
    networks = sum(p.count for p in protocols)
    one = protocols[0]
    text = (
        f"{len(protocols)} maps of {networks} networks: {one.repeats} repeats, K = {one.memories} "
        f"memories, {one.epochs} epochs, {one.dtype}"
    )
    if full:
        return text
    return text + "; --full has twice as fine axes, and 5 repeats as the papers have"


def _protocols(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Protocol]:
    found = []
    asked = papers_maps(options.formulation, options.grid, options.size, options.n)
    settings = [getattr(options, name) for name in _CROSSED]
    for interaction, *values in itertools.product(options.interaction, *settings):
        crossed = dict(zip(_CROSSED, values, strict=True))
        if interaction != "leaky":
            crossed["eps"] = 0.0  # no part of other functions, nor of their maps' names
        for formulation, grid, size, states, n in asked:
            rates, inverse = axes(formulation, grid, size, full=options.full)
            protocol = Protocol(
                formulation,
                grid,
                size,
                options.states or states,
                n,
                tuple(options.rates or rates),
                tuple(options.inverse_temperatures or inverse),
                interaction,
                memories=options.memories,
                epochs=options.epochs,
                repeats=options.repeats or (5 if options.full else 2),
                std=options.std,
                recall_temperature=options.recall_temperature,
                dtype=options.dtype,
                seed=options.seed,
                **crossed,
            )
            found.append(protocol)
    if not found:
        parser.error(
            f"--size, --formulation: expected one of which the papers have maps, got "
            f"{options.size} and {options.formulation}; say which maps you want with --n"
        )
    return list(dict.fromkeys(found))


def _parser() -> Parser:
    parser = Parser(
        "hyperparameters",
        "Heat maps of what a dense associative memory learns over learning rate and 1/T. The same "
        "command goes on where it was interrupted.",
    )
    count, positive = checked(int), checked(float, above=0.0)
    add = parser.add_argument_group("which maps").add_argument
    both = ["normalised", "original"]
    add("--formulation", nargs="+", choices=both, default=both, help="where the temperature acts")
    grids = ["fine", "coarse"]
    add(
        "--grid", nargs="+", choices=grids, default=grids, help="axes around the best, or wide ones"
    )
    add("--size", nargs="+", type=count, default=[100, 250], help="neurons N")
    add("--n", nargs="+", type=count, help="interaction vertices, by default those of the papers")
    add("--interaction", nargs="+", choices=INTERACTIONS, default=["leaky"], help="functions F")

    text = "several values of an option give a map for each combination"
    add = parser.add_argument_group("variants of learning", text).add_argument
    text = "ε of the leaky function, −εx below zero; the authors' code has -0.01"
    add("--eps", nargs="+", type=checked(float), default=[1e-2], help=text)
    text = "least divisor of a step, of the summed loss's gradient; the authors' code has 1e-30"
    add("--floor", nargs="+", type=checked(float, least=0.0), default=[0.0], help=text)
    text = "what is scaled so that its largest gradient moves by the learning rate"
    units = ("memory", "network", "none")
    add("--unit", nargs="+", choices=units, default=["memory"], help=text)
    share = checked(float, above=0.0, most=1.0)
    add("--decay", nargs="+", type=share, default=[0.999], help="factor of the rate, each epoch")
    part = checked(float, least=0.0, below=1.0)
    add("--momentum", nargs="+", type=part, default=[0.0], help="of the gradient")
    add("--exponent", nargs="+", type=count, default=[1], help="error exponent m")

    add = parser.add_argument_group("protocol").add_argument
    add("--full", action="store_true", help="twice as fine axes, and 5 repeats")
    text = "states to learn, by default 20 with N = 100 and 30 with N = 250"
    add("--states", type=count, help=text)
    add("--memories", type=count, default=100, help="memories K")
    add("--epochs", type=count, default=500, help="epochs of learning")
    text = "random sets of states and memories, by default 2, or 5 with --full"
    add("--repeats", type=count, help=text)
    add("--rates", nargs="+", type=positive, help="learning rates of all maps")
    add("--inverse-temperatures", nargs="+", type=positive, help="1/T of all maps")
    add("--std", type=positive, default=0.1, help="standard deviation of the initial memories")
    text = "T of recall, by default that of learning; the authors' code has 1"
    add("--recall-temperature", type=positive, help=text)
    text = "precision of learning"
    add("--dtype", choices=("float64", "float32"), default="float64", help=text)
    add("--seed", type=int, default=0, help="seed of states and memories")

    add = parser.add_argument_group("run").add_argument
    out = Path("runs/hyperparameters")
    add("--out", type=Path, default=out, help="folder for the results")
    add("--workers", type=count, default=1, help="processes of one thread each")
    text = "compiled where there is a compiler, or never"
    add("--kernel", choices=("auto", "eager"), default="auto", help=text)
    text = "whether wandb records, and where to"
    add("--wandb", choices=("offline", "online", "disabled"), default="offline", help=text)
    add("--project", default="hamdeq", help="wandb project")
    return parser
