"""The arguments of a Hopfield layer beyond its sizes, as hflayers names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from hamdeq.implicit import Adjoint
from hamdeq.lagrangians import Separation
from hamdeq.solvers import OnFailure, Solver

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """Keywords that :class:`HopfieldPooling` and :class:`HopfieldLayer` hand to ``Hopfield``."""

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
