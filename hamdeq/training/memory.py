"""The Lightning module that learns a dense associative memory, and the ``fit`` it serves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hamdeq._checks import integer
from hamdeq.memories import DenseAssociativeMemory, Learning
from hamdeq.optim import NormalisedSGD

__all__ = ["MemoryLearner", "learn"]


class MemoryLearner(L.LightningModule):
    """Learn states as what is at rest: every epoch is one step on all of them.

    Logs ``train/loss``, the mean of (ξ − C)^2m, and ``temperature``.

    Args:
        memory: with memories to learn.
        learning: rate, decay, momentum, error exponent, temperatures.

    A batch is a tensor of states ``(count, N)`` of ±1.
    """

    def __init__(self, memory: DenseAssociativeMemory, learning: Learning) -> None:
        super().__init__()
        self.memory = memory
        self.learning = learning
        self.losses: list[Tensor] = []
        self._stuck = False

    def on_train_epoch_start(self) -> None:
        t = self.learning.temperature(self.current_epoch, self.trainer.max_epochs or 1)
        if t is not None:
            self.memory.scaling = self.memory.scaling.at(t)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.memory.loss(batch, self.learning.exponent)
        self.losses.append(loss.detach())
        metrics = {"train/loss": loss.detach(), "temperature": self.memory.scaling.temperature}
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        gradient, loss = self.memory.memories.grad, self.losses[-1]
        # Saturated predictions have no gradient, and powers of small similarities underflow.
        if gradient is not None and not gradient.any() and loss > 1e-6 and not self._stuck:
            self._stuck = True
            warnings.warn(
                f"no memory learns in epoch {self.current_epoch}: the gradient is zero at a loss "
                f"of {loss:.3g}. Near 1, similarities are too small for their power: lower the "
                "temperature, or begin with larger memories (std=0.5); near 4, predictions are "
                "saturated and wrong: raise the temperature",
                stacklevel=2,
            )

    def configure_optimizers(self) -> Any:
        learning = self.learning
        optimizer = NormalisedSGD(
            [self.memory.memories],
            lr=learning.rate,
            momentum=learning.momentum,
            free=self.memory.classes,
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, learning.decay)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class _AllAtOnce:
    """An epoch of one batch. (Of a list, Lightning would take each element for a data loader.)"""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:
        yield self.states


@contextmanager
def _quiet() -> Iterator[None]:
    """A call of a method should not tell of devices, nor that it has ended."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def learn(
    memory: DenseAssociativeMemory,
    states: Tensor,
    learning: Learning,
    *,
    epochs: int,
    trainer: L.Trainer | None = None,
) -> Tensor:
    """See :meth:`DenseAssociativeMemory.fit`."""
    epochs = integer("epochs", epochs, least=0)
    learner = MemoryLearner(deepcopy(memory).double(), learning)
    batches = _AllAtOnce(states.double())
    if trainer is not None:
        trainer.fit(learner, batches)
    else:
        with _quiet():
            L.Trainer(
                max_epochs=epochs,
                accelerator="cpu" if memory.device.type == "cpu" else "auto",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            ).fit(learner, batches)
    memory.scaling = learner.memory.scaling
    with torch.no_grad():
        memory.memories.copy_(learner.memory.memories)
    return torch.stack(learner.losses).cpu() if learner.losses else states.new_zeros(0)
