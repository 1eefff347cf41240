"""Synapses of attention: of states to stored patterns, and of tokens to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamdeq._checks import integer, number, require, wrong
from hamdeq.lagrangians.base import _shown, total
from hamdeq.synapses.base import Shape, Synapse, layer_shape

__all__ = ["Association", "SelfAttention"]


class Association(Synapse):
    """Three-way synapse by which states meet stored patterns: E = −Σ m_hls ⟨x_hl, k_hs⟩.

    Between states x ``(H, L, d)``, stored patterns k ``(H, S, d)`` and memories m ``(H, L, S)``,
    for H heads side by side. The field on a memory is the similarity of its state and its stored
    pattern, that on a state the stored patterns in the proportions of the memories. With the
    stored patterns clamped and the memories eliminated it is attention.

    Args:
        heads, states, stored, size: H, L, S and d.
    """

    def __init__(self, heads: int, states: int, stored: int, size: int) -> None:
        super().__init__()
        self.shapes: tuple[Shape | None, ...] | None = (
            layer_shape((heads, states, size)),
            layer_shape((heads, stored, size)),
            layer_shape((heads, states, stored)),
        )

    def energy(self, *g: Tensor) -> Tensor:
        x, k, m = g
        return -((x @ k.mT) * m).flatten(1).sum(1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        x, k, m = g
        if to == 0:
            return m @ k
        if to == 1:
            return m.mT @ x
        if to == 2:
            return x @ k.mT
        raise wrong("to", "place 0, 1 or 2", repr(to))

    def is_linear_in(self, place: int) -> bool:
        return True

    def extra_repr(self) -> str:
        return "states {}, stored {}, memories {}".format(*self.shapes or ())


class SelfAttention(Synapse):
    """Attention among the tokens of one layer: E = −1/β Σ_h Σ_C ln Σ_B exp(β K_hB·Q_hC), B ≠ C.

    For H heads with queries ``Q_hC = g_C W^Q_h`` and keys ``K_hB = g_B W^K_h`` of the tokens
    g_C. Each token as a query pulls the others' keys towards it, and as a key it is pulled by the
    others' queries: the field has two terms,

        I_C = Σ_h [Σ_B P_hCB K_hB] W^Q_hᵀ + [Σ_B P_hBC Q_hB] W^K_hᵀ

    with P_hC the softmax over B of β K_hB·Q_hC. The first is that of common attention. There are
    no values: the energy leaves no choice of them. In the paper a token does not attend to itself;
    a single token then has nothing to attend to, and its energy and field are defined as zero. In
    the code that was released with it, it does: ``itself=True``.

    A token is a query and a key at once: E is not linear, and its layer cannot be eliminated. Use
    ``splitting="sweep"`` or ``None``; a full step may raise the energy, which every solver but a
    plain :class:`~hamdeq.Picard` prevents, and with ``None`` ``Picard(damping=0.3)`` too where that
    is small enough.

    Args:
        dim: numbers of a token.
        heads: the number of heads H.
        head_dim: numbers of a query and of a key.
        beta: inverse temperature β > 0, by default 1/√head_dim.
        itself: whether a token attends to itself as well, so that sums include B = C.
        learnable: whether β is trained (as ln β, to stay positive).

    Shape:
        The layer is ``(tokens, dim)`` with any number of tokens; the synapse connects it alone:
        ``(("tokens",), SelfAttention(…))``. ``queries`` and ``keys`` are ``(dim, heads,
        head_dim)``, initialised uniformly in ±√(6/(dim + head_dim)) (Glorot & Bengio, 2010).

    Raises:
        ValueError: sizes that are no positive integers, a β that is no finite number > 0.

    Source: Hoover et al., "Energy Transformer" (2023), equations 3 and 4.
    """

    shapes: tuple[Shape | None, ...] | None = (None,)

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        beta: float | None = None,
        itself: bool = False,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        self.itself: bool = itself
        dim, heads = integer("dim", dim), integer("heads", heads)
        head_dim = integer("head_dim", head_dim)
        bound = math.sqrt(6 / (dim + head_dim))
        self.queries: nn.Parameter = nn.Parameter(
            torch.empty(dim, heads, head_dim).uniform_(-bound, bound)
        )
        self.keys: nn.Parameter = nn.Parameter(
            torch.empty(dim, heads, head_dim).uniform_(-bound, bound)
        )
        beta = 1 / math.sqrt(head_dim) if beta is None else number("beta", beta, above=0)
        self._given = beta
        self.log_beta: nn.Parameter | None = (
            nn.Parameter(torch.tensor(math.log(beta))) if learnable else None
        )

    @property
    def beta(self) -> Tensor | float:
        """The inverse temperature β."""
        return self._given if self.log_beta is None else self.log_beta.exp()

    def energy(self, *g: Tensor) -> Tensor:
        (tokens,) = g
        if self._alone(tokens):
            return tokens.new_zeros(len(tokens))
        similarity, _, _ = self._attend(tokens)
        return -total(similarity.logsumexp(-1)) / self.beta

    def field(self, to: int, *g: Tensor) -> Tensor:
        if to != 0:
            raise wrong("to", "place 0", repr(to))
        (tokens,) = g
        if self._alone(tokens):
            return torch.zeros_like(tokens)
        similarity, q, k = self._attend(tokens)
        p = similarity.softmax(-1)
        return _merge(p @ k, self.queries) + _merge(p.mT @ q, self.keys)

    def fit(self, names: Sequence[str], shapes: Sequence[Shape]) -> None:
        super().fit(names, shapes)
        dim = len(self.queries)
        fits = len(shapes[0]) == 2 and shapes[0][1] == dim
        expected = f"shape (tokens, {dim}) for layer {names[0]!r}"
        remedy = "change the synapse or the neurons"
        require(fits, type(self).__name__, expected, shapes[0], remedy)

    def _alone(self, tokens: Tensor) -> bool:
        """Tell if a token has nothing to attend to."""
        return tokens.shape[1] == 1 and not self.itself

    def _attend(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """β K_hB·Q_hC at ``(batch, h, C, B)``, −∞ for nothing; queries and keys of each head."""
        q, k = _split(tokens, self.queries), _split(tokens, self.keys)
        similarity = self.beta * q @ k.mT
        if not self.itself:
            same = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
            similarity = similarity.masked_fill(same, -torch.inf)
        return similarity, q, k

    def extra_repr(self) -> str:
        beta = f"beta={_shown(self.beta)}" + ", learnable=True" * (self.log_beta is not None)
        own = ", itself=True" * self.itself
        return "{}, heads={}, head_dim={}, ".format(*self.queries.shape) + beta + own


def _split(tokens: Tensor, weight: Tensor) -> Tensor:
    """Tokens by the weights of each head: ``(batch, heads, tokens, head_dim)``."""
    return (tokens @ weight.flatten(1)).unflatten(-1, weight.shape[1:]).transpose(1, 2)


def _merge(heads: Tensor, weight: Tensor) -> Tensor:
    """Its transpose, summed over heads: ``(batch, tokens, dim)``."""
    return heads.transpose(1, 2).flatten(2) @ weight.flatten(1).T
