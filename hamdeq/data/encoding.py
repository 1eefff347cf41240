"""Standardisation and class names: from a user's values to a model's numbers, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq._checks import floating, wrong

__all__ = ["Encoding", "Label", "as_samples", "mean_and_std"]

Label = str | int | bool
"""A class as the user names it."""

_BUFFERS = (
    "input_shape",
    "input_mean",
    "input_std",
    "target_mean",
    "target_std",
    "class_names",
)


class Encoding(nn.Module):
    """Properties of the data that a trained model needs when it is used without them.

    Inputs are standardised, z = (x − μ)/σ with one mean and one standard deviation per feature;
    real-valued targets likewise; a class is an index into the names of the classes. All of it is
    optional, and a blank encoding changes nothing.

    Everything is kept in buffers, the names as JSON in UTF-8, so that it is part of any checkpoint,
    whatever the format of the file. `load_state_dict` takes over the shapes that it is given: the
    encoding belongs to the weights that are loaded with it.

    Args:
        input_shape: shape of one sample.
        inputs: mean and standard deviation of the inputs, each of the shape of a sample.
        targets: mean and standard deviation of real-valued targets, each ``(n_targets,)``.
        classes: the names of the classes, in the order of their indices.

    Shape:
        ``(batch, …) -> (batch, …)``, standardised; the same shape.
    """

    input_shape: Tensor | None
    input_mean: Tensor | None
    input_std: Tensor | None
    target_mean: Tensor | None
    target_std: Tensor | None
    class_names: Tensor | None

    def __init__(
        self,
        *,
        input_shape: Sequence[int] | None = None,
        inputs: tuple[Tensor, Tensor] | None = None,
        targets: tuple[Tensor, Tensor] | None = None,
        classes: Sequence[Label] | None = None,
    ) -> None:
        super().__init__()
        shape = None if input_shape is None else torch.tensor([*input_shape], dtype=torch.int64)
        names = None if classes is None else bytearray(json.dumps([*classes]).encode())
        values = (
            shape,
            *(inputs or (None, None)),
            *(targets or (None, None)),
            None if names is None else torch.frombuffer(names, dtype=torch.uint8).clone(),
        )
        for name, value in zip(_BUFFERS, values, strict=True):
            self.register_buffer(name, value)
        self._read()

    def _read(self) -> None:
        # Once: buffers may lie on another device, which each reading would wait for.
        shape, names = self.input_shape, self.class_names
        self._shape = None if shape is None else tuple(shape.tolist())
        self._classes = None if names is None else tuple(json.loads(bytes(names.tolist())))

    @property
    def is_blank(self) -> bool:
        """True if there is nothing to remember."""
        return all(getattr(self, name) is None for name in _BUFFERS)

    @property
    def standardises(self) -> bool:
        """True if inputs are standardised."""
        return self.input_mean is not None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample; None where it is not known."""
        return self._shape

    @property
    def classes(self) -> tuple[Label, ...] | None:
        """The names of the classes, in the order of their indices; None where there are none."""
        return self._classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardised inputs, in the shape in which they are given.

        Raises:
            TypeError: they are not of floating point.
            ValueError: their shape is not that of the data.
        """
        shape = self.shape
        if shape is None and self.input_mean is None:
            return inputs
        floating("inputs", inputs, "give inputs.float()")
        if shape is None:
            return _standardised(inputs, self.input_mean, self.input_std)
        samples = as_samples(inputs, shape, "inputs", "as the data that the model was trained on")
        return _standardised(samples, self.input_mean, self.input_std).reshape(inputs.shape)

    def encode(self, targets: Tensor) -> Tensor:
        """Standardised targets ``(batch, n_targets)``."""
        return _standardised(targets, self.target_mean, self.target_std)

    def decode(self, values: Tensor) -> Tensor:
        """Targets ``(batch, n_targets)`` in the user's units, from standardised ones."""
        if self.target_mean is None or self.target_std is None:
            return values
        return values * self.target_std.to(values) + self.target_mean.to(values)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        unexpected_keys += [prefix + name for name in given if name not in _BUFFERS]
        for name in _BUFFERS if strict else [name for name in _BUFFERS if name in given]:
            old, value = getattr(self, name), given.get(name)
            if value is not None:
                value = value.detach().to(value if old is None else old.device, copy=True)
            setattr(self, name, value)
        self._read()

    def extra_repr(self) -> str:
        """Shape of a sample, what is standardised, and the classes."""
        parts = [] if self.shape is None else [f"input_shape={self.shape}"]
        parts += ["standardised inputs"] * self.standardises
        parts += ["standardised targets"] * (self.target_mean is not None)
        if (classes := self.classes) is not None:
            parts.append(f"classes={classes}")
        return ", ".join(parts) or "blank"


def _standardised(x: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    return x if mean is None or std is None else (x - mean.to(x)) / std.to(x)


def as_samples(x: Tensor, shape: Sequence[int], what: str, of: str) -> Tensor:
    """Samples in another shape: flattened, unflattened, or with axes of length 1 more or fewer.

    Two shapes that have as many numbers but are arranged in another way, such as images of 14 × 56
    and of 28 × 28, are no such change.

    Args:
        x: ``(batch, …)``.
        shape: the shape that each sample is to have.
        what: what `x` is called in an error.
        of: whose shape it is, likewise.

    Raises:
        ValueError: samples with more or fewer numbers, or arranged in another way.
    """
    shape, got, size = tuple(shape), tuple(x.shape), math.prod(shape)
    if not got or math.prod(got[1:]) != size:
        raise wrong(what, f"(batch, …) with {size} numbers a sample, {of}", got)
    ours, theirs = (tuple(n for n in each if n != 1) for each in (shape, got[1:]))
    if ours != theirs and len(ours) > 1 and len(theirs) > 1:
        found = f"{got}, as many numbers in another arrangement"
        remedy = "bring the samples into this shape"
        raise wrong(what, f"{('batch', *shape)}, {of}", found, remedy)
    return x.reshape(got[0], *shape)


def mean_and_std(x: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples, in x's dtype; a constant has the deviation 1.

    Args:
        x: ``(n, …)`` in float64.
        what: what `x` is called in an error.

    Raises:
        ValueError: a deviation is lost when x is rounded to float32.
    """
    mean, std = x.mean(0), x.std(0, correction=0)
    constant = (x == x[:1]).all(0)
    std = std.where(~constant, 1.0)
    rounding = torch.finfo(torch.float32).eps * x.abs().amax(0)
    bad = ((rounding > 0.01 * std) & ~constant).flatten().nonzero().flatten().tolist()[:1]
    for column in bad:
        deviation, centre = std.flatten()[column].item(), mean.flatten()[column].item()
        got = f"a standard deviation of {deviation:.3g} around {centre:.9g} in column {column}"
        remedy = "subtract an offset first, such as the smallest value"
        raise wrong(what, "numbers that float32 can tell apart", got, remedy)
    return mean.float(), std.float()
