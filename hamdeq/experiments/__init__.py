"""Experiments with layers that retrieve: their data, networks, and the comparison over seeds.

Each is trained by the one command line with a configuration of ``configs/latch``,
``configs/bit_patterns`` or ``configs/bags``, which name what is here by its class path.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
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

_MODULES = ("bags", "bit_patterns", "latch", "networks")


def __getattr__(name: str) -> typing.Any:
    # Imported when asked for: `python -m hamdeq.experiments.latch` must not find itself imported.
    if name in __all__:
        for module in map(importlib.import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
