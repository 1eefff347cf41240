"""Base of the modules whose network is a memory at equilibrium."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hamdeq.data.encoding import as_samples
from hamdeq.deq import DEQ
from hamdeq.solvers import Solution
from hamdeq.training.module import Classifier, OptimizerCallable, SchedulerCallable, as_pair
from hamdeq.training.prediction import Prediction

__all__ = ["EquilibriumModule", "HAMPredictor"]


class EquilibriumModule(Classifier):
    """Base of the modules that learn by letting a memory settle; a subclass implements `_step`.

    Args:
        deq: the memory.
        clamped: the layers whose states every call gives in full, such as the image to classify.
        input: name of the layer of images.
        output: name of the layer of labels.
        optimizer: from parameters to an optimiser.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        width: if given, a weight matrix (n₁, n₂) between two layers that settle learns at the rate
            ``lr · width/√(n₁ n₂)``, where that is less than ``lr``. Optimisers of Adam's kind move
            each number by about ``lr``, and so a matrix by up to lr·√(n₁ n₂) in spectral norm: of
            wide layers further in one step than weights may go that are to settle. The weights of
            layers in `clamped`, which do not matter for that, can learn as fast as they will.

    Attributes:
        solution: the last batch's :class:`~hamdeq.Solution`, without its graph, for callbacks.
        accuracy: the last batch's accuracy, of the labels that were asked for; None where the
            targets are no classes.
    """

    def __init__(
        self,
        deq: DEQ,
        *,
        clamped: tuple[str, ...],
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
        self.clamped = clamped
        self.input = input
        self.output = output
        self.width = width
        self.solution: Solution | None = None
        self.accuracy: Tensor | None = None

    @property
    def n_outputs(self) -> int:
        """Neurons of the output layer."""
        return math.prod(self.deq.ham.layer(self.output).shape)

    def as_input(self, images: Tensor) -> Tensor:
        """Images, or other inputs, standardised and in the shape of the input layer.

        Flat samples take the layer's shape, and those of any shape become flat where the layer is.
        Floating point becomes that of the weights.

        Raises:
            TypeError: they are not of floating point.
            ValueError: they have more or fewer numbers than the layer has neurons, or another
                shape than it, or than those that the module was trained on.
        """
        shape = self.deq.ham.layer(self.input).shape
        images = self.encoding(images)
        if images.is_floating_point():
            images = images.to(next(self.deq.parameters(), images).dtype)
        return as_samples(images, shape, "images", f"for the layer {self.input!r}")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self._refuse_nan(as_pair(batch)[0], batch_idx)
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

    def _prediction(
        self, solution: Solution, value: Tensor, probabilities: Tensor | None = None
    ) -> Prediction:
        energy = self.deq.energy(solution.value)
        return Prediction(value, probabilities, energy, solution.steps, solution.status)

    def _keep(self, solution: Solution, accuracy: Tensor | None = None) -> None:
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
            if not set(self.clamped) & set(layers)
            and (len(layers) > 1 or not synapse.is_linear_in(0))
            for p in synapse.parameters()
            if p.dim() > 1
        }
        others = [p for p in self.parameters() if p not in settling]
        return [
            {"params": others, "factor": 1.0},
            *({"params": [p], "factor": factor} for p, factor in settling.items()),
        ]


class HAMPredictor(EquilibriumModule):
    """Base of the modules that clamp one layer, the input, and read the output layer's state.

    Args:
        deq: the memory; its one clamped layer is the input.
        output: name of the layer to read.
        optimizer: from parameters to an optimiser.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        width: as of :class:`EquilibriumModule`.

    Raises:
        ValueError: a deq without exactly one clamped layer, or without the output layer.
    """

    def __init__(
        self,
        deq: DEQ,
        *,
        output: str,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        width: float | None = None,
    ) -> None:
        if len(deq.clamped) != 1:
            raise ValueError(f"deq: expected one clamped layer, the input, got {deq.clamped}")
        super().__init__(
            deq,
            clamped=deq.clamped,
            input=deq.clamped[0],
            output=output,
            optimizer=optimizer,
            scheduler=scheduler,
            width=width,
        )

    def forward(self, inputs: Tensor) -> Solution:
        """Let the memory settle on raw inputs; the output layer is ``value[output]``."""
        return self.deq({self.input: self.as_input(inputs)})
