"""Functions compiled into one graph each, where there is a compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch

__all__ = ["Graph", "graph_of"]


class Graph:
    """A function as one compiled graph, with its own store of programs for other shapes.

    Args:
        function: without defaults or closure. Nothing in it may depend on the numbers in a tensor.
        remedy: what to do if it cannot be compiled, and what happens then.
    """

    def __init__(self, function: Any, remedy: str) -> None:
        # PyTorch stores programs by the code of a function, and only a few.
        code = function.__code__.replace()
        copy = FunctionType(code, function.__globals__, function.__name__)
        self._program: Callable[..., Any] | None = torch.compile(copy, fullgraph=True)
        self._remedy = remedy

    def __call__(self, *args: Any) -> Any:
        """The function's result; None, after a warning, where it could not be compiled."""
        if self._program is None:
            return None
        try:
            return self._program(*args)
        except Exception as error:
            # The compiler's errors have no common class; an error of the function itself comes
            # again where it is called.
            self._program = None
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(f"compiling failed: {first}; {self._remedy}", stacklevel=2)
            return None


_GRAPHS: WeakKeyDictionary[Any, dict[Hashable, Graph]] = WeakKeyDictionary()


def graph_of(owner: Any, key: Hashable, function: Any, remedy: str) -> Graph:
    """The graph of a function that belongs to an object, made once for each key.

    It is not kept in the object, which can be copied, pickled and saved.
    """
    graphs = _GRAPHS.setdefault(owner, {})
    if key not in graphs:
        graphs[key] = Graph(function, remedy)
    return graphs[key]
