"""Data modules for Lightning (extra ``train``): arrays of your own, MNIST, embedded digits."""

from hamdeq.data.arrays import ArrayDataModule
from hamdeq.data.batches import TensorBatches
from hamdeq.data.digits import DigitsDataModule
from hamdeq.data.encoding import Encoding
from hamdeq.data.mnist import MNIST_FILES, MNISTDataModule
from hamdeq.data.modules import InMemoryDataModule, TensorDataModule

__all__ = [
    "MNIST_FILES",
    "ArrayDataModule",
    "DigitsDataModule",
    "Encoding",
    "InMemoryDataModule",
    "MNISTDataModule",
    "TensorBatches",
    "TensorDataModule",
]
