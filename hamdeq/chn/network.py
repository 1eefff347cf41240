"""The continuous Hopfield network: energy, updates, and the way to a HAM and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq._checks import instance, integer, number
from hamdeq._recorded import Recorded
from hamdeq.elimination.colouring import two_colouring
from hamdeq.elimination.eliminate import eliminate
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Connection, LayeredEnergy, Neurons, State
from hamdeq.lagrangians import BengioFischer, Identity, Lagrangian, Sigmoid
from hamdeq.lagrangians.inverse_table import log_slope
from hamdeq.synapses import Shape

__all__ = ["CHN", "InStates", "InnerIterations"]


@dataclass(frozen=True, kw_only=True)
class InnerIterations:
    """Steps s <- s + h (ρ′(s) I − s) of a layer towards its minimum, its field I fixed.

    Args:
        steps: number of steps, ≥ 1.
        damping: h in (0, 1].

    The defaults are those of Goemaere et al.
    """

    steps: int = 10
    damping: float = 0.5

    def __post_init__(self) -> None:
        steps = integer("steps", self.steps, expected="an integer ≥ 1")
        object.__setattr__(self, "steps", steps)
        number("damping", self.damping, above=0, most=1)


class CHN(Recorded, nn.Module):
    """A continuous Hopfield network on any hypergraph of layers.

    Args:
        neurons: the layers by name; the activation of a layer's Lagrangian is its ρ.
        connections: ``[(("a", "b"), synapse), (("b",), bias), …]`` as of a :class:`~hamdeq.HAM`.

    Raises:
        ValueError: a ρ that has no ς⁻¹ (see :class:`~hamdeq.BengioFischer`); an unknown layer name,
            or a synapse whose shapes are not the layers'.

    Example:
        >>> chn = CHN.chain([784, 512, 10])
        >>> s = chn.zero_state(torch.zeros(64, 784))
        >>> chn.energy(s).allclose(chn.to_ham().energy(chn.to_ham_state(s)))
        True

    Shape:
        A state s is a dict of tensors ``(batch, *shape)``, the energy ``(batch,)``.
    """

    def __init__(self, neurons: Mapping[str, Neurons], connections: Sequence[Connection]) -> None:
        super().__init__()
        warped: dict[Lagrangian, BengioFischer] = {}
        layers = {}
        for name, layer in neurons.items():
            label = f"layer {name!r}"
            rho = instance(label, layer, Neurons, "Neurons(shape, lagrangian)").lagrangian
            if rho not in warped:
                try:
                    warped[rho] = BengioFischer(rho)
                except ValueError as error:
                    raise ValueError(f"{label}: {error}") from None
            layers[name] = Neurons(layer.shape, warped[rho])
        self.ham: HAM = HAM(layers, connections)

    @classmethod
    def chain(
        cls,
        sizes: Sequence[int],
        rho: Lagrangian | None = None,
        *,
        bias: bool = True,
        gain: float | Sequence[float] = 1.0,
    ) -> CHN:
        """Layers in a row, ``input, hidden1, …, output``, each connected to the next.

        Args:
            sizes: neurons in each layer, at least two numbers.
            rho: the Lagrangian whose activation is ρ, of all layers; default ``Sigmoid(4.0, 0.5)``.
            bias: whether all layers but the input, which is meant to be clamped, have a bias.
            gain: factor on the initial weights, one for all or one for each pair of neighbours.

        Raises:
            ValueError: fewer than two sizes, not as many gains as pairs of neighbours, or a ρ that
                has no ς⁻¹.
        """
        rho = Sigmoid(4.0, 0.5) if rho is None else rho
        plain = HAM.chain(sizes, rho, bias=bias, gain=gain)
        return cls({name: plain.layer(name) for name in plain.layers}, plain.connections)

    @property
    def connections(self) -> list[Connection]:
        """The synapses with the layers they connect."""
        return self.ham.connections

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names."""
        return self.ham.layers

    def zero_state(self, like: Tensor, layers: Collection[str] | None = None) -> State:
        """Zeros for the layers (default all), with the batch, dtype and device of ``like``."""
        return self.ham.zero_state(like, layers)

    # ---------------------------------------------------------------- the network itself

    def activations(self, s: State) -> State:
        """ρ(s) of every layer in s."""
        return InStates(self.ham.prepared()).rho(s)

    def energy(self, s: State) -> Tensor:
        """E(s) = ½‖s‖² + Σ_s E_s(ρ(s)): ``(batch,)``."""
        return InStates(self.ham.prepared()).energy(s)

    def update(self, s: State, *, clamped: Collection[str] = ()) -> State:
        """One step s <- ρ′(s) ⊙ I(ρ(s)) = s − ∇E(s) of all layers at once; clamped layers stay.

        It may raise the energy, and easily falls into a cycle; half a step rarely does.
        """
        return InStates(self.ham.prepared()).update(s, clamped=clamped)

    def minimise(
        self, s: State, layers: Collection[str], *, inner: InnerIterations | None = None
    ) -> State:
        """Bring some layers to their minimum of the energy, the others clamped.

        Args:
            s: the state.
            layers: layers without a synapse among themselves, linear in each of them.
            inner: steps towards s = ρ′(s) I from the layers' present states; by default the
                solution s = ς⁻¹(I), which is exact, so that the energy never rises.

        Raises:
            ValueError: an unknown layer, or layers that have no such minimum.
        """
        self.ham.check_state(s)
        network = InStates(self.ham.prepared())
        found = {}
        for name, field in eliminate(network.ham, layers).minimum(network.rho(s)).items():
            x = s[name]
            if inner is None:
                x = network.neurons(name).from_ham(field)
            else:
                for _ in range(inner.steps):
                    x = x + inner.damping * (network.slope(name, x) * field - x)
            found[name] = x
        return s | found

    def alternate(
        self,
        s: State,
        *,
        clamped: Collection[str] = ("input",),
        inner: InnerIterations | None = None,
    ) -> State:
        """One even-odd step: one colour of the free layers to its minimum, and then the other.

        Raises:
            ValueError: a graph that has no two colours; see :func:`~hamdeq.two_colouring`.
        """
        second, first = two_colouring(self.ham, clamped=clamped)
        return self.minimise(self.minimise(s, first, inner=inner), second, inner=inner)

    # ---------------------------------------------------------------- the same as a HAM

    def to_ham(self) -> HAM:
        """The HAM with the same synapses, and so the same parameters: training one trains both."""
        return self.ham

    def to_ham_state(self, s: State) -> State:
        """u = ς(s) = s/ρ′(s) of every layer in s."""
        self.ham.check_state(s, tuple(s))
        return {name: InStates(self.ham).neurons(name).to_ham(x) for name, x in s.items()}

    def from_ham_state(self, u: State) -> State:
        """s = ς⁻¹(u) of every layer in u."""
        self.ham.check_state(u, tuple(u))
        return {name: InStates(self.ham).neurons(name).from_ham(x) for name, x in u.items()}


class InStates(LayeredEnergy):
    """The energy of a CHN as a function of s, with the update s <- s − ∇E(s).

    In the terms of a HAM these are linear neurons, whose activation is s and whose energy is ½‖s‖²,
    in the field ρ′(s) ⊙ I(ρ(s)), minus the gradient of all other energies.

    Args:
        ham: the network as a HAM, some of its layers clamped or none.
    """

    def __init__(self, ham: LayeredEnergy) -> None:
        self.ham = ham
        self.connections: Sequence[Connection] = ham.connections

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names."""
        return self.ham.layers

    def layer(self, name: str) -> Neurons:
        """The neurons of a layer, of which s is the activation."""
        return _linear(self.ham.layer(name).shape)

    def neurons(self, name: str) -> BengioFischer:
        """The Lagrangian of a layer of the HAM, which knows ρ and ς."""
        return self.ham.layer(name).lagrangian  # pyright: ignore[reportReturnType]

    def rho(self, s: State) -> State:
        """ρ(s) of every layer in s."""
        return {name: self.neurons(name).rho.activation(x) for name, x in s.items()}

    def slope(self, name: str, s: Tensor) -> Tensor:
        """ρ′(s) of a layer."""
        return torch.exp(log_slope(self.neurons(name).rho, s)[0])

    def check_state(self, *args: Any, **options: Any) -> None:
        self.ham.check_state(*args, **options)

    def activations(self, x: State) -> State:
        return dict(x)

    def fields(self, g: State, to: Collection[str] | None = None) -> State:
        """ρ′(s) ⊙ I(ρ(s)) of some layers."""
        rho = self.rho(g)
        return {a: self.slope(a, g[a]) * self.ham.field(rho, a) for a in (g if to is None else to)}

    def interactions(self, g: State, connections: Iterable[Connection]) -> State:
        return self.ham.interactions(self.rho(g), connections)

    def constant_terms(self) -> State:
        return self.ham.constant_terms()

    def select(self, rows: Tensor) -> InStates:
        return InStates(self.ham.select(rows))


@cache
def _linear(shape: Shape) -> Neurons:
    return Neurons(shape, Identity())
