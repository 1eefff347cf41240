"""hamdeq: associative memories that settle.

Write down an energy from neurons and synapses; get a differentiable layer that settles to its
minimum. Classical Hopfield networks, dense associative memories, attention and hierarchical
memories are choices of Lagrangian and graph.
"""

from hamdeq.chn import CHN, CHNDEQ, InnerIterations
from hamdeq.clamping import Clamped, clamp
from hamdeq.colouring import colouring, two_colouring
from hamdeq.contraction import contract_, contraction
from hamdeq.deq import DEQ
from hamdeq.dynamics import Trajectory, trajectory
from hamdeq.ham import HAM
from hamdeq.implicit import (
    Adjoint,
    ConjugateGradient,
    EquilibriumPropagation,
    Implicit,
    Phantom,
    Unrolled,
    fixed_point,
)
from hamdeq.integrators import Adaptive, Euler, Integrator
from hamdeq.lagrangians import (
    BengioFischer,
    Entmax,
    Exp,
    Identity,
    Lagrangian,
    LayerNorm,
    ReLU,
    RePU,
    Separation,
    Sigmoid,
    Softmax,
    Sparsemax,
    Spherical,
    Tanh,
)
from hamdeq.layers import EnergyModel, Layered, Neurons, State
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
)
from hamdeq.splitting import Reduced, eliminate
from hamdeq.synapses import (
    Association,
    AvgPool2d,
    Bias,
    Composed,
    Conv2d,
    Dense,
    Flatten,
    Interaction,
    Lateral,
    Map,
    MaxPool2d,
    SelfAttention,
    Synapse,
)
from hamdeq.torchdeq_bridge import TorchDEQSolver
from hamdeq.two_layer import TwoLayer

__version__ = "0.1.0"

__all__ = [
    "CHN",
    "CHNDEQ",
    "DEQ",
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
    "Flatten",
    "Identity",
    "Implicit",
    "InnerIterations",
    "Integrator",
    "Interaction",
    "Lagrangian",
    "Lateral",
    "LayerNorm",
    "Layered",
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
