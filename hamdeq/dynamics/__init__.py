"""The way to equilibrium in time: trajectories of memories, and what integrates them."""

from hamdeq.dynamics.integrators import Adaptive, Euler, Integrator
from hamdeq.dynamics.trajectory import Trajectory, trajectory

__all__ = ["Adaptive", "Euler", "Integrator", "Trajectory", "trajectory"]
