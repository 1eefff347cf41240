"""Tables in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

__all__ = ["markdown", "mean_and_deviation"]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line for each row."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """Return mean ± standard deviation (with n − 1), without it of one value.

    A dash where there are no values, or one is NaN, which stands for a number that there is not.
    """
    if not values or any(map(math.isnan, values)):
        return "–"
    text = form.format(statistics.mean(values))
    return f"{text} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else text
