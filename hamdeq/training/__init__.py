"""Training with Lightning (extra ``train``): the module, its callbacks, the run folder, the CLI."""

from hamdeq.training.callbacks import ConvergenceMonitor, ResidualPicture
from hamdeq.training.classifier import HAMClassifier

__all__ = ["ConvergenceMonitor", "HAMClassifier", "ResidualPicture"]
