"""Binary memories: classical Hopfield networks and dense associative memories.

States are ±1; :func:`states_from_bits` makes them of 0 and 1. :class:`HopfieldNetwork` has weights
between its neurons; :class:`DenseAssociativeMemory` has memory vectors, and an :class:`Interaction`
function that lets only the most similar of them contribute.
"""

from hamdeq.memories.dense import DenseAssociativeMemory, Learning
from hamdeq.memories.feed_forward import FeedForward
from hamdeq.memories.interactions import (
    Exponential,
    Interacting,
    Interaction,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    Scaling,
)
from hamdeq.memories.network import Hebbian, HopfieldNetwork, PseudoInverse, Rule, Storkey
from hamdeq.memories.recall import (
    Asynchronous,
    BinaryMemory,
    Glauber,
    Synchronous,
    Updates,
    bits_from_states,
    states_from_bits,
)

__all__ = [
    "Asynchronous",
    "BinaryMemory",
    "DenseAssociativeMemory",
    "Exponential",
    "FeedForward",
    "Glauber",
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
    "bits_from_states",
    "states_from_bits",
]
