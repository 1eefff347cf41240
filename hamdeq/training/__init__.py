"""Training with Lightning (extra ``train``): the module, its callbacks, the run folder, the CLI."""

from hamdeq.training.binary import BinaryClassifier
from hamdeq.training.callbacks import Contraction, ConvergenceMonitor, ResidualPicture
from hamdeq.training.classifier import HAMClassifier
from hamdeq.training.memory_classifier import MemoryClassifier

__all__ = [
    "BinaryClassifier",
    "Contraction",
    "ConvergenceMonitor",
    "HAMClassifier",
    "MemoryClassifier",
    "ResidualPicture",
]
