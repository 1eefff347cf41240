"""Data that is in memory as a whole: batches by index, and the data module that serves them."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.distributed as dist
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DistributedSampler, TensorDataset

__all__ = ["TensorBatches", "TensorDataModule", "expect"]


class TensorBatches:
    """Batches `(images[index], labels[index])` of tensors that are in memory as a whole.

    One indexing operation per batch replaces the per-sample fetching and collating of a
    `DataLoader`. The order is a function of `(seed, epoch)` alone and `state_dict` records the
    position in the epoch, so a resumed run sees the batches that it would have seen. Without
    shuffling, in one process, batches are views. The last batch may be smaller. Under
    torch.distributed each process serves its share; `DistributedSampler` repeats samples where
    the shares would differ in length.

    Args:
        images: The samples.
        labels: As many labels.
        batch_size: Samples per batch and process, at least 1.
        shuffle: Draw a new order each epoch.
        seed: Seed of the order.

    Attributes:
        sampler: Holds the epoch; Lightning calls its `set_epoch` before each epoch.

    Shape:
        images and labels `(n, ...)`; each batch `(batch, ...)` of both.

    Raises:
        ValueError: `batch_size < 1`, or `images` and `labels` differ in length.
    """

    # Lightning asks everything that has a sampler for a batch sampler, too.
    batch_sampler = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        expect(batch_size >= 1, "batch_size >= 1", batch_size, "give a number of samples")
        expect(len(labels) == len(images), f"{len(images)} labels", len(labels), "one per image")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        n_processes, rank = 1, 0
        if dist.is_available() and dist.is_initialized():
            n_processes, rank = dist.get_world_size(), dist.get_rank()
        dataset = TensorDataset(images, labels)
        self.sampler = DistributedSampler(dataset, n_processes, rank, shuffle=shuffle, seed=seed)
        self._position = {"epoch": 0, "batch": 0}
        self._resumed = False

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, so that the epoch is read at the first batch: when a run is resumed,
        # Lightning creates the iterator before it sets the epoch.
        epoch = self.sampler.epoch
        resumed, self._resumed = self._resumed, False
        first = self._position["batch"] if resumed and self._position["epoch"] == epoch else 0
        order = None
        if self.sampler.shuffle or self.sampler.num_replicas > 1:
            order = torch.tensor(list(self.sampler), dtype=torch.int64, device=self.images.device)
        for batch in range(first, len(self)):
            span = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            self._position = {"epoch": epoch, "batch": batch + 1}
            if order is None:
                yield self.images[span], self.labels[span]
            else:  # index_select copies rows three times as fast as indexing does
                index = order[span]
                yield self.images.index_select(0, index), self.labels.index_select(0, index)

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches have been served."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration, if it is of the recorded epoch, continue where it stopped."""
        self._position, self._resumed = dict(state), True


class TensorDataModule(LightningDataModule, ABC):
    """Base of data modules whose images and labels fit in memory.

    A subclass sets `image_shape` and `n_classes` and implements `load`.

    Args:
        batch_size: Samples per training batch.
        eval_batch_size: Samples per batch of validation, test and prediction.
        val_size: Training images to hold out; 0 trains on all of them, without validation.
        seed: Seed of the validation split and of the order of the training batches.

    Raises:
        ValueError: a batch size is below 1, or `val_size` is negative.
    """

    image_shape: tuple[int, ...]
    n_classes: int

    def __init__(
        self, batch_size: int = 64, eval_batch_size: int = 1000, val_size: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            expect(size >= 1, f"{name} >= 1", size, "give a number of samples")
        expect(val_size >= 0, "val_size >= 0", val_size, "give a number of images, or 0 for none")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.seed = val_size, seed
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read `train_images, train_labels, test_images, test_labels`.

        Shape:
            images `(n, pixels)`, floating, in [0, 1]; labels `(n,)`, int64.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load, check and split the data, once.

        Raises:
            TypeError: images are not floating, or labels not int64.
            ValueError: shapes, lengths, labels or `val_size` do not fit, or a pixel is not finite.
        """
        if self._splits:
            return
        images, labels, *test = self.load()
        self._check("train", images, labels)
        self._check("test", *test)
        n, n_val = len(images), self.val_size
        expect(n_val < n, f"val_size < {n}, the number of train images", n_val, "lower val_size")
        val, train = (images[:0], labels[:0]), (images, labels)
        if n_val:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
            val, train = ((images[i], labels[i]) for i in (order[:n_val], order[n_val:]))
        self._splits = {"train": train, "val": val, "test": (test[0], test[1])}

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images `(n, pixels)` and labels `(n,)` of "train", "val" or "test"; sets up if needed.

        Raises:
            ValueError: there is no split of this name.
        """
        self.setup()
        expect(name in self._splits, f"one of {', '.join(self._splits)}", name, "name a split")
        return self._splits[name]

    def train_dataloader(self) -> TensorBatches:
        # Under `overfit_batches` Lightning turns shuffling off, but only in a DataLoader.
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return TensorBatches(*self.split("train"), self.batch_size, shuffle=shuffle, seed=self.seed)

    def val_dataloader(self) -> TensorBatches | list[TensorBatches]:
        if self.val_size:
            return TensorBatches(*self.split("val"), self.eval_batch_size)
        # For an empty list Lightning skips validation, but asks whether it is meant: it is.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> TensorBatches:
        return TensorBatches(*self.split("test"), self.eval_batch_size)

    predict_dataloader = test_dataloader

    def _check(self, split: str, images: Tensor, labels: Tensor) -> None:
        n, pixels, remedy = len(images), math.prod(self.image_shape), "e.g. images.float() / 255"
        floating = images.is_floating_point()
        expect(floating, f"floating {split} images", images.dtype, remedy, TypeError)
        integer, remedy = labels.dtype == torch.int64, "e.g. labels.long()"
        expect(integer, f"int64 {split} labels", labels.dtype, remedy, TypeError)
        shape, remedy = tuple(images.shape), "flatten each, e.g. images.flatten(1)"
        expect(shape == (n, pixels), f"{split} images of shape {(n, pixels)}", shape, remedy)
        shape, remedy = tuple(labels.shape), "give one class index per image"
        expect(shape == (n,), f"{split} labels of shape {(n,)}", shape, remedy)
        # A finite sum proves every pixel finite at a hundredth of the time of testing each.
        if not images.sum().isfinite():
            bad = (~images.isfinite().all(dim=1)).nonzero().flatten().tolist()
            got = f"NaN or infinite pixels in {len(bad)} of {n}, first in sample {bad[:1]}"
            expect(not bad, f"finite {split} images", got, "repair or remove them")
        bad = ((labels < 0) | (labels >= self.n_classes)).nonzero().flatten().tolist()[:1]
        wanted, got = (
            f"labels in 0..{self.n_classes - 1}",
            f"{labels[bad].tolist()} in sample {bad}",
        )
        expect(not bad, f"{split} {wanted}", got, "number the classes from 0")


def expect(
    holds: bool, expected: str, got: object, remedy: str, error: type[Exception] = ValueError
) -> None:
    """Raise `error` with what was expected, what was got, and the remedy, unless it holds."""
    if not holds:
        raise error(f"expected {expected}, got {got}: {remedy}")
