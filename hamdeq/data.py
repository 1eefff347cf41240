"""Data that fits in memory: batches, and Lightning data modules for MNIST and the digits."""

import math
import os
import socket
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import torch
import torch.distributed as dist
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DistributedSampler, TensorDataset

from hamdeq._torchvision import mnist_dataset

MNIST_FILES = tuple(
    f"{split}-{part}-ubyte"
    for split in ("train", "t10k")
    for part in ("images-idx3", "labels-idx1")
)


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
        _expect(batch_size >= 1, "batch_size >= 1", batch_size, "give a number of samples")
        _expect(len(labels) == len(images), f"{len(images)} labels", len(labels), "one per image")
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
            _expect(size >= 1, f"{name} >= 1", size, "give a number of samples")
        _expect(val_size >= 0, "val_size >= 0", val_size, "give a number of images, or 0 for none")
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
        _expect(n_val < n, f"val_size < {n}, the number of train images", n_val, "lower val_size")
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
        _expect(name in self._splits, f"one of {', '.join(self._splits)}", name, "name a split")
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
        _expect(floating, f"floating {split} images", images.dtype, remedy, TypeError)
        integer, remedy = labels.dtype == torch.int64, "e.g. labels.long()"
        _expect(integer, f"int64 {split} labels", labels.dtype, remedy, TypeError)
        shape, remedy = tuple(images.shape), "flatten each, e.g. images.flatten(1)"
        _expect(shape == (n, pixels), f"{split} images of shape {(n, pixels)}", shape, remedy)
        shape, remedy = tuple(labels.shape), "give one class index per image"
        _expect(shape == (n,), f"{split} labels of shape {(n,)}", shape, remedy)
        # A finite sum proves every pixel finite at a hundredth of the time of testing each.
        if not images.sum().isfinite():
            bad = (~images.isfinite().all(dim=1)).nonzero().flatten().tolist()
            got = f"NaN or infinite pixels in {len(bad)} of {n}, first in sample {bad[:1]}"
            _expect(not bad, f"finite {split} images", got, "repair or remove them")
        bad = ((labels < 0) | (labels >= self.n_classes)).nonzero().flatten().tolist()[:1]
        wanted, got = (
            f"labels in 0..{self.n_classes - 1}",
            f"{labels[bad].tolist()} in sample {bad}",
        )
        _expect(not bad, f"{split} {wanted}", got, "number the classes from 0")


class MNISTDataModule(TensorDataModule):
    """MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels, read by torchvision.

    Args:
        root: Folder that contains `MNIST/raw`; `None` takes the environment variable
            `HAMDEQ_DATA`, or `data` where it is not set.
        download: Download missing files.
        batch_size: Samples per training batch.
        eval_batch_size: Samples per batch of validation, test and prediction.
        val_size: Training images to hold out; 0 trains on all 60,000, as the papers do.
        seed: Seed of the validation split and of the order of the training batches.
    """

    image_shape = (28, 28)
    n_classes = 10

    def __init__(
        self,
        root: str | Path | None = None,
        download: bool = True,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 5000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed)
        self.root = Path(root or os.environ.get("HAMDEQ_DATA") or "data").expanduser()
        self.raw = self.root / "MNIST" / "raw"
        self.download = download

    def prepare_data(self) -> None:
        """Download the files if some are missing, and check them.

        Raises:
            FileNotFoundError: files are missing and cannot be downloaded.
            ValueError: a file is truncated or not of its format.
        """
        reason = "download=False"
        if self.download and self._missing():
            timeout = socket.getdefaulttimeout()
            # Without a limit, urlopen waits minutes for a server that does not answer.
            socket.setdefaulttimeout(10.0)
            try:
                mnist_dataset()(self.root, download=True)
            except (RuntimeError, OSError, HTTPException) as error:
                reason = f"download failed: {(str(error).splitlines() or [''])[-1]}"
            finally:
                socket.setdefaulttimeout(timeout)
        self._check_files(reason)

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read the files; bytes 0..255 become [0, 1]. Raises as `prepare_data` does."""
        self._check_files("not downloaded by load(): call prepare_data()")
        train, test = (mnist_dataset()(self.root, train=train) for train in (True, False))
        images = (split.data.flatten(1).float().div_(255) for split in (train, test))
        return next(images), train.targets, next(images), test.targets

    def _missing(self) -> list[str]:
        return [name for name in MNIST_FILES if not (self.raw / name).is_file()]

    def _check_files(self, reason: str) -> None:
        if missing := self._missing():
            raise FileNotFoundError(
                f"expected MNIST in {self.raw.absolute()}, got no {', '.join(missing)} ({reason}): "
                f"put {', '.join(MNIST_FILES)} there (with download=True also as .gz), or set "
                "HAMDEQ_DATA to the folder that contains MNIST/raw, or run on the embedded digits "
                "instead: python train.py fit --config configs/digits.yaml"
            )
        for name in MNIST_FILES:
            _check_idx(self.raw / name)


class DigitsDataModule(TensorDataModule):
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels, which need no download.

    Args:
        batch_size: Samples per training batch.
        eval_batch_size: Samples per batch of validation, test and prediction.
        val_size: Training images to hold out; 0 trains on all of them, without validation.
        test_size: Images of the test set, which does not depend on `seed`, so that runs with
            different seeds are measured on the same images.
        seed: Seed of the validation split and of the order of the training batches.
    """

    image_shape = (8, 8)
    n_classes = 10

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 180,
        test_size: int = 360,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed)
        _expect(1 <= test_size < 1797, "test_size in 1..1796", test_size, "take some of the 1797")
        self.test_size = test_size

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read the digits; values 0..16 become [0, 1]."""
        from sklearn.datasets import load_digits

        data, target = load_digits(return_X_y=True)
        images, labels = torch.from_numpy(data).float() / 16, torch.from_numpy(target).long()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        test, train = order[: self.test_size], order[self.test_size :]
        return images[train], labels[train], images[test], labels[test]


def _check_idx(path: Path) -> None:
    """Compare header and size of an IDX file, where torchvision would fail on an assertion."""
    magic, n_dims = (2051, 3) if "idx3" in path.name else (2049, 1)
    header_size, size = 4 * (1 + n_dims), path.stat().st_size
    remedy = "replace it by an intact copy, or delete it to have it downloaded again"
    with path.open("rb") as file:
        header = file.read(header_size)
    wanted = f"an IDX header of {header_size} bytes in {path}"
    _expect(len(header) == header_size, wanted, f"a file of {size} bytes", remedy)
    found, *shape = struct.unpack(f">{1 + n_dims}I", header)
    _expect(found == magic, f"the IDX magic number {magic} in {path}", found, remedy)
    wanted = header_size + math.prod(shape)
    _expect(size == wanted, f"{wanted} bytes in {path}, for {shape} values", size, remedy)
    _expect(0 not in shape, f"at least one sample in {path}", shape, remedy)


def _expect(
    holds: bool, expected: str, got: object, remedy: str, error: type[Exception] = ValueError
) -> None:
    if not holds:
        raise error(f"expected {expected}, got {got}: {remedy}")
