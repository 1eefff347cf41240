"""Errors of arguments, and the check that their messages read as all others do."""

import re

import pytest

__all__ = ["Refusal", "assert_refused"]

Refusal = tuple[type[Exception], str, str, str]
"""Class of an error; expressions of the argument, of what is expected, and of what follows."""


def assert_refused(refusal, call):
    """The message of the error reads ``name: expected …, got …; remedy``."""
    kind, name, expected, rest = refusal
    with pytest.raises(kind, match=f"(?s)^{name}: expected {expected}.*, got .*") as seen:
        call()
    assert re.search(rest, str(seen.value), re.DOTALL), str(seen.value)
