"""HopfieldPooling: learned state patterns that summarise a set."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import Unpack

from hamdeq.energy.ham import HAM
from hamdeq.nn.hopfield import Hopfield
from hamdeq.nn.layer import Associated
from hamdeq.nn.options import Options
from hamdeq.nn.sizes import positive_size
from hamdeq.nn.wrapping import Wrapping

__all__ = ["HopfieldPooling"]


class HopfieldPooling(Wrapping):
    """Pools a set of patterns, by state patterns that are learned: the queries of the pooling.

    :class:`Hopfield` with ``quantity`` learned state patterns, the same for every sample. The set
    may have any size, its order does not matter, and a mask leaves out padding.

    Args:
        input_size: size of a learned state pattern, and of a pattern of the set unless
            ``stored_pattern_size`` and ``pattern_projection_size`` are given.
        hidden_size, output_size, pattern_size, num_heads: as of :class:`Hopfield`; so are
        scaling, update_steps_max, update_steps_eps: see there.
        quantity: learned state patterns, whose results are concatenated.
        trainable: whether they are trained.
        options: all other arguments of :class:`Hopfield`.

    Attributes:
        pooling_weights: the state patterns, ``(1, quantity, size)``, from N(0, 0.02²).

    Shape:
        - input ``(N, S, input_size)``, or ``(stored patterns, pattern projections)``; without N
          too.
        - output ``(N, quantity · output_size)``.

    Example:
        >>> pool = HopfieldPooling(8, output_size=4, quantity=2)
        >>> pool(torch.rand(5, 30, 8)).shape
        torch.Size([5, 8])
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
        *,
        quantity: int = 1,
        trainable: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
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
        size = self.hidden_size if self.state_pattern_as_static else self.input_size
        factory = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.pooling_weights: nn.Parameter = self._learned(size or input_size, trainable, factory)
        nn.init.normal_(self.pooling_weights, std=0.02)

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.hopfield.reset_parameters()
        nn.init.normal_(self.pooling_weights, std=0.02)

    def forward(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """Pool the patterns of each sample: ``(N, quantity · output_size)``.

        Args:
            input: the patterns, or ``(stored patterns, pattern projections)``.
            stored_pattern_padding_mask: ``(N, S)``, True for patterns to leave out.
            association_mask: ``(quantity, S)`` or ``(N·H, quantity, S)``.
        """
        pooled = self.hopfield(self._input(input), stored_pattern_padding_mask, association_mask)
        return self._joined(pooled)

    def associate(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Associated:
        """See :meth:`Hopfield.associate`."""
        found = super().associate(input, stored_pattern_padding_mask, association_mask)
        return found._replace(output=self._joined(found.output))

    def _joined(self, pooled: Tensor) -> Tensor:
        """The results of the state patterns one after the other."""
        if pooled.dim() != 3:
            return pooled.flatten()
        return (pooled if self.batch_first else pooled.transpose(0, 1)).flatten(1)

    def as_ham(self, stored: int) -> HAM:
        """See :meth:`hamdeq.nn.Hopfield.as_ham`."""
        return self.hopfield.as_ham(stored, self.quantity)

    def _input(self, input: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        pair = (input, input) if isinstance(input, Tensor) else tuple(input)
        if len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
            raise TypeError(
                "input: expected a tensor, or two: (stored patterns, pattern projections), got "
                f"{[type(x).__name__ for x in pair]}"
            )
        return pair[0], self._for_all(self.pooling_weights, pair[0]), pair[1]
