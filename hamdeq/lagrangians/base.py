"""What every Lagrangian is: L, its gradient, its Legendre transform."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["Lagrangian", "Scaled", "Tempered", "gradient", "positive", "total"]


class Lagrangian(nn.Module, ABC):
    """A convex function L of a layer's internal state.

    A subclass gives :meth:`forward`; it may give :meth:`activation` and :meth:`energy` in closed
    form for speed and accuracy, and otherwise they are derived by automatic differentiation.

    Shape:
        A state x is ``(batch, *shape)``; L(x) and L*(g) are ``(batch,)``; g has x's shape.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The Lagrangian L(x), one scalar a sample: ``(batch, *shape) -> (batch,)``."""

    def activation(self, x: Tensor) -> Tensor:
        """The activation g = ∇L(x): ``(batch, *shape) -> (batch, *shape)``."""
        return gradient(self, x, self.parameters())

    def energy(self, x: Tensor) -> Tensor:
        """The Legendre transform L*(g) = ⟨x, g⟩ − L(x), at g = ∇L(x): ``(batch,)``."""
        return total(x * self.activation(x)) - self(x)


class Scaled(Lagrangian):
    """A Lagrangian with one positive number, given or, when ``learnable``, trained.

    The parameter is the number's logarithm, ``log_<name>``: the number stays positive, and thus L
    convex, whatever an optimiser does.
    """

    def __init__(self, name: str, value: float, *, learnable: bool) -> None:
        super().__init__()
        value = positive(name, value)
        self.learnable = learnable
        self._name, self._given = name, value
        if learnable:
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(math.log(value))))

    def _number(self) -> Tensor | float:
        return getattr(self, f"log_{self._name}").exp() if self.learnable else self._given

    def extra_repr(self) -> str:
        value = float(torch.as_tensor(self._number()).detach())
        return f"{self._name}={value:.4g}" + ", learnable=True" * self.learnable


class Tempered(Scaled):
    """A Lagrangian with an inverse temperature: L(x) = ℓ(βx)/β."""

    def __init__(self, beta: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__("beta", beta, learnable=learnable)

    @property
    def beta(self) -> Tensor | float:
        """The inverse temperature β."""
        return self._number()


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
    again = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone() if x.is_inference() else x
        # An alias of x, not x itself: what f holds fixed may itself be a function of x.
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y = f(x).sum()
        if not y.requires_grad:  # f does not depend on anything that moves
            return torch.zeros_like(x)
        (g,) = torch.autograd.grad(y, x, create_graph=again, materialize_grads=True)
    return g


def total(x: Tensor) -> Tensor:
    """Sum over everything but the batch axis."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def positive(name: str, value: float) -> float:
    """The value as a float, refused unless it is a finite number > 0."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return float(value)
