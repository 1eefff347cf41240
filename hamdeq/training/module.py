"""What the Lightning modules here have in common: optimiser, schedule and checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hamdeq.training.saving import Restorable

__all__ = ["Classifier", "OptimizerCallable", "OtherArchitectureError", "SchedulerCallable"]

OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]
SchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class OtherArchitectureError(ValueError):
    """A checkpoint does not fit the module that is to load it."""


class Classifier(Restorable):
    """Base of the modules that learn classes; a subclass implements `_step`.

    Args:
        optimizer: from parameters to an optimiser.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
    """

    def __init__(
        self, optimizer: OptimizerCallable, scheduler: SchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.scheduler = scheduler

    @abstractmethod
    def _step(self, batch: Any, stage: str) -> Tensor:
        """The loss of a batch; logs ``stage/loss`` and ``stage/accuracy`` at least."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "test")

    def _log_epoch(self, stage: str, loss: Tensor, accuracy: Tensor, n_samples: int) -> None:
        # Over all processes, each of which has its share of the samples.
        options = {"on_epoch": True, "batch_size": n_samples, "sync_dist": True}
        self.log(f"{stage}/loss", loss, on_step=False, **options)
        self.log(f"{stage}/accuracy", accuracy, on_step=False, prog_bar=stage == "val", **options)

    def configure_optimizers(self) -> Any:
        groups = self._parameter_groups()
        optimizer = self.optimizer([{"params": group["params"]} for group in groups])
        for placed, group in zip(optimizer.param_groups, groups, strict=True):
            placed["lr"] = placed["lr"] * group["factor"]  # a tensor may be shared by all groups
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters in groups, each with the factor on its learning rate."""
        return [{"params": [*self.parameters()], "factor": 1.0}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another architecture in one sentence."""
        ours, theirs = self.state_dict(), checkpoint["state_dict"]
        for name in ours | theirs:
            mine = tuple(ours[name].shape) if name in ours else "no such weight"
            stored = tuple(theirs[name].shape) if name in theirs else "no such weight"
            if mine != stored:
                raise OtherArchitectureError(
                    f"checkpoint of another architecture: {name} expected {mine}, got {stored}; "
                    "use the config.yaml that lies in the checkpoint's run folder"
                )
