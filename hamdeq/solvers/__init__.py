"""Fixed-point solvers: x = f(x) for a batch of independent samples.

A solver is a choice, an immutable object; :meth:`Solver.solve` runs it and returns a
:class:`Solution`, in which every sample has its own value, residual, step count and status.
"""

from hamdeq.solvers.anderson import Anderson
from hamdeq.solvers.base import Solver
from hamdeq.solvers.broyden import Broyden
from hamdeq.solvers.failures import ConvergenceError, ConvergenceWarning, Failures, OnFailure
from hamdeq.solvers.fallback import with_fallback
from hamdeq.solvers.newton import Newton
from hamdeq.solvers.picard import Picard
from hamdeq.solvers.safeguard import Safeguarded
from hamdeq.solvers.solution import Solution, Status
from hamdeq.solvers.state import SolverState
from hamdeq.solvers.successive import SuccessiveOutputs, paper_iterations
from hamdeq.solvers.trust_region import TrustRegion

__all__ = [
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Failures",
    "Newton",
    "OnFailure",
    "Picard",
    "Safeguarded",
    "Solution",
    "Solver",
    "SolverState",
    "Status",
    "SuccessiveOutputs",
    "TrustRegion",
    "paper_iterations",
    "with_fallback",
]
