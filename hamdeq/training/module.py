"""Base of the Lightning modules: optimiser, schedule and checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hamdeq._checks import instance, integer, wrong
from hamdeq.data import Encoding
from hamdeq.training.prediction import Prediction, joined
from hamdeq.training.saving import Restorable

__all__ = [
    "OptimizerCallable",
    "OtherArchitectureError",
    "SchedulerCallable",
    "SupervisedModule",
    "as_pair",
    "inputs_of",
]

OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]
SchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class OtherArchitectureError(ValueError):
    """A checkpoint does not fit the module that is to load it."""


class SupervisedModule(Restorable):
    """Base of the modules that learn from inputs and their targets; a subclass implements `_step`.

    Args:
        optimizer: from parameters to an optimiser.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch. A
            ``ReduceLROnPlateau`` follows its ``monitor`` (Lightning's class has one), or else
            ``val/loss``.

    Attributes:
        lr: the learning rate that Lightning's ``LearningRateFinder`` has set, if it has.
        encoding: standardisation and class names, taken over from the first data module that the
            module is used with, and part of its state dict: see :class:`hamdeq.data.Encoding`.
    """

    monitor: tuple[str, str] = ("val/accuracy", "max")
    """The metric that tells the best checkpoint, and whether ``max`` or ``min`` is best."""

    standardises: bool = True
    """True if the module can learn from standardised inputs."""

    def __init__(
        self, optimizer: OptimizerCallable, scheduler: SchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.encoding: Encoding = Encoding()
        self.lr: float | None = None

    @abstractmethod
    def _step(self, batch: Any, stage: str) -> Tensor:
        """The loss of a batch; logs ``stage/loss`` and the metric of `monitor` at least."""

    @property
    def n_outputs(self) -> int | None:
        """Classes, or real values, that the module tells of a sample; None where it cannot say."""
        return None

    def setup(self, stage: str) -> None:
        """Take over the encoding of the data, where there is none yet."""
        encoding = self._data_encoding()
        if encoding is not None and self.encoding.is_blank:
            if encoding.standardises and not self.standardises:
                got, remedy = "a data module that standardises them", "give it standardise=False"
                raise wrong("data", "inputs to learn from as they are", got, remedy)
            self.encoding.load_state_dict(encoding.state_dict())

    def on_fit_start(self) -> None:
        self._check_classes()
        if self.lr is not None:
            self._set_lr(self.lr)

    def on_train_start(self) -> None:
        given = getattr(self.trainer.train_dataloader, "encoding", None)
        if isinstance(given, Encoding) and given.standardises and not self.encoding.standardises:
            expected = "the data module, whose standardisation the module takes over"
            remedy = "call trainer.fit(module, data)"
            raise wrong("data", expected, "its batches alone", remedy)

    def on_validation_start(self) -> None:
        self._check_classes()

    def on_test_start(self) -> None:
        self._check_classes()

    def _data_encoding(self) -> Encoding | None:
        # Lightning sets the attribute without declaring it.
        data: Any = getattr(self.trainer, "datamodule", None)
        encoding = getattr(data, "encoding", None)
        return encoding if isinstance(encoding, Encoding) else None

    def _check_classes(self) -> None:
        """Refuse data whose labels mean other classes than those that the module has learned."""
        encoding, ours = self._data_encoding(), self.encoding.classes
        theirs = None if encoding is None else encoding.classes
        if theirs is not None and ours is not None and ours != theirs:
            expected = f"those that the module has learned, {[*ours]}"
            remedy = "give data with the same classes, or train a new module"
            raise wrong("classes", expected, [*theirs], remedy)
        if ours is not None and self.n_outputs not in (None, len(ours)):
            expected = f"{self.n_outputs}, one for each output of the module"
            remedy = "give it as many outputs, such as HAM.chain([…, data.n_classes])"
            raise wrong("classes", expected, len(ours), remedy)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "test")

    @abstractmethod
    def _predict(self, inputs: Any) -> Prediction:
        """Predict from raw inputs."""

    def predict_step(self, batch: Any, batch_idx: int) -> Prediction:
        """See :class:`Prediction`; of inputs, or of ``(inputs, targets)``."""
        return self._predict(inputs_of(batch))

    @torch.no_grad()
    def predict(self, inputs: Any, *, batch_size: int = 1000) -> Prediction:
        """Predict from raw inputs, in evaluation mode, without a Trainer.

        Args:
            inputs: a tensor or an array, ``(n, …)``.
            batch_size: samples at once.

        Raises:
            ValueError: no inputs, or a batch size below 1.
            TypeError, ValueError: as of a call of the module.
        """
        batch_size = integer("batch_size", batch_size)
        like = next(self.parameters())
        x = torch.as_tensor(inputs).to(like.device)
        x = x.to(like.dtype) if x.is_floating_point() else x
        if not x.dim() or not len(x):
            raise wrong("inputs", "(n, …) with n ≥ 1", tuple(x.shape))
        training = self.training
        self.eval()
        try:
            return joined([self._predict(part) for part in x.split(batch_size)])
        finally:
            self.train(training)

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
        scheduler = self.scheduler(optimizer)
        monitored: Any = scheduler
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", "val/loss")
            monitored = {"scheduler": scheduler, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": monitored}

    def _set_lr(self, lr: float) -> None:
        """Train with another learning rate than the optimiser was made with."""
        factors = [group["factor"] for group in self._parameter_groups()]
        for optimizer in self.trainer.optimizers:
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = group["initial_lr"] = lr * factor
        for config in self.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [lr * factor for factor in factors]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters in groups, each with the factor on its learning rate."""
        return [{"params": [*self.parameters()], "factor": 1.0}]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another architecture in one sentence."""
        ours, theirs = self.state_dict(), checkpoint["state_dict"]
        for name in ours | theirs if self.strict_loading else ours.keys() & theirs.keys():
            if name.startswith("encoding."):
                continue  # belongs to the weights, and comes along with them
            mine = tuple(ours[name].shape) if name in ours else "no such weight"
            stored = tuple(theirs[name].shape) if name in theirs else "no such weight"
            if mine != stored:
                remedy = "use the config.yaml that lies in the checkpoint's run folder"
                name = f"checkpoint of another architecture: {name}"
                raise wrong(name, str(mine), stored, remedy, kind=OtherArchitectureError)


def as_pair(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a batch.

    Raises:
        TypeError: the batch is no pair of them.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], instance("batch", batch[1], Tensor, "a tensor of targets")
    remedy = "let the data set give pairs, such as TensorDataset(inputs, targets)"
    raise wrong("batch", "(inputs, targets)", _kind(batch), remedy, kind=TypeError)


def inputs_of(batch: Any) -> Any:
    """Inputs of a batch to predict from: it itself, or its first part.

    Raises:
        TypeError: the batch is neither inputs nor a sequence of inputs and others.
    """
    if isinstance(batch, tuple | list) and len(batch):
        return batch[0]
    if isinstance(batch, Tensor):
        return batch
    raise wrong("batch", "inputs, or (inputs, targets)", _kind(batch), kind=TypeError)


def _kind(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"a dict with the keys {[*batch]}"
    if isinstance(batch, tuple | list):
        return f"{len(batch)} parts"
    return f"a {type(batch).__name__}, without targets"
