"""The command line of the search: which maps, how fine, and where results go."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hamdeq.experiments.hyperparameters.protocol import (
    INTERACTIONS,
    Protocol,
    axes,
    papers_maps,
)
from hamdeq.experiments.hyperparameters.report import draw, draw_overviews, table, write_csv
from hamdeq.experiments.hyperparameters.results import Results, load
from hamdeq.experiments.hyperparameters.running import run_all
from hamdeq.experiments.hyperparameters.tracking import log
from hamdeq.experiments.options import Parser
from hamdeq.training.cli.run import check_wandb
from hamdeq.training.files import DamagedFileError, described, is_whole_png, write_file

__all__ = ["main"]


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
    print(_told(protocols, options.full))
    maps, start = out / "maps", time.perf_counter()
    failures: list[str] = []

    def failed(protocol: Protocol, error: Exception) -> None:
        told = described(error) if isinstance(error, OSError) else str(error)
        failures.append(f"error: failed: {protocol.name}: {told or type(error).__name__}")

    try:
        for results in run_all(
            protocols,
            maps,
            workers=options.workers,
            compiled=options.kernel == "auto",
            failed=failed,
        ):
            _publish(results, out, options)
        found = _report(protocols, out, options)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on where this one stopped") from None
    except OSError as error:
        raise SystemExit(f"error: {described(error)}") from None
    kernels = ", ".join(sorted({results.kernel for results in found}))
    print(table(found))
    print(
        f"{out}: table.md, cells.csv, maps/, figures/; kernels: {kernels}; this call took "
        f"{(time.perf_counter() - start) / 60:.1f} minutes, all maps "
        f"{sum(r.cpu_seconds for r in found) / 60:.1f} minutes of the processor"
    )
    if failures:
        raise SystemExit("\n".join(failures))


def _report(protocols: list[Protocol], out: Path, options: argparse.Namespace) -> list[Results]:
    """Write everything but the maps, which are returned."""
    found: list[Results] = []
    for protocol in protocols:
        with suppress(DamagedFileError):  # where it could not be measured again
            if (results := load(protocol, out / "maps")) is not None:
                found.append(results)
    for results in found:  # of earlier calls, if they were killed before they came to it
        _publish(results, out, options)
    draw_overviews(found, out / "figures")
    write_csv(found, out / "cells.csv")
    write_file(out / "table.md", table(found))
    return found


def _publish(results: Results, out: Path, options: argparse.Namespace) -> None:
    """Draw a map and log it, unless that has been done."""
    picture = out / "figures" / f"{results.protocol.name}.png"
    if not is_whole_png(picture):
        draw(results, picture.parent)
    log(results, picture, out, project=options.project, mode=options.wandb)


def _told(protocols: list[Protocol], full: bool) -> str:
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
    for interaction in options.interaction:
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
                # Of the other functions it is no part, nor of their maps' names.
                eps=options.eps if interaction == "leaky" else 0.0,
                memories=options.memories,
                epochs=options.epochs,
                repeats=options.repeats or (5 if options.full else 2),
                std=options.std,
                unit=options.unit,
                dtype=options.dtype,
                seed=options.seed,
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
    count, positive = _number(int, 1), _number(float, 0.0)
    which = parser.add_argument_group("which maps")
    which.add_argument(
        "--formulation", nargs="+", choices=("original", "normalised"),
        default=["normalised", "original"],
        help="where the temperature acts",
    )  # fmt: skip
    which.add_argument(
        "--grid",
        nargs="+",
        choices=("coarse", "fine"),
        default=["fine", "coarse"],
        help="wide axes, or those around the best",
    )
    which.add_argument("--size", nargs="+", type=count, default=[100, 250], help="neurons N")
    which.add_argument(
        "--n", nargs="+", type=count, help="interaction vertices, by default those of the papers"
    )
    which.add_argument(
        "--interaction",
        nargs="+",
        choices=INTERACTIONS,
        default=["leaky"],
        help="interaction functions F",
    )
    which.add_argument(
        "--eps", type=_number(float, 0.0, True), default=1e-2, help="slope ε of the leaky function"
    )
    how = parser.add_argument_group("protocol")
    how.add_argument("--full", action="store_true", help="twice as fine axes, and 5 repeats")
    how.add_argument(
        "--states",
        type=count,
        help="states to learn, by default 20 with N = 100 and 30 with N = 250",
    )
    how.add_argument("--memories", type=count, default=100, help="memories K")
    how.add_argument("--epochs", type=count, default=500, help="epochs of learning")
    how.add_argument(
        "--repeats",
        type=count,
        help="random sets of states and memories, by default 2, or 5 with --full",
    )
    how.add_argument("--rates", nargs="+", type=positive, help="learning rates of all maps")
    how.add_argument("--inverse-temperatures", nargs="+", type=positive, help="1/T of all maps")
    how.add_argument(
        "--std", type=positive, default=0.1, help="standard deviation of the initial memories"
    )
    how.add_argument(
        "--unit", choices=("memory", "network", "none"), default="memory",
        help="what is scaled so that its largest gradient moves by the learning rate",
    )  # fmt: skip
    how.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="precision of learning"
    )
    how.add_argument("--seed", type=int, default=0, help="seed of states and memories")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--out", type=Path, default=Path("runs/hyperparameters"), help="folder for the results"
    )
    run.add_argument("--workers", type=count, default=1, help="processes of one thread each")
    run.add_argument(
        "--kernel",
        choices=("auto", "eager"),
        default="auto",
        help="compiled where there is a compiler, or never",
    )
    run.add_argument(
        "--wandb",
        choices=("offline", "online", "disabled"),
        default="offline",
        help="whether wandb records, and where to",
    )
    run.add_argument("--project", default="hamdeq", help="wandb project")
    return parser


def _number(kind: Callable[[str], Any], low: float, included: bool | None = None) -> Any:
    """A type of an argument: at least ``low`` for integers, above it otherwise."""
    closed = kind is int if included is None else included

    def parse(text: str) -> Any:
        what = "an integer" if kind is int else "a finite number"
        message = f"expected {what} {'≥' if closed else '>'} {low:g}, got {text!r}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(message) from None
        if not (low <= value < float("inf")) or (value == low and not closed):
            raise argparse.ArgumentTypeError(message)
        return value

    return parse
