"""Modules whose network is a memory at equilibrium: their base, classification, regression."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.regression import R2Score

from hamdeq._checks import class_labels, number, one_of, wrong
from hamdeq.data.encoding import as_samples
from hamdeq.deq import DEQ
from hamdeq.optim import Madam
from hamdeq.solvers import Solution
from hamdeq.training.module import (
    OptimizerCallable,
    SchedulerCallable,
    SupervisedModule,
    as_pair,
)
from hamdeq.training.prediction import Prediction, nearest_distribution

__all__ = ["EquilibriumModule", "HAMClassifier", "HAMPredictor", "HAMRegressor"]

# States of 0 and 1 then are confident answers. With the bare state as logits the loss asks for ever
# larger states, and so for weights at which the memory has many equilibria and converges slowly.
_SHARPNESS = 10.0


class EquilibriumModule(SupervisedModule):
    """Base of the modules that train a memory through its equilibrium; subclasses have a `_step`.

    Args:
        deq: the memory.
        clamped: the layers whose states every call gives in full, such as the image to classify.
        input: name of the layer of images.
        output: name of the layer of labels.
        optimizer: from parameters to an optimiser.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        width: if given, a weight matrix (n₁, n₂) between two free layers learns at the rate
            ``lr · width/√(n₁ n₂)``, where that is less than ``lr``. Optimisers of Adam's kind move
            each number by about ``lr``, and so a matrix by up to lr·√(n₁ n₂) in spectral norm: of
            wide layers further in one step than weights may go if states are to converge. The
            weights of layers in `clamped`, which do not matter for that, learn at ``lr``.

    Attributes:
        solution: the last batch's :class:`~hamdeq.Solution`, without its graph, for callbacks.
        accuracy: the last batch's accuracy, of the labels asked for; None for real values.
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
        deq.ham.check_names([input, output])
        self.deq = deq
        self.clamped = clamped
        self.input = input
        self.output = output
        self.width: float | None = None if width is None else number("width", width, above=0)
        self.solution: Solution | None = None
        self.accuracy: Tensor | None = None

    @property
    def n_outputs(self) -> int:
        """Neurons of the output layer."""
        return math.prod(self.deq.ham.layer(self.output).shape)

    def as_input(self, images: Tensor) -> Tensor:
        """Standardise inputs and give them the shape of the input layer.

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
                got = f"NaN or infinity in samples {bad[:8]} of the batch"
                remedy = "remove them from the data"
                raise wrong(f"training batch {batch_idx}", "finite images", got, remedy)

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
        free = {
            p: min(1.0, self.width / math.sqrt(p.shape[0] * p.shape[1:].numel()))
            for layers, synapse in self.deq.ham.connections
            # A constant field of one layer, a bias, is no weight, whatever its shape.
            if not set(self.clamped) & set(layers)
            and (len(layers) > 1 or not synapse.is_linear_in(0))
            for p in synapse.parameters()
            if p.dim() > 1
        }
        others = [p for p in self.parameters() if p not in free]
        return [
            {"params": others, "factor": 1.0},
            *({"params": [p], "factor": factor} for p, factor in free.items()),
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
            raise wrong("deq", "one clamped layer, the input", deq.clamped)
        super().__init__(
            deq,
            clamped=deq.clamped,
            input=deq.clamped[0],
            output=output,
            optimizer=optimizer,
            scheduler=scheduler,
            width=width,
        )

    def forward(self, inputs: Tensor, **options: Any) -> Solution:
        """Solve for the equilibrium of raw inputs; the output layer is ``value[output]``.

        Options are those of a call of the `DEQ`, such as ``solver``.
        """
        return self.deq({self.input: self.as_input(inputs)}, **options)


class HAMClassifier(HAMPredictor):
    """Classify: clamp the image, read the class from the output layer's state at equilibrium.

    Args:
        deq: the memory; its one clamped layer is the input.
        loss: ``"mse"``, the mean squared error between the output layer's internal state and the
            one-hot label (Goemaere et al. 2023), or ``"cross-entropy"``, with ten times that
            state as logits.
        optimizer: from parameters to an optimiser; default Madam with its defaults.
        scheduler: from an optimiser to a learning-rate schedule, stepped once an epoch.
        output: name of the layer to read.
        width: if given, weight matrices (n₁, n₂) between free layers learn at the rate
            ``lr · width/√(n₁ n₂)``, where that is less than ``lr``: see
            :class:`~hamdeq.training.equilibrium.EquilibriumModule`.

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
        one_of("loss", loss, ("mse", "cross-entropy"))
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
            remedy = "give strings or integers as classes, or train a HAMRegressor on real values"
            raise wrong("labels", "classes of int64", labels.dtype, remedy, kind=TypeError)
        class_labels(labels, len(images), self.n_outputs)
        solution = self.forward(images)
        scores = solution.value[self.output]
        if self.loss == "cross-entropy":
            loss = F.cross_entropy(_SHARPNESS * scores, labels)
        else:
            loss = F.mse_loss(scores, F.one_hot(labels, scores.shape[1]).to(scores.dtype))
        accuracy = (scores.argmax(1) == labels).float().mean()
        self._keep(solution, accuracy)
        self._log_epoch(stage, loss, accuracy, len(labels))
        return loss


class HAMRegressor(HAMPredictor):
    """Predict real values: clamp the inputs, read the output layer's state at equilibrium.

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
        self.r2: nn.ModuleDict = nn.ModuleDict({f"{s}_r2": _R2() for s in ("train", "val", "test")})

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
            expected = "real values in floating point"
            remedy = "give y.astype(float) to the data module, or train a HAMClassifier on classes"
            raise wrong("targets", expected, targets.dtype, remedy, kind=TypeError)
        n = self.n_outputs
        shape = tuple(targets.shape)
        if shape != (batch, n) and (shape, n) != ((batch,), 1):
            expected = f"({batch}, {n}), one number for each neuron of {self.output!r}"
            remedy = "make the layer as large as the target, such as HAM.chain([…, data.n_targets])"
            raise wrong("targets", expected, shape, remedy)
        bad = (~targets.reshape(batch, n).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            got = f"NaN or infinity in samples {bad[:8]} of the batch"
            raise wrong("targets", "finite numbers", got, "remove them from the data")
        return targets.reshape(batch, n)


class _R2(R2Score):
    """R² that is NaN of a single sample, of which there is no variance, instead of an error."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else torch.tensor(torch.nan)
