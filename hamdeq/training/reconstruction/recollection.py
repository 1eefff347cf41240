"""Recall by plain steps, and pictures of what a memory recalls."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hamdeq._checks import integer
from hamdeq.deq import DEQ
from hamdeq.energy.clamping import Clamped, forward_sweep
from hamdeq.energy.model import State
from hamdeq.plots import retrieval_gallery
from hamdeq.training.callbacks import PictureCallback
from hamdeq.training.reconstruction.masks import all_channels, generator
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor

__all__ = ["Recall", "RecallPictures", "pictures", "recall"]


@dataclass(frozen=True)
class Recall:
    """The states of all layers along plain steps, and their energy.

    Attributes:
        states: before the first step, and after each.
        energy: of these: ``(steps + 1, batch)``.
    """

    states: list[State]
    energy: Tensor


@torch.no_grad()
def recall(deq: DEQ, given: State, observed: State | None = None, *, steps: int = 30) -> Recall:
    """Update a memory by plain steps, which never raise the energy where it is even-odd split.

    The solver of a DEQ takes fewer steps to the equilibrium; these show the way.

    Args:
        deq: the memory.
        given: states of the clamped layers, as a call takes them.
        observed: which of their neurons are observed, likewise.
        steps: number of steps, ≥ 1.
    """
    steps = integer("steps", steps)
    reduced = deq.reduced(given, observed)
    model = reduced.model
    assert isinstance(model, Clamped)
    start = forward_sweep(model)
    x = {name: start[name] for name in reduced.visible}
    states = [model.full(reduced.restore(x))]
    for _ in range(steps):
        x = reduced.update(x)
        states.append(model.full(reduced.restore(x)))
    return Recall(states, torch.stack([deq.energy(state) for state in states]))


class RecallPictures(PictureCallback):
    """Draws, after a test, what a :class:`HAMReconstructor` recalls: three pictures.

    ``recall_label.png``: an image for each label. ``recall_half.png``: images of which one half is
    observed. ``recall_holes.png``: images with a hole, or of which scattered pixels are observed.
    In the latter two the label is unknown; each has one test image of each class. Beside the images
    the energy falls along plain steps of the memory.

    Args:
        folder: where to write; default the trainer's log folder.
        steps: plain steps to take.
    """

    def __init__(self, folder: str | Path | None = None, steps: int = 100) -> None:
        super().__init__(folder)
        self.steps: int = integer("steps", steps)
        self._examples: dict[int, Tensor] = {}

    def clear(self) -> None:
        self._examples = {}

    def keep(self, module: Any, inputs: Tensor, labels: Tensor) -> None:
        for label in labels.unique().tolist():
            if label not in self._examples:
                self._examples[label] = inputs[labels == label][0].flatten()

    def figures(self, module: Any) -> dict[str, Any]:
        if not self._examples:
            return {}
        labels = sorted(self._examples)
        images = torch.stack([self._examples[label] for label in labels])
        drawn = pictures(module, images, labels, steps=self.steps)
        return {f"recall_{name}": figure for name, figure in drawn.items()}


def pictures(
    module: HAMReconstructor, images: Tensor, labels: list[int], *, steps: int = 100
) -> dict[str, Any]:
    """Figures by name: images from these labels, from halves of these images, from what is left.

    Args:
        module: the trained memory.
        images: an example of each label: ``(count, numbers)``.
        labels: their classes.
        steps: plain steps to take.
    """
    classes = torch.tensor(labels, device=images.device)
    named = module.encoding.classes or range(module.n_outputs)
    names = [str(named[label]) for label in labels]
    halves, holes = _masks(len(images), module.image_shape, images.device)
    asked = {
        "label": ("An image for each label", {"labels": classes}),
        "half": ("Halves completed, the label unknown", {"images": images, "observed": halves}),
        "holes": (
            "Damaged images restored, the label unknown",
            {"images": images, "observed": holes},
        ),
    }
    # The last steps change an energy by less than float32 rounds it.
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    deq = copy.deepcopy(module.deq).to(dtype)
    figures = {}
    for kind, (title, question) in asked.items():
        given, parts = module.ask(**question)
        found = recall(deq, {a: x.to(dtype) for a, x in given.items()}, parts, steps=steps)
        states = [state[module.input].flatten(1) for state in found.states]
        rows: dict[str, Tensor] = {}
        if (observed := question.get("observed")) is not None:
            rows["given"] = images.where(observed, torch.nan)
        shown = sorted({k for k in (1, 3, 8, steps) if k <= steps})
        rows |= {("recalled" if k == steps else f"step {k}"): states[k] for k in shown}
        columns = names
        if observed is not None:
            rows["original"] = images
            answers = found.states[-1][module.output].flatten(1).argmax(1).tolist()
            columns = [f"“{named[answer]}”" for answer in answers]
            title += "; above, the label recalled"
        figures[kind] = retrieval_gallery(
            rows,
            module.image_shape,
            limits=(0.0, 1.0),
            energy=found.energy,
            names=columns,
            title=title,
        )
    return figures


def _masks(n: int, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Observed pixels of n images: one of their halves; all but a hole, or scattered ones."""
    height, width = shape[-2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    upper = (rows < height / 2).expand(height, width)
    left = (columns < width / 2).expand(height, width)
    halves = torch.stack([(upper, left, ~upper, ~left)[i % 4] for i in range(n)])
    # A hole in the middle, where most of the ink is.
    hole = (rows >= height / 4) & (rows < 3 * height / 4)
    hole = hole & (columns >= width / 4) & (columns < 3 * width / 4)
    scattered = torch.rand(n, height, width, generator=generator(0)) < 0.3
    holes = torch.stack([~hole if i % 2 == 0 else scattered[i] for i in range(n)])
    return all_channels(halves, shape).to(device), all_channels(holes, shape).to(device)
