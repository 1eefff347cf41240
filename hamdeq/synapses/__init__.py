"""Synapses: the interaction energies between layers, and the fields they exert.

A synapse connects one layer (a bias), two (a weight matrix) or more. It is one scalar function of
their activations, ``E(g₁, g₂, …)``, and pulls on each of them with the field ``I_k = −∂E/∂g_k``.
Because both directions are derivatives of one function, a weight is one parameter, used both ways.
"""

from hamdeq.synapses.attention import Association, SelfAttention
from hamdeq.synapses.base import Shape, Synapse, layer_shape
from hamdeq.synapses.convolution import Conv2d
from hamdeq.synapses.dense import Bias, Dense, Lateral
from hamdeq.synapses.function import FunctionSynapse
from hamdeq.synapses.maps import Composed, Flatten, Map
from hamdeq.synapses.pooling import AvgPool2d, MaxPool2d

__all__ = [
    "Association",
    "AvgPool2d",
    "Bias",
    "Composed",
    "Conv2d",
    "Dense",
    "Flatten",
    "FunctionSynapse",
    "Lateral",
    "Map",
    "MaxPool2d",
    "SelfAttention",
    "Shape",
    "Synapse",
    "layer_shape",
]
