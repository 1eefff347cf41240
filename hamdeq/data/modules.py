"""Data modules whose samples are in memory as a whole."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from hamdeq._checks import integer, one_of, require
from hamdeq.data.batches import TensorBatches
from hamdeq.data.encoding import Encoding

__all__ = ["InMemoryDataModule", "Split", "TensorDataModule"]

Split = tuple[Any, Tensor]
"""Inputs, a tensor or a tuple of tensors, and as many labels."""


class InMemoryDataModule(LightningDataModule, ABC):
    """Base of data modules whose samples fit in memory, whatever they are.

    A subclass implements `make_splits`.

    Args:
        batch_size: samples per training batch.
        eval_batch_size: samples per batch of validation, test and prediction.
        val_size: samples of the validation split; 0 for no validation.
        seed: seed of the splits and of the order of the training batches.
        shuffle: draw a new order of the training samples each epoch; else keep that of the data.

    Attributes:
        encoding: what a module that is trained on these data remembers of them; blank unless the
            subclass says otherwise when it makes the splits.

    Raises:
        ValueError: a batch size is below 1, or `val_size` is negative.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size: int = integer("batch_size", batch_size)
        self.eval_batch_size: int = integer("eval_batch_size", eval_batch_size)
        self.val_size: int = integer("val_size", val_size, least=0)
        self.seed = seed
        self.shuffle = shuffle
        self.encoding: Encoding = Encoding()
        self._splits: dict[str, Split] = {}

    @abstractmethod
    def make_splits(self) -> dict[str, Split]:
        """Read or draw the splits "train", "val" and "test", as a function of `seed` alone.

        Shape:
            inputs `(n, ...)`, a tensor or a tuple of tensors; labels `(n,)`, int64. "val" has
            `val_size` samples.
        """

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, once; raises as `make_splits` does."""
        if not self._splits:
            self._splits = self.make_splits()

    def split(self, name: str) -> Split:
        """Inputs `(n, ...)` and labels `(n,)` of "train", "val" or "test"; sets up if needed.

        Raises:
            ValueError: there is no split of this name.
        """
        self.setup()
        return self._splits[one_of("name", name, self._splits.keys())]

    def train_dataloader(self) -> TensorBatches:
        # Under `overfit_batches` Lightning turns shuffling off, but only in a DataLoader.
        shuffle = self.shuffle and not getattr(self.trainer, "overfit_batches", 0)
        train = self.split("train")
        batches = TensorBatches(*train, self.batch_size, shuffle=shuffle, seed=self.seed)
        batches.encoding = self.encoding
        return batches

    def val_dataloader(self) -> TensorBatches | list[TensorBatches]:
        if self.val_size:
            return TensorBatches(*self.split("val"), self.eval_batch_size)
        # For an empty list Lightning skips validation, but asks whether it is meant: it is.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> TensorBatches:
        return TensorBatches(*self.split("test"), self.eval_batch_size)

    predict_dataloader = test_dataloader


class TensorDataModule(InMemoryDataModule):
    """Base of data modules that read images, or other samples, and their classes.

    A subclass implements `load`. It can declare `image_shape` and `n_classes`, which are otherwise
    those of what was loaded: the number of pixels, and the highest label plus one. For arrays that
    are in memory already there is :class:`ArrayDataModule`.

    Args:
        batch_size: samples per training batch.
        eval_batch_size: samples per batch of validation, test and prediction.
        val_size: training images to hold out; 0 trains on all of them, without validation.
        seed: seed of the validation split and of the order of the training batches.
        shuffle: draw a new order of the training samples each epoch; else keep that of the data.

    Raises:
        ValueError: a batch size is below 1, or `val_size` is negative.
    """

    image_shape: tuple[int, ...]
    n_classes: int

    @abstractmethod
    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read `train_images, train_labels, test_images, test_labels`.

        Shape:
            images `(n, pixels)`, floating, in [0, 1]; labels `(n,)`, int64.
        """

    def make_splits(self) -> dict[str, Split]:
        """Load, check and split the data.

        Raises:
            TypeError: images are not floating, or labels not int64.
            ValueError: shapes, lengths, labels or `val_size` do not fit, or a pixel is not finite.
        """
        images, labels, *test = self.load()
        if not hasattr(self, "image_shape"):
            self.image_shape = tuple(images.shape[1:])
        if not hasattr(self, "n_classes"):
            self.n_classes = 1 + max(int(part.max()) for part in (labels, test[1]) if len(part))
        self._check("train", images, labels)
        self._check("test", *test)
        self.encoding: Encoding = Encoding(input_shape=self.image_shape)
        n, n_val = len(images), self.val_size
        require(n_val < n, "val_size", f"fewer than the {n} training images", n_val)
        val, train = (images[:0], labels[:0]), (images, labels)
        if n_val:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
            val, train = ((images[i], labels[i]) for i in (order[:n_val], order[n_val:]))
        return {"train": train, "val": val, "test": (test[0], test[1])}

    def _check(self, split: str, images: Tensor, labels: Tensor) -> None:
        n, pixels = len(images), math.prod(self.image_shape)
        name, remedy = f"{split} images", "give images.float() / 255"
        floating = images.is_floating_point()
        require(floating, name, "a floating-point tensor", images.dtype, remedy, kind=TypeError)
        shape, remedy = tuple(images.shape), "flatten each, as by images.flatten(1)"
        require(shape == (n, pixels), name, f"shape {(n, pixels)}", shape, remedy)
        # A finite sum proves every pixel finite at a hundredth of the time of testing each.
        if not images.sum().isfinite():
            bad = (~images.isfinite().all(dim=1)).nonzero().flatten().tolist()
            got = f"NaN or infinity in {len(bad)} of {n}, first in sample {bad[:1]}"
            require(not bad, name, "finite pixels", got, "repair or remove them")
        name, remedy = f"{split} labels", "give labels.long()"
        integers = labels.dtype == torch.int64
        require(integers, name, "int64", labels.dtype, remedy, kind=TypeError)
        shape, remedy = tuple(labels.shape), "give one class index per image"
        require(shape == (n,), name, f"shape {(n,)}", shape, remedy)
        bad = ((labels < 0) | (labels >= self.n_classes)).nonzero().flatten().tolist()[:1]
        wanted, got = f"0 to {self.n_classes - 1}", f"{labels[bad].tolist()} in sample {bad}"
        require(not bad, name, wanted, got, "number the classes from 0")
