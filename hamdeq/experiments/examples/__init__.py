"""Example tasks for layers that retrieve: data, networks and the module that trains them."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from hamdeq.experiments.examples.bags import MNISTBagsDataModule
    from hamdeq.experiments.examples.binary_classifier import BinaryClassifier
    from hamdeq.experiments.examples.bit_patterns import BitPatternDataModule
    from hamdeq.experiments.examples.latch import LatchDataModule
    from hamdeq.experiments.examples.networks import (
        DigitEncoder,
        GatedAttention,
        LastState,
        MeanPooling,
        Readout,
    )

__all__ = [
    "BinaryClassifier",
    "BitPatternDataModule",
    "DigitEncoder",
    "GatedAttention",
    "LastState",
    "LatchDataModule",
    "MNISTBagsDataModule",
    "MeanPooling",
    "Readout",
]

_MODULES = ("bags", "binary_classifier", "bit_patterns", "latch", "networks")


def __getattr__(name: str) -> typing.Any:
    # Imported when asked for: `python -m hamdeq.experiments.examples.latch` must not find itself
    # imported.
    if name in __all__:
        for module in map(importlib.import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
