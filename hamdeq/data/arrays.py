"""A data module of arrays that the user has: tables, images, any numbers with a target for each."""

from __future__ import annotations

import math
from collections import Counter
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hamdeq._checks import require, whole, wrong
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
    the module standardises them, with the :class:`Encoding` that it takes over from here and keeps
    in its checkpoints, so that a trained module takes raw numbers.

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
        shuffle: draw a new order of the training samples each epoch; else keep that of the data.

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
        shuffle: bool = True,
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
        require(drawn < n, "val + test", f"fewer than the {n} samples", drawn, "lower them")
        n_val = len(parts["val"][0]) if "val" in parts else sizes["val"]
        super().__init__(batch_size, eval_batch_size, n_val, seed, shuffle)
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
            require(not empty, "training samples", "some of each class", got, "lower val or test")
        self.encoding: Encoding = self._fit(*parts["train"], standardise)
        self._splits = {
            name: (_tensor(parts[name][0]), _tensor(parts[name][1]))
            for name in ("train", "val", "test")
        }

    def _indices(self, labels: np.ndarray, part: str) -> np.ndarray:
        """The classes' indices of labels."""
        index = {name: i for i, name in enumerate(self.classes or ())}
        new = [label for label in labels.tolist() if label not in index][:1]
        wanted = f"some of the classes {[*index][:10]}"
        remedy = "there are no samples to learn this class from"
        require(not new, f"{part} targets", wanted, new, remedy)
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
            remedy = "use n_targets for regression, or give classes, such as y.astype(int)"
            raise wrong("n_classes", "classes", "real-valued targets", remedy)
        return len(self.classes)

    @property
    def n_targets(self) -> int:
        """Numbers in a target, as many as the output layer of a regressor has neurons.

        Raises:
            ValueError: the targets are classes.
        """
        if self.classes is not None:
            remedy = "use n_classes, or give floating point, such as y.astype(float)"
            got = f"{len(self.classes)} classes"
            raise wrong("n_targets", "real-valued targets", got, remedy)
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
            got = f"a {type(values).__name__} that is no array ({error})"
            remedy = "pad the rows, or leave some out"
            raise wrong(what, "rows of one length", got, remedy) from None
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
        remedy = (
            "fill in missing values, and turn columns of text or dates into numbers first, as "
            "pandas.get_dummies(x) does with text"
        )
        got = f"{array.dtype}, such as {odd!r}"
        raise wrong(what, "real numbers", got, remedy, kind=TypeError)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(array.astype(np.float32, copy=False))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        rows = int(bad.reshape(len(array), -1).any(1).sum())
        got = f"{array[first]} at {first}, and such values in {rows} of {len(array)} samples"
        raise wrong(what, "finite numbers", got, "fill them in, or leave these samples out")
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
        fits = array.ndim in (1, 2) and array.size > 0
        require(fits, what, "(n,) or (n, n_targets) with n ≥ 1", array.shape)
        return array.reshape(len(array), -1)
    if array.ndim != 1:
        remedy = "give one class for each sample"
        if array.ndim == 2 and array.shape[1] == 1:
            remedy = "give the column itself, such as y[:, 0], or y['name'] of a table"
        elif array.ndim == 2:
            remedy = "one-hot classes become indices by y.argmax(1), real values by y.astype(float)"
        raise wrong(what, "(n,)", array.shape, remedy)
    labels = np.empty(len(array), dtype=object)
    labels[:] = array.tolist()
    kinds = {type(label) for label in labels}
    for kind, name in (((bool, np.bool_), bool), (Integral, int), (str, str)):
        if all(issubclass(each, kind) for each in kinds):
            labels[:] = [name(label) for label in labels]
            return labels
    expected = "all strings, all integers or all booleans, or floating point for real values"
    got = ", ".join(sorted(kind.__name__ for kind in kinds))
    remedy = "leave out samples whose target is missing, or turn the others into strings"
    raise wrong(what, expected, got, remedy, kind=TypeError)


def _samples(
    pair: Any, part: str = "", like: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets that fit one another, and those to learn from."""
    require(len(pair) == 2, part.strip(), "(inputs, targets)", f"{len(pair)} parts")
    x, y = _numbers(pair[0], f"{part}inputs"), _targets(pair[1], f"{part}targets")
    name, remedy = f"{part}inputs", "give one feature as x[:, None]"
    require(x.ndim >= 2, name, "(n, features)", x.shape, remedy)
    require(x.size > 0, name, "samples and features", x.shape)
    require(len(x) == len(y), f"{part}targets", f"{len(x)}, one for each sample", len(y))
    if like is not None:
        wanted, got = _kind(*like), _kind(x, y)
        require(wanted == got, f"{part}samples", wanted, got, "give them like the others")
    return x, y


def _kind(x: np.ndarray, y: np.ndarray) -> str:
    """The shape of the inputs, and the kind of the targets."""
    targets = "classes" if y.dtype.kind == "O" else f"{y.shape[1]} real-valued targets"
    return f"shape {x.shape[1:]} with {targets}"


def _classes(labels: np.ndarray) -> tuple[Label, ...]:
    """The classes, sorted."""
    classes, n = tuple(sorted(set(labels.tolist()))), len(labels)
    require(len(classes) > 1, "targets", "at least two classes", [*classes])
    expected, got = f"at most {n // 2} classes in {n} samples", len(classes)
    remedy = "real-valued targets are given in floating point, such as y.astype(float)"
    require(2 * got <= n, "targets", expected, got, remedy)
    return classes


def _count(part: Any, name: str, n: int) -> int:
    """Samples of a part that is to be drawn."""
    expected = "a share below 1, a number of samples, or (inputs, targets)"
    if isinstance(part, Real) and not isinstance(part, Integral):
        require(0 <= float(part) < 1, name, expected, repr(part))
        return round(float(part) * n)
    count = whole(part)
    if count is None or count < 0:
        raise wrong(name, expected, repr(part))
    return count


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
