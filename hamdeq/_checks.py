"""Checks of arguments that all packages share."""

from __future__ import annotations

from numbers import Integral

__all__ = ["integer", "whole"]


def whole(value: object) -> int | None:
    """The value as an int if it is an integer, of Python or of NumPy; None if it is not.

    True and False are not taken for 1 and 0.
    """
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def integer(name: str, value: object, *, least: int = 1, expected: str | None = None) -> int:
    """The value as an int.

    Args:
        name: of the argument, for the message.
        value: an integer of Python or of NumPy.
        least: the smallest that is allowed.
        expected: what the message says is expected; default "a positive integer" or
            "an integer ≥ least".

    Raises:
        ValueError: not an integer, or less than ``least``.
    """
    number = whole(value)
    if number is None or number < least:
        if expected is None:
            expected = "a positive integer" if least == 1 else f"an integer ≥ {least}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number
