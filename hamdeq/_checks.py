"""One vocabulary for the checks of arguments: what was expected, what was given, what to do.

Every message reads ``name: expected …, got …; remedy``. A check returns the value in the type that
the code goes on with, or raises.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "boolean",
    "class_labels",
    "floating",
    "instance",
    "integer",
    "nearest",
    "number",
    "one_of",
    "require",
    "whole",
    "wrong",
]

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


def wrong(
    name: str,
    expected: str,
    got: object,
    remedy: str | None = None,
    *,
    kind: type[E] = ValueError,  # type: ignore[assignment]
) -> E:
    """The error of an argument, to be raised: ``name: expected …, got …; remedy``.

    Args:
        name: of the argument.
        expected: what would have been right, such as "a finite number > 0".
        got: what was given, in words.
        remedy: what to do about it.
        kind: of the exception.
    """
    return kind(f"{name}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def require(
    holds: object,
    name: str,
    expected: str,
    got: object,
    remedy: str | None = None,
    *,
    kind: type[Exception] = ValueError,
) -> None:
    """Raise the error of :func:`wrong` unless something holds."""
    if not holds:
        raise wrong(name, expected, got, remedy, kind=kind)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that was most likely meant; None where none is near.

    A name is near where few letters differ, or where one begins with the other (`tolerance`,
    `tol`).
    """
    names = sorted(names)
    begun = [
        other
        for other in names
        if min(len(other), len(name)) >= 3 and (other.startswith(name) or name.startswith(other))
    ]
    slips = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return next(iter([*slips, *sorted(begun, key=len)[-1:], *close]), None)


def whole(value: object) -> int | None:
    """The value as an int if it is an integer, of Python or of NumPy; None if it is not.

    True and False are not taken for 1 and 0.
    """
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def integer(
    name: str,
    value: object,
    *,
    least: int = 1,
    expected: str | None = None,
    remedy: str | None = None,
) -> int:
    """The value as an int, of Python's or NumPy's integers, if it is at least ``least``.

    Raises:
        ValueError: "expected a positive integer", or "an integer ≥ least", or what ``expected``
            says.
    """
    found = whole(value)
    if found is None or found < least:
        if expected is None:
            expected = "a positive integer" if least == 1 else f"an integer ≥ {least}"
        raise wrong(name, expected, repr(value), remedy)
    return found


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    remedy: str | None = None,
) -> float:
    """The value as a float, if it is a finite real number within the bounds that are given.

    Raises:
        TypeError: no number; "expected a finite number > 0", as the bounds are.
        ValueError: not finite, or out of bounds.
    """
    bounds = [(">", above), ("≥", least), ("<", below), ("≤", most)]
    limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
    expected = f"a finite number {limits}".rstrip()
    if isinstance(value, Tensor) and value.numel() == 1 and not value.dtype.is_complex:
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise wrong(name, expected, type(value).__name__, remedy, kind=TypeError)
    found = float(value)
    fits = (
        math.isfinite(found)
        and (above is None or found > above)
        and (least is None or found >= least)
        and (below is None or found < below)
        and (most is None or found <= most)
    )
    if not fits:
        raise wrong(name, expected, repr(value), remedy)
    return found


def one_of(name: str, value: T, choices: Collection[T], remedy: str | None = None) -> T:
    """The value, if it is one of the choices.

    Raises:
        ValueError: "expected 'warn', 'raise' or 'ignore'".
    """
    if value not in choices:
        *first, last = map(repr, choices)
        expected = f"{', '.join(first)} or {last}" if first else last
        raise wrong(name, expected, repr(value), remedy)
    return value


def instance(
    name: str,
    value: Any,
    kind: type[T] | tuple[type[T], ...],
    expected: str | None = None,
    remedy: str | None = None,
) -> T:
    """The value, if it is of a class.

    Args:
        name: of the argument.
        value: anything.
        kind: the class, or several.
        expected: what the message says is expected; default "a Solver", as the class is called.
        remedy: what to do about it.

    Raises:
        TypeError: of another class.
    """
    if not isinstance(value, kind):
        if expected is None:
            names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
            expected = " or ".join(f"{'an' if a[0] in 'AEIOU' else 'a'} {a}" for a in names)
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise wrong(name, expected, got, remedy, kind=TypeError)
    return value


def floating(name: str, value: object, remedy: str | None = None) -> Tensor:
    """The value, if it is a tensor of floating point.

    Raises:
        TypeError: "expected a floating-point tensor".
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise wrong(name, "a floating-point tensor", got, remedy, kind=TypeError)
    return value


def boolean(name: str, value: object, remedy: str | None = None) -> Tensor:
    """The value, if it is a tensor of booleans.

    Raises:
        TypeError: "expected a boolean tensor".
    """
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise wrong(name, "a boolean tensor", got, remedy, kind=TypeError)
    return value


def class_labels(labels: object, batch: int, classes: int) -> Tensor:
    """The labels, if they are ``(batch,)`` of int64, each the number of a class.

    All that is wrong is named at once.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, another dtype, or no number of a class.
    """
    labels = instance("labels", labels, Tensor, f"a tensor ({batch},)")
    problems = []
    if tuple(labels.shape) != (batch,):
        remedy = ""
        if tuple(labels.shape) == (batch, 1):
            remedy = "; give labels.squeeze(1)"
        elif labels.dim() == 2 and len(labels) == batch:
            remedy = "; one-hot labels become indices by labels.argmax(1)"
        problems.append(f"expected shape ({batch},), got {tuple(labels.shape)}{remedy}")
    if labels.dtype != torch.int64:
        problems.append(f"expected torch.int64, got {labels.dtype}; use .long()")
    elif not labels.is_meta:
        other = labels[(labels < 0) | (labels >= classes)]
        if other.numel():
            problems.append(f"expected classes 0 to {classes - 1}, got {int(other[0])} among them")
    if problems:
        raise ValueError("labels: " + "; ".join(problems))
    return labels
