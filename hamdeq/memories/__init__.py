"""Binary memories: classical Hopfield networks and dense associative memories.

States are ±1. :class:`HopfieldNetwork` has weights between its neurons, and
:class:`DenseAssociativeMemory` memory vectors, of which an :class:`Interaction` function lets few
speak at a time.
"""

from hamdeq.memories.continuous import Interacting
from hamdeq.memories.dense import DenseAssociativeMemory
from hamdeq.memories.feed_forward import FeedForward
from hamdeq.memories.interactions import (
    Exponential,
    Interaction,
    LeakyRectifiedPolynomial,
    Polynomial,
    RectifiedPolynomial,
)
from hamdeq.memories.learning import Learning
from hamdeq.memories.network import HopfieldNetwork
from hamdeq.memories.recall import Asynchronous, BinaryMemory, Synchronous, Updates
from hamdeq.memories.rules import Hebbian, PseudoInverse, Rule, Storkey
from hamdeq.memories.scaling import Normalised, Original, Scaling

__all__ = [
    "Asynchronous",
    "BinaryMemory",
    "DenseAssociativeMemory",
    "Exponential",
    "FeedForward",
    "Hebbian",
    "HopfieldNetwork",
    "Interacting",
    "Interaction",
    "LeakyRectifiedPolynomial",
    "Learning",
    "Normalised",
    "Original",
    "Polynomial",
    "PseudoInverse",
    "RectifiedPolynomial",
    "Rule",
    "Scaling",
    "Storkey",
    "Synchronous",
    "Updates",
]
