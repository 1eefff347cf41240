"""Synapses: the interaction energies between layers, and the fields they exert.

A synapse connects one layer (a bias), two (a weight matrix) or more. It is one scalar function of
their activations, ``E(g₁, g₂, …)``, and pulls on each of them with the field ``I_k = −∂E/∂g_k``.
Because both directions are derivatives of one function, a weight is one parameter, used both ways.
"""

from hamdeq.synapses.attention import Association
from hamdeq.synapses.base import Shape, Synapse, layer_shape
from hamdeq.synapses.dense import Bias, Dense

__all__ = ["Association", "Bias", "Dense", "Shape", "Synapse", "layer_shape"]
