"""Any function of activations as a synapse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from hamdeq._checks import whole
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
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                "function: expected a function of activations, function(*g) -> (batch,), got "
                f"{function!r}"
            )
        places = [*map(whole, linear_in)] if isinstance(linear_in, Collection) else [None]
        if any(place is None or place < 0 for place in places):
            raise ValueError(f"linear_in: expected places, such as (0, 1), got {linear_in!r}")
        self.function = function
        self.linear_in: tuple[int, ...] = tuple(sorted({n for n in places if n is not None}))

    def energy(self, *g: Tensor) -> Tensor:
        energy = self.function(*g)
        if not isinstance(energy, Tensor):
            raise TypeError(
                f"{self._label()}: expected a tensor of shape (batch,), got {type(energy).__name__}"
            )
        batch = len(g[0])
        if energy.shape != (batch,):
            remedy = (
                "sum over the axes of each sample"
                if energy.dim()
                else "it is summed over the batch; sum over the axes of each sample alone"
            )
            raise ValueError(
                f"{self._label()}: expected one scalar a sample, of shape ({batch},), got "
                f"{tuple(energy.shape)}; {remedy}, as in -(a * b).flatten(1).sum(1)"
            )
        return energy

    def is_linear_in(self, place: int) -> bool:
        return place in self.linear_in

    def fit(self, names: Sequence[str], shapes: Sequence[Shape]) -> None:
        super().fit(names, shapes)
        if self.linear_in and self.linear_in[-1] >= len(names):
            raise ValueError(
                f"linear_in: expected places 0 to {len(names) - 1} of {len(names)} layers, got "
                f"{self.linear_in}"
            )

    def _label(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def extra_repr(self) -> str:
        return f"{self._label()}" + f", linear_in={self.linear_in}" * bool(self.linear_in)
