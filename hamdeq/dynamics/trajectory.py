"""Dynamics in time: a memory's way to its equilibrium, as a differential equation.

Each layer A moves towards its field, at the pace of its own time constant τ_A,

    τ_A dx_A/dt = I_A(g(x)) − x_A,      dE/dt = −Σ_A τ_A ẋ_Aᵀ ∇²L_A(x_A) ẋ_A ≤ 0,

because ∇²L is positive semi-definite. The equilibria are the fixed points x_A = I_A(g(x)),
whatever the time constants. Forward Euler with a step h is Picard iteration with damping h. A layer
whose τ goes to zero follows the others at once: in that limit it is eliminated, as by
:func:`~hamdeq.eliminate`.

Source: Krotov & Hopfield, "Large Associative Memory Problem in Neurobiology and Machine Learning"
(ICLR 2021), equations 1 to 4; Krotov, "Hierarchical Associative Memory" (2021), equations 4 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hamdeq._checks import floating, instance, number, require, wrong
from hamdeq._containers import Container
from hamdeq.dynamics.integrators import Euler, Flow, Integrator
from hamdeq.energy.model import EnergyModel, State
from hamdeq.solvers.energy_map import EnergyMap, StateLayout, ready
from hamdeq.solvers.state import full_precision, norm, relative_residual

__all__ = ["TimeConstants", "Trajectory", "trajectory"]

TimeConstants = float | Tensor | Mapping[str, float | Tensor]
"""One time constant τ > 0 for all layers, or layer name -> τ, 1 where none is given."""


@dataclass(kw_only=True, repr=False, eq=False)
class Trajectory(Container, aside=("n_evals",)):
    """States of a batch as they move in time; a container of tensors like a dict.

    Attributes:
        times: of the T states, in the unit of τ, float64 on the CPU: ``(T,)``.
        states: layer name -> internal states: ``(T, batch, *shape)``.
        energy: E(x) at each time: ``(T, batch)``. Once a state or its energy overflows, it is
            infinite or NaN, as the state and the residual are; no other sample changes by that,
            but the gradient of what all samples share is lost.
        residual: ‖I(g(x)) − x‖/‖I(g(x))‖ over all layers, the relative residual of the solvers,
            which is zero at equilibrium: ``(T, batch)``. It has no gradient.
        n_evals: evaluations of the field that the integration took.
    """

    times: Tensor
    states: State
    energy: Tensor
    residual: Tensor
    n_evals: int

    @property
    def final(self) -> State:
        """The state at the last time, layer name -> ``(batch, *shape)``."""
        return {name: x[-1] for name, x in self.states.items()}

    def __repr__(self) -> str:
        count, batch = self.energy.shape
        worst = f"{self.residual[-1].max():.1e}" if batch else "none"
        return (
            f"Trajectory({count} times from {self.times[0]:g} to {self.times[-1]:g}, "
            f"{batch} samples, layers: {list(self.states)}, worst residual at the end: {worst}, "
            f"n_evals: {self.n_evals})"
        )


def trajectory(
    model: EnergyModel,
    x0: State,
    times: Sequence[float] | Tensor,
    *,
    tau: TimeConstants = 1.0,
    method: Integrator | None = None,
) -> Trajectory:
    """Integrate τ dx/dt = I(g(x)) − x from x0.

    Args:
        model: a :class:`~hamdeq.HAM`, one of which layers are clamped (:func:`~hamdeq.clamp`) or
            eliminated (:func:`~hamdeq.eliminate`), or any other energy model.
        x0: the state of all its layers at the first time: ``(batch, *shape)`` each.
        times: when the state is wanted, at least two, increasing. The unit is that of τ.
        tau: time constants τ > 0: a number for all layers, or ``{layer: τ}``; layers left out
            have τ = 1. A τ may be a tensor, with a gradient if it requires one: of one number, or
            of the layer's shape, one for each neuron. With several τ in one layer the energy is
            sure to fall only if the layer's Lagrangian is additive, since ∇²L must be diagonal.
        method: default ``Euler(step=0.1)``; ``Adaptive()`` controls its error.

    Returns:
        a Trajectory, which can be differentiated with respect to x0, τ and all parameters.
        Memory grows with the steps; the gradient of the equilibrium alone is cheaper from a
        :class:`~hamdeq.DEQ`.

    Raises:
        ValueError: what is no state of the model; times that are not finite, increasing or at
            least two; τ ≤ 0, of another shape, or of a layer that does not move; of Euler, a
            step longer than the whole time or than a τ.
        TypeError: a model without an energy; a wrong kind of number.
        ModuleNotFoundError: of Adaptive, torchdiffeq is not installed.
        RuntimeError: of Adaptive, the error cannot be controlled, as where states grow without
            bound.

    Example:
        >>> ham = HAM.chain([64, 32, 10])
        >>> memory = clamp(ham, {"input": torch.rand(8, 64)})
        >>> x0 = {"hidden1": torch.zeros(8, 32), "output": torch.zeros(8, 10)}
        >>> path = trajectory(memory, x0, [0.0, 1.0, 10.0], tau={"output": 2.0})
        >>> path.energy.shape
        torch.Size([3, 8])
    """
    method = Euler() if method is None else method
    instance("method", method, Integrator, "Euler(step=…) or Adaptive(…)")
    instance(
        "model",
        model,
        EnergyModel,
        "an energy model, such as a HAM, clamp(ham, clamped) or eliminate(ham, hidden)",
        "of a DEQ it is deq.reduced({'input': …})",
    )
    model.check_state(x0)
    model = ready(model)
    instants = _times(times)
    layout = StateLayout(x0)
    pace = _paces(tau, x0)
    # As in the solvers: half precision would lift the noise of the field above its last descent.
    with full_precision(next(iter(x0.values()))):
        f = EnergyMap(model, layout)
        flow = Flow(f, _row(pace, x0), pace)
        rows = method.integrate(flow, layout.flatten(x0), instants)
        at_times = [layout.unflatten(row) for row in rows]
        energy = torch.stack([model.energy(x) for x in at_times])
        with torch.no_grad():
            moved = [f(row) for row in rows]
            residual = [
                relative_residual(norm(fx - x), fx) for x, fx in zip(rows, moved, strict=True)
            ]
    return Trajectory(
        times=torch.tensor(instants, dtype=torch.float64),
        states={name: torch.stack([x[name] for x in at_times]) for name in x0},
        energy=energy,
        residual=torch.stack(residual),
        n_evals=flow.n_evals,
    )


def _times(times: Sequence[float] | Tensor) -> list[float]:
    """The times as numbers, refused unless they are finite and increase."""
    try:
        found = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        expected = "numbers, such as [0.0, 1.0, 10.0]"
        raise wrong("times", expected, repr(times), kind=TypeError) from error
    expected = "at least two in a row, such as [0.0, 10.0] or torch.linspace(0, 10, 50)"
    fits = found.dim() == 1 and len(found) >= 2
    require(fits, "times", expected, f"shape {tuple(found.shape)}")
    instants: list[float] = found.tolist()
    for instant in instants:
        require(math.isfinite(instant), "times", "finite numbers", instant)
    for place, (before, after) in enumerate(pairwise(instants), start=1):
        if before >= after:
            got = f"{after:g} after {before:g}, at place {place}"
            raise wrong("times", "strictly increasing times", got)
    return instants


def _paces(tau: TimeConstants, x0: State) -> dict[str, float | Tensor]:
    """The time constant of every layer, checked."""
    if not isinstance(tau, Mapping):
        tau = dict.fromkeys(x0, tau)
    for name in tau:
        if name not in x0:
            raise wrong(
                "tau",
                f"layers among {list(x0)}, which move",
                repr(name),
                "a layer that is clamped or eliminated has no time constant",
            )
    return {name: _pace(name, tau.get(name, 1.0), x_a) for name, x_a in x0.items()}


def _pace(name: str, tau: float | Tensor, x: Tensor) -> float | Tensor:
    what = f"tau of layer {name!r}"
    if not isinstance(tau, Tensor):
        return number(what, tau, above=0)
    floating(what, tau)
    if tau.dim() and tau.shape != x.shape[1:]:
        expected = f"one number or the layer's shape {tuple(x.shape[1:])}"
        raise wrong(what, expected, str(tuple(tau.shape)))
    bad = tau.detach()[~(tau.isfinite() & (tau > 0))]
    if bad.numel():
        raise wrong(what, "finite numbers > 0", repr(bad.flatten()[0].item()))
    return tau


def _row(pace: Mapping[str, float | Tensor], x0: State) -> Tensor:
    """The time constants of one sample's numbers, in the order of its row: ``(n,)``."""
    parts = []
    for name, x in x0.items():
        tau = torch.as_tensor(pace[name], dtype=x.dtype, device=x.device)
        parts.append(tau.expand(x.shape[1:]).reshape(-1))
    return torch.cat(parts)
