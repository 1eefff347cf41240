"""The Lightning module that trains a memory to give any part of an example from any other."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import boolean, class_labels, number, require, wrong
from hamdeq.data.encoding import as_samples
from hamdeq.deq import DEQ
from hamdeq.energy.model import State
from hamdeq.solvers import Solution
from hamdeq.training.equilibrium import EquilibriumModule
from hamdeq.training.module import OptimizerCallable, SchedulerCallable, as_pair
from hamdeq.training.prediction import Prediction, nearest_distribution
from hamdeq.training.reconstruction.masks import MaskSampler, Observed, generator

__all__ = ["HAMReconstructor"]

_STAGES = ("train", "val", "test")


class HAMReconstructor(EquilibriumModule):
    """Recall what is missing: clamp what is observed of image and label, solve for the rest.

    The loss is the mean squared error of the unknown pixels, between the input layer's state and
    the image, and ``label_weight`` times that of the unknown labels, between the output layer's
    state and the one-hot label: in the states, as the observed parts are given as states.

    What is observed is drawn for every training batch as a function of the seed, the epoch and the
    batch alone: a resumed run draws as the uninterrupted one. Validation and test draw the same in
    every epoch.

    Logs for train, val and test ``loss``, ``accuracy`` of the unknown labels, ``pixel_error``, the
    mean squared error of the unknown pixels, and to compare it with ``mean_image_error``, that of
    the mean of the training images seen so far; in the test, these for each kind of mask, too, as
    ``pixel_error_half``.

    Args:
        deq: the memory; its two clamped layers are those of the images and the labels, in this
            order, such as ``clamped=("input", "output")``. Neither may couple its neurons.
        masks: draws what is observed; default :class:`MaskSampler` with its defaults.
        label_weight: weight of the labels' error, ≥ 0.
        label_scale: state of the neuron of an observed label, > 0; the loss divides by it. An
            energy weighs states by their squares, and a label of one neuron at 1 counts as little
            as one white pixel: too little where an image is to follow from it alone.
        image_shape: ``(height, width)`` of an image, or ``(channels, height, width)`` with three
            channels, of which a pixel is observed or unknown as a whole; default that of the input
            layer, or a square where the layer is flat.
        seed: of the masks; default the seed of torch's random numbers, which the command line
            sets by ``seed_everything``.
        optimizer: from parameters to an optimiser; default Adam with its defaults.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        width: as of :class:`~hamdeq.training.equilibrium.EquilibriumModule`; here all layers are
            free.

    Raises:
        ValueError: a deq without two clamped layers, or of which one couples its neurons; a
            number out of its range; an image shape of other than the input layer's size.

    A batch is ``(images, labels)``: images ``(batch, …)`` of floating point, with as many numbers
    as the input layer has neurons; labels ``(batch,)`` of int64.
    """

    def __init__(
        self,
        deq: DEQ,
        masks: MaskSampler | None = None,
        label_weight: float = 1.0,
        label_scale: float = 1.0,
        image_shape: tuple[int, ...] | None = None,
        seed: int | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: SchedulerCallable | None = None,
        width: float | None = None,
    ) -> None:
        if len(deq.clamped) != 2:
            expected = "two clamped layers, the images' and the labels'"
            raise wrong("deq", expected, deq.clamped, "give clamped=('input', 'output')")
        for name in deq.clamped:
            lagrangian = deq.ham.layer(name).lagrangian
            expected = f"independent neurons in {name!r}, of which a part can be observed"
            got, remedy = type(lagrangian).__name__, "use Identity(), Sigmoid() or Tanh()"
            require(lagrangian.additive, "deq", expected, got, remedy)
        image, label = deq.clamped
        super().__init__(
            deq,
            clamped=(),
            input=image,
            output=label,
            optimizer=optimizer,
            scheduler=scheduler,
            width=width,
        )
        self.masks: MaskSampler = MaskSampler() if masks is None else masks
        self.label_weight: float = number("label_weight", label_weight, least=0)
        self.label_scale: float = number("label_scale", label_scale, above=0)
        shape = deq.ham.layer(image).shape
        self.image_shape: tuple[int, ...] = _image_shape(tuple(shape), image_shape)
        self.seed: int = torch.initial_seed() if seed is None else seed
        # Part of the checkpoint, with which a test has the baseline of its own training.
        like = next(deq.parameters(), torch.empty(0))
        self.register_buffer("mean_image", like.new_zeros(math.prod(shape)))
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.long))

    standardises: bool = False  # pixels are asked for, and drawn, as they are

    def forward(
        self,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        observed: Tensor | None = None,
        **options: Any,
    ) -> Solution:
        """Solve for the equilibrium given what is observed, which is the Solution's full state.

        Args:
            images: ``(batch, …)``; by default nothing is observed of them.
            labels: ``(batch,)`` of int64, −1 where unknown; by default all are.
            observed: which pixels are, boolean, ``(batch, …)`` or of one image, for each of its
                channels; by default all. The others' values do not matter.
            options: of a call of the `DEQ`, such as ``solver``.

        Raises:
            ValueError: neither images nor labels, wrong sizes, or a label that there is not.
        """
        state, parts = self.ask(images, labels, observed)
        return self.deq(state, observed=parts, **options)

    def ask(
        self,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> tuple[State, State]:
        """States to clamp and which of their neurons are observed, as `DEQ` takes them."""
        if images is None and labels is None:
            raise wrong("observed", "images, labels or both", "neither")
        like = self.mean_image
        shape = self.deq.ham.layer(self.input).shape
        batch = len(labels if images is None else images)  # pyright: ignore[reportArgumentType]
        if images is None:
            x = like.new_zeros(batch, *shape)
            mask = torch.zeros_like(x, dtype=torch.bool)
        else:
            x = self.as_input(images)
            mask = torch.ones_like(x, dtype=torch.bool)
            if observed is not None:
                mask = self._mask(observed, len(x)).reshape(-1, *shape).expand_as(x)
        classes = math.prod(self.deq.ham.layer(self.output).shape)
        if labels is None:
            labels = torch.full((batch,), -1, device=x.device)
        if tuple(labels.shape) != (batch,) or labels.is_floating_point():
            remedy = "give labels.squeeze(1)" if tuple(labels.shape) == (batch, 1) else None
            got = f"{tuple(labels.shape)} of {labels.dtype}"
            raise wrong("labels", f"({batch},) integers, −1 where unknown", got, remedy)
        if bool(((labels < -1) | (labels >= classes)).any()):
            expected = f"−1 (unknown) to {classes - 1}, as {self.output!r} has {classes} neurons"
            raise wrong("labels", expected, f"{int(labels.min())} to {int(labels.max())}")
        y = self.label_scale * F.one_hot(labels.clamp(min=0), classes).to(x)
        told = (labels >= 0)[:, None].expand(batch, classes)
        label_shape = self.deq.ham.layer(self.output).shape
        y, told = (t.reshape(batch, *label_shape) for t in (y, told))
        return {self.input: x, self.output: y}, {self.input: mask, self.output: told}

    def as_input(self, images: Tensor) -> Tensor:
        """Give images of `image_shape` the shape of the input layer."""
        images = as_samples(images, self.image_shape, "images", "the module's image_shape")
        return super().as_input(images)

    def _mask(self, observed: Tensor, batch: int) -> Tensor:
        """Mask of the observed pixels: ``(batch or 1, *image_shape)``."""
        one = math.prod(self.image_shape)
        boolean("observed", observed, "give observed > 0")
        expected = f"one for each of {one} pixels, or for those of {batch} images"
        fits = observed.numel() in (one, batch * one)
        require(fits, "observed", expected, tuple(observed.shape))
        samples = observed if observed.numel() != one else observed[None]
        return as_samples(samples, self.image_shape, "observed", "the module's image_shape")

    def _predict(self, inputs: Tensor) -> Prediction:
        """The classes of whole images."""
        solution = self(inputs)
        scores = solution.value[self.output].flatten(1) / self.label_scale
        return self._prediction(solution, scores.argmax(1), nearest_distribution(scores))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self._refuse_nan(as_pair(batch)[0], batch_idx)
        # Neither the step nor the state of a generator: these may differ in a run that goes on.
        loss = self._answer(batch, "train", self.current_epoch, batch_idx)
        images = batch[0].flatten(1)
        self.images_seen += len(images)
        self.mean_image += (images.mean(0) - self.mean_image) * len(images) / self.images_seen
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._answer(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._answer(batch, "test", batch_idx)

    def draw(self, n: int, stage: str, *place: int) -> Observed:
        """Draw masks of the n samples of a batch of a stage; `place` is its epoch and number."""
        numbers = (self.seed, _STAGES.index(stage), self.global_rank, *place)
        return self.masks.draw(n, self.image_shape, generator(*numbers))

    def _answer(self, batch: tuple[Tensor, Tensor], stage: str, *place: int) -> Tensor:
        images, labels = as_pair(batch)
        class_labels(labels, len(images), self.n_outputs)
        drawn = self.draw(len(labels), stage, *place)
        observed = Observed(*(part.to(images.device) for part in drawn))
        solution = self(images, labels.where(observed.label, -1), observed.pixels)
        state, scores = (solution.value[a].flatten(1) for a in (self.input, self.output))
        images, scores = images.flatten(1), scores / self.label_scale
        unknown = ~observed.pixels
        target = F.one_hot(labels, scores.shape[1]).to(scores)
        # Sums over counts, as a batch may have no unknown pixel or label at all.
        errors = (state - images).square().where(unknown, 0.0)
        pixel_error = errors.sum() / unknown.sum().clamp(min=1)
        told = observed.label
        label_error = (scores - target).square().mean(1).where(~told, 0.0)
        loss = pixel_error + self.label_weight * label_error.sum() / (~told).sum().clamp(min=1)
        right = (scores.argmax(1) == labels).float()
        self._keep(solution, right[~told].mean())
        self._mean(f"{stage}/loss", loss * len(labels), len(labels))
        with torch.no_grad():
            baseline = (self.mean_image - images).square().where(unknown, 0.0)
            kinds = [("", torch.ones_like(told))]
            if stage == "test":
                kinds += [(f"_{k}", observed.kind == i) for i, k in enumerate(self.masks.kinds)]
            for suffix, rows in kinds:
                count = unknown[rows].sum()
                self._mean(f"{stage}/pixel_error{suffix}", errors[rows].sum(), count)
                if self.images_seen:
                    self._mean(f"{stage}/mean_image_error{suffix}", baseline[rows].sum(), count)
                rows = rows & ~told
                self._mean(f"{stage}/accuracy{suffix}", right[rows].sum(), rows.sum())
        return loss

    def _mean(self, name: str, total: Tensor, count: Tensor | int) -> None:
        """Log a mean over as many pixels, or samples, where there are any."""
        n = int(count)
        if n:
            options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
            shown = name == "val/accuracy"
            self.log(name, total / n, batch_size=n, prog_bar=shown, **options)


def _image_shape(layer: tuple[int, ...], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    size = math.prod(layer)
    if shape is None and len(layer) in (2, 3):
        shape = layer[1:] if len(layer) == 3 and layer[0] == 1 else layer
    if shape is None:
        side = math.isqrt(size)
        if side * side != size:
            expected = f"a shape, as {size} pixels are no square"
            remedy = "give (height, width), or (3, height, width) for colours"
            raise wrong("image_shape", expected, None, remedy)
        return side, side
    shape = tuple(shape)
    if len(shape) not in (2, 3) or math.prod(shape) != size:
        expected = (
            f"(height, width) or (channels, height, width) of the input layer's {size} neurons"
        )
        raise wrong("image_shape", expected, shape)
    if len(shape) == 3 and shape[0] not in (1, 3):
        remedy = "channels that come last are moved by images.permute(0, 3, 1, 2)"
        raise wrong("image_shape", "1 or 3 channels first", shape, remedy)
    if len(layer) > 1:  # of another arrangement than the layer's, pixels would be shuffled
        as_samples(torch.empty(0, *shape), layer, "image_shape", "the shape of the input layer")
    return shape
