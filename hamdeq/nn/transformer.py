"""Encoder and decoder layers of a transformer, with Hopfield associations in place of attention."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from hamdeq._recorded import Recorded
from hamdeq.nn.hopfield import Hopfield
from hamdeq.nn.inputs import causal_mask, elementwise
from hamdeq.nn.learned import HopfieldLayer, HopfieldPooling

__all__ = ["HopfieldDecoderLayer", "HopfieldEncoderLayer"]


class HopfieldEncoderLayer(Recorded, nn.Module):
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
        like = _factory(hopfield_association)
        self.linear_residual: nn.Linear = nn.Linear(size, dim_feedforward, **like)
        self.dropout_residual: nn.Dropout = nn.Dropout(dropout)
        self.linear_output: nn.Linear = nn.Linear(dim_feedforward, size, **like)
        self.norm_residual: nn.LayerNorm = nn.LayerNorm(size, **like)
        self.norm_output: nn.LayerNorm = nn.LayerNorm(size, **like)
        self.dropout_hopfield_association: nn.Dropout = nn.Dropout(dropout)
        self.dropout_output: nn.Dropout = nn.Dropout(dropout)
        self.activation_residual: Callable[[Tensor], Tensor] = elementwise("activation", activation)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, the association's too."""
        _reset(self)

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
        mask = _mask(self.self_attn, src, src_mask, is_causal)
        found = self.hopfield_association(src, src_key_padding_mask, mask)
        src = self.norm_residual(src + self.dropout_hopfield_association(found))
        return self.norm_output(src + self.dropout_output(self._feed_forward(src)))

    def get_association_matrix(
        self,
        input: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The association's weights in a forward pass with these arguments: ``(N, H, S, S)``."""
        mask = _mask(self.self_attn, input, src_mask, is_causal)
        return self.self_attn.get_association_matrix(input, src_key_padding_mask, mask)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear_output(
            self.dropout_residual(self.activation_residual(self.linear_residual(x)))
        )

    @property
    def self_attn(self) -> Hopfield | HopfieldLayer:
        """The association, by the name that :class:`torch.nn.TransformerEncoder` asks for."""
        return self.hopfield_association

    @property
    def batch_first(self) -> bool:
        """Whether sequences are ``(N, S, size)``, or ``(S, N, size)``."""
        return self.hopfield_association.batch_first

    @property
    def input_size(self) -> int | None:
        """Size of a pattern."""
        return self.hopfield_association.input_size

    @property
    def output_size(self) -> int:
        """Size of the output."""
        return self.linear_output.out_features


class HopfieldDecoderLayer(Recorded, nn.Module):
    """Self-association, association with an encoder's output, and a feed-forward network.

    As :class:`HopfieldEncoderLayer`, with ``norm(x + association(memory, x, memory))`` between its
    two steps. It stacks in :class:`torch.nn.TransformerDecoder`.

    Args:
        hopfield_association_self: the association of the sequence with itself; it is copied.
        hopfield_association_cross: that of the sequence, as state patterns, with the encoder's
            output; it is copied.
        dim_feedforward, dropout, activation: as of :class:`HopfieldEncoderLayer`.
    """

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
        if _size("hopfield_association_cross", hopfield_association_cross, cross=True) != size:
            raise ValueError(
                "hopfield_association_cross: expected the input size of "
                f"hopfield_association_self, {size}, got {hopfield_association_cross.input_size}"
            )
        first = [a.batch_first for a in (hopfield_association_self, hopfield_association_cross)]
        if first[0] != first[1]:
            raise ValueError(
                "hopfield_association_cross: expected batch_first as of "
                f"hopfield_association_self, {first[0]}, got {first[1]}"
            )
        self.hopfield_association_self: Hopfield | HopfieldLayer
        self.hopfield_association_self = deepcopy(hopfield_association_self)
        self.hopfield_association_cross: Hopfield = deepcopy(hopfield_association_cross)
        like = _factory(hopfield_association_self)
        self.linear_residual: nn.Linear = nn.Linear(size, dim_feedforward, **like)
        self.dropout_residual: nn.Dropout = nn.Dropout(dropout)
        self.linear_output: nn.Linear = nn.Linear(dim_feedforward, size, **like)
        self.norm_residual_self: nn.LayerNorm = nn.LayerNorm(size, **like)
        self.norm_residual_cross: nn.LayerNorm = nn.LayerNorm(size, **like)
        self.norm_output: nn.LayerNorm = nn.LayerNorm(size, **like)
        self.dropout_hopfield_association_self: nn.Dropout = nn.Dropout(dropout)
        self.dropout_hopfield_association_cross: nn.Dropout = nn.Dropout(dropout)
        self.dropout_output: nn.Dropout = nn.Dropout(dropout)
        self.activation_residual: Callable[[Tensor], Tensor] = elementwise("activation", activation)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, those of the associations too."""
        _reset(self)

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
        mask = _mask(self.self_attn, tgt, tgt_mask, tgt_is_causal)
        found = self.hopfield_association_self(tgt, tgt_key_padding_mask, mask)
        tgt = self.norm_residual_self(tgt + self.dropout_hopfield_association_self(found))

        found = self.hopfield_association_cross(
            (memory, tgt, memory), memory_key_padding_mask, memory_mask
        )
        tgt = self.norm_residual_cross(tgt + self.dropout_hopfield_association_cross(found))

        inner = self.dropout_residual(self.activation_residual(self.linear_residual(tgt)))
        return self.norm_output(tgt + self.dropout_output(self.linear_output(inner)))

    def get_association_matrix_self(self, input: Tensor) -> Tensor:
        """The weights of ``hopfield_association_self``, without masks: ``(N, H, L, L)``."""
        return self.hopfield_association_self.get_association_matrix(input)

    def get_association_matrix_cross(self, input: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The weights of ``hopfield_association_cross``, without masks: ``(N, H, L, S)``."""
        return self.hopfield_association_cross.get_association_matrix(input)

    @property
    def self_attn(self) -> Hopfield | HopfieldLayer:
        """The association, by the name that :class:`torch.nn.TransformerDecoder` asks for."""
        return self.hopfield_association_self

    @property
    def batch_first(self) -> bool:
        """Whether sequences are ``(N, L, size)``, or ``(L, N, size)``."""
        return self.hopfield_association_self.batch_first

    @property
    def input_size(self) -> int | None:
        """Size of a pattern."""
        return self.hopfield_association_self.input_size

    @property
    def output_size(self) -> int:
        """Size of the output."""
        return self.linear_output.out_features


def _size(name: str, association: Hopfield | HopfieldLayer, *, cross: bool = False) -> int:
    """The size of an association's state patterns, which must be that of its output."""
    if cross and isinstance(association, HopfieldLayer):
        raise TypeError(
            f"{name}: expected a Hopfield, got a HopfieldLayer, which has stored patterns of its "
            "own and does not take an encoder's output; look up in hopfield_association_self"
        )
    if isinstance(association, HopfieldPooling):
        raise TypeError(
            f"{name}: expected a Hopfield or a HopfieldLayer, got a HopfieldPooling, which makes "
            "one vector of a sequence; pool what comes out of the layer"
        )
    if not isinstance(association, Hopfield | HopfieldLayer):
        kinds = "a Hopfield" if cross else "a Hopfield or a HopfieldLayer"
        raise TypeError(f"{name}: expected {kinds}, got {type(association).__name__}")
    size = association.input_size
    if size is None or association.output_size != size:
        raise ValueError(
            f"{name}: expected an output of the size of its input, for the residual, got "
            f"output_size {association.output_size} and input_size {size}"
        )
    return size


def _factory(association: nn.Module) -> dict[str, Any]:
    """Device and dtype of an association's parameters."""
    some = next(association.parameters(), None)
    return {} if some is None else {"device": some.device, "dtype": some.dtype}


def _mask(
    association: Hopfield | HopfieldLayer, sequence: Tensor, mask: Tensor | None, is_causal: bool
) -> Tensor | None:
    if mask is not None or not is_causal:
        return mask
    axis = 1 if association.batch_first and sequence.dim() == 3 else 0
    return causal_mask(sequence.shape[axis], sequence.device)


def _reset(layer: nn.Module) -> None:
    for module in layer.children():
        if isinstance(module, Hopfield | HopfieldLayer | nn.Linear | nn.LayerNorm):
            module.reset_parameters()
