"""Training with Lightning (extra ``train``): the module, its callbacks, the run folder, the CLI."""

from hamdeq.training.building import UntrustedError
from hamdeq.training.callbacks import Contraction, ConvergenceMonitor, ResidualPicture
from hamdeq.training.checkpoint import CheckpointError, load_weights, save_weights
from hamdeq.training.checkpoint_io import WholeCheckpointIO
from hamdeq.training.classifier import HAMClassifier
from hamdeq.training.load import load_run
from hamdeq.training.memory_classifier import MemoryClassifier
from hamdeq.training.module import OtherArchitectureError
from hamdeq.training.prediction import Prediction
from hamdeq.training.reconstruction.questions import MaskSampler
from hamdeq.training.reconstruction.recollection import Recall, RecallPictures, recall
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor
from hamdeq.training.reconstruction.stored import StoredExamples
from hamdeq.training.regressor import HAMRegressor

__all__ = [
    "CheckpointError",
    "Contraction",
    "ConvergenceMonitor",
    "HAMClassifier",
    "HAMReconstructor",
    "HAMRegressor",
    "MaskSampler",
    "MemoryClassifier",
    "OtherArchitectureError",
    "Prediction",
    "Recall",
    "RecallPictures",
    "ResidualPicture",
    "StoredExamples",
    "UntrustedError",
    "WholeCheckpointIO",
    "load_run",
    "load_weights",
    "recall",
    "save_weights",
]
