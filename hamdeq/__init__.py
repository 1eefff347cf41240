"""hamdeq: associative memories that settle.

Write down an energy from neurons and synapses; get a differentiable layer that settles to its
minimum. Classical Hopfield networks, dense associative memories, attention and hierarchical
memories are choices of Lagrangian and graph.
"""

from hamdeq.chn import CHN, CHNDEQ, InnerIterations
from hamdeq.clamping import Clamped, clamp
from hamdeq.deq import DEQ
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
from hamdeq.splitting import Reduced, eliminate, two_colouring
from hamdeq.synapses import Association, Bias, Dense, Synapse
from hamdeq.torchdeq_bridge import TorchDEQSolver

__version__ = "0.1.0"

__all__ = [
    "CHN",
    "CHNDEQ",
    "DEQ",
    "HAM",
    "Adjoint",
    "Anderson",
    "Association",
    "BengioFischer",
    "Bias",
    "Broyden",
    "Clamped",
    "ConjugateGradient",
    "ConvergenceError",
    "ConvergenceWarning",
    "Dense",
    "EnergyModel",
    "Entmax",
    "EquilibriumPropagation",
    "Exp",
    "Identity",
    "Implicit",
    "InnerIterations",
    "Lagrangian",
    "LayerNorm",
    "Layered",
    "Madam",
    "Neurons",
    "Newton",
    "NormalisedSGD",
    "Phantom",
    "Picard",
    "ReLU",
    "RePU",
    "Reduced",
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
    "Unrolled",
    "clamp",
    "eliminate",
    "fixed_point",
    "two_colouring",
]
