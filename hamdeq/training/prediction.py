"""Predictions of a trained module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hamdeq.data.encoding import Label
from hamdeq.solvers import Status
from hamdeq.training.files import write_csv

__all__ = ["Prediction", "joined", "nearest_distribution", "write_predictions"]


class Prediction(NamedTuple):
    """Predictions of each sample; None of what a module does not have.

    Attributes:
        value: the class, as an index ``(batch,)``, or real values ``(batch, n_targets)`` in the
            units of the training data. ``module.encoding.classes`` has the names of the classes.
        probabilities: of the classes: ``(batch, classes)``.
        energy: of the equilibrium: ``(batch,)``.
        steps: of the solver, until the sample stopped: ``(batch,)``.
        status: a :class:`~hamdeq.Status` a sample, CONVERGED where it reached its equilibrium:
            ``(batch,)``.
    """

    value: Tensor
    probabilities: Tensor | None = None
    energy: Tensor | None = None
    steps: Tensor | None = None
    status: Tensor | None = None


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Predictions of several batches as one."""
    value, *others = zip(*parts, strict=True)
    rest = (None if one[0] is None else torch.cat([*one]) for one in others)
    return Prediction(torch.cat([*value]), *rest)


def nearest_distribution(scores: Tensor) -> Tensor:
    """The distribution over classes that is nearest to the scores, in the sum of squares.

    A score that is trained with the mean squared error to be 1 for the class and 0 for the others
    estimates the probability of the class, but may be a little below 0 or above 1. Order is kept.

    Shape:
        ``(batch, classes) -> (batch, classes)``, ≥ 0, with the sum 1 in each row.

    Source: Duchi et al. (ICML 2008), figure 1.
    """
    ordered = scores.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    count = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    size = (count * ordered > excess).sum(1, keepdim=True).clamp(min=1)
    return (scores - excess.gather(1, size - 1) / size).clamp(min=0)


def write_predictions(
    path: Path, prediction: Prediction, classes: Sequence[Label] | None = None
) -> None:
    """Write predictions as a table, a row for each sample in the order of the data.

    Columns: ``class``, or ``value_0`` and so on; ``p_`` and the name of each class; ``energy``,
    ``steps`` and ``status``.

    Raises:
        OSError: the file cannot be written.
    """
    columns: dict[str, Sequence[object]] = {}
    value, probabilities = prediction.value, prediction.probabilities
    if value.is_floating_point():
        values = value.reshape(len(value), -1)
        columns |= {f"value_{i}": values[:, i].tolist() for i in range(values.shape[1])}
    else:
        columns["class"] = [classes[i] if classes else i for i in value.tolist()]
    if probabilities is not None:
        names = classes or range(probabilities.shape[1])
        columns |= {f"p_{name}": p.tolist() for name, p in zip(names, probabilities.T, strict=True)}
    for name in ("energy", "steps"):
        if (numbers := getattr(prediction, name)) is not None:
            columns[name] = numbers.tolist()
    if prediction.status is not None:
        columns["status"] = [Status(s).name for s in prediction.status.tolist()]
    write_csv(path, [*columns], zip(*columns.values(), strict=True))
