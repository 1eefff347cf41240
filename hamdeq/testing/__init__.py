"""Contracts: tests that a Lagrangian, synapse, energy model, solver or gradient method inherits.

Subclass a contract in a test module and say how to make an object of yours; pytest then runs every
claim that hamdeq relies on, each as a test of its own:

    from hamdeq.testing import LagrangianContract

    class TestCubic(LagrangianContract):
        def make(self):
            return Cubic()

A contract needs torch alone. Its methods take no fixtures: it can also be mixed into a
``unittest.TestCase``, and :meth:`Contract.verify` runs all of it where there is no test runner.
Everything is computed in float64 unless a claim is about another dtype.
"""

from hamdeq.testing.adjoints import AdjointContract
from hamdeq.testing.contract import Contract, derivative, inner, normal
from hamdeq.testing.energies import EnergyModelContract
from hamdeq.testing.lagrangians import LagrangianContract
from hamdeq.testing.solvers import SolverContract
from hamdeq.testing.synapses import MapContract, SynapseContract

__all__ = [
    "AdjointContract",
    "Contract",
    "EnergyModelContract",
    "LagrangianContract",
    "MapContract",
    "SolverContract",
    "SynapseContract",
    "derivative",
    "inner",
    "normal",
]
