"""Data modules for Lightning (extra ``train``): MNIST, and digits that need no download."""

from hamdeq.data.batches import TensorBatches
from hamdeq.data.digits import DigitsDataModule
from hamdeq.data.mnist import MNIST_FILES, MNISTDataModule
from hamdeq.data.modules import InMemoryDataModule, TensorDataModule

__all__ = [
    "MNIST_FILES",
    "DigitsDataModule",
    "InMemoryDataModule",
    "MNISTDataModule",
    "TensorBatches",
    "TensorDataModule",
]
