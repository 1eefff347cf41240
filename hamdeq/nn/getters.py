"""What a Hopfield layer tells of itself, under the names of hflayers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hamdeq.nn.building import initial_beta

if TYPE_CHECKING:
    from hamdeq.nn.hopfield import Hopfield
    from hamdeq.nn.sizes import Sizes

__all__ = ["CoreGetters", "Getters"]


class CoreGetters:
    """Attributes of ``association_core`` under the names of hflayers and of PyTorch."""

    sizes: Sizes
    normalize: bool
    zero_pattern: bool

    @property
    def embed_dim(self) -> int | None:
        """Size of a state pattern."""
        return None if self.sizes.bare else self.sizes.state

    @property
    def kdim(self) -> int | None:
        """Size of a stored pattern."""
        return None if self.sizes.bare else self.sizes.stored

    @property
    def vdim(self) -> int | None:
        """Size of a pattern projection."""
        return None if self.sizes.bare else self.sizes.projection

    @property
    def num_heads(self) -> int:
        """Heads H."""
        return self.sizes.heads

    @property
    def head_dim(self) -> int | None:
        """Size d of each head's association space."""
        return None if self.sizes.bare else self.sizes.hidden

    @property
    def pattern_dim(self) -> int | None:
        """Size p of what each head reads out."""
        return self.sizes.pattern

    @property
    def virtual_hopfield_dim(self) -> int | None:
        """H · d."""
        return None if self.sizes.bare else self.sizes.own_space

    @property
    def virtual_pattern_dim(self) -> int | None:
        """H · p."""
        return None if self.sizes.bare else self.sizes.own_pattern

    @property
    def out_dim(self) -> int | None:
        """Size of the output."""
        return self.sizes.output

    @property
    def query_as_static(self) -> bool:
        """Whether state patterns enter every head as they are."""
        return self.sizes.state_static

    @property
    def key_as_static(self) -> bool:
        """Whether stored patterns enter every head as they are."""
        return self.sizes.stored_static

    @property
    def value_as_static(self) -> bool:
        """Whether pattern projections enter every head as they are."""
        return self.sizes.projection_static

    @property
    def value_as_connected(self) -> bool:
        """Whether pattern projections go through the stored patterns' projection first."""
        return self.sizes.connected

    @property
    def disable_out_projection(self) -> bool:
        """Whether the heads' results are the output."""
        return not self.sizes.out_projection

    @property
    def static_execution(self) -> bool:
        """Whether nothing is projected."""
        return self.sizes.bare

    @property
    def normalize_pattern(self) -> bool:
        """Whether patterns go through a layer norm in the association space."""
        return self.normalize

    @property
    def add_zero_attn(self) -> bool:
        """Whether a pattern of zeros is appended to K and V."""
        return self.zero_pattern


class Getters:
    """Properties of a Hopfield layer, and of a layer that wraps one as ``hopfield``."""

    @property
    def _layer(self) -> Hopfield:
        return getattr(self, "hopfield", self)  # pyright: ignore[reportReturnType]

    @property
    def _sizes(self) -> Sizes:
        return self._layer.association_core.sizes

    @property
    def input_size(self) -> int | None:
        """Size of a state pattern."""
        return self._sizes.state

    @property
    def hidden_size(self) -> int | None:
        """Size d of each head's association space; None where it is that of the data."""
        return self._sizes.hidden

    @property
    def pattern_size(self) -> int | None:
        """Size p of what each head reads out; None where it is that of the data."""
        return self._sizes.pattern

    @property
    def output_size(self) -> int | None:
        """Size of the output; None where it is that of the data."""
        return self._sizes.output

    @property
    def state_pattern_dim(self) -> int | None:
        """Size of a state pattern."""
        return self._sizes.state

    @property
    def stored_pattern_dim(self) -> int | None:
        """Size of a stored pattern."""
        return self._sizes.stored

    @property
    def pattern_projection_dim(self) -> int | None:
        """Size of a pattern projection."""
        return self._sizes.projection

    @property
    def num_heads(self) -> int:
        """Heads H."""
        return self._sizes.heads

    @property
    def batch_first(self) -> bool:
        """Whether inputs are ``(N, S, size)``, or ``(S, N, size)``."""
        return self._layer._batch_first

    @property
    def scaling(self) -> float | Tensor:
        """β, one number or one for each head ``(H,)``; it can be set, by a schedule for instance.

        A β that is trained goes on from there. One that is not is in the state dict from then on,
        as ``association_core.beta``, and a layer that loads it has it.
        """
        return self._layer.association_core.beta

    @scaling.setter
    def scaling(self, beta: float | Tensor) -> None:
        self._layer.association_core.set_beta(initial_beta(beta, self._sizes))

    @property
    def update_steps_max(self) -> int | Sequence[int] | Tensor | None:
        """Updates of the state patterns; None for as many as it takes."""
        return self._layer._steps_max

    @property
    def update_steps_eps(self) -> float:
        """The relative residual that converged state patterns reach: the solver's ``tol``."""
        return self._layer.solver.tol

    @property
    def stored_pattern_as_static(self) -> bool:
        """Whether stored patterns enter every head as they are."""
        return self._sizes.stored_static

    @property
    def state_pattern_as_static(self) -> bool:
        """Whether state patterns enter every head as they are."""
        return self._sizes.state_static

    @property
    def pattern_projection_as_static(self) -> bool:
        """Whether pattern projections enter every head as they are."""
        return self._sizes.projection_static

    @property
    def normalize_stored_pattern(self) -> bool:
        """Whether stored patterns go through a layer norm."""
        return self._layer.norm_stored_pattern is not None

    @property
    def normalize_stored_pattern_affine(self) -> bool:
        """Whether that has scale and shift."""
        norm = self._layer.norm_stored_pattern
        return norm is not None and norm.elementwise_affine

    @property
    def normalize_state_pattern(self) -> bool:
        """Whether state patterns go through a layer norm."""
        return self._layer.norm_state_pattern is not None

    @property
    def normalize_state_pattern_affine(self) -> bool:
        """Whether that has scale and shift."""
        norm = self._layer.norm_state_pattern
        return norm is not None and norm.elementwise_affine

    @property
    def normalize_pattern_projection(self) -> bool:
        """Whether pattern projections go through a layer norm."""
        return self._layer.norm_pattern_projection is not None

    @property
    def normalize_pattern_projection_affine(self) -> bool:
        """Whether that has scale and shift."""
        norm = self._layer.norm_pattern_projection
        return norm is not None and norm.elementwise_affine

    @property
    def normalize_hopfield_space(self) -> bool:
        """Whether patterns go through a layer norm in the association space."""
        return self._layer.association_core.normalize

    @property
    def normalize_hopfield_space_affine(self) -> bool:
        """Whether that has scale and shift."""
        return self._layer.association_core.p_norm_weight is not None
