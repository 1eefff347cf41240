"""What the modules whose network is a memory that settles have in common."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hamdeq.deq import DEQ
from hamdeq.solvers import Solution
from hamdeq.training.module import Classifier, OptimizerCallable, SchedulerCallable

__all__ = ["EquilibriumModule"]


class EquilibriumModule(Classifier):
    """Base of the modules that learn by letting a memory settle; a subclass implements `_step`.

    Args:
        deq: the memory.
        held: the layers whose states every call gives in full, such as the image to classify.
        input: name of the layer of images.
        output: name of the layer of labels.
        optimizer: from parameters to an optimiser.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        width: if given, a weight matrix (n₁, n₂) between two layers that settle learns at the rate
            ``lr · width/√(n₁ n₂)``, where that is less than ``lr``. Optimisers of Adam's kind move
            each number by about ``lr``, and so a matrix by up to lr·√(n₁ n₂) in spectral norm: of
            wide layers further in one step than weights may go that are to settle. The weights of
            layers in `held`, which do not matter for that, can learn as fast as they will.

    Attributes:
        solution: the last batch's :class:`~hamdeq.Solution`, without its graph, for callbacks.
        accuracy: the last batch's accuracy, of the labels that were asked for.
    """

    def __init__(
        self,
        deq: DEQ,
        *,
        held: tuple[str, ...],
        input: str,
        output: str,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        width: float | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if width is not None and not (math.isfinite(width) and width > 0):
            raise ValueError(f"width: expected a finite number > 0 or None, got {width!r}")
        deq.ham.check_names([input, output])
        self.deq = deq
        self.held = held
        self.input = input
        self.output = output
        self.width = width
        self.solution: Solution | None = None
        self.accuracy: Tensor | None = None

    def as_input(self, images: Tensor) -> Tensor:
        """Images in the shape of the input layer.

        Raises:
            ValueError: they have more or fewer numbers than it has neurons.
        """
        shape = self.deq.ham.layer(self.input).shape
        if images.dim() == 0 or math.prod(images.shape[1:]) != math.prod(shape):
            raise ValueError(
                f"images: expected (batch, …) with {math.prod(shape)} numbers a sample, for the "
                f"layer {self.input!r}, got {tuple(images.shape)}"
            )
        return images.reshape(len(images), *shape)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self._refuse_nan(batch[0], batch_idx)
        return super().training_step(batch, batch_idx)

    @staticmethod
    def _refuse_nan(images: Tensor, batch_idx: int) -> None:
        # One NaN in one image would reach every weight through the mean of the losses. A finite sum
        # proves every number finite, at a fraction of the time of testing each.
        if not images.sum().isfinite():
            bad = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"training batch {batch_idx}: expected finite images, got NaN or infinity in "
                    f"samples {bad[:8]} of the batch; remove them from the data"
                )

    def _keep(self, solution: Solution, accuracy: Tensor) -> None:
        """Keep a batch's result for callbacks."""
        # Detached, lest the graph outlive the step. The list ``adjoint`` is shared with the
        # original, so that the backward pass is still reported in it.
        self.solution, self.accuracy = solution.detach(), accuracy

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if self.width is None:
            return super()._parameter_groups()
        settling = {
            p: min(1.0, self.width / math.sqrt(p.shape[0] * p.shape[1:].numel()))
            for layers, synapse in self.deq.ham.connections
            # A constant field of one layer, a bias, is no weight, whatever its shape.
            if not set(self.held) & set(layers) and (len(layers) > 1 or not synapse.is_linear_in(0))
            for p in synapse.parameters()
            if p.dim() > 1
        }
        others = [p for p in self.parameters() if p not in settling]
        return [
            {"params": others, "factor": 1.0},
            *({"params": [p], "factor": factor} for p, factor in settling.items()),
        ]
