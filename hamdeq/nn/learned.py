"""Hopfield layers with learned patterns: pooling of a set, and look-up among stored patterns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hamdeq._checks import instance, integer, wrong
from hamdeq._recorded import Recorded
from hamdeq.energy.ham import HAM
from hamdeq.implicit import Adjoint
from hamdeq.lagrangians import Separation
from hamdeq.nn.hopfield import Associated, Hopfield
from hamdeq.nn.projections import Patterns, read_only
from hamdeq.solvers import OnFailure, Solution, Solver

__all__ = ["HopfieldLayer", "HopfieldPooling", "LearnedPatterns", "Options"]


class Options(TypedDict, total=False):
    """Arguments of :class:`Hopfield` that the layers of this file pass on by keyword."""

    normalize_stored_pattern: bool
    normalize_stored_pattern_affine: bool
    normalize_stored_pattern_eps: float
    normalize_state_pattern: bool
    normalize_state_pattern_affine: bool
    normalize_state_pattern_eps: float
    normalize_pattern_projection: bool
    normalize_pattern_projection_affine: bool
    normalize_pattern_projection_eps: float
    normalize_hopfield_space: bool
    normalize_hopfield_space_affine: bool
    normalize_hopfield_space_eps: float
    stored_pattern_as_static: bool
    state_pattern_as_static: bool
    pattern_projection_as_static: bool
    pattern_projection_as_connected: bool
    stored_pattern_size: int | None
    pattern_projection_size: int | None
    batch_first: bool
    association_activation: str | Callable[[Tensor], Tensor] | None
    dropout: float
    input_bias: bool
    concat_bias_pattern: bool
    add_zero_association: bool
    disable_out_projection: bool
    scaling_as_trainable: bool
    lagrangian: Separation | None
    solver: Solver | None
    adjoint: Adjoint | None
    on_failure: OnFailure
    device: torch.device | str | None
    dtype: torch.dtype | None


def _hopfield(name: str) -> Any:
    """A property that reads an attribute of ``hopfield``."""
    return read_only(lambda layer: getattr(layer.hopfield, name), f"See :attr:`Hopfield.{name}`.")


class LearnedPatterns(Recorded, nn.Module):
    """A ``Hopfield`` some of whose inputs are learned.

    Attributes:
        hopfield: that layer.
        quantity: number of learned patterns.
    """

    hopfield: Hopfield
    quantity: int

    @abstractmethod
    def _input(self, input: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The three inputs of ``hopfield``."""

    def associate(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Associated:
        """See :meth:`Hopfield.associate`."""
        masks = stored_pattern_padding_mask, association_mask
        return self.hopfield.associate(self._input(input), *masks)

    def get_association_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Hopfield.get_association_matrix`."""
        masks = stored_pattern_padding_mask, association_mask
        return self.hopfield.get_association_matrix(self._input(input), *masks)

    def get_projected_pattern_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Hopfield.get_projected_pattern_matrix`."""
        masks = stored_pattern_padding_mask, association_mask
        return self.hopfield.get_projected_pattern_matrix(self._input(input), *masks)

    def project(self, input: Tensor | tuple[Tensor, Tensor]) -> Patterns:
        """See :meth:`Hopfield.project`."""
        return self.hopfield.project(self._input(input))

    def energy(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        steps: int = 0,
    ) -> Tensor:
        """See :meth:`Hopfield.energy`."""
        masks = stored_pattern_padding_mask, association_mask
        return self.hopfield.energy(self._input(input), *masks, steps=steps)

    def settle(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Solution:
        """See :meth:`Hopfield.settle`."""
        masks = stored_pattern_padding_mask, association_mask
        return self.hopfield.settle(self._input(input), *masks)

    def _learned(self, size: int, trainable: bool, options: Options) -> nn.Parameter:
        """Learned patterns, one row each: ``(1, quantity, size)``, or with the batch second."""
        lead = (1, self.quantity) if self.hopfield.batch_first else (self.quantity, 1)
        device, dtype = options.get("device"), options.get("dtype")
        empty = torch.empty(*lead, size, device=device, dtype=dtype)
        return nn.Parameter(empty, requires_grad=trainable)

    def _for_all(self, weights: Tensor, like: Tensor) -> Tensor:
        """Learned patterns as an input beside ``like``: one for all samples, or without a batch."""
        return weights if like.dim() == 3 else weights.squeeze(0 if self.batch_first else 1)

    @property
    def scaling(self) -> float | Tensor:
        """β; see :attr:`Hopfield.scaling`."""
        return self.hopfield.scaling

    @scaling.setter
    def scaling(self, beta: float | Tensor) -> None:
        self.hopfield.scaling = beta

    input_size: int | None = _hopfield("input_size")
    hidden_size: int | None = _hopfield("hidden_size")
    pattern_size: int | None = _hopfield("pattern_size")
    state_pattern_dim: int | None = _hopfield("state_pattern_dim")
    stored_pattern_dim: int | None = _hopfield("stored_pattern_dim")
    pattern_projection_dim: int | None = _hopfield("pattern_projection_dim")
    num_heads: int = _hopfield("num_heads")
    stored_pattern_as_static: bool = _hopfield("stored_pattern_as_static")
    state_pattern_as_static: bool = _hopfield("state_pattern_as_static")
    pattern_projection_as_static: bool = _hopfield("pattern_projection_as_static")
    batch_first: bool = _hopfield("batch_first")
    update_steps_max: int | Sequence[int] | Tensor | None = _hopfield("update_steps_max")
    update_steps_eps: float = _hopfield("update_steps_eps")
    normalize_stored_pattern: bool = _hopfield("normalize_stored_pattern")
    normalize_state_pattern: bool = _hopfield("normalize_state_pattern")
    normalize_pattern_projection: bool = _hopfield("normalize_pattern_projection")
    normalize_stored_pattern_affine: bool = _hopfield("normalize_stored_pattern_affine")
    normalize_state_pattern_affine: bool = _hopfield("normalize_state_pattern_affine")
    normalize_pattern_projection_affine: bool = _hopfield("normalize_pattern_projection_affine")
    normalize_hopfield_space: bool = _hopfield("normalize_hopfield_space")
    normalize_hopfield_space_affine: bool = _hopfield("normalize_hopfield_space_affine")


class HopfieldPooling(LearnedPatterns):
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
        self.quantity: int = integer("quantity", quantity)
        size = self.hidden_size if self.state_pattern_as_static else self.input_size
        self.pooling_weights: nn.Parameter = self._learned(size or input_size, trainable, options)
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
        result = super().associate(input, stored_pattern_padding_mask, association_mask)
        return result._replace(output=self._joined(result.output))

    def _joined(self, pooled: Tensor) -> Tensor:
        """The results of the state patterns one after the other."""
        if pooled.dim() != 3:
            return pooled.flatten()
        return (pooled if self.batch_first else pooled.transpose(0, 1)).flatten(1)

    def as_ham(self, stored: int) -> HAM:
        """See :meth:`Hopfield.as_ham`."""
        return self.hopfield.as_ham(stored, self.quantity)

    output_size: int | None = _hopfield("output_size")

    def _input(self, input: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        pair = (input, input) if isinstance(input, Tensor) else tuple(input)
        if len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
            expected = "a tensor, or two: (stored patterns, pattern projections)"
            raise wrong("input", expected, [type(x).__name__ for x in pair], kind=TypeError)
        return pair[0], self._for_all(self.pooling_weights, pair[0]), pair[1]


class HopfieldLayer(LearnedPatterns):
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
        self.quantity: int = integer("quantity", quantity)
        size = self.hidden_size if self.stored_pattern_as_static else self.stored_pattern_dim
        size = size or input_size
        self.lookup_weights: nn.Parameter = self._learned(size, trainable, options)
        self.target_weights: nn.Parameter | None = None
        if lookup_weights_as_separated:
            size = self._target_size(size)
            self.target_weights = self._learned(size, lookup_targets_as_trainable, options)
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
            return self.hopfield.output_size
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
        """See :meth:`Hopfield.as_ham`."""
        extra = self.hopfield.association_core.extra
        return self.hopfield.as_ham(self.quantity + extra, states)

    def _input(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        instance("input", input, Tensor, "a tensor of state patterns")
        stored = self._for_all(self.lookup_weights, input)
        if self.target_weights is None:
            return stored, input, stored
        return stored, input, self._for_all(self.target_weights, input)
