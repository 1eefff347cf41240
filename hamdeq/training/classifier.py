"""The Lightning module that trains a memory to classify."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import class_labels
from hamdeq.deq import DEQ
from hamdeq.optim import Madam
from hamdeq.training.equilibrium import HAMPredictor
from hamdeq.training.module import OptimizerCallable, SchedulerCallable, as_pair
from hamdeq.training.prediction import Prediction, nearest_distribution

__all__ = ["HAMClassifier"]

# States of 0 and 1 then are confident answers. With the bare state as logits the loss asks for ever
# larger states, and so for weights at which the memory has many equilibria and settles slowly.
_SHARPNESS = 10.0


class HAMClassifier(HAMPredictor):
    """Classify by settling: clamp the image, read the class from the output layer's state.

    Args:
        deq: the memory; its one clamped layer is the input.
        loss: ``"mse"``, the mean squared error between the output layer's internal state and the
            one-hot label (Goemaere et al. 2023), or ``"cross-entropy"``, with ten times that
            state as logits.
        optimizer: from parameters to an optimiser; default Madam with its defaults.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        output: name of the layer to read.
        width: if given, a weight matrix (n₁, n₂) between two layers that settle learns at the rate
            ``lr · width/√(n₁ n₂)``, where that is less than ``lr``: see
            :class:`~hamdeq.training.equilibrium.EquilibriumModule`. The weights of the clamped
            input can learn as fast as they will.

    Attributes:
        solution: the last batch's :class:`~hamdeq.Solution`, without its graph, for callbacks.

    A batch is ``(images, labels)``: images ``(batch, …)``, or rows of a table, of floating point,
    with as many numbers as the input layer has neurons; labels ``(batch,)`` of int64.
    """

    def __init__(
        self,
        deq: DEQ,
        loss: Literal["mse", "cross-entropy"] = "mse",
        optimizer: OptimizerCallable = Madam,
        scheduler: SchedulerCallable | None = None,
        output: str = "output",
        width: float | None = None,
    ) -> None:
        if loss not in ("mse", "cross-entropy"):
            raise ValueError(f"loss: expected 'mse' or 'cross-entropy', got {loss!r}")
        super().__init__(deq, output=output, optimizer=optimizer, scheduler=scheduler, width=width)
        self.loss = loss

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities of the classes, ``(batch, classes)``, from the output layer's state.

        Of the cross-entropy they are its softmax; of the mean squared error, which makes the state
        itself an estimate of them, the distribution that is nearest to the state.
        """
        if self.loss == "cross-entropy":
            return (_SHARPNESS * scores).softmax(1)
        return nearest_distribution(scores)

    def _predict(self, inputs: Tensor) -> Prediction:
        solution = self(inputs)
        scores = solution.value[self.output].flatten(1)
        return self._prediction(solution, scores.argmax(1), self.probabilities(scores))

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = as_pair(batch)
        if labels.is_floating_point():
            raise TypeError(
                f"labels: expected classes of torch.int64, got {labels.dtype}; give strings or "
                "integers to the data module, or train a HAMRegressor on real values"
            )
        class_labels(labels, len(images), self.n_outputs)
        solution = self.forward(images)
        scores = solution.value[self.output]
        loss = self._loss(scores, labels)
        accuracy = (scores.argmax(1) == labels).float().mean()
        self._keep(solution, accuracy)
        self._log_epoch(stage, loss, accuracy, len(labels))
        return loss

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "cross-entropy":
            return F.cross_entropy(_SHARPNESS * scores, labels)
        return F.mse_loss(scores, F.one_hot(labels, scores.shape[1]).to(scores.dtype))
