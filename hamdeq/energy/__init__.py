"""Energy models: neurons and synapses on a graph, some of its layers clamped."""

from hamdeq.energy.clamping import Clamped, clamp
from hamdeq.energy.contraction import contract_, contraction
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import EnergyModel, LayeredEnergy, Neurons, State

__all__ = [
    "HAM",
    "Clamped",
    "EnergyModel",
    "LayeredEnergy",
    "Neurons",
    "State",
    "clamp",
    "contract_",
    "contraction",
]
