"""DEQ: a memory that settles, as a layer. Energy model + solver + gradient method.

A call goes ``HAM -> clamp -> eliminate -> fixed_point -> restore``: the given layers are held,
the hidden ones eliminated, the rest brought to equilibrium, and the full state put together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hamdeq.clamping import clamp
from hamdeq.ham import HAM, State
from hamdeq.implicit import Adjoint, Failures, Implicit, OnFailure, equilibrium
from hamdeq.solvers import Anderson, Solution, Solver, Status
from hamdeq.splitting import Reduced, eliminate, two_colouring

__all__ = ["DEQ"]


class DEQ(nn.Module):
    """A hierarchical associative memory as a deep equilibrium model.

    Args:
        ham: the memory.
        clamped: names of the layers that a call gives the states of.
        splitting: ``"even-odd"`` eliminates the wider colour of the free layers, so that a step
            of the solver is two asynchronous half-steps on a smaller state; ``None`` updates all
            free layers at once. Both have the same equilibria.
        solver: default :class:`~hamdeq.Anderson`.
        adjoint: gradient method, default :class:`~hamdeq.Implicit`.
        on_failure: for samples that do not converge: ``"warn"`` (once for this module),
            ``"raise"`` or ``"ignore"``. Their status is in the Solution in any case.

    Raises:
        ValueError: an unknown layer; with even-odd splitting, a graph that has no two colours.

    Example:
        >>> deq = DEQ(HAM.chain([784, 512, 10]))
        >>> solution = deq({"input": torch.rand(64, 784)})
        >>> solution.value["output"].shape
        torch.Size([64, 10])
    """

    def __init__(
        self,
        ham: HAM,
        clamped: Collection[str] = ("input",),
        splitting: Literal["even-odd"] | None = "even-odd",
        *,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        if splitting not in ("even-odd", None):
            raise ValueError(f"splitting: expected 'even-odd' or None, got {splitting!r}")
        self.ham = ham
        self.clamped = (clamped,) if isinstance(clamped, str) else tuple(clamped)
        if not self.clamped:
            raise ValueError("clamped: expected at least one layer, got none")
        ham.check_names(self.clamped)
        self.splitting = splitting
        self.hidden = two_colouring(ham, clamped=self.clamped)[1] if splitting else ()
        self.solver = Anderson() if solver is None else solver
        self.adjoint = Implicit() if adjoint is None else adjoint
        for name, value, kind in (
            ("solver", self.solver, Solver),
            ("adjoint", self.adjoint, Adjoint),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected a hamdeq.{kind.__name__}, got {value!r}")
        self.failures = Failures(on_failure, once=True)

    def forward(self, clamped: State, *, init: State | None = None) -> Solution:
        """Let the memory settle.

        Args:
            clamped: the states of the clamped layers, ``(batch, *shape)``.
            init: initial states of some or all free layers; zeros for the others. Those of the
                eliminated layers have no effect.

        Returns:
            a Solution whose ``value`` is the full state. A sample with an infinity or a NaN in
            its given states comes back as NaN with the status ``INVALID`` and zero gradient.

        Raises:
            ValueError: a missing or unknown layer, a wrong shape, unequal batches.
            TypeError: a tensor that is not of floating point.
        """
        if not isinstance(clamped, dict):
            raise TypeError(
                f"clamped: expected a dict {{layer name: tensor}} of {list(self.clamped)}, got "
                f"{type(clamped).__name__}"
            )
        self.ham.check_state(clamped, self.clamped)
        init = self._initial(clamped, {} if init is None else init)
        valid = _finite(clamped | init)
        spoiled = not bool(valid.all())
        if spoiled:
            clamped, init = _where(valid, clamped, 0.0), _where(valid, init, 0.0)
        reduced = self.reduced(clamped)
        unset = [name for name in reduced.visible if name not in init]
        x0 = init | self.ham.zero_state(next(iter(clamped.values())), unset)
        x0 = {name: x0[name] for name in reduced.visible}
        dtype = next(iter(clamped.values())).dtype
        solution = self._settle(reduced, x0, valid, dtype)
        value = reduced.restore(solution.value) | clamped
        if spoiled:
            value = _where(valid, value, torch.nan)
            solution = replace(
                solution,
                status=torch.where(valid, solution.status, int(Status.INVALID)),
                converged=solution.converged & valid,
                residual=torch.where(valid, solution.residual, torch.nan),
            )
        # The warning names the line that called the module: two frames of nn.Module lie between.
        self.failures(solution, "equilibrium", stacklevel=4)
        return replace(solution, value={name: value[name] for name in self.ham.layers})

    def reduced(self, clamped: State) -> Reduced:
        """The energy model that is brought to equilibrium: clamped, then eliminated."""
        return eliminate(clamp(self.ham, clamped), self.hidden)

    def energy(self, x: State) -> Tensor:
        """Energy of full states, such as a Solution's value: ``(batch,)``."""
        return self.ham.energy(x)

    def _settle(self, reduced: Reduced, x0: State, valid: Tensor, dtype: torch.dtype) -> Solution:
        if x0:
            return equilibrium(
                reduced.update,
                x0,
                solver=self.solver,
                adjoint=self.adjoint,
                failures=self.failures,
            )
        # Every free layer is eliminated: their minimum is the equilibrium, and nothing to solve.
        zeros = torch.zeros_like(valid, dtype=torch.long)
        rest = torch.zeros_like(valid, dtype=dtype)
        return Solution(
            value={},
            residual=rest,
            steps=zeros,
            converged=torch.ones_like(valid),
            status=zeros,
            n_evals=0,
            trace=rest.new_empty(0, len(rest)),
        )

    def _initial(self, clamped: State, init: State) -> State:
        free = [name for name in self.ham.layers if name not in self.clamped]
        some = next(iter(clamped.values()))
        self.ham.check_state(init, [name for name in init if name in free])
        for name, x in init.items():
            if len(x) != len(some):
                raise ValueError(
                    f"init: expected a batch of {len(some)} for {name!r}, got {len(x)}"
                )
        return {name: x.detach() for name, x in init.items()}

    def extra_repr(self) -> str:
        return (
            f"clamped={self.clamped}, splitting={self.splitting!r}, solver={self.solver}, "
            f"adjoint={self.adjoint}"
        )


def _finite(x: State) -> Tensor:
    """Samples without an infinity or a NaN: ``(batch,)``."""
    # A finite sum proves every number finite, in a fraction of the time of looking at each.
    proved = torch.stack([x_a.flatten(1).sum(1).isfinite() for x_a in x.values()]).all(0)
    if bool(proved.all()):
        return proved
    return torch.stack([x_a.isfinite().flatten(1).all(1) for x_a in x.values()]).all(0)


def _where(valid: Tensor, x: State, other: float) -> State:
    return {
        name: torch.where(valid.reshape(-1, *[1] * (x_a.dim() - 1)), x_a, other)
        for name, x_a in x.items()
    }
