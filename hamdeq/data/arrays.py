"""A data module of arrays that the user has: tables, images, any numbers with a target for each."""

from __future__ import annotations

import math
from collections import Counter
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hamdeq.data.batches import expect
from hamdeq.data.encoding import Encoding, Label, mean_and_std
from hamdeq.data.modules import InMemoryDataModule, Split

__all__ = ["ArrayDataModule"]

Part = float | int | tuple[Any, Any]
"""A share of the samples, a number of them, or inputs and targets of their own."""


class ArrayDataModule(InMemoryDataModule):
    """Inputs and targets in memory: NumPy arrays, torch tensors, pandas tables, lists of numbers.

    Targets of floating point are real values, to be learned by
    :class:`~hamdeq.training.HAMRegressor`. All others, strings, integers or booleans, are the names
    of classes, to be learned by :class:`~hamdeq.training.HAMClassifier`; batches hold the index of
    a sample's class in `classes`, which are sorted.

    Samples are split at random, the classes in the same proportions in each part. Mean and standard
    deviation are those of the training part alone. Batches hold the inputs **as they were given**:
    it is the module that standardises them, with an :class:`Encoding` which it takes over from
    here and keeps in its checkpoints. A trained module so takes raw numbers, wherever they come
    from.

    Args:
        inputs: one sample for each target: ``(n, features)`` for a table, ``(n, height, width)`` or
            ``(n, channels, height, width)`` for images.
        targets: ``(n,)``; real values also ``(n, n_targets)``.
        val: the validation part: a share of the samples below 1, a number of them, 0 for none, or
            ``(inputs, targets)`` of your own, from which nothing is drawn.
        test: the test part, likewise.
        standardise: whether the module is to learn from standardised inputs, and real-valued
            targets. For images in [0, 1] and for features of one scale give False.
        batch_size: samples per training batch.
        eval_batch_size: samples per batch of validation, test and prediction.
        seed: of the split and of the order of the training batches.

    Attributes:
        input_shape: shape of one sample.
        classes: the names of the classes; None for real-valued targets.
        encoding: what a module takes over from here: see :class:`Encoding`.

    Raises:
        TypeError: inputs that are no numbers, targets of mixed types.
        ValueError: lengths or shapes that do not fit, values that are missing or infinite, parts
            that leave no training samples, a class without any, one single class.

    Example:
        >>> data = ArrayDataModule(table, species)  # doctest: +SKIP
        >>> memory = DEQ(HAM.chain([data.n_features, 64, data.n_classes]))  # doctest: +SKIP
        >>> trainer.fit(HAMClassifier(memory), data)  # doctest: +SKIP
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        val: Part = 0.15,
        test: Part = 0.15,
        standardise: bool = True,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        seed: int = 0,
    ) -> None:
        x, y = _samples((inputs, targets))
        parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        sizes: dict[str, int] = {}
        for name, part in (("val", val), ("test", test)):
            if isinstance(part, tuple | list):
                parts[name] = _samples(part, f"{name} ", like=(x, y))
            else:
                sizes[name] = _count(part, name, len(x))
        n, drawn = len(x), sum(sizes.values())
        expect(drawn < n, f"val + test < {n}, the number of samples", drawn, "lower them")
        n_val = len(parts["val"][0]) if "val" in parts else sizes["val"]
        super().__init__(batch_size, eval_batch_size, n_val, seed)
        self.input_shape: tuple[int, ...] = x.shape[1:]
        self.classes: tuple[Label, ...] | None = _classes(y) if y.dtype.kind == "O" else None
        order = _order(y, seed)
        for name, size in sizes.items():
            rows, order = order[:size], order[size:]
            parts[name] = x[rows], y[rows]
        parts["train"] = x[order], y[order]
        if self.classes is not None:
            parts = {name: (x, self._indices(y, name)) for name, (x, y) in parts.items()}
            empty = sorted({*range(self.n_classes)} - {*parts["train"][1].tolist()})
            got = f"none of {[self.classes[i] for i in empty]}"
            expect(not empty, "training samples of each class", got, "lower val or test")
        self.encoding: Encoding = self._fit(*parts["train"], standardise)
        self._splits = {
            name: (_tensor(parts[name][0]), _tensor(parts[name][1]))
            for name in ("train", "val", "test")
        }

    def _indices(self, labels: np.ndarray, part: str) -> np.ndarray:
        """The classes' indices of labels."""
        index = {name: i for i, name in enumerate(self.classes or ())}
        new = [label for label in labels.tolist() if label not in index][:1]
        wanted = f"{part} targets among the classes {[*index][:10]}"
        expect(not new, wanted, new, "there are no samples to learn this class from")
        return np.array([index[label] for label in labels.tolist()], dtype=np.int64)

    def _fit(self, x: np.ndarray, y: np.ndarray, standardise: bool) -> Encoding:
        """The encoding of training samples."""
        scales: dict[str, Any] = {}
        if standardise:
            scales["inputs"] = mean_and_std(torch.from_numpy(x).double(), "inputs")
            if self.classes is None:
                scales["targets"] = mean_and_std(torch.from_numpy(y).double(), "targets")
        return Encoding(input_shape=self.input_shape, classes=self.classes, **scales)

    def make_splits(self) -> dict[str, Split]:
        """The splits, which have been made when the module was."""
        return self._splits

    @property
    def n_features(self) -> int:
        """Numbers in a sample, as many as a flat input layer has neurons."""
        return math.prod(self.input_shape)

    @property
    def n_classes(self) -> int:
        """Number of classes, as many as the output layer of a classifier has neurons.

        Raises:
            ValueError: the targets are real values.
        """
        if self.classes is None:
            raise ValueError(
                "n_classes: expected classes, got real-valued targets; for regression use "
                "n_targets, for classes give strings or integers, such as y.astype(int)"
            )
        return len(self.classes)

    @property
    def n_targets(self) -> int:
        """Numbers in a target, as many as the output layer of a regressor has neurons.

        Raises:
            ValueError: the targets are classes.
        """
        if self.classes is not None:
            raise ValueError(
                f"n_targets: expected real-valued targets, got {len(self.classes)} classes; for "
                "classes use n_classes, for regression give floating point, such as y.astype(float)"
            )
        return math.prod(self._splits["train"][1].shape[1:])

    def __repr__(self) -> str:
        """Samples, features, classes with the number of training samples of each, and parts."""
        shape = " × ".join(map(str, self.input_shape))
        parts = ", ".join(f"{name} {len(labels)}" for name, (_, labels) in self._splits.items())
        if self.classes is None:
            targets = f"{self.n_targets} real-valued target{'s' * (self.n_targets != 1)}"
        else:
            count = Counter(self._splits["train"][1].tolist())
            named = [f"{name!r} ({count[i]})" for i, name in enumerate(self.classes[:10])]
            more = ", …" * (self.n_classes > 10)
            targets = f"{self.n_classes} classes (in training): {', '.join(named)}{more}"
        features = f"{shape} feature{'s' * (self.n_features != 1)}"
        return f"{type(self).__name__}({parts} samples of {features}; {targets})"

    __str__ = __repr__


def _array(values: Any, what: str) -> np.ndarray:
    """NumPy's view of anything like an array."""
    if not isinstance(values, Tensor):
        try:
            return np.asarray(values)
        except ValueError as error:  # rows of different lengths
            raise ValueError(
                f"{what}: expected rows of one length, got a {type(values).__name__} that is no "
                f"array ({error}); pad the rows, or leave some out"
            ) from None
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _numbers(values: Any, what: str) -> np.ndarray:
    """Finite numbers, in float64 where they were no tensors of float32.

    Raises:
        TypeError: other things than real numbers.
        ValueError: missing or infinite values.
    """
    array = _array(values, what)
    if array.dtype.kind == "O" and all(isinstance(v, Real) for v in array.flat):
        array = array.astype(np.float64)  # columns of several kinds of numbers
    if array.dtype.kind not in "fiub":
        odd = next((v for v in array.flat if not isinstance(v, Real)), None)
        raise TypeError(
            f"{what}: expected real numbers, got {array.dtype}, such as {odd!r}; fill in missing "
            "values, and turn columns of text or dates into numbers first, as "
            "pandas.get_dummies(x) does with text"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(array.astype(np.float32, copy=False))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        rows = int(bad.reshape(len(array), -1).any(1).sum())
        raise ValueError(
            f"{what}: expected finite numbers, got {array[first]} at {first}, and such values in "
            f"{rows} of {len(array)} samples; fill them in, or leave these samples out"
        )
    return array


def _targets(values: Any, what: str) -> np.ndarray:
    """Real values ``(n, n_targets)`` in float, or class labels ``(n,)`` as objects.

    Raises:
        TypeError: labels of several types, or of none that can be a name.
        ValueError: a shape that is none of targets, or missing values.
    """
    array = _array(values, what)
    if array.dtype.kind == "U" and isinstance(values, tuple | list):
        array = np.asarray(values, dtype=object)  # NumPy makes strings of what lies beside strings
    if array.dtype.kind == "f":
        array = _numbers(array, what)
        expect(array.ndim in (1, 2), f"{what} (n,) or (n, n_targets)", array.shape, "flatten them")
        expect(array.size > 0, f"{what} with samples", array.shape, "give some")
        return array.reshape(len(array), -1)
    if array.ndim != 1:
        remedy = "give one class for each sample"
        if array.ndim == 2 and array.shape[1] == 1:
            remedy = "give the column itself, such as y[:, 0], or y['name'] of a table"
        elif array.ndim == 2:
            remedy = "one-hot classes become indices by y.argmax(1), real values by y.astype(float)"
        expect(False, f"{what} (n,)", array.shape, remedy)
    labels = np.empty(len(array), dtype=object)
    labels[:] = array.tolist()
    kinds = {type(label) for label in labels}
    for kind, name in (((bool, np.bool_), bool), (Integral, int), (str, str)):
        if all(issubclass(each, kind) for each in kinds):
            labels[:] = [name(label) for label in labels]
            return labels
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise TypeError(
        f"{what}: expected all strings, all integers or all booleans as classes, or floating point "
        f"for real values, got {names}; leave out samples whose target is missing, or turn the "
        "others into strings"
    )


def _samples(
    pair: Any, part: str = "", like: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets that fit one another, and those to learn from."""
    expect(len(pair) == 2, f"{part}(inputs, targets)", f"{len(pair)} parts", "give a pair")
    x, y = _numbers(pair[0], f"{part}inputs"), _targets(pair[1], f"{part}targets")
    expect(x.ndim >= 2, f"{part}inputs (n, features)", x.shape, "give one feature as x[:, None]")
    expect(x.size > 0, f"{part}inputs with samples and features", x.shape, "give some")
    expect(len(x) == len(y), f"{len(x)} {part}targets", len(y), "give one for each sample")
    if like is not None:
        wanted, got = _kind(*like), _kind(x, y)
        expect(wanted == got, f"{part}samples of {wanted}", got, "give them like the others")
    return x, y


def _kind(x: np.ndarray, y: np.ndarray) -> str:
    """The shape of the inputs, and the kind of the targets."""
    targets = "classes" if y.dtype.kind == "O" else f"{y.shape[1]} real-valued targets"
    return f"shape {x.shape[1:]} with {targets}"


def _classes(labels: np.ndarray) -> tuple[Label, ...]:
    """The classes, sorted."""
    classes, n = tuple(sorted(set(labels.tolist()))), len(labels)
    expect(len(classes) > 1, "at least two classes", [*classes], "check the targets")
    remedy = "real-valued targets are given in floating point, such as y.astype(float)"
    expect(2 * len(classes) <= n, f"at most {n // 2} classes in {n} samples", len(classes), remedy)
    return classes


def _count(part: Any, name: str, n: int) -> int:
    """Samples of a part that is to be drawn."""
    number = isinstance(part, int | float) and not isinstance(part, bool)
    remedy = "give a share below 1, a number of samples, or (inputs, targets)"
    share = isinstance(part, float)
    good = number and (0 <= part < 1 if share else part >= 0)
    expect(good, f"{name} as a share, a number or a pair", repr(part), remedy)
    return round(part * n) if share else int(part)


def _order(y: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the samples; of classes, any stretch of it has all in proportion."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).numpy()
    if y.dtype.kind != "O":
        return order
    # A sample's place among those of its class, as a share of them: sorted by it, the classes are
    # dealt out evenly. What is alone in its class comes in the middle.
    place = np.empty(len(y))
    labels, rows_of = y.tolist(), dict[Label, list[int]]()
    for row in order.tolist():
        rows_of.setdefault(labels[row], []).append(row)
    for rows in rows_of.values():
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(place[order], kind="stable")]


def _tensor(values: np.ndarray) -> Tensor:
    dtype = np.int64 if values.dtype.kind == "i" else np.float32
    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))
