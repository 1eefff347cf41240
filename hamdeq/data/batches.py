"""Batches by index of data that is in memory as a whole."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler, TensorDataset

from hamdeq._checks import integer, require
from hamdeq.data.encoding import Encoding

__all__ = ["Inputs", "TensorBatches"]

Inputs = Tensor | tuple[Tensor, ...]


class TensorBatches:
    """Batches `(images[index], labels[index])` of tensors that are in memory as a whole.

    One indexing operation a batch replaces the fetching and collating of a `DataLoader`. The order
    is a function of `(seed, epoch)` alone, and `state_dict` records the position in the epoch: a
    resumed run sees the batches that it would have seen. Without shuffling, in one process, batches
    are views. Under torch.distributed each process serves its share; `DistributedSampler` repeats
    samples where the shares would differ in length.

    Args:
        images: the samples, or a tuple of tensors of as many samples, such as bags of instances
            and the mask of their padding; each batch then has a tuple, too.
        labels: as many labels.
        batch_size: samples per batch and process, at least 1; the last batch may be smaller.
        shuffle: draw a new order each epoch.
        seed: seed of the order.

    Attributes:
        sampler: holds the epoch; Lightning calls its `set_epoch` before each epoch.
        encoding: that of the data module whose batches these are; `None` for others.

    Shape:
        images and labels `(n, ...)`; each batch `(batch, ...)` of both.

    Raises:
        ValueError: `batch_size < 1`, or `images` and `labels` differ in length.
    """

    # Set by a data module, so that a training without it can be told that it is missed.
    encoding: Encoding | None = None

    # Lightning asks everything that has a sampler for a batch sampler, too.
    batch_sampler = None

    def __init__(
        self,
        images: Inputs,
        labels: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.batch_size: int = integer("batch_size", batch_size)
        for part in images if isinstance(images, tuple) else (images,):
            wanted = f"{len(part)}, one for each sample"
            require(len(labels) == len(part), "labels", wanted, len(labels))
        self.images = images
        self.labels = labels
        n_processes, rank = 1, 0
        if dist.is_available() and dist.is_initialized():
            n_processes, rank = dist.get_world_size(), dist.get_rank()
        dataset = TensorDataset(labels)  # asked for its length alone
        self.sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(
            dataset, n_processes, rank, shuffle=shuffle, seed=seed
        )
        self._position = {"epoch": 0, "batch": 0}
        self._resumed = False

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        # A generator, so that the epoch is read at the first batch: when a run is resumed,
        # Lightning creates the iterator before it sets the epoch.
        epoch = self.sampler.epoch
        resumed, self._resumed = self._resumed, False
        first = self._position["batch"] if resumed and self._position["epoch"] == epoch else 0
        order = None
        if self.sampler.shuffle or self.sampler.num_replicas > 1:
            order = torch.tensor(list(self.sampler), dtype=torch.int64, device=self.labels.device)
        for batch in range(first, len(self)):
            span = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            self._position = {"epoch": epoch, "batch": batch + 1}
            if order is None:
                yield self._take(operator.itemgetter(span))
            else:  # index_select copies rows three times as fast as indexing does
                yield self._take(partial(torch.index_select, dim=0, index=order[span]))

    def _take(self, rows: Callable[[Tensor], Tensor]) -> tuple[Inputs, Tensor]:
        if isinstance(self.images, tuple):
            return tuple(rows(part) for part in self.images), rows(self.labels)
        return rows(self.images), rows(self.labels)

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches have been served."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration, if it is of the recorded epoch, continue where it stopped."""
        self._position, self._resumed = dict(state), True
