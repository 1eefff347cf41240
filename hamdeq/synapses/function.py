"""Any function of activations as a synapse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from hamdeq._checks import instance, require, whole, wrong
from hamdeq.synapses.base import Shape, Synapse

__all__ = ["FunctionSynapse"]


class FunctionSynapse(Synapse):
    """A function of the layers' activations as a synapse: E = function(g₁, …, g_k).

    The fields are derived by automatic differentiation. A synapse that is used much is worth a
    subclass of :class:`Synapse` with its field in closed form.

    Args:
        function: ``function(*g) -> (batch,)``, minus the interaction of each sample. The
            parameters of an :class:`torch.nn.Module` become the synapse's, and get their gradients;
            those that another function refers to are unknown to the synapse, and get none.
        linear_in: places in which the function is linear, counted from 0; layers there can be
            eliminated. :meth:`~hamdeq.Synapse.check_linear` tries whether it is.

    Raises:
        TypeError: a function that cannot be called, or that returns no tensor.
        ValueError: ``linear_in`` with what is no place; a function that returns another shape.

    Example:
        >>> def energy(a, b):
        ...     return -(a * b).sum(-1)
        >>> FunctionSynapse(energy, linear_in=(0, 1))
        FunctionSynapse(energy, linear_in=(0, 1))
    """

    def __init__(self, function: Callable[..., Tensor], *, linear_in: Collection[int] = ()) -> None:
        super().__init__()
        valid = callable(function) and not isinstance(function, type)
        expected = "a function of activations, function(*g) -> (batch,)"
        require(valid, "function", expected, repr(function), kind=TypeError)
        places = [*map(whole, linear_in)] if isinstance(linear_in, Collection) else [None]
        numbers = [place for place in places if place is not None and place >= 0]
        fits = len(numbers) == len(places)
        require(fits, "linear_in", "places, such as (0, 1)", repr(linear_in))
        self.function = function
        self.linear_in: tuple[int, ...] = tuple(sorted({*numbers}))

    def energy(self, *g: Tensor) -> Tensor:
        label = self._label()
        energy = instance(label, self.function(*g), Tensor, "a tensor of shape (batch,)")
        if energy.shape != g[0].shape[:1]:
            remedy = "sum over the axes of each sample, as in -(a * b).flatten(1).sum(1)"
            expected = f"one scalar a sample, of shape ({len(g[0])},)"
            got = tuple(energy.shape) if energy.dim() else "(), a sum over the batch"
            raise wrong(label, expected, got, remedy)
        return energy

    def is_linear_in(self, place: int) -> bool:
        return place in self.linear_in

    def fit(self, names: Sequence[str], shapes: Sequence[Shape]) -> None:
        super().fit(names, shapes)
        fits = not self.linear_in or self.linear_in[-1] < len(names)
        expected = f"places 0 to {len(names) - 1} of {len(names)} layers"
        require(fits, "linear_in", expected, self.linear_in)

    def _label(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def extra_repr(self) -> str:
        return f"{self._label()}" + f", linear_in={self.linear_in}" * bool(self.linear_in)
