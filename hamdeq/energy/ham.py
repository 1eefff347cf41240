"""Hierarchical associative memory: layers of neurons, synapses between them, one energy.

The energy of a state x is the sum of the layers' Legendre transforms and the synapses' energies,

    E(x) = Σ_A [⟨x_A, g_A⟩ − L_A(x_A)] + Σ_s E_s(g),      g_A = ∇L_A(x_A),

and the dynamics ``τ dx_A/dt = I_A(g) − x_A`` with the field ``I_A = −∂(Σ_s E_s)/∂g_A`` never raise
it. At rest ``x_A = I_A(g(x))``: the fixed point that the rest of the library looks for.

Source: Krotov, "Hierarchical Associative Memory" (2021), equations 3 to 8.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from hamdeq._recorded import Recorded
from hamdeq.energy.model import Connection, Evaluation, LayeredEnergy, Neurons, State
from hamdeq.energy.prepared import Prepared
from hamdeq.lagrangians import Lagrangian, Sigmoid
from hamdeq.synapses import Bias, Dense, Synapse

__all__ = ["HAM", "check_ham"]


class HAM(Recorded, nn.Module, LayeredEnergy):
    """A hierarchical associative memory on any hypergraph of layers.

    Args:
        neurons: the layers by name.
        connections: ``[(("a", "b"), synapse), (("b",), bias), …]``: each synapse with the names
            of the layers it connects. One synapse object may appear several times; its weights
            are then shared.

    Example:
        >>> ham = HAM(
        ...     {"query": Neurons(8, Identity()), "memories": Neurons(100, Softmax(beta=4.0))},
        ...     [(("query", "memories"), Dense(8, 100))],
        ... )

    Raises:
        ValueError: an unknown layer name, or a synapse whose shapes are not the layers'.
    """

    def __init__(self, neurons: Mapping[str, Neurons], connections: Sequence[Connection]) -> None:
        super().__init__()
        if not neurons:
            raise ValueError("neurons: expected at least one layer, got none")
        self.neurons: nn.ModuleDict = nn.ModuleDict()
        for name, layer in neurons.items():
            if not isinstance(layer, Neurons):
                raise TypeError(
                    f"layer {name!r}: expected Neurons(shape, lagrangian), got "
                    f"{type(layer).__name__}"
                )
            if not str(name).isidentifier() or hasattr(self.neurons, name):
                valid = re.sub(r"\W+|^(?=\d)", "_", f"{name}_layer")
                raise ValueError(
                    f"layer name {name!r}: expected an identifier that is no attribute of "
                    f"torch.nn.ModuleDict; use another, such as {valid!r}"
                )
            self.neurons[name] = layer
        for layers, synapse in connections:
            self._check_connection(layers, synapse)
        self.synapses: nn.ModuleList = nn.ModuleList(synapse for _, synapse in connections)
        self._wiring = [tuple(layers) for layers, _ in connections]

    @classmethod
    def chain(
        cls,
        sizes: Sequence[int],
        lagrangian: Lagrangian | Sequence[Lagrangian] | None = None,
        *,
        bias: bool = True,
        gain: float | Sequence[float] = 1.0,
        orthogonal: bool = False,
    ) -> HAM:
        """Layers in a row, ``input, hidden1, …, output``, each connected to the next.

        Args:
            sizes: neurons in each layer, at least two numbers.
            lagrangian: shared by all layers, or one for each, the input included; default
                ``Sigmoid(4.0, 0.5)``.
            bias: whether all layers but the input, which is meant to be clamped, have a bias.
            gain: factor on the initial weights, one for all or one for each pair of neighbours.
            orthogonal: whether the initial weights are orthogonal instead of uniform: see
                :class:`~hamdeq.Dense`.

        Raises:
            ValueError: fewer than two sizes, not as many gains as pairs of neighbours, or not as
                many Lagrangians as layers.
        """
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(
                "sizes: expected at least two layers (input and output), such as [784, 512, 10], "
                f"got {sizes!r}"
            )
        pairs = len(sizes) - 1
        gains = [gain] * pairs if isinstance(gain, int | float | Real) else list(gain)
        if len(gains) != pairs:
            raise ValueError(f"gain: expected one number or {pairs}, got {gain!r}")
        names = ["input", *(f"hidden{i}" for i in range(1, len(sizes) - 1)), "output"]
        lagrangian = Sigmoid(4.0, 0.5) if lagrangian is None else lagrangian
        # A single one is shared, with its parameters; what is neither is refused by Neurons.
        if isinstance(lagrangian, Sequence | nn.ModuleList) and not isinstance(lagrangian, str):
            each: list[Any] = list(lagrangian)
        else:
            each = [lagrangian] * len(names)
        if len(each) != len(names):
            raise ValueError(
                f"lagrangian: expected one for all layers or {len(names)}, one for each of "
                f"{names}, got {len(each)}"
            )
        connections: list[Connection] = [
            (
                (names[i], names[i + 1]),
                Dense(sizes[i], sizes[i + 1], gain=gains[i], orthogonal=orthogonal),
            )
            for i in range(pairs)
        ]
        if bias:
            connections += [((b,), Bias(m)) for b, m in zip(names[1:], sizes[1:], strict=True)]
        return cls(
            {name: Neurons(n, l_a) for name, n, l_a in zip(names, sizes, each, strict=True)},
            connections,
        )

    @property
    def connections(self) -> list[Connection]:  # type: ignore[override]
        """The synapses with the layers they connect."""
        return list(zip(self._wiring, self.synapses, strict=True))  # type: ignore[arg-type]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names."""
        return tuple(self.neurons)

    def layer(self, name: str) -> Neurons:
        """The neurons of a layer."""
        return self.neurons[name]  # type: ignore[return-value]

    def select(self, rows: Tensor) -> HAM:
        """Itself: a memory of which nothing is clamped does not depend on samples."""
        return self

    def prepared(self) -> Prepared:
        """The same energy with its weights as they are now, for one use.

        Weights that normalisation, pruning or another parametrization computes are computed here,
        and hooks of neurons and synapses are called. Methods that follow from the energy begin with
        it, as do :func:`~hamdeq.clamp` and :func:`~hamdeq.fixed_point`.
        """
        return Prepared({name: self.layer(name) for name in self.layers}, self.connections)

    def activations(self, x: State) -> State:
        return self.prepared().activations(x)

    def field(self, g: State, to: str, connections: Iterable[Connection] | None = None) -> Tensor:
        return self.prepared().field(g, to, connections)

    def fields(self, g: State, to: Collection[str] | None = None) -> State:
        return self.prepared().fields(g, to)

    def energy_terms(self, x: State) -> State:
        return self.prepared().energy_terms(x)

    def update(self, x: State, *, clamped: Collection[str] = ()) -> State:
        return self.prepared().update(x, clamped=clamped)

    def step(self, x: State) -> Evaluation:
        return self.prepared().step(x)

    def __repr__(self) -> str:
        """The graph: layers with their sizes and Lagrangians, synapses with their parameters."""
        layers = [
            (name, "×".join(map(str, self.layer(name).shape)), _line(self.layer(name).lagrangian))
            for name in self.layers
        ]
        first: dict[Synapse, str] = {}
        synapses = []
        for names, synapse in self.connections:
            where = " – ".join(names)
            number = _number(sum(p.numel() for p in synapse.parameters()), "parameter")
            number = f"as {first[synapse]}" if synapse in first else number
            first.setdefault(synapse, where)
            synapses.append((where, number, _line(synapse)))
        head = ", ".join(
            _number(count, noun)
            for count, noun in (
                (len(layers), "layer"),
                (len(synapses), "connection"),
                (sum(p.numel() for p in self.parameters()), "parameter"),
            )
        )
        rows = (head, *_table(layers), *_table(synapses))
        return "\n  ".join([f"{type(self).__name__}(", *rows]) + "\n)"

    def _check_connection(self, layers: tuple[str, ...], synapse: Synapse) -> None:
        self.check_names(layers)
        if not isinstance(synapse, Synapse):
            raise TypeError(
                f"connection {layers}: expected a Synapse, got {type(synapse).__name__}"
            )
        try:
            synapse.fit(layers, [self.layer(name).shape for name in layers])
        except ValueError as error:
            raise ValueError(f"connection {layers}: {error}") from error


def check_ham(ham: object) -> None:
    """Refuse what is no HAM, and name the one in it, such as that of a DEQ."""
    if not isinstance(ham, HAM):
        kind = type(ham).__name__
        hint = f"; use the HAM of this {kind}, its attribute ham" * hasattr(ham, "ham")
        raise TypeError(f"ham: expected a HAM, got {kind}{hint}")


def _line(module: nn.Module) -> str:
    """A module on one line: without what it is made of, if that takes more."""
    text = repr(module)
    return f"{type(module).__name__}({module.extra_repr()})" if "\n" in text else text


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Rows of three cells, the second against the right of its column."""
    wide = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    return [f"{a:{wide[0]}}  {b:>{wide[1]}}  {c}" for a, b, c in rows]
