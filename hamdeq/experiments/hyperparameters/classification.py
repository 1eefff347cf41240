"""MNIST by rate and 1/T: ``python -m hamdeq.experiments.hyperparameters.classification``.

A dense associative memory with class neurons learns images of black and white pixels, with every
learning rate and every inverse temperature of a grid, in both formulations; measured is the macro
F1 score of images that it has not learned. Only class neurons are updated, once, with the image
clamped, and only their part of the memories is not bounded.

By default few images, memories and epochs; ``--full`` is the paper's protocol, with 256 memories
and 500 epochs.

Source: McAlister et al., "Improved Robustness and Hyperparameter Selection in the Dense Associative
Memory" (2024), section 5.3, figures 5 and 6.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score

from hamdeq.data import MNISTDataModule
from hamdeq.experiments.options import Parser, checked, tidy
from hamdeq.memories import (
    DenseAssociativeMemory,
    Interaction,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
)
from hamdeq.optim import NormalisedSGD
from hamdeq.training.files import save_figure, write_csv
from hamdeq.training.progress import Progress

__all__ = ["Cell", "Classification", "Images", "f1_maps", "main"]

Formulation = Literal["original", "normalised"]
_RATES = (0.001, 0.01, 0.1, 1.0)
_INVERSE = (0.1, 0.316, 1.0, 3.16, 10.0, 31.6)
_FULL_RATES = (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0)
_FULL_INVERSE = (0.1, 0.178, 0.316, 0.562, 1.0, 1.78, 3.16, 5.62, 10.0, 17.8, 31.6)


@dataclass(frozen=True)
class Cell:
    """One network of a map. Its 1/T is that of the normalised formulation.

    Args:
        formulation: where the temperature acts; the original one has the temperature N T, with
            which xⁿ makes the same network.
        n: interaction vertex.
        rate: of the first epoch.
        inverse_temperature: 1/T.
    """

    formulation: Formulation
    n: int
    rate: float
    inverse_temperature: float


@dataclass(frozen=True, eq=False)
class Images:
    """Images ``(count, N)`` of ±1 with their labels, to learn and to judge by."""

    learned: Tensor
    labels: Tensor
    others: Tensor
    their_labels: Tensor

    @classmethod
    def of_mnist(cls, root: str | None, learned: int, others: int, seed: int = 0) -> Images:
        """Draw both from MNIST's training images; pixels that are not black are +1."""
        module = MNISTDataModule(root, download=False)
        module.prepare_data()
        images, labels, *_ = module.load()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        rows = order[: learned + others]
        states = torch.where(images[rows] > 0, 1.0, -1.0).double()
        both = states.split([learned, len(rows) - learned])
        return cls(both[0], labels[rows[:learned]], both[1], labels[rows[learned:]])


@dataclass(frozen=True)
class Classification:
    """The settings that all cells have in common.

    Args:
        interaction: ``leaky``, ``rectified`` or ``polynomial``.
        eps: ε of the leaky function; −0.01 in the authors' code.
        floor: of a step's divisor, in units of the summed loss's gradient; 10⁻³⁰ in their code.
        teacher: whether a class neuron sees the others at the label's values, as in their code.
        memories: K.
        epochs: each over all images, in batches.
        batch: images of a batch.
        seed: of the memories and of the batches.
    """

    interaction: str = "leaky"
    eps: float = -0.01
    floor: float = 1e-30
    teacher: bool = True
    memories: int = 64
    epochs: int = 20
    batch: int = 16
    seed: int = 0

    def function(self, n: int) -> Interaction:
        """F with the interaction vertex n."""
        if self.interaction == "leaky":
            return LeakyRectifiedPolynomial(n, self.eps)
        return {"rectified": RectifiedPolynomial, "polynomial": Polynomial}[self.interaction](n)

    def measure(self, cell: Cell, images: Images) -> float:
        """Learn, and return the F1 score; NaN where F overflows."""
        size, classes = images.learned.shape[1], 10
        t = 1 / cell.inverse_temperature
        scaling = Normalised(t) if cell.formulation == "normalised" else Original((size + 10) * t)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the same memories in all cells
            memory = DenseAssociativeMemory(
                size,
                self.function(cell.n),
                scaling=scaling,
                memories=self.memories,
                classes=classes,
            ).double()
        floor = self.floor / (self.batch * classes)  # the loss is a mean
        optimizer = NormalisedSGD([memory.memories], lr=cell.rate, free=classes, floor=floor)
        generator = torch.Generator().manual_seed(self.seed)
        try:
            for epoch in range(self.epochs):
                optimizer.param_groups[0]["lr"] = cell.rate * 0.999**epoch
                order = torch.randperm(len(images.learned), generator=generator)
                for rows in order.split(self.batch):
                    optimizer.zero_grad()
                    loss, _ = memory.class_loss(
                        images.learned[rows], images.labels[rows], teacher=self.teacher
                    )
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                chosen = memory.classify(images.others).argmax(1)
        except OverflowError:
            return float("nan")
        score = multiclass_f1_score(chosen, images.their_labels, classes, average="macro")
        return float(score)


def f1_maps(scores: Mapping[Cell, float], *, title: str = "") -> Figure:
    """F1 scores over rate and 1/T: a panel for each n and formulation, bright is good."""
    formulations, vertices, rates, inverse = _axes(scores)
    figure = Figure(
        figsize=(1.2 + 2.0 * len(vertices), 0.8 + 2.0 * len(formulations)),
        dpi=150,
        layout="constrained",
    )
    figure.suptitle(title)
    panels = figure.subplots(len(formulations), len(vertices), squeeze=False)
    for row, n in itertools.product(range(len(formulations)), range(len(vertices))):
        panel = panels[row, n]
        values = np.array(
            [
                [scores[Cell(formulations[row], vertices[n], rate, t)] for t in inverse]
                for rate in rates
            ]
        )
        image = panel.imshow(
            np.ma.masked_invalid(values), origin="lower", aspect="auto", vmin=0, vmax=1,
            cmap="cividis",
        )  # fmt: skip
        panel.set_facecolor("0.8")
        panel.set_title(f"{formulations[row]}, n = {vertices[n]}", fontsize=9)
        panel.set_xticks(range(len(inverse)), [f"{t:.3g}" for t in inverse], fontsize=7)
        panel.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], fontsize=7)
        panel.set_xlabel("1/T", fontsize=8)
        panel.set_ylabel("learning rate", fontsize=8)
        if (row, n) == (len(formulations) - 1, len(vertices) - 1):
            figure.colorbar(image, ax=panels, label="F1 (1 is best; grey: overflow)")
    return figure


def _axes(
    scores: Mapping[Cell, float],
) -> tuple[list[Formulation], list[int], list[float], list[float]]:
    formulations: list[Formulation] = list(dict.fromkeys(cell.formulation for cell in scores))
    return (
        formulations,
        sorted({cell.n for cell in scores}),
        sorted({cell.rate for cell in scores}),
        sorted({cell.inverse_temperature for cell in scores}),
    )


def _table(scores: Mapping[Cell, float]) -> tuple[list[str], list[list[str]]]:
    """The maps as a table: a row for each rate, a column for each 1/T."""
    formulations, vertices, rates, inverse = _axes(scores)
    heads = ["formulation", "n", "rate", *(f"1/T = {t:.3g}" for t in inverse)]
    lines = []
    for formulation, n, rate in itertools.product(formulations, vertices, rates):
        row = [scores.get(Cell(formulation, n, rate, t), float("nan")) for t in inverse]
        cells = ["–" if score != score else f"{score:.2f}" for score in row]
        lines.append([formulation, str(n), f"{rate:g}", *cells])
    return heads, lines


def main(args: Sequence[str] | None = None) -> None:
    """Measure the maps, and write ``cells.csv``, ``table.csv`` and ``f1.png``."""
    parser = Parser(
        "hyperparameters.classification",
        "Maps of the F1 score of a dense associative memory on MNIST, over learning rate and 1/T.",
    )
    add = parser.add_argument
    count, positive = checked(int), checked(float, above=0.0)
    text = "the paper's 256 memories and 500 epochs, 50,000 images, and finer axes: weeks on a core"
    add("--full", action="store_true", help=text)
    both: list[Formulation] = ["original", "normalised"]
    add("--formulation", nargs="+", choices=both, default=both, help="where 1/T acts")
    add("--n", nargs="+", type=count, default=[2, 5, 10, 20], help="interaction vertices")
    text = "function F"
    names = ("leaky", "rectified", "polynomial")
    add("--interaction", choices=names, default="leaky", help=text)
    text = "ε of the leaky function, −εx below zero; the authors' code has -0.01"
    add("--eps", type=checked(float), default=-0.01, help=text)
    text = "least divisor of a step, of the summed loss's gradient; the authors' code has 1e-30"
    add("--floor", type=checked(float, least=0.0), default=1e-30, help=text)
    text = "what class neurons see of the others in learning; the authors' code has labels"
    add("--others", choices=("labels", "off"), default="labels", help=text)
    add("--rates", nargs="+", type=positive, help="learning rates")
    add("--inverse-temperatures", nargs="+", type=positive, help="1/T; the original's is 1/(N T)")
    add("--images", type=count, help="images to learn, by default 1000")
    add("--held-out", type=count, help="images to judge by, by default 1000")
    add("--memories", type=count, help="memories K, by default 64")
    add("--epochs", type=count, help="epochs of learning, by default 20")
    add("--batch", type=count, help="images of a batch, by default 16, with --full 128")
    add("--seed", type=int, default=0, help="seed of images, memories and batches")
    add("--data-root", help="folder that contains MNIST/raw, by default HAMDEQ_DATA")
    out = Path("runs/classification")
    add("--out", type=Path, default=out, help="folder for the results")
    options = parser.parse_args(args)
    full: bool = options.full
    learned, others = (50000, 10000) if full else (1000, 1000)
    protocol = Classification(
        options.interaction,
        options.eps if options.interaction == "leaky" else 0.0,
        options.floor,
        options.others == "labels",
        options.memories or (256 if full else 64),
        options.epochs or (500 if full else 20),
        options.batch or (128 if full else 16),
        options.seed,
    )
    cells = [
        Cell(*each)
        for each in itertools.product(
            options.formulation,
            options.n,
            options.rates or (_FULL_RATES if full else _RATES),
            options.inverse_temperatures or (_FULL_INVERSE if full else _INVERSE),
        )
    ]
    try:
        images = Images.of_mnist(
            options.data_root, options.images or learned, options.held_out or others, options.seed
        )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    scores: dict[Cell, float] = {}
    cpu = time.process_time()
    with tidy():
        options.out.mkdir(parents=True, exist_ok=True)
        try:
            with Progress(len(cells), description="classification") as bar:
                for cell in cells:
                    scores[cell] = protocol.measure(cell, images)
                    bar.advance()
        finally:  # What an interrupted call has measured is kept as well.
            heads = ["formulation", "n", "rate", "inverse_temperature", "f1"]
            write_csv(options.out / "cells.csv", heads, [(*_row(c), f) for c, f in scores.items()])
            if scores:
                write_csv(options.out / "table.csv", *_table(scores))
        title = f"{protocol.interaction}, K = {protocol.memories}, {protocol.epochs} epochs"
        save_figure(f1_maps(scores, title=title), options.out / "f1.png")
    minutes = (time.process_time() - cpu) / 60
    print(f"{options.out}: cells.csv, table.csv, f1.png; {minutes:.1f} minutes of the processor")


def _row(cell: Cell) -> tuple[object, ...]:
    return cell.formulation, cell.n, cell.rate, cell.inverse_temperature


if __name__ == "__main__":
    main()
