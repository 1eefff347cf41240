"""Optimisers of memories: multiplicative steps, and steps of a size of their own."""

from hamdeq.optim.madam import Madam
from hamdeq.optim.normalised import NormalisedSGD

__all__ = ["Madam", "NormalisedSGD"]
