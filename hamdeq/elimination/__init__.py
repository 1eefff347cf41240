"""Exact elimination of layers: even-odd splitting, hidden neurons integrated out, attention."""

from hamdeq.elimination.colouring import colouring, two_colouring
from hamdeq.elimination.eliminate import eliminate
from hamdeq.elimination.reduced import Reduced
from hamdeq.elimination.two_layer import TwoLayer

__all__ = ["Reduced", "TwoLayer", "colouring", "eliminate", "two_colouring"]
