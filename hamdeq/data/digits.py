"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import torch
from torch import Tensor

from hamdeq._checks import require
from hamdeq.data.modules import TensorDataModule

__all__ = ["DigitsDataModule"]


class DigitsDataModule(TensorDataModule):
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels, which need no download.

    Args:
        batch_size, eval_batch_size, val_size, seed, shuffle: as of :class:`TensorDataModule`.
        test_size: images of the test set, which does not depend on `seed`, so that runs with
            different seeds are measured on the same images.
    """

    image_shape: tuple[int, int] = (8, 8)
    n_classes = 10

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 180,
        test_size: int = 360,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed, shuffle)
        require(1 <= test_size < 1797, "test_size", "1 to 1796 of the 1797 images", test_size)
        self.test_size = test_size

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read the digits; values 0..16 become [0, 1]."""
        from sklearn.datasets import load_digits

        data, target = load_digits(return_X_y=True)
        images, labels = torch.from_numpy(data).float() / 16, torch.from_numpy(target).long()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        test, train = order[: self.test_size], order[self.test_size :]
        return images[train], labels[train], images[test], labels[test]
