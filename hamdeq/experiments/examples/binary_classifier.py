"""The Lightning module that trains any network to tell two classes apart."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from hamdeq._checks import class_labels, wrong
from hamdeq.training.module import (
    OptimizerCallable,
    SchedulerCallable,
    SupervisedModule,
    as_pair,
)
from hamdeq.training.prediction import Prediction

__all__ = ["BinaryClassifier"]


class BinaryClassifier(SupervisedModule):
    """Learn a binary label from one logit per sample: P(label = 1) = σ(network(inputs)).

    Logs for train, val and test the cross-entropy ``loss``, the ``accuracy`` at P = ½, and
    ``auc``, the area under the receiver operating characteristic over all samples of the epoch.

    Args:
        network: from the inputs of a batch to logits ``(batch,)``. Inputs that are a tuple, such
            as bags and their padding mask, are given as positional arguments.
        optimizer: from parameters to an optimiser; default AdamW with its defaults.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.

    Shape:
        A batch is ``(inputs, labels)``: labels ``(batch,)`` of int64, 0 or 1.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.network = network
        # A plain name such as "train" would hide the method of that name.
        self.auc: nn.ModuleDict = nn.ModuleDict(
            {f"{stage}_auc": BinaryAUROC() for stage in _STAGES}
        )

    def forward(self, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The logits ``(batch,)``.

        Raises:
            ValueError: the network does not give one number for each sample.
        """
        if isinstance(inputs, Tensor):
            inputs = (self.encoding(inputs),)
        logits = self.network(*inputs)
        if logits.shape != (len(inputs[0]),):
            expected = f"logits of shape ({len(inputs[0])},), one for each sample"
            remedy = "end it with a layer of one output, and squeeze that"
            raise wrong("network", expected, tuple(logits.shape), remedy)
        return logits

    def _predict(self, inputs: Tensor | tuple[Tensor, ...]) -> Prediction:
        logits = self(inputs)
        probabilities = torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=1)
        return Prediction((logits > 0).long(), probabilities)

    @property
    def n_outputs(self) -> int:
        """Two classes."""
        return 2

    def _step(self, batch: tuple[Any, Tensor], stage: str) -> Tensor:
        inputs, labels = as_pair(batch)
        logits = self(inputs)
        class_labels(labels, len(logits), 2)
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        logits = logits.detach()
        accuracy = ((logits > 0) == labels.bool()).float().mean()
        self._log_epoch(stage, loss, accuracy, len(labels))
        # The metric wants numbers in [0, 1] of the same order. The sigmoid would round confident
        # answers to ties at 0 and 1; x / (1 + |x|) keeps them apart.
        auc = cast(BinaryAUROC, self.auc[f"{stage}_auc"])
        auc.update(0.5 + 0.5 * F.softsign(logits), labels)
        self.log(f"{stage}/auc", auc, on_step=False, on_epoch=True, batch_size=len(labels))
        if stage == "train":
            live = {"loss": loss.detach(), "acc": accuracy}
            self.log_dict(live, prog_bar=True, logger=False, batch_size=len(labels))
        return loss


_STAGES = ("train", "val", "test")
