"""MNIST bags: is there a nine among these digits?"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from hamdeq._checks import integer, number, require
from hamdeq.data import InMemoryDataModule, MNISTDataModule
from hamdeq.data.modules import Split

__all__ = ["MNISTBagsDataModule"]


class MNISTBagsDataModule(InMemoryDataModule):
    """Bags of MNIST digits, positive if at least one is the target (Ilse et al. 2018).

    The length of a bag is a rounded normal variate, at least 1. Bags are drawn one after the other
    and dropped where their class is full: half of each split is positive. Training and validation
    bags come from MNIST's training images, none of which is in two bags; test bags from its test
    images.

    Args:
        root: Folder that contains `MNIST/raw`; `None` takes the environment variable
            `HAMDEQ_DATA`, or `data` where it is not set.
        download: Download missing files.
        batch_size: Bags per training batch.
        eval_batch_size: Bags per batch of validation, test and prediction.
        train_size: Training bags.
        val_size: Bags of the validation split, besides the training bags; 0 for no validation.
        test_size: Bags of the test split.
        target: The digit to find.
        mean_length: Mean of the length of a bag, before rounding.
        std_length: Standard deviation of the same.
        seed: Seed of the bags and of the order of the training batches.

    Shape:
        inputs `(images, padding)`: images `(n, longest, 28, 28)` in [0, 1], zeros where
        `padding (n, longest)` is True; labels `(n,)`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        download: bool = True,
        batch_size: int = 1,
        eval_batch_size: int = 50,
        train_size: int = 200,
        val_size: int = 0,
        test_size: int = 200,
        target: int = 9,
        mean_length: float = 10.0,
        std_length: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed)
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            integer(name, size, remedy="give a number of bags")
        require(0 <= target <= 9, "target", "a digit 0 to 9", target)
        number("mean_length", mean_length, least=1, remedy="give a number of digits")
        number("std_length", std_length, least=0, remedy="0 makes all bags equally long")
        self.mnist: MNISTDataModule = MNISTDataModule(root, download)
        self.train_size = train_size
        self.test_size = test_size
        self.target = target
        self.mean_length = mean_length
        self.std_length = std_length

    def prepare_data(self) -> None:
        """Download MNIST if needed, and check it; raises as `MNISTDataModule` does."""
        self.mnist.prepare_data()

    def make_splits(self) -> dict[str, Split]:
        """Draw the bags; the test bags do not depend on the numbers of the others.

        Raises:
            ValueError: MNIST has too few images for so many bags.
        """
        images, labels, test_images, test_labels = self.mnist.load()
        generator = torch.Generator().manual_seed(self.seed)
        test = self._draw(test_images, test_labels, [self.test_size], generator)
        rest = self._draw(images, labels, [self.train_size, self.val_size], generator)
        return {"train": rest[0], "val": rest[1], "test": test[0]}

    def _draw(
        self, images: Tensor, digits: Tensor, sizes: list[int], generator: torch.Generator
    ) -> list[Split]:
        """A split for each of the sizes, without an image that is in two bags."""
        is_target = digits == self.target
        order = iter(torch.randperm(len(images), generator=generator).tolist())
        splits = []
        for size in sizes:
            bags: list[list[int]] = []
            room = {True: size // 2, False: size - size // 2}
            while len(bags) < size:
                draw = torch.normal(self.mean_length, self.std_length, (), generator=generator)
                length = max(1, round(draw.item()))
                bag = list(islice(order, length))
                remedy = "lower train_size, val_size or test_size, or the length"
                got = f"some that take more than the {len(images)} images there are"
                require(len(bag) == length, "bags", f"{size} with images of their own", got, remedy)
                positive = bool(is_target[bag].any())
                if room[positive]:
                    room[positive] -= 1
                    bags.append(bag)
            labels = [int(is_target[bag].any()) for bag in bags]
            splits.append((_pad(images, bags), torch.tensor(labels, dtype=torch.int64)))
        return splits


def _pad(images: Tensor, bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Images `(n, longest, 28, 28)` of bags given by their indices, and where there is none."""
    longest = max((len(bag) for bag in bags), default=0)
    padded = images.new_zeros(len(bags), longest, 28, 28)
    padding = torch.ones(len(bags), longest, dtype=torch.bool)
    for i, bag in enumerate(bags):
        padded[i, : len(bag)] = images[bag].unflatten(1, (28, 28))
        padding[i, : len(bag)] = False
    return padded, padding


if __name__ == "__main__":
    from hamdeq.experiments.options import describe_data

    describe_data("bags", "Bags of MNIST digits, positive with a nine among them.")
