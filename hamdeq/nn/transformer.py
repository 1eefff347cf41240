"""Encoder and decoder layers of a transformer, with Hopfield associations in place of attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from hamdeq._checks import instance, wrong
from hamdeq._recorded import Recorded
from hamdeq.nn.hopfield import Hopfield
from hamdeq.nn.inputs import causal_mask, elementwise
from hamdeq.nn.learned import HopfieldLayer, HopfieldPooling

__all__ = ["HopfieldDecoderLayer", "HopfieldEncoderLayer", "TransformerLayer"]


class TransformerLayer(Recorded, nn.Module):
    """The feed-forward network of both layers, and the names that PyTorch's stacks ask for."""

    linear_residual: nn.Linear
    linear_output: nn.Linear
    norm_output: nn.LayerNorm

    @property
    @abstractmethod
    def self_attn(self) -> Hopfield | HopfieldLayer:
        """The self-association, by the name that PyTorch's stacks ask for."""

    def _add_feed_forward(
        self,
        size: int,
        width: int,
        dropout: float,
        activation: str | Callable[[Tensor], Tensor],
        *residual_norms: str,
    ) -> None:
        """Add the layers of device and dtype of the association, with layer norms before them."""
        parameter = next(self.self_attn.parameters(), torch.empty(0))
        like = {"device": parameter.device, "dtype": parameter.dtype}
        self.linear_residual = nn.Linear(size, width, **like)
        self.dropout_residual: nn.Dropout = nn.Dropout(dropout)
        self.linear_output = nn.Linear(width, size, **like)
        for name in residual_norms:
            self.add_module(name, nn.LayerNorm(size, **like))
        self.norm_output = nn.LayerNorm(size, **like)
        self.dropout_output: nn.Dropout = nn.Dropout(dropout)
        self.activation_residual: Callable[[Tensor], Tensor] = elementwise("activation", activation)

    def _fed_forward(self, x: Tensor) -> Tensor:
        """norm(x + W₂ a(W₁ x))."""
        inner = self.dropout_residual(self.activation_residual(self.linear_residual(x)))
        return self.norm_output(x + self.dropout_output(self.linear_output(inner)))

    def _self_mask(self, sequence: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor | None:
        if mask is not None or not is_causal:
            return mask
        axis = 1 if self.batch_first and sequence.dim() == 3 else 0
        return causal_mask(sequence.shape[axis], sequence.device)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, those of the associations too."""
        for module in self.children():
            if isinstance(module, Hopfield | HopfieldLayer | nn.Linear | nn.LayerNorm):
                module.reset_parameters()

    @property
    def batch_first(self) -> bool:
        """True if sequences are ``(N, L, size)``, False if they are ``(L, N, size)``."""
        return self.self_attn.batch_first

    @property
    def input_size(self) -> int | None:
        """Size of a pattern."""
        return self.self_attn.input_size

    @property
    def output_size(self) -> int:
        """Size of the output."""
        return self.linear_output.out_features


class HopfieldEncoderLayer(TransformerLayer):
    """Self-association and a feed-forward network, each with a residual and a layer norm after it.

        x <- norm(x + association(x))
        x <- norm(x + W₂ a(W₁ x))

    It stacks in :class:`torch.nn.TransformerEncoder` (with ``enable_nested_tensor=False``).

    Args:
        hopfield_association: the association, of one input and output size, or a look-up, whose
            masks then are those of its stored patterns; it is copied, and its parameters' device
            and dtype are those of the layer.
        dim_feedforward: width of the feed-forward network.
        dropout: probability, on the association, inside the feed-forward network and after it.
        activation: a, an elementwise function or its name in torch.

    Raises:
        ValueError: the association's output is not of the size of its input.
        TypeError: neither a Hopfield nor a HopfieldLayer.
    """

    norm_residual: nn.LayerNorm

    def __init__(
        self,
        hopfield_association: Hopfield | HopfieldLayer,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = "relu",
    ) -> None:
        super().__init__()
        size = _size("hopfield_association", hopfield_association)
        self.hopfield_association: Hopfield | HopfieldLayer = deepcopy(hopfield_association)
        self._add_feed_forward(size, dim_feedforward, dropout, activation, "norm_residual")
        self.dropout_hopfield_association: nn.Dropout = nn.Dropout(dropout)

    @property
    def self_attn(self) -> Hopfield | HopfieldLayer:
        """The association, by the name that :class:`torch.nn.TransformerEncoder` asks for."""
        return self.hopfield_association

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Encode ``(N, S, size)``.

        Args:
            src: the sequence.
            src_mask: association mask, ``(S, S)`` or ``(N·H, S, S)``.
            src_key_padding_mask: ``(N, S)``, True for patterns to leave out.
            is_causal: whether a pattern sees none after it; with a mask, that the mask says so.
        """
        mask = self._self_mask(src, src_mask, is_causal)
        associated = self.hopfield_association(src, src_key_padding_mask, mask)
        x = self.norm_residual(src + self.dropout_hopfield_association(associated))
        return self._fed_forward(x)

    def get_association_matrix(
        self,
        input: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The association's weights in a forward pass with these arguments: ``(N, H, S, S)``."""
        mask = self._self_mask(input, src_mask, is_causal)
        return self.self_attn.get_association_matrix(input, src_key_padding_mask, mask)


class HopfieldDecoderLayer(TransformerLayer):
    """Self-association, association with an encoder's output, and a feed-forward network.

    As :class:`HopfieldEncoderLayer`, with ``norm(x + association(memory, x, memory))`` between its
    two steps. It stacks in :class:`torch.nn.TransformerDecoder`.

    Args:
        hopfield_association_self: the association of the sequence with itself; it is copied.
        hopfield_association_cross: that of the sequence, as state patterns, with the encoder's
            output; it is copied.
        dim_feedforward, dropout, activation: as of :class:`HopfieldEncoderLayer`.
    """

    norm_residual_self: nn.LayerNorm
    norm_residual_cross: nn.LayerNorm

    def __init__(
        self,
        hopfield_association_self: Hopfield | HopfieldLayer,
        hopfield_association_cross: Hopfield,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = "relu",
    ) -> None:
        super().__init__()
        size = _size("hopfield_association_self", hopfield_association_self)
        cross = "hopfield_association_cross"
        if _size(cross, hopfield_association_cross, cross=True) != size:
            expected = f"the input size of hopfield_association_self, {size}"
            raise wrong(cross, expected, hopfield_association_cross.input_size)
        first = [a.batch_first for a in (hopfield_association_self, hopfield_association_cross)]
        if first[0] != first[1]:
            expected = f"batch_first as of hopfield_association_self, {first[0]}"
            raise wrong(cross, expected, first[1])
        own = deepcopy(hopfield_association_self)
        self.hopfield_association_self: Hopfield | HopfieldLayer = own
        self.hopfield_association_cross: Hopfield = deepcopy(hopfield_association_cross)
        norms = "norm_residual_self", "norm_residual_cross"
        self._add_feed_forward(size, dim_feedforward, dropout, activation, *norms)
        self.dropout_hopfield_association_self: nn.Dropout = nn.Dropout(dropout)
        self.dropout_hopfield_association_cross: nn.Dropout = nn.Dropout(dropout)

    @property
    def self_attn(self) -> Hopfield | HopfieldLayer:
        """The association, by the name that :class:`torch.nn.TransformerDecoder` asks for."""
        return self.hopfield_association_self

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Decode ``(N, L, size)``.

        Args:
            tgt: the sequence.
            memory: the encoder's output, ``(N, S, stored size of the cross-association)``.
            tgt_mask, memory_mask: association masks, ``(L, L)`` and ``(L, S)``, or with N·H first.
            tgt_key_padding_mask, memory_key_padding_mask: ``(N, L)`` and ``(N, S)``, True for
                patterns to leave out.
            tgt_is_causal: whether a pattern sees none after it; with a mask, that the mask says so.
            memory_is_causal: taken as a statement about ``memory_mask``, which says it all.
        """
        mask = self._self_mask(tgt, tgt_mask, tgt_is_causal)
        associated = self.hopfield_association_self(tgt, tgt_key_padding_mask, mask)
        x = self.norm_residual_self(tgt + self.dropout_hopfield_association_self(associated))
        masks = memory_key_padding_mask, memory_mask
        associated = self.hopfield_association_cross((memory, x, memory), *masks)
        x = self.norm_residual_cross(x + self.dropout_hopfield_association_cross(associated))
        return self._fed_forward(x)

    def get_association_matrix_self(self, input: Tensor) -> Tensor:
        """The weights of ``hopfield_association_self``, without masks: ``(N, H, L, L)``."""
        return self.hopfield_association_self.get_association_matrix(input)

    def get_association_matrix_cross(self, input: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The weights of ``hopfield_association_cross``, without masks: ``(N, H, L, S)``."""
        return self.hopfield_association_cross.get_association_matrix(input)


def _size(name: str, association: Hopfield | HopfieldLayer, *, cross: bool = False) -> int:
    """The size of an association's state patterns, which must be that of its output."""
    kinds = "a Hopfield" if cross else "a Hopfield or a HopfieldLayer"
    if cross and isinstance(association, HopfieldLayer):
        got = "a HopfieldLayer, which has stored patterns of its own"
        remedy = "look up in hopfield_association_self"
        raise wrong(name, kinds, got, remedy, kind=TypeError)
    if isinstance(association, HopfieldPooling):
        got = "a HopfieldPooling, which makes one vector of a sequence"
        raise wrong(name, kinds, got, "pool what comes out of the layer", kind=TypeError)
    instance(name, association, (Hopfield, HopfieldLayer), kinds)  # type: ignore[arg-type]
    size = association.input_size
    if size is None or association.output_size != size:
        expected = "an output of the size of its input, for the residual"
        got = f"output_size {association.output_size} and input_size {size}"
        raise wrong(name, expected, got)
    return size
