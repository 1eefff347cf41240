"""The Lightning module that trains a memory to predict real values."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.regression import R2Score

from hamdeq.deq import DEQ
from hamdeq.optim import Madam
from hamdeq.training.equilibrium import HAMPredictor
from hamdeq.training.module import OptimizerCallable, SchedulerCallable, as_pair
from hamdeq.training.prediction import Prediction

__all__ = ["HAMRegressor"]

_STAGES = ("train", "val", "test")


class HAMRegressor(HAMPredictor):
    """Predict real values by settling: clamp the inputs, read the output layer's internal state.

    The loss is the mean squared error between that state and the targets, standardised as the
    training data were (:class:`hamdeq.data.Encoding`). Logs for train, val and test ``loss``;
    ``mae``, the mean absolute error in the units of the targets; and ``r2``, the share of their
    variance that is explained, R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)², over all samples of the epoch and the
    mean over targets.

    Args:
        deq: the memory; its one clamped layer is the input.
        optimizer: from parameters to an optimiser; default Madam with its defaults.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        output: name of the layer to read, with a neuron for each target.
        width: as of :class:`~hamdeq.training.equilibrium.EquilibriumModule`.

    Attributes:
        solution: the last batch's :class:`~hamdeq.Solution`, without its graph, for callbacks.

    A batch is ``(inputs, targets)``: inputs ``(batch, …)`` of floating point, with as many numbers
    as the input layer has neurons; targets ``(batch, n_targets)`` of floating point, or of one
    target ``(batch,)``.

    Raises:
        TypeError, ValueError: in a step, targets that are not of floating point, not finite, or of
            another shape.
    """

    monitor: tuple[str, str] = ("val/loss", "min")

    def __init__(
        self,
        deq: DEQ,
        optimizer: OptimizerCallable = Madam,
        scheduler: SchedulerCallable | None = None,
        output: str = "output",
        width: float | None = None,
    ) -> None:
        super().__init__(deq, output=output, optimizer=optimizer, scheduler=scheduler, width=width)
        # A plain name such as "train" would hide the method of that name.
        self.r2: nn.ModuleDict = nn.ModuleDict({f"{stage}_r2": _R2() for stage in _STAGES})

    def _predict(self, inputs: Tensor) -> Prediction:
        solution = self(inputs)
        values = self.encoding.decode(solution.value[self.output].flatten(1))
        return self._prediction(solution, values)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        inputs, targets = as_pair(batch)
        targets = self._as_targets(targets, len(inputs))
        solution = self.forward(inputs)
        state = solution.value[self.output].flatten(1)
        targets = targets.to(state.dtype)
        loss = F.mse_loss(state, self.encoding.encode(targets))
        predicted = self.encoding.decode(state.detach())
        self._keep(solution)
        n = len(targets)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": n}
        self.log(f"{stage}/loss", loss, sync_dist=True, **options)
        mae = (predicted - targets).abs().mean()
        self.log(f"{stage}/mae", mae, sync_dist=True, prog_bar=stage == "val", **options)
        r2 = cast(R2Score, self.r2[f"{stage}_r2"])
        r2.update(predicted, targets)
        self.log(f"{stage}/r2", r2, **options)
        return loss

    def _as_targets(self, targets: Tensor, batch: int) -> Tensor:
        """Targets as ``(batch, n_targets)``."""
        if not targets.is_floating_point():
            raise TypeError(
                f"targets: expected real values in floating point, got {targets.dtype}; give "
                "y.astype(float) to the data module, or train a HAMClassifier on classes"
            )
        n = self.n_outputs
        shape = tuple(targets.shape)
        if shape != (batch, n) and (shape, n) != ((batch,), 1):
            raise ValueError(
                f"targets: expected ({batch}, {n}), one number for each neuron of {self.output!r}, "
                f"got {shape}; make the layer as large as the target, such as "
                "HAM.chain([…, data.n_targets])"
            )
        bad = (~targets.reshape(batch, n).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"targets: expected finite numbers, got NaN or infinity in samples {bad[:8]} of "
                "the batch; remove them from the data"
            )
        return targets.reshape(batch, n)


class _R2(R2Score):
    """R² that is NaN of a single sample, of which there is no variance, instead of an error."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else torch.tensor(torch.nan)
