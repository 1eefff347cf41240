"""Training with Lightning (extra ``train``): the module, its callbacks, the run folder, the CLI."""

from hamdeq.training.binary import BinaryClassifier
from hamdeq.training.callbacks import ConvergenceMonitor, ResidualPicture
from hamdeq.training.classifier import HAMClassifier
from hamdeq.training.memory_classifier import MemoryClassifier

__all__ = [
    "BinaryClassifier",
    "ConvergenceMonitor",
    "HAMClassifier",
    "MemoryClassifier",
    "ResidualPicture",
]
