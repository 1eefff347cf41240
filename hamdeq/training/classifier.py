"""The Lightning module that trains a memory to classify."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from hamdeq.deq import DEQ
from hamdeq.optim import Madam
from hamdeq.solvers import Solution
from hamdeq.training.module import Classifier, OptimizerCallable, SchedulerCallable

__all__ = ["HAMClassifier"]

# States of 0 and 1 then are confident answers. With the bare state as logits the loss asks for ever
# larger states, and so for weights at which the memory has many equilibria and settles slowly.
_SHARPNESS = 10.0


class HAMClassifier(Classifier):
    """Classify by settling: clamp the image, read the class from the output layer's state.

    Args:
        deq: the memory; its one clamped layer is the input.
        loss: ``"mse"``, the mean squared error between the output layer's internal state and the
            one-hot label (Goemaere et al. 2023), or ``"cross-entropy"``, with ten times that
            state as logits.
        optimizer: from parameters to an optimiser; default Madam with its defaults.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        output: name of the layer to read.
        width: if given, a weight matrix (n₁, n₂) between layers that settle learns at the rate
            ``lr · width/√(n₁ n₂)``, where that is less than ``lr``. Optimisers of Adam's kind move
            each number by about ``lr``, and so a matrix by up to lr·√(n₁ n₂) in spectral norm: of
            wide layers further in one step than weights may go that are to settle. The weights of
            the clamped input, which do not matter for that, can learn as fast as they will.

    Attributes:
        solution: the last batch's :class:`~hamdeq.Solution`, without its graph, for callbacks.

    A batch is ``(images, labels)``: images ``(batch, …)`` of floating point, with as many numbers
    as the input layer has neurons; labels ``(batch,)`` of int64.
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
        super().__init__(optimizer, scheduler)
        if width is not None and not (math.isfinite(width) and width > 0):
            raise ValueError(f"width: expected a finite number > 0 or None, got {width!r}")
        if loss not in ("mse", "cross-entropy"):
            raise ValueError(f"loss: expected 'mse' or 'cross-entropy', got {loss!r}")
        if len(deq.clamped) != 1:
            raise ValueError(f"deq: expected one clamped layer, the input, got {deq.clamped}")
        deq.ham.check_names([output])
        self.deq = deq
        self.loss = loss
        self.width = width
        self.input, self.output = deq.clamped[0], output
        self.solution: Solution | None = None

    def forward(self, images: Tensor) -> Solution:
        """Let the memory settle on images; the class scores are ``value[output]``."""
        shape = self.deq.ham.layer(self.input).shape
        if images.dim() == 0 or math.prod(images.shape[1:]) != math.prod(shape):
            raise ValueError(
                f"images: expected (batch, …) with {math.prod(shape)} numbers a sample, for the "
                f"layer {self.input!r}, got {tuple(images.shape)}"
            )
        return self.deq({self.input: images.reshape(len(images), *shape)})

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, _ = batch
        # One NaN in one image would reach every weight through the mean of the losses. A finite sum
        # proves every number finite, at a fraction of the time of testing each.
        if not images.sum().isfinite():
            bad = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"training batch {batch_idx}: expected finite images, got NaN or infinity in "
                    f"samples {bad[:8]} of the batch; remove them from the data"
                )
        return super().training_step(batch, batch_idx)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if self.width is None:
            return super()._parameter_groups()
        settling = {
            p: min(1.0, self.width / math.sqrt(p.shape[0] * p.shape[1:].numel()))
            for layers, synapse in self.deq.ham.connections
            # A constant field of one layer, a bias, is no weight, whatever its shape.
            if self.input not in layers and (len(layers) > 1 or not synapse.is_linear_in(0))
            for p in synapse.parameters()
            if p.dim() > 1
        }
        others = [p for p in self.parameters() if p not in settling]
        return [
            {"params": others, "factor": 1.0},
            *({"params": [p], "factor": factor} for p, factor in settling.items()),
        ]

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Predicted classes ``(batch,)``."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        return self(images).value[self.output].argmax(1)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        solution = self.forward(images)
        # Detached, lest the graph outlive the step. The list ``adjoint`` is shared with the
        # original, so that the backward pass is still reported in it.
        values = {name: x.detach() for name, x in solution.value.items()}
        self.solution = replace(solution, value=values)
        scores = solution.value[self.output]
        loss = self._loss(scores, labels)
        accuracy = (scores.argmax(1) == labels).float().mean()
        self._log_epoch(stage, loss, accuracy, len(labels))
        return loss

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "cross-entropy":
            return F.cross_entropy(_SHARPNESS * scores, labels)
        return F.mse_loss(scores, F.one_hot(labels, scores.shape[1]).to(scores.dtype))
