"""Base of all Lagrangians: L, its gradient, its Legendre transform."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq._checks import floating, wrong
from hamdeq._checks import number as checked
from hamdeq._recorded import Recorded

__all__ = ["Lagrangian", "Scaled", "Tempered", "broadcasts", "constants", "gradient", "total"]


class Lagrangian(Recorded, nn.Module, ABC):
    """A convex function L of a layer's internal state.

    A subclass gives :meth:`forward`; it may give :meth:`activation` and :meth:`energy` in closed
    form for speed and accuracy, and otherwise they are derived by automatic differentiation.

    Shape:
        A state x is ``(batch, *shape)``; L(x) and L*(g) are ``(batch,)``; g has x's shape.

    Attributes:
        additive: whether L is a sum over neurons, L(x) = Σᵢ ℓᵢ(xᵢ), so that each neuron's
            activation is its own affair, and some can be clamped without the others.
    """

    additive: bool = False

    @property
    def max_slope(self) -> float:
        """A bound of how steep the activation is anywhere, ‖∇²L‖; infinity where none is known."""
        return math.inf

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The Lagrangian L(x), one scalar a sample: ``(batch, *shape) -> (batch,)``."""

    def activation(self, x: Tensor) -> Tensor:
        """The activation g = ∇L(x): ``(batch, *shape) -> (batch, *shape)``."""
        return gradient(self, x, self.parameters())

    def energy(self, x: Tensor) -> Tensor:
        """The Legendre transform L*(g) = ⟨x, g⟩ − L(x), at g = ∇L(x): ``(batch,)``."""
        return total(x * self.activation(x)) - _per_sample(self, self(x), x)


class Scaled(Lagrangian):
    """A Lagrangian with one positive number, given or, when ``learnable``, trained.

    The parameter is the number's logarithm, ``log_<name>``: the number stays positive, and thus L
    convex, whatever an optimiser does. With ``several`` it may be a tensor of such numbers.
    """

    def __init__(
        self, name: str, value: float | Tensor, *, learnable: bool, several: bool = False
    ) -> None:
        super().__init__()
        if several and isinstance(value, Tensor):
            number = constants(name, value, "finite numbers > 0", above=0.0)
        else:
            if isinstance(value, Tensor):  # a check would take its number, and drop its gradient
                raise wrong(name, "a finite number > 0", "Tensor", kind=TypeError)
            number = checked(name, value, above=0)
        self.learnable = learnable
        self._name = name
        if learnable:
            log = number.log() if isinstance(number, Tensor) else torch.tensor(math.log(number))
            self.register_parameter(f"log_{name}", nn.Parameter(log))
        elif isinstance(number, Tensor):
            # Goes along with .to(), and like a number is no part of the state dict.
            self.register_buffer("_given", number, persistent=False)
        else:
            self._given = number

    def _number(self) -> Any:
        return getattr(self, f"log_{self._name}").exp() if self.learnable else self._given

    def _largest(self) -> float:
        """The number, of several the largest, outside of any graph."""
        number = self._number()
        return float(number.detach().max()) if isinstance(number, Tensor) else number

    def extra_repr(self) -> str:
        return f"{self._name}={_shown(self._number())}" + ", learnable=True" * self.learnable


class Tempered(Scaled):
    """A Lagrangian with an inverse temperature: L(x) = ℓ(βx)/β.

    Args:
        beta: β > 0; of neurons on their own a tensor gives several, and broadcasts over the layer.
        learnable: whether β is trained.
    """

    def __init__(self, beta: float | Tensor = 1.0, *, learnable: bool = False) -> None:
        super().__init__("beta", beta, learnable=learnable, several=True)

    @property
    def beta(self) -> Any:
        """The inverse temperature β, a number or a tensor."""
        return self._number()

    def _heated(self, x: Tensor) -> Tensor:
        """βx, each neuron with its own β where there are several."""
        beta = self.beta
        broadcasts("beta", beta, x)
        return beta * x

    def _cooled(self, values: Tensor) -> Tensor:
        """Σᵢ values_i/β_i a sample."""
        beta = self.beta
        several = isinstance(beta, Tensor) and beta.dim() > 0
        return total(values / beta) if several else total(values) / beta


# The compiler cannot differentiate what it has compiled a second time.
@torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
def gradient(f: Callable[[Tensor], Tensor], x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """∂f/∂x of a function with one scalar a sample, by automatic differentiation.

    Args:
        f: ``(batch, *shape) -> (batch,)``.
        x: where to take the gradient.
        others: what else f depends on. The result can be differentiated again where gradients
            are enabled and x or one of these requires one.
    """
    if torch._C._are_functorch_transforms_active():  # which keep their own books
        return torch.func.grad(lambda x: f(x).sum())(x)
    again = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone() if x.is_inference() else x
        # An alias of x, not x itself: what f holds fixed may itself be a function of x.
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y = _per_sample(f, f(x), x).sum()
        if not y.requires_grad:  # f does not depend on anything that moves
            return torch.zeros_like(x)
        (g,) = torch.autograd.grad(y, x, create_graph=again, materialize_grads=True)
    return g


def _per_sample(f: Callable[[Tensor], Tensor], values: Tensor, x: Tensor) -> Tensor:
    """f(x), refused unless it is one number a sample."""
    if values.shape != x.shape[:1]:
        who = type(f).__name__ if isinstance(f, nn.Module) else "energy"
        raise ValueError(
            f"{who}: expected one number a sample, of shape {tuple(x.shape[:1])}, got "
            f"{tuple(values.shape)}; sum over all axes but the first, as by x.flatten(1).sum(1)"
        )
    return values


def broadcasts(name: str, number: Any, x: Tensor) -> None:
    """Refuse a tensor of numbers that does not broadcast over a layer with states ``(batch, …)``.

    Raises:
        ValueError: it has an entry for each sample, or another number of neurons.
    """
    if not isinstance(number, Tensor) or not number.dim():
        return
    shape = tuple(x.shape[1:])
    # As many axes as the layer at most: one more would be the batch.
    ours = (1,) * (len(shape) - number.dim()) + tuple(number.shape)
    if len(ours) != len(shape) or any(n not in (1, m) for n, m in zip(ours, shape, strict=True)):
        expected = f"a number, or a tensor that broadcasts to the layer's shape {shape}"
        remedy = "give one entry for each neuron, or of size 1 along an axis whose neurons share it"
        raise wrong(name, expected, f"shape {tuple(number.shape)}", remedy)


def total(x: Tensor) -> Tensor:
    """Sum over everything but the batch axis."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def constants(
    name: str, value: Tensor, expected: str = "finite numbers", above: float = -math.inf
) -> Tensor:
    """A copy of the tensor, refused unless all of it is finite and above a bound."""
    if value.requires_grad:
        raise wrong(
            name,
            "constants",
            "a tensor that requires a gradient",
            "give its values, and learnable=True to have them trained",
            kind=TypeError,
        )
    floating(name, value, "convert it by .float()")
    if not value.is_meta:  # what lies there has no values
        bad = value[~(value.isfinite() & (value > above))]
        if bad.numel():
            raise wrong(name, expected, f"{bad[0].item()!r} among its {value.numel()}")
    return value.detach().clone()


def _shown(number: Any) -> str:
    """A number, or the shape of several, as repr() shows it."""
    if isinstance(number, Tensor) and (number.dim() or number.is_meta):
        return f"Tensor{tuple(number.shape)}"
    return f"{number.item() if isinstance(number, Tensor) else number:.4g}"
