"""The derivative of a reduced energy's fields in its activations, in closed form."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hamdeq.energy.model import Connection, LayeredEnergy, State
from hamdeq.synapses import Synapse

__all__ = ["bilinear_links", "coupling"]


def bilinear_links(
    model: LayeredEnergy, visible: Collection[str], hidden: Collection[str]
) -> list[Connection] | None:
    """The synapses between a visible and a hidden layer, if :func:`coupling` needs no others.

    Args:
        model: the energy eliminated from.
        visible: the layers that remain.
        hidden: the layers that are eliminated.

    Returns:
        None where there are none, where the activation of a hidden neuron depends on the fields of
        others, where a visible layer is clamped in part, or where a synapse has more than two
        layers, two visible ones, or is not linear in each.
    """
    if getattr(model, "observed", None) or not model.are_independent(hidden):
        return None
    links = []
    for layers, synapse in model.connections:
        # What memory layers leave behind is no synapse of a graph.
        if not isinstance(synapse, Synapse):
            return None
        if not all(synapse.is_linear_in(place) for place in range(len(layers))):
            return None
        if len(layers) == 1:
            continue  # a constant field
        ends = sum(name in hidden for name in layers), sum(name in visible for name in layers)
        if len(layers) != 2 or ends != (1, 1):
            return None
        links.append((layers, synapse))
    return links or None


def coupling(
    model: LayeredEnergy, links: Sequence[Connection], hidden: State, visible: Sequence[str]
) -> Tensor:
    """The derivative of the visible layers' fields in their activations, S = ∂I/∂g.

    A hidden layer's field is I_B = K_B g + constant with a matrix K_B that all samples share, and
    S = Σ_B K_Bᵀ D_B K_B with the diagonal D_B = ∂g_B/∂I_B of each sample.

    Args:
        model: the energy eliminated from.
        links: see :func:`bilinear_links`.
        hidden: the fields on the hidden layers.
        visible: the visible layers, of n neurons, in the order of S.

    Returns:
        S, ``(batch, n, n)``.
    """
    shapes = [model.layer(name).shape for name in visible]
    sizes = [math.prod(shape) for shape in shapes]
    like = next(iter(hidden.values()))
    batch, n = len(like), sum(sizes)
    # The columns of K_B are the fields of n states, in each of which one neuron is active.
    units = torch.eye(n, dtype=like.dtype, device=like.device).split(sizes, dim=1)
    active = {
        name: unit.reshape(n, *shape)
        for name, unit, shape in zip(visible, units, shapes, strict=True)
    }
    columns: State = {}
    for layers, synapse in links:
        place = next(i for i, name in enumerate(layers) if name in hidden)
        name = layers[place]
        nothing = model.nothing(units[0], name)
        field = synapse.field(place, *(active.get(a, nothing) for a in layers))
        columns[name] = columns[name] + field if name in columns else field
    found = like.new_zeros(batch, n, n)
    for name, each in columns.items():
        k, slopes = each.flatten(1), _slopes(model, name, hidden[name])
        if n <= batch:  # one product of matrices, with n² columns that all samples share
            pairs = (k[:, None] * k).flatten(0, 1)
            found = found + (slopes @ pairs.T).view(batch, n, n)
        else:
            found = found + (slopes[:, None] * k) @ k.T
    return found


def _slopes(model: LayeredEnergy, name: str, x: Tensor) -> Tensor:
    """∂g/∂x of a layer whose neurons depend on their own state alone: ``(batch, neurons)``."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        g = model.layer(name).activation(x)
        if not g.requires_grad:
            return torch.zeros_like(x).flatten(1)
        (slopes,) = torch.autograd.grad(g.sum(), x, materialize_grads=True)
    return slopes.flatten(1)
