"""A Hopfield layer written out from its formulas: slow, in loops, and without the library's code.

One sample, one head and one state pattern at a time. It takes the arguments that the layer was made
with and the layer's state dict, and works out everything else again. All of it is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Distribution = Callable[[Tensor], Tensor]


class Expected(NamedTuple):
    """What a layer is to compute; S is with the patterns that it appends."""

    output: Tensor  # (N, L, output)
    weights: Tensor  # (N, H, L, S)
    values: Tensor  # (N, H, S, p)
    state: Tensor  # (N, H, L, d), after the updates
    energy: Tensor  # (N, H, L), there


def softmax(z: Tensor) -> Tensor:
    e = (z - z.max()).exp()
    return e / e.sum()


def sparsemax(z: Tensor) -> Tensor:
    """The point of the simplex nearest to z: max(z − τ, 0), by trying every size of the support."""
    ranked = z.sort(descending=True).values
    for k in range(len(z), 0, -1):
        tau = (ranked[:k].sum() - 1) / k
        if ranked[k - 1] > tau:
            return (z - tau).clamp_min(0.0)
    raise AssertionError("no support of any size")


def log_sum_exp(z: Tensor) -> Tensor:
    return z.max() + (z - z.max()).exp().sum().log()


def sparse_potential(z: Tensor) -> Tensor:
    """max over p of ⟨z, p⟩ − ½ Σ (p² − p)."""
    p = sparsemax(z)
    return (z * p).sum() - 0.5 * (p * p - p).sum()


def layer_norm(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    mean = x.sum() / len(x)
    x = (x - mean) / (((x - mean) ** 2).sum() / len(x) + eps).sqrt()
    x = x if scale is None else x * scale
    return x if shift is None else x + shift


def hopfield(
    arguments: dict[str, Any],
    parameters: dict[str, Tensor],
    stored: Tensor,
    state: Tensor,
    projection: Tensor,
    padding: Tensor | None = None,
    association: Tensor | None = None,
    *,
    distribution: Distribution = softmax,
    potential: Distribution = log_sum_exp,
) -> Expected:
    """What ``Hopfield(**arguments)`` is to compute of three inputs with the batch first."""
    heads = arguments.get("num_heads", 1)
    size = arguments.get("input_size")
    hidden = arguments.get("hidden_size") or (size or 0) // heads
    samples = range(len(state))
    given = arguments.get("scaling")
    betas = each_head(1 / math.sqrt(hidden) if given is None else given, heads)
    steps = each_head(arguments.get("update_steps_max", 0), heads)
    found = []
    for n in samples:
        parts = Projected(arguments, parameters, heads, hidden, stored[n], state[n], projection[n])
        rows = []
        for h in range(heads):
            for place in range(state.shape[1]):
                keys = parts.keys[h]
                added = masks(padding, association, n, h, place, heads, len(keys))
                beta, q = betas[h], parts.queries[h][place]
                for _ in range(steps[h]):
                    q = combine(weigh(beta, q, keys, added, distribution), keys)
                weights = weigh(beta, q, keys, added, distribution)
                out = combine(weights, parts.values[h])
                rows.append((out, weights, q, energy(beta, q, keys, added, potential)))
        found.append((rows, torch.stack([torch.stack(v) for v in parts.values])))

    def gathered(k: int) -> Tensor:
        flat = torch.stack([torch.stack([row[k] for row in rows]) for rows, _ in found])
        return flat.unflatten(1, (heads, state.shape[1]))

    outputs = []
    for n in samples:
        outputs.append([])
        for place in range(state.shape[1]):
            side_by_side = torch.cat([gathered(0)[n, h, place] for h in range(heads)])
            if not arguments.get("disable_out_projection"):
                side_by_side = parameters["association_core.out_proj.weight"] @ side_by_side
                if arguments.get("input_bias", True):
                    side_by_side = side_by_side + parameters["association_core.out_proj.bias"]
            outputs[n].append(side_by_side)
    output = torch.stack([torch.stack(rows) for rows in outputs])
    values = torch.stack([values for _, values in found])
    return Expected(output, gathered(1), values, gathered(2), gathered(3))


class Projected:
    """Queries, keys and values of one sample: lists over heads of lists over patterns."""

    def __init__(
        self,
        arguments: dict[str, Any],
        parameters: dict[str, Tensor],
        heads: int,
        hidden: int,
        stored: Tensor,
        state: Tensor,
        projection: Tensor,
    ) -> None:
        self.arguments, self.heads, self.hidden = arguments, heads, hidden
        self.parameters = parameters
        self.pattern = arguments.get("pattern_size") or hidden
        stored_static = arguments.get("stored_pattern_as_static", False)
        values_static = arguments.get("pattern_projection_as_static", False)
        y = [self.normed("stored_pattern", x) for x in stored]
        r = [self.normed("state_pattern", x) for x in state]
        z = [self.normed("pattern_projection", x) for x in projection]
        k_of = (lambda x: [x] * heads) if stored_static else (lambda x: self.times("k", hidden, x))
        if arguments.get("state_pattern_as_static"):
            q = [[x] * heads for x in r]
        else:
            q = [self.times("q", hidden, x) for x in r]
        k = [k_of(x) for x in y]
        v = []
        for x in z:
            through = arguments.get("pattern_projection_as_connected") and not stored_static
            each = k_of(x) if through else [x] * heads
            if not values_static:
                whole = torch.cat(each) if through else x
                each = self.times("v", self.pattern, whole)
            v.append(each)
        self.queries = [[self.in_space(x[h]) for x in q] for h in range(heads)]
        self.keys = [[self.in_space(x[h]) for x in k] for h in range(heads)]
        self.values = [[x[h] for x in v] for h in range(heads)]
        for h in range(heads):
            if arguments.get("concat_bias_pattern"):
                for name, size, to in (("k", hidden, self.keys), ("v", self.pattern, self.values)):
                    whole = parameters[f"association_core.bias_{name}"][0, 0]
                    to[h].append(whole[h * size : (h + 1) * size])
            if arguments.get("add_zero_association"):
                for to in (self.keys, self.values):
                    to[h].append(torch.zeros_like(to[h][0]))

    def normed(self, which: str, x: Tensor) -> Tensor:
        if not self.arguments.get(f"normalize_{which}", True):
            return x
        scale = self.parameters.get(f"norm_{which}.weight")
        shift = self.parameters.get(f"norm_{which}.bias")
        return layer_norm(x, scale, shift, self.arguments.get(f"normalize_{which}_eps", 1e-5))

    def in_space(self, x: Tensor) -> Tensor:
        if not self.arguments.get("normalize_hopfield_space"):
            return x
        scale = self.parameters.get("association_core.p_norm_weight")
        shift = self.parameters.get("association_core.p_norm_bias")
        return layer_norm(x, scale, shift, self.arguments.get("normalize_hopfield_space_eps", 1e-5))

    def times(self, which: str, size: int, x: Tensor) -> list[Tensor]:
        """x times the projection of each head, which has ``size`` rows, and its bias."""
        rows = {
            "q": 0 if self.arguments.get("state_pattern_as_static") else self.heads * self.hidden,
            "k": 0 if self.arguments.get("stored_pattern_as_static") else self.heads * self.hidden,
        }
        first = {"q": 0, "k": rows["q"], "v": rows["q"] + rows["k"]}[which]
        packed = self.parameters.get("association_core.in_proj_weight")
        bias = self.parameters.get("association_core.in_proj_bias")
        found = []
        for h in range(self.heads):
            start = first + h * size
            if packed is not None:
                weight = packed[start : start + size]
            else:
                whole = self.parameters[f"association_core.{which}_proj_weight"]
                weight = whole[h * size : (h + 1) * size]
            product = weight @ x
            found.append(product if bias is None else product + bias[start : start + size])
        return found


def each_head(given: Any, heads: int) -> list[Any]:
    if isinstance(given, Tensor) and given.dim():
        return list(given) if given.is_floating_point() else given.tolist()
    return list(given) if isinstance(given, list | tuple) else [given] * heads


def masks(
    padding: Tensor | None,
    association: Tensor | None,
    n: int,
    h: int,
    place: int,
    heads: int,
    stored: int,
) -> list[Tensor]:
    """What is added to the similarity of each stored pattern; −∞ leaves it out."""
    added = [torch.zeros((), dtype=torch.float64) for _ in range(stored)]
    rows = [] if padding is None else [padding[n]]
    if association is not None:
        whole = association if association.dim() == 2 else association[n * heads + h]
        rows.append(whole[place])
    for row in rows:
        for s, entry in enumerate(row):
            if entry.dtype == torch.bool:
                entry = torch.tensor(-math.inf if entry else 0.0, dtype=torch.float64)
            added[s] = added[s] + entry
    return added


def similarities(beta: Any, q: Tensor, keys: list[Tensor], added: list[Tensor]) -> Tensor | None:
    """β ⟨q, k⟩ + mask of those stored patterns that take part; None if there are none."""
    kept = [beta * (q * k).sum() + m for k, m in zip(keys, added, strict=True) if m > -math.inf]
    return torch.stack(kept) if kept else None


def weigh(
    beta: Any, q: Tensor, keys: list[Tensor], added: list[Tensor], distribution: Distribution
) -> Tensor:
    """The weight of each stored pattern, zero for those that are left out."""
    z = similarities(beta, q, keys, added)
    shares = iter([] if z is None else distribution(z))
    return torch.stack([next(shares) if m > -math.inf else q.new_zeros(()) for m in added])


def combine(weights: Tensor, patterns: list[Tensor]) -> Tensor:
    found = torch.zeros_like(patterns[0])
    for weight, pattern in zip(weights, patterns, strict=True):
        if weight != 0 or weight.requires_grad:
            found = found + weight * pattern
    return found


def energy(
    beta: Any, q: Tensor, keys: list[Tensor], added: list[Tensor], potential: Distribution
) -> Tensor:
    """½‖q‖² − L(Kq)."""
    z = similarities(beta, q, keys, added)
    return 0.5 * (q * q).sum() - (0.0 if z is None else potential(z) / beta)
