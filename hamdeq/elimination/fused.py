"""Graphs in which the layer to eliminate is one of memories: attention.

There the hidden layer's state, the similarities of the query to all stored patterns, is by far the
largest thing that a step makes, and fused kernels do without it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from hamdeq.elimination.attention import Retrieval, dot_product_attention, transformed
from hamdeq.elimination.reduced import Reduced
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Connection, LayeredEnergy, Neurons
from hamdeq.lagrangians import Separation, Softmax
from hamdeq.lagrangians.base import total
from hamdeq.synapses import Association, Bias, Dense, Synapse

__all__ = ["Attention", "Eliminated", "associations"]

# So many similarities, or of so many memories, are faster made than done without.
_FEW, _LEAST = 2**16, 32
# Of so many memories rows take turns, where there is no kernel that does without similarities.
_BANK = 4096


class Attention(Reduced):
    """A reduced energy of which memory layers are eliminated; :func:`~hamdeq.eliminate` makes it.

    A memory layer has a :class:`~hamdeq.Separation` (softmax, sparsemax, entmax), and one synapse
    but for biases: a :class:`~hamdeq.Dense` one to its query, or an :class:`~hamdeq.Association` of
    which the stored patterns are clamped. It is replaced by the synapse that it leaves behind, E =
    −L(Kg), on the query; all else is as for other layers, and the results are equal but for
    rounding. Where many similarities would be made, softmax goes through PyTorch's
    ``scaled_dot_product_attention``, and other distributions take the rows of a query in blocks.
    """

    def __init__(
        self,
        model: LayeredEnergy,
        hidden: Collection[str],
        colours: Sequence[Collection[str]] | None = None,
    ) -> None:
        super().__init__(model, hidden, colours)
        if isinstance(model, HAM):
            return  # whose weights are computed for each use
        found = associations(model, self.hidden)
        remaining = copy.copy(model)
        remaining.connections = [c for c in model.connections if not set(c[0]) & found.keys()]
        for name, connection in found.items():
            biases: Any = [s.bias for layers, s in model.connections if layers == (name,)]
            biases += [model.drive[name]] if name in model.drive else []
            layers = tuple(a for a in connection[0] if a != name)
            eliminated: Any = Eliminated(connection, name, model.layer(name), biases)
            remaining.connections.append((layers, eliminated))
        self._remain(remaining, [name for name in self.hidden if name not in found])


class Eliminated:
    """The synapse that a memory layer leaves behind: E = −L(Kg + b), I = Kᵀ ∇L(Kg + b).

    Args:
        connection: of the memory layer with its query.
        name: of the memory layer.
        layer: the memory layer.
        biases: constant fields on the memory layer, of which b is the sum.

    Shape:
        It acts on a query ``(batch, d)``, or on one ``(batch, H, L, d)`` with stored patterns
        ``(batch, H, S, d)`` beside it.
    """

    def __init__(
        self, connection: Connection, name: str, layer: Neurons, biases: Sequence[Tensor]
    ) -> None:
        layers, synapse = connection
        self.synapse: Synapse = synapse
        self.layer = layer
        self.lagrangian: Any = layer.lagrangian
        self.bias: Any = sum(biases[1:], biases[0]) if biases else None
        self._place = layers.index(name)
        self._rows: dict[tuple[bool, bool], Tensor] = {}

    def field(self, to: int, *g: Tensor) -> Tensor:
        """The field on the query, Kᵀ ∇L(Kg + b)."""
        assert to == 0
        if self._are_made(*g):
            weights = self.layer.activation(self._similarities(*g))
            return self.synapse.field(int(self._place == 0), *self._around(weights, *g))
        x, stored = self._patterns(*g)
        if not isinstance(self.lagrangian, Softmax):
            return self._bank(x, stored).update(x).reshape(g[0].shape)
        beta, mask = self.lagrangian.beta, self._mask(x)
        if isinstance(beta, Tensor):
            x, beta = (beta * x).to(x.dtype), 1.0
        if torch.is_grad_enabled() and (x.requires_grad or stored.requires_grad):
            attend: Any = _attend if torch.compiler.is_compiling() else _Attend.apply
            return attend(x, stored, mask, beta).reshape(g[0].shape)
        return _attend(x, stored, mask, beta).reshape(g[0].shape)

    def energy(self, *g: Tensor) -> Tensor:
        """−L(Kg + b): ``(batch,)``."""
        if self.layer.shape[-1] < _BANK or torch.compiler.is_compiling() or transformed():
            return -self.layer.potential(self._similarities(*g))
        x, stored = self._patterns(*g)
        potential = self._bank(x, stored).potential(x)
        return -total(potential.reshape(len(g[0]), -1)).to(x.dtype)

    def _are_made(self, x: Tensor, *stored: Tensor) -> bool:
        """Return True where the similarities are made, as in the generic form."""
        count = self.layer.shape[-1]
        if torch.compiler.is_compiling():  # for any number of rows
            return count < _LEAST
        if count < _LEAST or transformed() or torch.autograd.forward_ad._current_level >= 0:
            return True
        if not isinstance(self.lagrangian, Softmax):
            return count < _BANK
        if not torch.is_grad_enabled():
            return False
        # The kernel has no gradient for a mask.
        trained = self.bias is not None and (self.bias.requires_grad or self.lagrangian.learnable)
        return trained or x.shape[:-1].numel() * count <= _FEW

    def _similarities(self, *g: Tensor) -> Tensor:
        """Kg + b, the state of the memory layer."""
        field = self.synapse.field(self._place, *self._around(g[0], *g))
        return field if self.bias is None else field + self.bias

    def _around(self, memories: Tensor, x: Tensor, *stored: Tensor) -> tuple[Tensor, ...]:
        """The activations of the synapse's layers."""
        return (memories, x) if self._place == 0 else (x, *stored, memories)

    def _patterns(self, x: Tensor, stored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Query and stored patterns, as kernels ask for: ``(N, H, L, d)`` and ``(N, H, S, d)``."""
        if stored is not None:
            return x, stored
        weight: Tensor = self.synapse.weight  # type: ignore[assignment]
        if self._place == 0:
            return x[None, None], weight[None, None]
        if torch.compiler.is_compiling():
            return x[None, None], weight.mT[None, None]
        # Rows in one piece. What was made without a graph has no gradient to give.
        key = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if key not in self._rows:
            self._rows[key] = weight.mT.contiguous()[None, None]
        return x[None, None], self._rows[key]

    def _mask(self, x: Tensor) -> Tensor | None:
        """βb, which broadcasts with ``(N, H, L, S)``."""
        if self.bias is None:
            return None
        mask = (self.lagrangian.beta * self.bias).to(x.dtype)
        if x.shape[0] == 1 and self._place != 2:
            return mask.reshape(1, 1, -1, mask.shape[-1])
        return mask.reshape(*[1] * (4 - mask.dim()), *mask.shape)

    def _bank(self, x: Tensor, stored: Tensor) -> Retrieval:
        return Retrieval(stored, self.lagrangian, self.lagrangian.beta, self._mask(x))


def _attend(x: Tensor, stored: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return dot_product_attention(x, stored, stored, mask, scale=scale)


class _Attend(torch.autograd.Function):
    """Attention by the fused kernel, with a gradient that has a gradient itself.

    The kernel's own has none: where one is asked for, the weights are made and differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(x, stored, mask)
        ctx.scale = scale
        with torch.enable_grad():
            ctx.inputs = x.detach().requires_grad_(), stored.detach().requires_grad_()
            ctx.found = _attend(*ctx.inputs, mask, scale)
        return ctx.found.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if not torch.is_grad_enabled():
            slopes = torch.autograd.grad(ctx.found, ctx.inputs, grad, retain_graph=True)
            return *slopes, None, None
        x, stored, mask = ctx.saved_tensors
        z = ctx.scale * x @ stored.mT
        found = torch.softmax(z if mask is None else z + mask, -1) @ stored
        needed = ctx.needs_input_grad[:2]
        asked = [t for t, wanted in zip((x, stored), needed, strict=True) if wanted]
        slopes = iter(torch.autograd.grad(found, asked, grad, create_graph=True))
        return *(next(slopes) if wanted else None for wanted in needed), None, None


def associations(model: LayeredEnergy, hidden: Collection[str]) -> dict[str, Connection]:
    """The memory layers among those to hide, with the synapse that each shares with its query."""
    found = {}
    for name in hidden:
        touching = [c for c in model.connections if name in c[0]]
        between = [c for c in touching if len(c[0]) > 1]
        biases = all(_is(s, Bias) for layers, s in touching if len(layers) == 1)
        if len(between) == 1 and biases and _is_memory(model.layer(name)):
            ((layers, synapse),) = between
            clamped = getattr(model, "clamped", {})
            if _is(synapse, Dense) or (
                _is(synapse, Association)
                and name == layers[2] != layers[0]
                and layers[1] in clamped
                and layers[0] not in clamped
            ):
                found[name] = between[0]
    return found


def _is_memory(layer: Neurons) -> bool:
    """Return True for a layer with a Separation none of whose methods is overridden."""
    lagrangian = layer.lagrangian
    if not isinstance(lagrangian, Separation) or not (_is(layer, Neurons)):
        return False
    kind = type(lagrangian)
    own = any(
        getattr(kind, f) is not getattr(Separation, f) for f in ("forward", "each", "activation")
    )
    return _is(lagrangian, kind) and not own and (kind is Softmax or not issubclass(kind, Softmax))


def _is(module: torch.nn.Module, kind: type) -> bool:
    """Return True for a module of this very class, without hooks or methods of its own."""
    given = type(module)
    if "parametrizations" in module._modules:  # torch makes a class of its own for it
        given = given.__bases__[0]
    methods = ("field", "activation", "energy", "forward", "adjoint")
    own = any(name in module.__dict__ for name in methods)
    return given is kind and not own and not module._forward_hooks
