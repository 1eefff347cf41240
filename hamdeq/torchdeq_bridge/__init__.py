"""The bridge to torchdeq, in both directions.

- Our solvers serve torchdeq's users by name: ``hamdeq_picard``, ``hamdeq_anderson``,
  ``hamdeq_broyden`` and ``hamdeq_newton`` are registered on import, others with :func:`register`.
  In torchdeq's own cores the last is for the forward pass alone: their backward map cannot be
  differentiated.
- torchdeq's solvers serve here: :class:`TorchDEQSolver`.
- ``get_deq(core="hamdeq")`` gives torchdeq's users this library's equilibria and gradients behind
  the call that they know: :class:`HamdeqCore`.

Source: Geng & Kolter, "TorchDEQ: A Library for Deep Equilibrium Models" (2023).
"""

import warnings

with warnings.catch_warnings():
    # torchdeq's docstrings have invalid escapes, of which Python warns when it compiles them: here,
    # before the modules below import from it.
    warnings.simplefilter("ignore")
    import torchdeq  # noqa: F401

from hamdeq.torchdeq_bridge.core import HamdeqCore
from hamdeq.torchdeq_bridge.registered import register
from hamdeq.torchdeq_bridge.stock import TorchDEQSolver

__all__ = ["HamdeqCore", "TorchDEQSolver", "register"]
