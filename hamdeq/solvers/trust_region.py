"""A trust-region Newton method, which converges wherever the energy is bounded below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hamdeq._checks import integer, wrong
from hamdeq.solvers.base import Solver
from hamdeq.solvers.energy_map import Derivatives, EnergyMap
from hamdeq.solvers.state import SolverState, Step, where_sample

__all__ = ["TrustRegion"]


@dataclass(frozen=True, kw_only=True)
class TrustRegion(Solver):
    """Newton's method on an energy within a trust region, by truncated conjugate gradients.

    With activations g, D = ∂g/∂x and S = ∂I/∂g, the energy has in g the gradient x − I and the
    Hessian D⁻¹ − S. A step dg = D dx minimises its quadratic model,

        −⟨I − x, dg⟩ + ½ ⟨dg, (D⁻¹ − S) dg⟩,    ⟨dx, D dx⟩ ≤ radius²,

    by conjugate gradients in the scalar product ⟨a, D b⟩, which end at the edge of the region or
    where the curvature is negative: so a step leaves saddles by their steepest descent. It is taken
    where the energy falls by a share of what the model promises, and the region grows or shrinks
    with how well that promise was kept. A shrunk step points along I − x, the dynamics in time,
    which always lead downhill: where the energy is bounded below, its gradient in g goes to zero;
    where it is not, the region grows until the sample is given up as ``DIVERGED``. The gradient in
    x would also vanish where neurons saturate (D → 0); a step takes these to their field, so that
    no saturated state passes for an equilibrium.

    Near rounding the change of the energy is measured by its slopes at both ends,
    ``−½ ⟨(I − x) + (I′ − x′), g′ − g⟩``, which do not cancel.

    ``steps`` and ``n_evals`` count evaluations of f. A step takes at most ``n`` and at most
    ``inner_steps`` products with S and D besides, for a state of n numbers.

    Args:
        inner_steps: conjugate gradients in a step at most, ≥ 1.
        tol: relative residual to reach.
        max_steps: evaluations of f at most.

    Raises:
        TypeError: in the solve, f is not an energy model.

    Source: Steihaug, "The conjugate gradient method and trust regions in large scale optimization"
    (1983); Conn, Gould & Toint, "Trust-Region Methods" (2000), algorithm 7.5.1.
    """

    inner_steps: int = 100
    fallback_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_steps = integer("inner_steps", self.inner_steps, expected="an integer ≥ 1")
        object.__setattr__(self, "inner_steps", inner_steps)

    def start(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> SolverState:
        if not isinstance(f, EnergyMap):
            raise wrong(
                "TrustRegion",
                "an energy model, such as eliminate() returns",
                type(f).__name__,
                "use Broyden() for plain maps",
                kind=TypeError,
            )
        return _Region(x0, self.inner_steps)


# A step is taken where the energy falls by this share of what the model promises, and the region
# grows where by the larger one: the usual constants.
_SHARE, _GOOD = 0.1, 0.75
_SHRINK, _GROW = 0.25, 4.0
# Rounding of a sum of energy terms, in units of the last place of their size.
_ROUNDING = 16.0


class _Region(SolverState):
    """The last state accepted, the region around it, and the step that is being tried."""

    def __init__(self, x0: Tensor, inner_steps: int) -> None:
        self.inner_steps = inner_steps
        self.x = self.g = self.force = x0
        self.energy = self.residual = x0.new_zeros(len(x0))
        # Of the step: what the model promises, and its length.
        self.promise = self.length = x0.new_full((len(x0),), torch.nan)
        # Zero until there is a slope to measure it by.
        self.radius = x0.new_zeros(len(x0))
        # How far to go along I − x, where no activation answers a change of the state.
        self.reach = x0.new_ones(len(x0))
        self.started = False

    def accepts(self, step: Step) -> Tensor:
        assert step.info is not None
        g = step.info.g
        force, terms = step.info.fields - step.x, step.info.terms()
        energy = terms.sum(0)
        if self.started:
            change, slack = self._change(g, force, energy, terms)
            # Written so that a NaN is not accepted.
            accepted = change <= slack - _SHARE * self.promise
            # Of a flat step the model promises nothing: the energy must fall, or nothing change.
            flat = self.length == 0
            size = torch.maximum(g.abs(), self.g.abs()).amax(1)
            moved = (g - self.g).abs().amax(1) > _ROUNDING * torch.finfo(g.dtype).eps * size
            accepted = torch.where(flat, (change < -slack) | ~moved, accepted)
            shorter = torch.where(flat, _SHRINK * self.reach, self.reach)
            self.reach = torch.where(accepted, (_GROW * self.reach).clamp_max(1.0), shorter)
            # A region that has grown beyond all numbers: the energy has no minimum.
            accepted |= ~self.radius.isfinite()
            good = change <= slack - _GOOD * self.promise
            grown = torch.where(good, torch.maximum(self.radius, _GROW * self.length), self.radius)
            self.radius = torch.where(accepted, grown, _SHRINK * self.length)
        else:
            self.started = True
            accepted = torch.ones_like(energy, dtype=torch.bool)
        here = (("x", step.x), ("g", g), ("force", force))
        for name, value in (*here, ("energy", energy), ("residual", step.residual)):
            setattr(self, name, where_sample(accepted, value, getattr(self, name)))
        return accepted

    def _change(
        self, g: Tensor, force: Tensor, energy: Tensor, terms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The change of the energy, and what rounding leaves of it undetermined."""
        eps = torch.finfo(g.dtype).eps
        change = energy - self.energy
        forces = force.abs() + self.force.abs()
        along = -0.5 * ((force + self.force) * (g - self.g)).sum(1)
        rounded = change.abs() <= _ROUNDING * eps * terms.abs().sum(0)
        slack = eps * (forces * torch.maximum(g.abs(), self.g.abs())).sum(1)
        return torch.where(rounded, along, change), slack

    def next(self, step: Step) -> Tensor:
        assert isinstance(step.f, EnergyMap)
        derivatives = Derivatives(step.f, self.x)
        plain = _square(self.force, derivatives.gain(self.force)).sqrt()
        self.radius = torch.where(self.radius > 0, self.radius, plain)
        # Towards the end a system is solved more exactly, so that convergence is superlinear.
        accuracy = self.residual.sqrt().clamp_max(0.1)
        move, self.promise = _truncated(
            derivatives, self.force, self.radius, accuracy, self.inner_steps
        )
        length = _square(move, derivatives.gain(move)).sqrt()
        flat = (plain <= 0) | (length <= 0)
        self.length = torch.where(flat, 0.0, length)
        return self.x + torch.where(flat[:, None], self.reach[:, None] * self.force, move)


def _truncated(
    derivatives: Derivatives, force: Tensor, radius: Tensor, accuracy: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The step of Steihaug's method, and the decrease of the energy that its model promises.

    Conjugate gradients for (1 − S D) dx = I − x in the scalar product ⟨a, D b⟩. Each vector a has
    its companion D a at its side.
    """
    eps = torch.finfo(force.dtype).eps
    move, moved = torch.zeros_like(force), torch.zeros_like(force)
    rest, square = force, _square(force, derivatives.gain(force))
    along, along_ = rest, derivatives.gain(rest)
    goal = accuracy**2 * square
    promise = torch.zeros_like(square)
    active = square > 0
    inside = torch.ones_like(active)
    for _ in range(min(steps, force.shape[1])):
        if not bool(active.any()):
            break
        image = along - derivatives.coupling(along_)
        curvature, size = (along_ * image).sum(1), _square(along, along_)
        length = square / curvature
        # The distance along to the edge of the region.
        ahead, covered = (move * along_).sum(1), _square(move, moved)
        room = (radius**2 - covered).clamp_min(0)
        edge = ((ahead**2 + size * room).sqrt() - ahead) / size
        # Written so that what is not a number ends here.
        leaves = active & ~((curvature > eps * size) & (length < edge))
        length = torch.where(leaves, torch.where(size > 0, edge, 0.0), length)
        length = torch.where(active, length, 0.0)
        promise = promise + length * ((rest * along_).sum(1) - 0.5 * length * curvature)
        move = move + length[:, None] * along
        moved = moved + length[:, None] * along_
        inside, active = inside & ~leaves, active & ~leaves
        rest = rest - length[:, None] * image
        rest_ = derivatives.gain(rest)
        last, square = square, _square(rest, rest_)
        active = active & (square > goal)
        turn = torch.where(last > 0, square / last, 0.0)[:, None]
        along, along_ = rest + turn * along, rest_ + turn * along_
    # A full step takes the neurons that have saturated, which D does not see, along: dx = S dg + r.
    return torch.where(inside[:, None], force + derivatives.coupling(moved), move), promise


def _square(a: Tensor, da: Tensor) -> Tensor:
    """⟨a, D a⟩, which is never negative but by rounding."""
    return (a * da).sum(1).clamp_min(0)
