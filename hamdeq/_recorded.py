"""Objects that remember what they were constructed from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["Recorded"]


class Recorded:
    """Base of classes whose objects keep the arguments of their constructor.

    A trained module can then say in plain data how to build it again, and a checkpoint needs no
    pickled classes.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _recording(vars(cls)["__init__"]))  # noqa: B010

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments by name, those of ``*args`` as a tuple and of ``**kwargs`` as a dict.

        An argument that was another such object, and has been replaced since, is the present one. A
        subclass gives others that can be replaced, such as a solver.
        """
        given, options = getattr(self, "_given_arguments", ((), {}))
        arguments = dict(inspect.signature(type(self)).bind(*given, **options).arguments)
        for name, value in arguments.items():
            present = getattr(self, name, None)
            if isinstance(value, Recorded) and isinstance(present, Recorded):
                arguments[name] = present
        return arguments


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        # The outermost constructor runs first; those of its bases find it recorded.
        if "_given_arguments" not in vars(self):
            object.__setattr__(self, "_given_arguments", (args, kwargs))
        init(self, *args, **kwargs)

    return recorded
