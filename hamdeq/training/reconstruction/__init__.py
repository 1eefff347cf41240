"""Reconstruction: any part of images and labels from any other, learned and shown."""

from hamdeq.training.reconstruction.masks import MaskSampler
from hamdeq.training.reconstruction.recollection import Recall, RecallPictures, recall
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor
from hamdeq.training.reconstruction.stored import StoredExamples

__all__ = [
    "HAMReconstructor",
    "MaskSampler",
    "Recall",
    "RecallPictures",
    "StoredExamples",
    "recall",
]
