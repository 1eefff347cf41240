"""The continuous Hopfield network (CHN) of Bengio & Fischer, which is a HAM in other variables.

The energy of a state s is half its square and the synapses' energies of its activations,

    E(s) = ½‖s‖² + Σ_s E_s(ρ(s))  [= ½‖s‖² − ½ρ(s)ᵀWρ(s) − bᵀρ(s)],

and at rest ``s = ρ′(s) ⊙ I(ρ(s))`` with the synapses' field I. A neuron's state at rest depends on
itself, not only on its neighbours. Where ``ς(s) = s/ρ′(s)`` has an inverse, u = ς(s) does not: at
rest u = I, and E is the energy of a HAM with the same synapses, number for number
(:class:`~hamdeq.BengioFischer`).

Source: Bengio & Fischer, "Early Inference in Energy-Based Models Approximates Back-Propagation"
(2015); Bengio et al., "Feedforward Initialization for Fast Inference of Deep Generative Networks
is Biologically Plausible" (2016); Goemaere et al., "Accelerating Hierarchical Associative Memory:
A Deep Equilibrium Approach" (2023), appendix A.
"""

from hamdeq.chn.equilibrium import CHNDEQ
from hamdeq.chn.network import CHN, InnerIterations

__all__ = ["CHN", "CHNDEQ", "InnerIterations"]
