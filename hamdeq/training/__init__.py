"""Training with Lightning (extra ``train``): modules, callbacks, checkpoints, the command line."""

from hamdeq.training.building import UntrustedError
from hamdeq.training.callbacks import Contraction, ConvergenceMonitor, ResidualPicture
from hamdeq.training.checkpoint import (
    CheckpointError,
    WholeCheckpointIO,
    load_weights,
    save_weights,
)
from hamdeq.training.equilibrium import HAMClassifier, HAMRegressor
from hamdeq.training.memory_classifier import MemoryClassifier
from hamdeq.training.module import OtherArchitectureError
from hamdeq.training.prediction import Prediction
from hamdeq.training.reconstruction.masks import MaskSampler
from hamdeq.training.reconstruction.recollection import Recall, RecallPictures, recall
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor
from hamdeq.training.reconstruction.stored import StoredExamples
from hamdeq.training.saving import load_run

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
