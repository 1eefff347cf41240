"""The loss of many networks and its gradient, as the compiler makes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hamdeq.memories import flips
from hamdeq.memories.interactions import Factors, Interaction

__all__ = ["Kernel"]

# Similarities in a chunk of networks: the compiled kernel holds one array of them.
_CHUNK = 2**20


class Kernel:
    """Loss and gradient of a chunk, by the compiler where there is one.

    Args:
        compiled: whether to compile; it takes some ten seconds for each interaction function and
            shape, and needs a C++ compiler. Where it fails, a warning says why, and the plain
            program goes on.

    Attributes:
        name: ``compiled`` or ``eager``, what ran last.
    """

    def __init__(self, compiled: bool = True) -> None:
        self.name = "compiled" if compiled else "eager"
        self._program: Callable[..., flips.Parts] | None = None
        if compiled:
            self._program = torch.compile(flips.error_of_block, dynamic=False, fullgraph=True)

    def networks(self, work: int) -> int:
        """How many networks make a chunk, of so many similarities each."""
        return max(1, _CHUNK // work) if self._program else 1

    def __call__(
        self,
        memories: Tensor,
        states: Tensor,
        interaction: Interaction,
        factors: Factors,
        exponent: int,
    ) -> flips.Parts:
        given = (memories, states, states, interaction, factors, exponent)
        if self._program is not None:
            try:
                return self._program(*given, slice(None))
            except Exception as error:
                # The compiler's errors have no common class: whatever it was, if the plain
                # program fails as well it says so itself.
                self._program, self.name = None, "eager"
                first = str(error).strip().splitlines()[:1] or [type(error).__name__]
                warnings.warn(
                    f"compiling failed, and networks learn several times as slowly: {first[0]}; "
                    "install a C++ compiler, or ask for Kernel(compiled=False)",
                    stacklevel=2,
                )
        return flips.loss_and_gradient(*given)
