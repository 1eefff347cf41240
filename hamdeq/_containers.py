"""Results as containers of tensors, which PyTorch and Lightning look into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node, tree_map_only

from hamdeq._checks import wrong

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Container"]


class Container:
    """Base of a dataclass of tensors: a node of PyTorch's trees, which can be moved and copied.

    ``torch.utils._pytree``, and with it :mod:`torch.func` and DistributedDataParallel, know it as
    they know a dict. Lightning's ``apply_to_collection`` copies a dataclass and sets its fields, so
    that a subclass must not be frozen.

    Args:
        aside: fields that are no tensors, nor containers of such: they are passed on as they are.
    """

    _aside: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, aside: tuple[str, ...] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if aside is not None:
            cls._aside = aside

        def flatten(x: Any) -> tuple[list[Any], dict[str, Any]]:
            return [getattr(x, name) for name in cls._leaves()], {
                name: getattr(x, name) for name in cls._aside
            }

        def flatten_with_keys(x: Any) -> tuple[list[Any], dict[str, Any]]:
            values, aside = flatten(x)
            return [(GetAttrKey(a), v) for a, v in zip(cls._leaves(), values, strict=True)], aside

        def unflatten(values: Iterable[Any], aside: dict[str, Any]) -> Any:
            return cls(**dict(zip(cls._leaves(), values, strict=True)), **aside)

        register_pytree_node(cls, flatten, unflatten, flatten_with_keys_fn=flatten_with_keys)
        # A class that holds data and runs nothing: torch.load may make it from a file of weights.
        torch.serialization.add_safe_globals([cls])

    @classmethod
    def _leaves(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name not in cls._aside]  # type: ignore[arg-type]

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """The same on another device.

        Args:
            device: where its tensors are to be.
            non_blocking: as of :meth:`torch.Tensor.to`.

        Raises:
            TypeError: a dtype, which the counts and flags of a result do not have.
        """
        if isinstance(device, torch.dtype):
            remedy = "convert the tensors that it should be of, such as solution.value"
            raise wrong("to", "a device", device, remedy, kind=TypeError)
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def cpu(self) -> Self:
        """The same on the CPU."""
        return self.to("cpu")

    def detach(self) -> Self:
        """The same without a graph."""
        return tree_map_only(Tensor, Tensor.detach, self)

    def _map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """A function of every tensor, also of those in lists of results that lie aside."""
        mapped = tree_map_only(Tensor, f, self)
        # An empty list stays the one into which results are put later.
        lists = {a: x for a in self._aside if isinstance(x := getattr(self, a), list) and x}
        return replace(mapped, **{a: [result._map(f) for result in x] for a, x in lists.items()})
