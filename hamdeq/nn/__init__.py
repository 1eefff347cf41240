"""Attention-style Hopfield layers for deep models.

:class:`Hopfield` associates two sets of patterns, :class:`HopfieldPooling` summarises a set,
:class:`HopfieldLayer` looks patterns up among learned ones. Each retrieves with a two-layer memory
whose memory layer has been eliminated (:func:`hamdeq.eliminate`), once or until it converges.
"""

from hamdeq.nn import functional
from hamdeq.nn.hopfield import Hopfield
from hamdeq.nn.learned import HopfieldLayer, HopfieldPooling
from hamdeq.nn.transformer import HopfieldDecoderLayer, HopfieldEncoderLayer

__all__ = [
    "Hopfield",
    "HopfieldDecoderLayer",
    "HopfieldEncoderLayer",
    "HopfieldLayer",
    "HopfieldPooling",
    "functional",
]
