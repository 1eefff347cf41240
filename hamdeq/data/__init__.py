"""Data modules for Lightning (extra ``train``): MNIST, and digits that need no download."""

from hamdeq.data.batches import TensorBatches, TensorDataModule
from hamdeq.data.digits import DigitsDataModule
from hamdeq.data.mnist import MNIST_FILES, MNISTDataModule

__all__ = [
    "MNIST_FILES",
    "DigitsDataModule",
    "MNISTDataModule",
    "TensorBatches",
    "TensorDataModule",
]
