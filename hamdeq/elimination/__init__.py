"""Elimination: remove layers from an energy exactly, by setting them to their minimum.

Let B be layers with no synapse among themselves, in each of which every synapse is linear. With the
other layers fixed, the energy is convex in each layer of B, and its minimum has a closed form:

    min over g_B of  L*_B(g_B) − ⟨I_B, g_B⟩  =  −L_B(I_B),    attained at  g_B = ∇L_B(I_B).

So B can be removed: its part of the energy becomes −L_B(I_B(g_A)), and what is left updates by
``x_A <- I_A(∇L_B(I_B(g_A)))``. Three families of models are this one operation.

Even-odd splitting, the two asynchronous half-steps of a chain of layers (Goemaere et al. 2023,
equation 7): eliminate the wider colour of its graph.

    >>> import torch
    >>> from hamdeq import HAM, Dense, Identity, Neurons, RePU, Softmax, clamp
    >>> from hamdeq import eliminate, two_colouring
    >>> ham = HAM.chain([784, 512, 10])
    >>> keep, hide = two_colouring(ham, clamped=("input",))
    >>> eliminate(clamp(ham, {"input": torch.rand(64, 784)}), hide)
    Reduced(visible: output; hidden: hidden1)

Dense associative memory: hidden neurons of a rectified power integrated out (Krotov & Hopfield
2016). What is left is E(x) = ½‖x‖² − Σ_μ F(ξ_μ·x).

    >>> def memory(lagrangian):
    ...     layers = {"query": Neurons(16, Identity()), "memories": Neurons(50, lagrangian)}
    ...     return eliminate(HAM(layers, [(("query", "memories"), Dense(16, 50))]), ["memories"])
    >>> dense, x = memory(RePU(3)), {"query": torch.randn(2, 16)}
    >>> patterns = dense.model.synapses[0].weight.T
    >>> F = ((x["query"] @ patterns.T).relu() ** 3 / 3).sum(1)
    >>> bool(torch.allclose(dense.energy(x), x["query"].square().sum(1) / 2 - F, atol=1e-5))
    True

Attention: the same graph with softmax memories (Ramsauer et al. 2021, equation 3). It comes back as
the fused form, without the matrix of similarities.

    >>> attention = memory(Softmax(beta=0.25))
    >>> attention
    Attention(visible: query; hidden: memories)
    >>> patterns = attention.model.synapses[0].weight.T
    >>> update = torch.softmax(0.25 * x["query"] @ patterns.T, 1) @ patterns
    >>> bool(torch.allclose(attention.update(x)["query"], update, atol=1e-5))
    True

When what is left is itself independent, as for two colours of a graph, each step minimises the
energy over one half and then over the other: it never rises. When it is not, its layers are brought
to their minimum one colour after another (a Gauss-Seidel sweep), and the same holds.
"""

from hamdeq.elimination.colouring import colouring, two_colouring
from hamdeq.elimination.eliminate import eliminate
from hamdeq.elimination.fused import Attention
from hamdeq.elimination.reduced import Reduced
from hamdeq.elimination.two_layer import TwoLayer

__all__ = ["Attention", "Reduced", "TwoLayer", "colouring", "eliminate", "two_colouring"]
