"""The continuous Hopfield network as a deep equilibrium model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from hamdeq._checks import instance, require
from hamdeq.chn.network import CHN, InStates
from hamdeq.deq import DEQ, Inputs
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.clamping import Clamped
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import LayeredEnergy, State
from hamdeq.implicit import Adjoint
from hamdeq.solvers import OnFailure, Solver

__all__ = ["CHNDEQ"]


class CHNDEQ(DEQ):
    """A continuous Hopfield network as a deep equilibrium model: a :class:`~hamdeq.DEQ` of s.

    All states that a call takes and returns are s.

    Args:
        chn: the network.
        clamped: names of the layers that a call gives the states of.
        splitting: ``None`` iterates on s <- ρ′(s) ⊙ I(ρ(s)). ``"even-odd"`` brings one colour of
            the free layers to its minimum and then the other, exactly: these are the even-odd
            steps of the HAM, so that the solver, and with it ``tol``, sees u = ς(s) of the narrower
            colour; ``"sweep"`` takes as many colours as there are. All have the same equilibria.
        solver: default :class:`~hamdeq.Broyden`. It knows the energy, as that of a HAM. Plain
            iteration without splitting should be damped, ``Picard(damping=0.5)``.
        adjoint: gradient method, default :class:`~hamdeq.Implicit`. s − ∇E(s) has a symmetric
            derivative, so that conjugate gradients serve either way.
        start: ``"forward"``, ``"linearised"`` or ``"zeros"``, as of a :class:`~hamdeq.DEQ`.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``, of samples that do not converge.
        compiled: steps to begin with in one compiled graph, as of a :class:`~hamdeq.DEQ`.

    Attributes:
        chn: the network.
        ham: the network as a HAM.

    Raises:
        TypeError: chn is no CHN.
        ValueError: an unknown layer; with even-odd splitting, a graph that has no two colours.

    Example:
        >>> deq = CHNDEQ(CHN.chain([784, 512, 10]))
        >>> deq({"input": torch.rand(64, 784)}).value["output"].shape
        torch.Size([64, 10])
    """

    def __init__(
        self,
        chn: CHN,
        clamped: Collection[str] = ("input",),
        splitting: Literal["even-odd", "sweep"] | None = "even-odd",
        *,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        start: Literal["forward", "linearised", "zeros"] = "forward",
        on_failure: OnFailure = "warn",
        compiled: int = 0,
    ) -> None:
        instance("chn", chn, CHN, remedy="use DEQ for a HAM" if isinstance(chn, HAM) else None)
        super().__init__(
            chn.ham,
            clamped,
            splitting,
            solver=solver,
            adjoint=adjoint,
            start=start,
            on_failure=on_failure,
            compiled=compiled,
        )
        # No submodule: its parameters are the HAM's, and a state dict is to hold them once.
        self.__dict__["chn"] = chn

    chn: CHN

    def _checked(self, clamped: State, observed: State | None, init: State) -> Inputs:
        fits = self.splitting is not None or not observed
        remedy = "for layers clamped in part use splitting='even-odd'"
        require(fits, "observed", "none with splitting=None", list(observed or ()), remedy)
        return super()._checked(clamped, observed, init)

    def _clamp(self, inputs: Inputs, ham: LayeredEnergy) -> Clamped:
        return Clamped(ham, self.chn.to_ham_state(inputs.clamped), inputs.observed)

    def _full(self, inputs: Inputs, reduced: Reduced, x: State) -> State:
        full = super()._full(inputs, reduced, x)
        for name in inputs.clamped:
            if name not in inputs.observed:
                del full[name]
        value = full if self.splitting is None else self.chn.from_ham_state(full)
        for name, s in inputs.clamped.items():
            mask = inputs.observed.get(name)
            value[name] = s.clone() if mask is None else torch.where(mask, s, value[name])
        return {name: value[name] for name in self.ham.layers}

    def reduced(self, clamped: State, observed: State | None = None) -> Reduced:
        """The energy model that is brought to equilibrium, given clamped states.

        With splitting one of u, from clamped u; without, one of s, from clamped s.
        """
        if self.splitting is None and isinstance(clamped, dict):
            clamped = self.chn.to_ham_state(clamped)
        return super().reduced(clamped, observed)

    def _reduce(self, model: Clamped) -> Reduced:
        if self.splitting is not None:
            return super()._reduce(model)
        return _Synchronous(model)

    def _initial(self, model: Clamped, init: State) -> State:
        x = super()._initial(model, self.chn.to_ham_state(init))
        return self.chn.from_ham_state(x) if self.splitting is None else x

    def _energy(self, x: State) -> Tensor:
        return self.chn.energy(x)


class _Synchronous(Reduced):
    """A CHN's energy of which nothing is eliminated, as a function of s."""

    def __init__(
        self,
        model: LayeredEnergy,
        hidden: Collection[str] = (),
        colours: Sequence[Collection[str]] | None = None,
    ) -> None:
        super().__init__(model, hidden, colours)
        self._remain(InStates(model), self.hidden)

    @property
    def descends(self) -> bool:
        """False: layers that act on each other, and on themselves, can fall into a cycle."""
        return False
