"""What to do about samples that do not converge."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Literal

import torch

from hamdeq._checks import one_of
from hamdeq.solvers.solution import Solution, Status

__all__ = ["ConvergenceError", "ConvergenceWarning", "Failures", "OnFailure"]

OnFailure = Literal["warn", "raise", "ignore"]


# What the solver has to do with, and not what it was given.
_OF_THE_SOLVE = (Status.MAX_STEPS, Status.DIVERGED)


class ConvergenceWarning(UserWarning):
    """Some samples did not reach their equilibrium."""


class ConvergenceError(RuntimeError):
    """Some samples did not reach their equilibrium, and ``on_failure="raise"``."""


class Failures:
    """What to do about samples that did not converge.

    Args:
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        once: warn only once of each kind of solve.
    """

    def __init__(self, on_failure: OnFailure, *, once: bool = False) -> None:
        self.on_failure: OnFailure = one_of("on_failure", on_failure, ("warn", "raise", "ignore"))
        self.once = once
        self._warned: set[str] = set()

    def __call__(self, solution: Solution, what: str, *, remedy: str | None = None) -> None:
        """Warn of, or raise for, the samples of a solve that did not converge.

        Args:
            solution: the result of the solve.
            what: what was looked for, the subject of the message.
            remedy: what to do about samples that ran out of steps or diverged, where it is not
                what the status says.

        Raises:
            ConvergenceError: there are some, and ``on_failure="raise"``.
        """
        quiet = self.on_failure == "ignore" or (self.once and what in self._warned)
        if quiet or bool(solution.converged.all()):
            return
        total = solution.status.numel()
        failed = solution.status[~solution.converged]
        counts = [(s, int((failed == s).sum())) for s in Status]
        texts = {s: remedy if remedy and s in _OF_THE_SOLVE else s.message for s in Status}
        parts = (f"{n} of {total} samples: {texts[s]}" for s, n in counts if n)
        text = f"{what} not reached by {'; '.join(parts)}"
        if self.on_failure == "raise":
            raise ConvergenceError(text)
        self._warned.add(what)
        warnings.warn(text, ConvergenceWarning, stacklevel=_frames_inside() + 1)


# Folders of this package and of torch, whose modules call one another.
_INSIDE = tuple(
    os.path.join(os.path.dirname(os.path.abspath(path)), "")
    for path in (os.path.dirname(os.path.abspath(__file__)), torch.__file__)
)


def _frames_inside() -> int:
    """How many calls lie between a warning and the line of the user's that led to it."""
    frame, count = sys._getframe(1), 0
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, count = frame.f_back, count + 1
    return count if frame is not None else 0
