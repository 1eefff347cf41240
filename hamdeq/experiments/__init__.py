"""Experiments with layers that retrieve: their data, networks, and the comparison over seeds.

Each is trained by the one command line with a configuration of ``configs/latch``,
``configs/bit_patterns`` or ``configs/bags``, which name what is here by its class path.
"""

from hamdeq.experiments.bags import MNISTBagsDataModule
from hamdeq.experiments.bit_patterns import BitPatternDataModule
from hamdeq.experiments.latch import LatchDataModule
from hamdeq.experiments.networks import (
    DigitEncoder,
    GatedAttention,
    LastState,
    MeanPooling,
    Readout,
)

__all__ = [
    "BitPatternDataModule",
    "DigitEncoder",
    "GatedAttention",
    "LastState",
    "LatchDataModule",
    "MNISTBagsDataModule",
    "MeanPooling",
    "Readout",
]
