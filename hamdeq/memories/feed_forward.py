"""The feed-forward network with one hidden layer that a dense associative memory of classes is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hamdeq._checks import class_labels, instance, integer, wrong
from hamdeq._recorded import Recorded
from hamdeq.memories.dense import DenseAssociativeMemory
from hamdeq.memories.interactions import Scaling
from hamdeq.memories.recall import check_states

__all__ = ["FeedForward"]


class FeedForward(Recorded, nn.Module):
    """C_α = tanh(2 · outer · inner · Σ_μ ζ_μα F′(inner · ζ_μ·v)), v being the inputs alone.

    It is :meth:`DenseAssociativeMemory.classify` expanded in the class neurons' part of the
    similarities, and has the memory's parameters: ζ_μ's inputs are the weights of a hidden layer
    with activation F′, its classes those of a linear read-out. F is taken once of a similarity,
    not once for each class.

    Left out are terms of second order in the memories' class entries: that of a neuron's own
    ζ_μα², and the crosstalk between class neurons, ζ_μα ζ_μγ. They are small where
    ``Σ_α |ζ_μα| ≪ |ζ_μ·v|``.

    Args:
        memory: a memory with classes. It is trained with this module, and can be used without it.

    Raises:
        ValueError: the memory has no classes.

    Source: Krotov & Hopfield (NIPS 2016), section 4, equations 8 to 10.
    """

    def __init__(self, memory: DenseAssociativeMemory) -> None:
        super().__init__()
        self.memory: DenseAssociativeMemory = instance("memory", memory, DenseAssociativeMemory)
        if not memory.classes:
            raise wrong("memory", "one with class neurons", "none", "give classes=10")

    @property
    def memories(self) -> nn.Parameter:
        """ζ, ``(K, N + classes)``, the memory's own."""
        return self.memory.memories

    @property
    def inputs(self) -> int:
        """N, neurons of the inputs."""
        return self.memory.inputs

    @property
    def classes(self) -> int:
        """Neurons of classes."""
        return self.memory.classes

    @property
    def scaling(self) -> Scaling:
        """Temperature, and where it acts."""
        return self.memory.scaling

    @scaling.setter
    def scaling(self, scaling: Scaling) -> None:
        self.memory.scaling = scaling

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.dtype

    @property
    def device(self) -> torch.device:
        return self.memory.device

    def classify(self, inputs: Tensor) -> Tensor:
        """C of the class neurons: ``(batch, N) -> (batch, classes)``, differentiable.

        Raises:
            ValueError: inputs do not fit.
            OverflowError: F′ overflows.
        """
        check_states("inputs", inputs, self.inputs, self, binary=False)
        inner, outer = self.memory.factors
        pixels, classes = self.memories.split([self.inputs, self.classes], -1)
        hidden = self.memory.interaction.derivative(inner * (inputs @ pixels.mT))
        found = (2 * outer * inner) * (hidden @ classes)
        if not bool(found.isfinite().all()):
            raise OverflowError(
                f"prediction: F′ of {self.memory.interaction} overflows {inputs.dtype}; use "
                "scaling=Normalised(), a higher temperature, or float64"
            )
        return torch.tanh(found)

    forward = classify

    def class_loss(
        self, inputs: Tensor, labels: Tensor, exponent: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The mean of (t − C)^2m over the class neurons, t = ±1, and C itself without a graph.

        Args:
            inputs: ``(batch, N)``.
            labels: ``(batch,)`` of int64.
            exponent: m, a positive integer.

        Raises:
            ValueError: the exponent is not a positive integer, or inputs or labels do not fit.
            OverflowError: F′ overflows.
        """
        exponent = integer("exponent", exponent, expected="a positive integer m")
        predicted = self.classify(inputs)
        class_labels(labels, len(inputs), self.classes)
        targets = 2 * nn.functional.one_hot(labels, self.classes).to(inputs.dtype) - 1
        return ((targets - predicted) ** (2 * exponent)).mean(), predicted.detach()

    def clamp_(self) -> None:
        """Bring the memories back to [−1, 1], but for those of class neurons."""
        self.memory.clamp_()
