"""Integrators: forward Euler, and Runge-Kutta methods that control their error."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hamdeq._checks import integer, number, one_of, require

__all__ = ["Adaptive", "Euler", "Flow", "Integrator"]


class Flow:
    """The right-hand side dx/dt = (f(x) − x)/τ, on rows ``(batch, n)``.

    Args:
        f: the map whose fixed points the flow converges to.
        tau: time constants: ``(n,)``.
        paces: the same by layer, for messages.

    Attributes:
        n_evals: how often f has been evaluated.
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        tau: Tensor,
        paces: Mapping[str, float | Tensor],
    ) -> None:
        self.f = f
        self.tau = tau
        self.paces = paces
        self.n_evals: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.n_evals += 1
        return (self.f(x) - x) / self.tau


class Integrator(ABC):
    """A method that follows a flow in time."""

    @abstractmethod
    def integrate(self, flow: Flow, x0: Tensor, times: Sequence[float]) -> Tensor:
        """States at all the times, x0 ``(batch, n)`` at the first of them: ``(T, batch, n)``."""


@dataclass(frozen=True, kw_only=True)
class Euler(Integrator):
    """Forward Euler, x <- x + (h/τ)(I(g(x)) − x), with steps of equal length between the times.

    No sample changes the result of another. With τ = 1 a step is one of Picard iteration with
    damping h: it goes to the equilibrium with few evaluations, while the way there is exact to
    O(h) only, and the energy is sure to fall only for small h.

    Args:
        step: the longest step h > 0, in the unit of time. Where a time is no multiple of it away
            from the last one, steps are somewhat shorter. Beyond τ a step would overshoot.

    Raises:
        ValueError: from the integration, a step longer than the whole time, or than some layer's τ.
    """

    step: float = 0.1

    def __post_init__(self) -> None:
        number("step", self.step, above=0)

    def integrate(self, flow: Flow, x0: Tensor, times: Sequence[float]) -> Tensor:
        span = times[-1] - times[0]
        expected = f"at most the whole time {span:g}, from {times[0]:g} to {times[-1]:g}"
        fits, remedy = self.step <= span * (1 + _SLACK), "use a smaller step or later times"
        require(fits, "step", expected, f"{self.step:g}", remedy)
        for name, tau in flow.paces.items():
            least = float(tau.detach().min()) if isinstance(tau, Tensor) else tau
            require(
                self.step <= least * (1 + _SLACK),
                "step",
                f"at most the time constant {least:g} of layer {name!r}, beyond which a step "
                "overshoots",
                f"{self.step:g}",
                f"use Euler(step={least:g}), Adaptive(), or eliminate() for layers much faster "
                "than the others",
            )
        states, x = [x0], x0
        for start, end in pairwise(times):
            count = max(1, math.ceil((end - start) / self.step * (1 - _SLACK)))
            # The step itself where it fits, so that rounding of the times changes nothing.
            h = (end - start) / count
            h = self.step if math.isclose(h, self.step, rel_tol=_SLACK) else h
            for _ in range(count):
                x = x + h * flow(x)
            states.append(x)
        return torch.stack(states)


# Rounding of times such as 0.1 + 0.2, as a share of a step.
_SLACK = 1e-9

_METHODS = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@dataclass(frozen=True, kw_only=True)
class Adaptive(Integrator):
    """A Runge-Kutta method of torchdiffeq, whose step follows an estimate of its error.

    The error of a step in each number x is kept below ``atol + rtol·|x|``, in the root mean square
    over a sample, for the worst sample. So every sample meets the tolerances, and in a batch with
    a sample that needs shorter steps it is more exact than alone: results differ from batch to
    batch by the size of the tolerances. States at the times are interpolated between steps, to an
    order less than the method's. A method without implicit steps takes about one step for each
    three of the smallest τ: eliminate layers that are much faster than the others.

    Args:
        method: ``"dopri5"`` (of order 5), ``"dopri8"``, ``"bosh3"`` or ``"adaptive_heun"``.
        rtol: relative error of a step, ≥ 0. In float32 not below 1e-6.
        atol: absolute error of a step, in units of x, > 0.
        max_steps: steps from one of the times to the next at most.

    Source: Dormand & Prince, "A family of embedded Runge-Kutta formulae" (1980); Chen et al.,
    "Neural Ordinary Differential Equations" (2018), whose torchdiffeq this is (extra ``ode``).
    """

    method: str = "dopri5"
    rtol: float = 1e-6
    atol: float = 1e-8
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        one_of("method", self.method, _METHODS)
        number("rtol", self.rtol, least=0)
        number("atol", self.atol, above=0)
        steps = integer("max_steps", self.max_steps, expected="an integer ≥ 1")
        object.__setattr__(self, "max_steps", steps)

    def integrate(self, flow: Flow, x0: Tensor, times: Sequence[float]) -> Tensor:
        odeint = _odeint()
        if x0.numel() == 0:  # there is no error to control
            return x0.expand(len(times), *x0.shape)
        bad = (~x0.isfinite().all(1)).nonzero()[:, 0].tolist()
        got = f"NaN or infinity in samples {bad[:8]}, which would stop the others too"
        require(not bad, "x0", "finite states", got, "remove them, or use Euler()")
        t = torch.tensor(times, dtype=torch.float64, device=x0.device)
        # Steps end at the times: what torchdiffeq interpolates within a step is out by much more
        # than the tolerance, of dopri8 and bosh3 a hundred times.
        options = {"norm": _worst, "max_num_steps": self.max_steps, "step_t": t[1:]}
        try:
            return odeint(
                lambda _, x: flow(x),
                x0,
                t,
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=options,
            )
        except AssertionError as error:
            reason = str(error).split(":")[0]
            raise RuntimeError(
                f"{self}: stopped with {reason!r} after {flow.n_evals} evaluations; (a) where "
                "states grow without bound, use smaller weights or bounded activations, (b) where "
                "a layer is much faster than the others, eliminate it, (c) otherwise raise rtol "
                "and atol, or max_steps"
            ) from error


@torch.no_grad()
def _worst(x: Tensor) -> Tensor:
    """The largest root mean square of a row: it chooses the step, which has no gradient."""
    # A mean over the batch as well, torchdiffeq's own, would let one sample hide among many.
    return x.square().mean(1).sqrt().max()


def _odeint() -> Callable[..., Any]:
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Adaptive: expected torchdiffeq, which is not installed; "
            "pip install 'hamdeq[ode]', or use Euler()"
        ) from error
    return odeint
