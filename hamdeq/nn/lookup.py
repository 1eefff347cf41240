"""HopfieldLayer: learned stored patterns, to look up in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import Unpack

from hamdeq.energy.ham import HAM
from hamdeq.nn.hopfield import Hopfield
from hamdeq.nn.options import Options
from hamdeq.nn.sizes import positive_size
from hamdeq.nn.wrapping import Wrapping

__all__ = ["HopfieldLayer"]


class HopfieldLayer(Wrapping):
    """Looks its input up among learned stored patterns: prototypes, a trained memory.

    :class:`Hopfield` with ``quantity`` learned stored patterns, the same for every sample, which
    are read out too, or learned pattern projections in their place.

    Args:
        input_size: size of a state pattern.
        hidden_size, output_size, pattern_size, num_heads: as of :class:`Hopfield`; so are
        scaling, update_steps_max, update_steps_eps: see there.
        lookup_weights_as_separated: whether pattern projections are learned apart from the stored
            patterns.
        lookup_targets_as_trainable: whether these are trained.
        quantity: learned stored patterns.
        trainable: whether they are trained; without, they can be set to data of your own.
        options: all other arguments of :class:`Hopfield`.

    Attributes:
        lookup_weights: the stored patterns, ``(1, quantity, size)``, from N(0, 0.02²).
        target_weights: the pattern projections, or None.

    Shape:
        - input ``(N, L, input_size)``; without N too.
        - output ``(N, L, output_size)``.

    Example:
        >>> layer = HopfieldLayer(8, quantity=100)
        >>> layer(torch.rand(5, 1, 8)).shape
        torch.Size([5, 1, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | None = None,
        output_size: int | None = None,
        pattern_size: int | None = None,
        num_heads: int = 1,
        scaling: float | Tensor | None = None,
        update_steps_max: int | Sequence[int] | Tensor | None = 0,
        update_steps_eps: float | Tensor = 1e-4,
        lookup_weights_as_separated: bool = False,
        lookup_targets_as_trainable: bool = True,
        *,
        quantity: int = 1,
        trainable: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        if not lookup_weights_as_separated and options.get("pattern_projection_size") is None:
            # The stored patterns are the pattern projections.
            options["pattern_projection_size"] = options.get("stored_pattern_size")
        self.hopfield: Hopfield = Hopfield(
            input_size,
            hidden_size,
            output_size,
            pattern_size,
            num_heads,
            scaling,
            update_steps_max,
            update_steps_eps,
            **options,
        )
        self.quantity: int = positive_size("quantity", quantity)
        size = self.hidden_size if self.stored_pattern_as_static else self.stored_pattern_dim
        size = size or input_size
        factory = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.lookup_weights: nn.Parameter = self._learned(size, trainable, factory)
        self.target_weights: nn.Parameter | None = None
        if lookup_weights_as_separated:
            size = self._target_size(size)
            self.target_weights = self._learned(size, lookup_targets_as_trainable, factory)
        self._reset_lookup()

    def _target_size(self, stored: int) -> int:
        """Size of learned pattern projections, beside stored patterns of a size."""
        sizes = self.hopfield.association_core.sizes
        if not sizes.untouched:
            return sizes.projection or stored
        if sizes.out_projection:
            return sizes.pattern or stored
        # They are read out as they are, of any size: that of their layer norm, if they have one.
        norm = self.hopfield.norm_pattern_projection
        return norm.normalized_shape[0] if norm is not None else sizes.projection or stored

    @property
    def output_size(self) -> int | None:
        """Size of the output."""
        sizes = self.hopfield.association_core.sizes
        if sizes.out_projection or not sizes.untouched:
            return super().output_size
        read = self.lookup_weights if self.target_weights is None else self.target_weights
        return sizes.heads * read.shape[-1]

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.hopfield.reset_parameters()
        self._reset_lookup()

    def _reset_lookup(self) -> None:
        nn.init.normal_(self.lookup_weights, std=0.02)
        if self.target_weights is not None:
            nn.init.normal_(self.target_weights, std=0.02)

    def forward(
        self,
        input: Tensor,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """Look the patterns up: ``(N, L, output_size)``.

        Args:
            input: the state patterns.
            stored_pattern_padding_mask: ``(N, quantity)``, True for those to leave out.
            association_mask: ``(L, quantity)`` or ``(N·H, L, quantity)``.
        """
        return self.hopfield(self._input(input), stored_pattern_padding_mask, association_mask)

    def as_ham(self, states: int = 1) -> HAM:
        """See :meth:`hamdeq.nn.Hopfield.as_ham`."""
        extra = self.hopfield.association_core.extra
        return self.hopfield.as_ham(self.quantity + extra, states)

    def _input(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(input, Tensor):
            raise TypeError(
                f"input: expected a tensor of state patterns, got {type(input).__name__}"
            )
        stored = self._for_all(self.lookup_weights, input)
        if self.target_weights is None:
            return stored, input, stored
        return stored, input, self._for_all(self.target_weights, input)
