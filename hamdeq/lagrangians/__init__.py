"""Lagrangians: the convex functions that make a layer of neurons.

A layer with internal state x is described by one convex function L(x). Everything else
follows from it:

- the activation is its gradient, ``g = ∇L(x)``;
- the energy of the layer is its Legendre transform, ``L*(g) = ⟨x, g⟩ − L(x)``.

*Additive* Lagrangians are sums over neurons and give elementwise activations (sigmoid, tanh,
powers). *Non-additive* ones couple the neurons of a layer (softmax, layer norm, the sphere);
here they act along the last axis and add over all others, as normalisations do elsewhere in
PyTorch.

Source: Krotov & Hopfield, "Large Associative Memory Problem in Neurobiology and Machine
Learning" (ICLR 2021), equations 1 to 4 and section 3; Krotov, "Hierarchical Associative Memory"
(2021), equation 3.
"""

from hamdeq.lagrangians.additive import Exp, Identity, RectifiedExp, ReLU, RePU, Sigmoid, Tanh
from hamdeq.lagrangians.base import Lagrangian
from hamdeq.lagrangians.bengio_fischer import BengioFischer
from hamdeq.lagrangians.coupled import LayerNorm, Spherical
from hamdeq.lagrangians.grouped import Grouped
from hamdeq.lagrangians.separation import Entmax, Separation, Softmax, Sparsemax

__all__ = [
    "BengioFischer",
    "Entmax",
    "Exp",
    "Grouped",
    "Identity",
    "Lagrangian",
    "LayerNorm",
    "ReLU",
    "RePU",
    "RectifiedExp",
    "Separation",
    "Sigmoid",
    "Softmax",
    "Sparsemax",
    "Spherical",
    "Tanh",
]
