"""The Lightning module that trains a dense associative memory to classify images."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from hamdeq._checks import floating, instance, require
from hamdeq.data.encoding import as_samples
from hamdeq.memories import DenseAssociativeMemory, FeedForward, Learning
from hamdeq.optim import NormalisedSGD
from hamdeq.training.module import (
    OptimizerCallable,
    SchedulerCallable,
    SupervisedModule,
    as_pair,
)
from hamdeq.training.prediction import Prediction, nearest_distribution

__all__ = ["MemoryClassifier"]


class MemoryClassifier(SupervisedModule):
    """Learn the class neurons of a dense associative memory, updated once from a clamped image.

    The loss is the mean over class neurons of (t − C)^2m, with t = +1 for the label's and −1 for
    the others. Logs for train, val and test the ``loss``, the ``accuracy`` of the largest C, and
    ``f1``, the mean over classes of their F1 scores, over all samples of the epoch; and
    ``temperature``, where it changes.

    Args:
        memory: a memory with class neurons, and memories to learn; or its equivalent
            :class:`~hamdeq.memories.FeedForward`.
        exponent: m. The larger, the more the loss is that of the worst samples.
        temperatures: T of the first and of the last epoch, linear between; None for the memory's
            own.
        optimizer: from parameters to an optimiser; default the rule of Krotov & Hopfield,
            :class:`~hamdeq.NormalisedSGD` with entries of pixels in [−1, 1].
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.

    It is the optimiser that bounds memories, or does not. A checkpoint holds the temperature of its
    epoch, where temperatures change.

    Shape:
        A batch is ``(images, labels)``: images ``(batch, …)`` in [0, 1], with as many numbers as
        the memory has inputs, which become [−1, 1]; labels ``(batch,)`` of int64.

    Raises:
        ValueError: the memory has no classes, or no memories; m or a temperature is out of range.

    Source: Krotov & Hopfield (NIPS 2016), section 4 and appendix A; McAlister et al. (2024),
    section 5.3.
    """

    standardises: bool = False  # neurons are in [−1, 1]

    def __init__(
        self,
        memory: DenseAssociativeMemory | FeedForward,
        exponent: int = 1,
        temperatures: tuple[float, float] | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: SchedulerCallable | None = None,
    ) -> None:
        expected = "a DenseAssociativeMemory or its FeedForward equivalent"
        instance("memory", memory, (DenseAssociativeMemory, FeedForward), expected)
        got, remedy = (
            f"{memory.classes} and {len(memory.memories)}",
            "give classes=10, memories=256",
        )
        valid = memory.classes and len(memory.memories)
        require(valid, "memory", "class neurons, and memories to learn", got, remedy)
        if optimizer is None:
            optimizer = partial(NormalisedSGD, bound=1.0, free=memory.classes)
        super().__init__(optimizer, scheduler)
        self.memory = memory
        self._learning = Learning(exponent=exponent, temperatures=temperatures)
        # A plain name such as "train" would hide the method of that name.
        self.f1: nn.ModuleDict = nn.ModuleDict(
            {f"{stage}_f1": MulticlassF1Score(memory.classes) for stage in _STAGES}
        )

    def forward(self, images: Tensor) -> Tensor:
        """C of the class neurons: ``(batch, …) -> (batch, classes)``.

        Raises:
            TypeError: images are not of floating point.
            ValueError: a sample has another number of pixels than the memory of inputs.
        """
        return self.memory.classify(self._states(images))

    def _predict(self, inputs: Tensor) -> Prediction:
        scores = self(inputs)
        # With the targets ±1, (1 + C)/2 estimates the probability of the class.
        return Prediction(scores.argmax(1), nearest_distribution((1 + scores) / 2))

    @property
    def n_outputs(self) -> int:
        """Class neurons of the memory."""
        return self.memory.classes

    def on_train_epoch_start(self) -> None:
        t = self._learning.temperature(self.current_epoch, self.trainer.max_epochs or 1)
        if t is not None:
            self.memory.scaling = self.memory.scaling.at(t)
            self.log("temperature", t, on_step=False, on_epoch=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._learning.temperatures is not None:
            checkpoint["temperature"] = self.memory.scaling.temperature

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # The best epoch's memories are to be used as they were in that epoch.
        if "temperature" in checkpoint:
            self.memory.scaling = self.memory.scaling.at(checkpoint["temperature"])

    def _states(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as neurons in [−1, 1]: ``(batch, N)``."""
        floating("images", images, "give images.float() / 255, in [0, 1]")
        of = "one for each input of the memory"
        pixels = as_samples(self.encoding(images), (self.memory.inputs,), "images", of)
        return 2 * pixels.to(self.memory.memories.dtype) - 1

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = as_pair(batch)
        loss, predicted = self.memory.class_loss(
            self._states(images), labels, self._learning.exponent
        )
        chosen = predicted.argmax(1)
        accuracy = (chosen == labels).float().mean()
        self._log_epoch(stage, loss, accuracy, len(labels))
        f1 = cast(MulticlassF1Score, self.f1[f"{stage}_f1"])
        f1.update(chosen, labels)
        self.log(f"{stage}/f1", f1, on_step=False, on_epoch=True, batch_size=len(labels))
        if stage == "train":
            live = {"loss": loss.detach(), "acc": accuracy}
            self.log_dict(live, prog_bar=True, logger=False, batch_size=len(labels))
        return loss


_STAGES = ("train", "val", "test")
