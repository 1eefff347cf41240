"""hamdeq: associative memories that settle.

Write down an energy from neurons and synapses; turn it into a trainable layer that finds its
minimum. Classical Hopfield networks, dense associative memories, attention and hierarchical
memories are choices of Lagrangian and graph.

Example:
    >>> import torch
    >>> from hamdeq import DEQ, HAM
    >>> ham = HAM.chain([784, 512, 10])  # layers input, hidden1, output
    >>> deq = DEQ(ham, clamped=("input",))
    >>> solution = deq({"input": torch.rand(64, 784)})
    >>> solution.value["output"].shape
    torch.Size([64, 10])

The main names, in the order in which a memory is built and used:

- ``Sigmoid``, ``Tanh``, ``ReLU``, ``Softmax``, ``LayerNorm``, …: Lagrangians, which give layers
  their activation; ``Neurons``: a layer, of a shape and a Lagrangian.
- ``Dense``, ``Bias``, ``Lateral``, ``Conv2d``, ``SelfAttention``, …: synapses between layers;
  ``FunctionSynapse``: any function of activations as one.
- ``HAM``: neurons and synapses on any graph; ``HAM.chain``: layers in a row. ``TwoLayer``: features
  and memories; ``CHN``: the continuous Hopfield network.
- ``clamp``, ``two_colouring``, ``eliminate``: clamp layers, and remove others exactly.
- ``Picard``, ``Anderson``, ``Broyden``, ``Newton``, ``TrustRegion``: solvers; a ``Solution`` says
  of every sample how it converged. ``Euler``, ``trajectory``: the way there in time.
- ``fixed_point``: an equilibrium with its gradient, by ``Implicit``, ``Phantom``, ``Unrolled`` or
  ``EquilibriumPropagation``.
- ``DEQ``: all of it as a layer. ``FixedSteps``: the same with a fixed number of steps, for export.

Modules with names of their own:

- ``hamdeq.nn``: the layers ``Hopfield``, ``HopfieldPooling``, ``HopfieldLayer`` for deep models;
- ``hamdeq.memories``: ``HopfieldNetwork``, ``DenseAssociativeMemory``, of binary neurons;
- ``hamdeq.optim``: ``Madam``, ``NormalisedSGD``;
- ``hamdeq.testing``: contracts that test your own Lagrangian, synapse, solver or gradient method;
- ``hamdeq.data``, ``hamdeq.plots``, ``hamdeq.training``, ``hamdeq.experiments``: data, pictures and
  runs; they need the extra "train".
"""

from hamdeq.chn import CHN, CHNDEQ, InnerIterations
from hamdeq.deq import DEQ, FixedSteps
from hamdeq.dynamics.integrators import Adaptive, Euler, Integrator
from hamdeq.dynamics.trajectory import Trajectory, trajectory
from hamdeq.elimination.colouring import colouring, two_colouring
from hamdeq.elimination.eliminate import eliminate
from hamdeq.elimination.reduced import Reduced
from hamdeq.elimination.two_layer import TwoLayer
from hamdeq.energy.clamping import Clamped, clamp
from hamdeq.energy.contraction import contract_, contraction
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import EnergyModel, LayeredEnergy, Neurons, State
from hamdeq.implicit import (
    GMRES,
    Adjoint,
    ConjugateGradient,
    EquilibriumPropagation,
    Implicit,
    Phantom,
    Unrolled,
    fixed_point,
)
from hamdeq.lagrangians import (
    BengioFischer,
    Entmax,
    Exp,
    Grouped,
    Identity,
    Lagrangian,
    LayerNorm,
    RectifiedExp,
    ReLU,
    RePU,
    Separation,
    Sigmoid,
    Softmax,
    Sparsemax,
    Spherical,
    Tanh,
)
from hamdeq.optim import Madam, NormalisedSGD
from hamdeq.solvers import (
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Newton,
    Picard,
    Solution,
    Solver,
    Status,
    TrustRegion,
)
from hamdeq.synapses import (
    Association,
    AvgPool2d,
    Bias,
    Composed,
    Conv2d,
    Dense,
    Flatten,
    FunctionSynapse,
    Lateral,
    Map,
    MaxPool2d,
    SelfAttention,
    Synapse,
)
from hamdeq.torchdeq_bridge import TorchDEQSolver

__version__ = "0.1.0"

__all__ = [
    "CHN",
    "CHNDEQ",
    "DEQ",
    "GMRES",
    "HAM",
    "Adaptive",
    "Adjoint",
    "Anderson",
    "Association",
    "AvgPool2d",
    "BengioFischer",
    "Bias",
    "Broyden",
    "Clamped",
    "Composed",
    "ConjugateGradient",
    "Conv2d",
    "ConvergenceError",
    "ConvergenceWarning",
    "Dense",
    "EnergyModel",
    "Entmax",
    "EquilibriumPropagation",
    "Euler",
    "Exp",
    "FixedSteps",
    "Flatten",
    "FunctionSynapse",
    "Grouped",
    "Identity",
    "Implicit",
    "InnerIterations",
    "Integrator",
    "Lagrangian",
    "Lateral",
    "LayerNorm",
    "LayeredEnergy",
    "Madam",
    "Map",
    "MaxPool2d",
    "Neurons",
    "Newton",
    "NormalisedSGD",
    "Phantom",
    "Picard",
    "ReLU",
    "RePU",
    "RectifiedExp",
    "Reduced",
    "SelfAttention",
    "Separation",
    "Sigmoid",
    "Softmax",
    "Solution",
    "Solver",
    "Sparsemax",
    "Spherical",
    "State",
    "Status",
    "Synapse",
    "Tanh",
    "TorchDEQSolver",
    "Trajectory",
    "TrustRegion",
    "TwoLayer",
    "Unrolled",
    "clamp",
    "colouring",
    "contract_",
    "contraction",
    "eliminate",
    "fixed_point",
    "trajectory",
    "two_colouring",
]
