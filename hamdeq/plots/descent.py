"""How the energy falls while a memory settles."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = ["energy_descent"]

# Okabe & Ito's colours, told apart with any colour vision, each with a mark of its own; dashes
# repeat them.
_STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
    ("#7F7F7F", "*"),
)
_DASHES = ("-", "--", ":")


def energy_descent(
    curves: Mapping[str, Sequence[float] | Tensor], *, floor: float = 1e-12
) -> Figure:
    """Energy above its minimum against evaluations, in logarithms, for several ways to settle.

    Args:
        curves: label -> E − E_min after 1, 2, 3, … evaluations of the map, ≥ 0, in the energy's
            own units.
        floor: what is below is rounding, and is not drawn.

    Raises:
        ValueError: no curve, or more than the 24 that can be told apart.

    Example:
        >>> figure = energy_descent({"plain": [1.0, 0.1, 0.01], "Anderson": [1.0, 0.02, 0.0001]})
    """
    most = len(_STYLES) * len(_DASHES)
    if not 1 <= len(curves) <= most:
        raise ValueError(
            f"curves: expected 1 to {most} of them, got {len(curves)}; draw several figures"
        )
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    styles = itertools.product(_DASHES, _STYLES)
    for (label, curve), (dash, (colour, mark)) in zip(curves.items(), styles, strict=False):
        energies = np.asarray(curve, dtype=float)
        shown = energies > floor
        axes.plot(
            np.arange(1, len(energies) + 1)[shown],
            energies[shown],
            marker=mark,
            color=colour,
            linestyle=dash,
            label=label,
            markersize=4,
            fillstyle="none",
            linewidth=1,
        )
    axes.set(xlabel="evaluations", ylabel="energy above its minimum", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.8)
    axes.legend(fontsize="small")
    return figure
