"""Processes of tests, each forked from one that has imported PyTorch and Lightning.

A process that imports these itself spends six seconds on it.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import forkserver

import pytest
import torch.multiprocessing as mp

IMPORTED = ["torch.distributed.fsdp", "sklearn.datasets", "hamdeq.training.cli.main"]


def start_method() -> str:
    """How to start a process; the first call in a process of tests starts its server."""
    if sys.platform != "linux":
        return "spawn"  # elsewhere a fork may crash in what system libraries have set up
    mp.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        # Before Python 3.14 the server is not told where to import from.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return "forkserver"
