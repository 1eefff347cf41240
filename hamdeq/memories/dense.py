"""The dense associative memory: binary neurons, and memories that few states resemble."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hamdeq._checks import class_labels, instance, integer, number, wrong
from hamdeq.energy.ham import HAM
from hamdeq.memories import flips
from hamdeq.memories.fields import Single, fields
from hamdeq.memories.interactions import (
    Factors,
    Interacting,
    Interaction,
    Normalised,
    Polynomial,
    Scaling,
    two_layers,
)
from hamdeq.memories.recall import BinaryMemory, Walk, check_states
from hamdeq.optim.normalised import normalised

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DenseAssociativeMemory", "Learning"]


@dataclass(frozen=True)
class Learning:
    """Gradient descent of (ξ − C)^2m, a memory's step divided by its gradient's largest entry.

        V <- momentum · V + ∇_ζ ℓ
        ζ_μ <- clamp(ζ_μ − rate · decay^epoch · V_μ / max(max|V_μ|, floor))

    Args:
        rate: of the first epoch: how far the entry with the largest gradient moves.
        decay: factor of the rate, each epoch.
        momentum: 0 for none, less than 1.
        exponent: m, a positive integer; the larger, the more large errors count.
        temperatures: T of the first epoch and of the last, linear in between; None for that of the
            memory's scaling.
        floor: least number that a memory's step is divided by, ≥ 0, in units of the gradient of
            the sum ℓ = Σ_a Σ_i (ξ_ai − C_ai)^2m. 0 (default) for none; the authors of both papers
            have 1e-30 in their code. A memory whose gradient is far below it hardly moves, so that
            steep functions of small similarities learn nothing.

    Source: Krotov & Hopfield (NIPS 2016), appendix A, with the values of McAlister et al. (2024),
    whose loss is equation 8.
    """

    rate: float = 0.1
    decay: float = 0.999
    momentum: float = 0.0
    exponent: int = 1
    temperatures: tuple[float, float] | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        number("rate", self.rate, above=0)
        number("decay", self.decay, above=0, most=1)
        number("momentum", self.momentum, least=0, below=1)
        number("floor", self.floor, least=0)
        object.__setattr__(self, "exponent", _exponent(self.exponent))
        given = self.temperatures
        if given is not None and not (isinstance(given, tuple | list) and len(given) == 2):
            raise wrong("temperatures", "the first and the last", repr(given))
        for t in given or ():
            number("temperatures", t, above=0)

    def temperature(self, epoch: int, epochs: int) -> float | None:
        """T of an epoch, counted from 0; None for that of the memory's scaling."""
        if self.temperatures is None:
            return None
        first, last = self.temperatures
        return first + (last - first) * (epoch / (epochs - 1) if epochs > 1 else 0.0)


class DenseAssociativeMemory(BinaryMemory):
    """E(ξ) = −Σ_μ F(ζ_μ·ξ), of states ξ of ±1 and memories ζ.

    A neuron takes the sign of Σ_μ [F(ON) − F(OFF)], where ON and OFF are ζ_μ·ξ with the neuron at
    +1 and at −1. Memories are given (:meth:`store`) or learned (:meth:`fit`). With
    ``Polynomial(2)`` it is the classical network with Hebb's rule.

    Σ_μ [F(ON) − F(OFF)] is the finite difference of −ΣF between a neuron's two states. Where F is
    convex, −ΣF is the energy that eliminating the memory layer of :meth:`as_ham` leaves; where it
    is not (``interaction.is_convex`` is False) no such claim is made, and :meth:`as_ham` raises.

    Args:
        size: N, neurons of a state, without those of classes.
        interaction: F, default ``Polynomial(3)``.
        scaling: temperature, and where it acts: :class:`~hamdeq.memories.Normalised` (default) or
            :class:`~hamdeq.memories.Original`. It has a part in what is learned; in recall it has
            one only if F is not homogeneous.
        memories: K, random memories to begin with, which :meth:`fit` will learn.
        classes: neurons of classes, which follow those of the state.
        mean, std: of the random memories' entries.

    Attributes:
        memories: ζ, ``(K, N + classes)``, a parameter.
        size: all neurons, N + classes.

    Source: Krotov & Hopfield (NIPS 2016), equations 1 to 3; McAlister et al. (2024).

    Example:
        >>> patterns = torch.ones(1, 8)
        >>> memory = DenseAssociativeMemory(8).store(patterns)
        >>> probe = patterns.clone()
        >>> probe[0, :3] = -1.0
        >>> bool((memory.recall(probe).value == patterns).all())
        True
    """

    def __init__(
        self,
        size: int,
        interaction: Interaction | None = None,
        *,
        scaling: Scaling | None = None,
        memories: int = 0,
        classes: int = 0,
        mean: float = 0.0,
        std: float = 0.1,
    ) -> None:
        super().__init__()
        size = integer("size", size)
        memories = integer("memories", memories, least=0)
        classes = integer("classes", classes, least=0)
        interaction = Polynomial(3) if interaction is None else interaction
        scaling = Normalised() if scaling is None else scaling
        such = "an interaction function such as RectifiedPolynomial(3)"
        instance("interaction", interaction, Interaction, such)
        instance("scaling", scaling, Scaling, "Normalised() or Original()")
        mean, std = number("mean", mean), number("std", std, least=0)
        self.inputs = size
        self.classes = classes
        self.size: int = size + classes
        self.interaction = interaction
        self.scaling = scaling
        self.memories: nn.Parameter = nn.Parameter(torch.randn(memories, self.size) * std + mean)

    def constructor_arguments(self) -> dict[str, Any]:
        now = {"memories": len(self.memories), "scaling": self.scaling}
        return super().constructor_arguments() | now

    _stored = "memories"

    @property
    def factors(self) -> Factors:
        """Factors of similarities inside F, and of differences of F outside."""
        return self.scaling.factors(self.size, self.interaction)

    def store(self, states: Tensor) -> Self:
        """Append states, ``(count, N + classes)`` of ±1, to the memories; returns itself.

        ``memories`` is a new parameter then: make optimisers afterwards.

        Raises:
            ValueError: states that do not fit, or are not ±1.
        """
        check_states("states", states, self.size, self)
        both = torch.cat([self.memories.detach(), states.detach()])
        self.memories = nn.Parameter(both, requires_grad=self.memories.requires_grad)
        return self

    def energy(self, states: Tensor) -> Tensor:
        """E = −Σ_μ F(inner · ζ_μ·ξ), inner being 1 or, normalised, 1/(N T): ``(batch,)``.

        Raises:
            ValueError: states that do not fit, or are not ±1.
            OverflowError: F overflows.
        """
        self._check(states)
        energy = -self.interaction(self.factors.inner * (states @ self.memories.mT)).sum(-1)
        return self._finite("energy", energy)

    def fields(self, states: Tensor) -> Tensor:
        """Σ_μ [F(ON) − F(OFF)] of every neuron, right in sign, ``(batch, N)``; NaN if it overflows.

        Normalised, it is float64, and up to a positive factor for each state.
        """
        self._check(states)
        with torch.no_grad():
            return fields(self.memories, states, self.interaction, **self._scale)

    def predict(self, states: Tensor) -> Tensor:
        """C = tanh(outer · Σ_μ [F(ON) − F(OFF)]) of every neuron: ``(batch, N)``, differentiable.

        Raises:
            ValueError: states that do not fit, or are not ±1.
            OverflowError: F overflows.
        """
        self._check(states)
        return self._predicted(states, slice(None))

    def classify(self, inputs: Tensor) -> Tensor:
        """C of the class neurons, updated once from −1, inputs clamped: ``(batch, classes)``.

        Args:
            inputs: ``(batch, N)``, finite numbers, in [−1, 1] where the memories are.

        Raises:
            ValueError: there are no classes, or inputs do not fit.
            OverflowError: F overflows.
        """
        return self._predicted(self._with_classes(inputs), slice(self.inputs, None))

    def loss(self, states: Tensor, exponent: int = 1) -> Tensor:
        """The mean over states and neurons of (ξ − C)^2m: 1 where nothing is predicted, 0 at best.

        Its gradient by the memories is closed-form, without a graph.

        Raises:
            ValueError: states that do not fit, or are not ±1.
            OverflowError: F overflows.
        """
        self._check(states)
        return self._error(states, states, slice(None), exponent)[0]

    def class_loss(
        self, inputs: Tensor, labels: Tensor, exponent: int = 1, *, teacher: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The mean of (t − C)^2m over the class neurons, t = ±1, and C itself without a graph.

        Args:
            inputs: as of :meth:`classify`.
            labels: ``(batch,)`` of int64.
            exponent: the exponent m.
            teacher: whether each class neuron sees the other ones at the label's t, as in the code
                of McAlister et al. (2024), or at −1 (Krotov & Hopfield 2016), where they are when
                it classifies.

        Raises:
            ValueError: there are no classes, or inputs or labels do not fit.
            OverflowError: F overflows.
        """
        states = self._with_classes(inputs)
        class_labels(labels, len(states), self.classes)
        targets = 2 * nn.functional.one_hot(labels, self.classes).to(states.dtype) - 1
        if teacher:
            states = torch.cat([inputs, targets], 1)
        return self._error(states, targets, slice(self.inputs, None), exponent)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the memories back to [−1, 1], but for those of class neurons."""
        self.memories[:, : self.inputs].clamp_(-1.0, 1.0)

    def fit(
        self,
        states: Tensor,
        learning: Learning | None = None,
        *,
        epochs: int = 500,
        callback: Callable[[int, float, DenseAssociativeMemory], object] | None = None,
    ) -> Tensor:
        """Learn the memories from states, ``(count, N)``: the paper's descent of :meth:`loss`.

        It is computed in float64, as powers of small similarities are lost in float32.

        Args:
            states: what is to be stable, ±1.
            learning: rate, decay, momentum, error exponent, temperatures.
            epochs: each over all states at once.
            callback: called after each epoch as ``callback(epoch, loss, memory)``: the number of
                the epoch, from 0; the loss before its step; and the memory after it, a copy in
                float64 that goes on learning. It may raise ``StopIteration`` to end here.

        Returns:
            the loss before each epoch's step, ``(epochs,)``.

        Raises:
            ValueError: states that do not fit, or no memories to learn.
            OverflowError: F overflows. The memories are then as they were.
        """
        self._check(states)
        learning, epochs = learning or Learning(), integer("epochs", epochs, least=0)
        learner, states = deepcopy(self).double(), states.double()
        # The steps of NormalisedSGD, without its first use's import of torch's compiler.
        velocity, rate = torch.zeros_like(learner.memories), learning.rate
        floor = learning.floor / max(states.numel(), 1)  # the loss is a mean
        losses: list[Tensor] = []
        warned = False
        for epoch in range(epochs):
            temperature = learning.temperature(epoch, epochs)
            if temperature is not None:
                learner.scaling = learner.scaling.at(temperature)
            with torch.enable_grad():
                loss = learner.loss(states, learning.exponent)
                (gradient,) = torch.autograd.grad(loss, learner.memories)
            losses.append(loss.detach())
            # Saturated predictions have no gradient, and powers of small similarities underflow.
            if not warned and not gradient.any() and loss > 1e-6:
                warned = True
                warnings.warn(_STUCK.format(epoch=epoch, loss=loss.item()), stacklevel=2)
            with torch.no_grad():
                velocity.mul_(learning.momentum).add_(gradient)
                learner.memories.sub_(rate * normalised(velocity, floor=floor))
                learner.clamp_()
            rate *= learning.decay
            if callback is not None:
                try:
                    callback(epoch, loss.item(), learner)
                except StopIteration:
                    break
        self.scaling = learner.scaling
        with torch.no_grad():
            self.memories.copy_(learner.memories)
        return torch.stack(losses).cpu() if losses else states.new_zeros(0)

    def as_ham(self, beta: float = 1.0) -> HAM:
        """The same memory with graded neurons: layers ``state`` and ``memories``.

        The state's neurons are ``Tanh(beta)``, and F, with its scale, is the Lagrangian of the
        memory layer. With that eliminated the energy is L*(g) − Σ_μ F(inner · ζ_μ·g), of which
        the first part vanishes at g = ±1 as β grows.

        Raises:
            ValueError: F is not convex.
        """
        self._check_stored()
        lagrangian = Interacting(self.interaction, self.factors.inner)
        return two_layers(self.memories, lagrangian, beta)

    def _error(
        self, states: Tensor, targets: Tensor, neurons: slice, exponent: int
    ) -> tuple[Tensor, Tensor]:
        exponent = _exponent(exponent)
        self._outer(self.factors.outer)
        loss, predicted = flips.PredictionError.apply(  # type: ignore[misc]
            self.memories, states, targets, self.interaction, self.factors, exponent, neurons
        )
        return self._finite("loss", loss / max(targets.numel(), 1)), predicted

    def _predicted(self, states: Tensor, neurons: slice) -> Tensor:
        inner, outer = self.factors
        found = flips.margins(self.memories, states, self.interaction, inner, neurons)
        return torch.tanh(self._finite("prediction", found) * self._outer(outer))

    def _with_classes(self, inputs: Tensor) -> Tensor:
        if not self.classes:
            raise wrong("classes", "a memory with class neurons", "none", "give classes=10")
        self._check_stored()
        check_states("inputs", inputs, self.inputs, self, binary=False)
        off = inputs.new_full((len(inputs), self.classes), -1.0)
        return torch.cat([inputs, off], 1)

    def _check(self, states: Tensor) -> None:
        self._check_stored()
        check_states("states", states, self.size, self)

    def _check_stored(self) -> None:
        if not len(self.memories):
            remedy = "store(states), or create the memory with memories=K and fit(states)"
            raise wrong("memories", "at least one", "none", remedy)

    def _outer(self, outer: float) -> float:
        if outer > torch.finfo(self.dtype).max:
            raise OverflowError(
                f"prediction: the factor T⁻ⁿ = {outer:.3g} of {self.scaling} overflows "
                f"{self.dtype}; use scaling=Normalised(), a higher temperature, or float64"
            )
        return outer

    def _finite(self, what: str, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise OverflowError(
                f"{what}: {self.interaction} of similarities up to "
                f"{self.factors.inner * self.size:.3g} overflows {x.dtype}; use "
                "scaling=Normalised(), a higher temperature, or float64"
            )
        return x

    def _walk(self, states: Tensor, *, scaled: bool = False) -> Walk:
        self._check_stored()
        memories = self.memories.detach()
        if not scaled:
            return Single(memories, states, self.interaction, **self._scale)
        inner = self.factors.inner
        return Single(memories.double(), states.double(), self.interaction, inner, gauged=False)

    @property
    def _scale(self) -> dict[str, Any]:
        return {"inner": self.factors.inner, "gauged": self.scaling.is_gauged}

    def extra_repr(self) -> str:
        classes = f", classes={self.classes}" * bool(self.classes)
        return (
            f"{self.inputs}, {self.interaction}, scaling={self.scaling}, "
            f"memories={len(self.memories)}{classes}"
        )


_STUCK = (
    "no memory learns in epoch {epoch}: the gradient is zero at a loss of {loss:.3g}. Near 1, "
    "similarities are too small for their power: lower the temperature, or begin with larger "
    "memories (std=0.5); near 4, predictions are saturated and wrong: raise the temperature"
)


def _exponent(m: int) -> int:
    return integer("exponent", m, expected="a positive integer m")
