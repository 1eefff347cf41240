"""Hopfield: the association of two sets of patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq.implicit import Adjoint, Implicit
from hamdeq.lagrangians import Separation
from hamdeq.nn.activations import elementwise
from hamdeq.nn.building import initial_beta, layer_norm, settling_solver
from hamdeq.nn.core import HopfieldCore
from hamdeq.nn.getters import Getters
from hamdeq.nn.layer import Associating
from hamdeq.nn.sizes import Sizes
from hamdeq.nn.steps import groups
from hamdeq.solvers import Failures, OnFailure, Solver

__all__ = ["Hopfield"]


class Hopfield(Associating, Getters):
    """Associates state patterns with stored patterns, and reads out their projections.

    With R the state patterns, Y the stored patterns and Z the pattern projections of the input,
    each after its layer norm, and per head Q = R W_Q, K = Y W_K, V = Z W_V:

        Q <- softmax(β Q Kᵀ) K    ``update_steps_max`` times, and then
        output = softmax(β Q Kᵀ) V W_O, the heads side by side.

    Each update is one even-odd step of the memory :meth:`as_ham`, so that its energy never rises.
    Without updates and norms it is :class:`torch.nn.MultiheadAttention`.

    Args:
        input_size: size of a state pattern, and by default of the other two.
        hidden_size: d, size of each head's association space; default ``input_size // num_heads``.
        output_size: size of the output; default ``input_size``.
        pattern_size: p, size of what each head reads out; default ``hidden_size``.
        num_heads: the number of heads H.
        scaling: inverse temperature β > 0, or one for each head ``(H,)``; default 1/√d, and 1 if
            nothing is projected. As an ``nn.Parameter`` it gives the initial values of a trained β.
        update_steps_max: updates of the state patterns, or one number for each head. None, or a
            negative number: until each state pattern has converged.
        update_steps_eps: then the relative residual ‖f(q) − q‖/‖f(q)‖ that each is to reach.
        normalize_stored_pattern, normalize_state_pattern, normalize_pattern_projection: whether
            these inputs go through a layer norm; ``…_affine`` its scale and shift, ``…_eps`` its ε.
        normalize_hopfield_space: whether Q and K do, in each head, with one scale and shift.
        stored_pattern_as_static, state_pattern_as_static, pattern_projection_as_static: whether
            these inputs enter every head as they are, without a projection.
        pattern_projection_as_connected: whether Z W_K W_V is read out in place of Z W_V.
        stored_pattern_size, pattern_projection_size: sizes of these; default ``input_size``.
        batch_first: whether inputs are ``(N, S, size)``, or ``(S, N, size)``.
        association_activation: an elementwise function of the output, or its name in torch.
        dropout: probability that an association is left out of the read-out, in training.
        input_bias: whether projections add a bias, the output's too.
        concat_bias_pattern: whether a trained pattern is added to K and V of every sample.
        add_zero_association: whether a pattern of zeros is: to retrieve nothing by.
        disable_out_projection: whether W_O is left out, and the output of size H · p.
        scaling_as_trainable: whether β is trained, one for each head, as its logarithm.
        lagrangian: of the memory layer, at β = 1: :class:`~hamdeq.Softmax` by default,
            :class:`~hamdeq.Sparsemax` or :class:`~hamdeq.Entmax` to retrieve sparsely.
        solver: for convergence; default ``Picard(tol=update_steps_eps)``, its ``max_steps`` the
            cap on updates. It brings its own ``tol``.
        adjoint: gradient method for convergence; default :class:`~hamdeq.Implicit`, whose memory
            does not grow with the updates.
        on_failure: for state patterns that do not converge: ``"warn"`` (once), ``"raise"`` or
            ``"ignore"``.
        device, dtype: of the parameters.

    Shape:
        - state patterns ``(N, L, input_size)``, stored patterns ``(N, S, stored_pattern_size)``,
          pattern projections ``(N, S, pattern_projection_size)``; without N, all three.
        - output ``(N, L, output_size)``, without N if the input is.
        - stored_pattern_padding_mask ``(N, S)``, association_mask ``(L, S)`` or ``(N·H, L, S)``.

    Raises:
        ValueError: sizes that do not fit, an unknown activation, β not finite and > 0.
        TypeError: an argument of another kind.

    Source: Ramsauer et al., "Hopfield Networks is All You Need" (ICLR 2021), equations 3 and 10;
    arguments, masks and names of parameters as in its software, hflayers 1.0.2.
    """

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        output_size: int | None = None,
        pattern_size: int | None = None,
        num_heads: int = 1,
        scaling: float | Tensor | None = None,
        update_steps_max: int | Sequence[int] | Tensor | None = 0,
        update_steps_eps: float | Tensor = 1e-4,
        normalize_stored_pattern: bool = True,
        normalize_stored_pattern_affine: bool = True,
        normalize_stored_pattern_eps: float = 1e-5,
        normalize_state_pattern: bool = True,
        normalize_state_pattern_affine: bool = True,
        normalize_state_pattern_eps: float = 1e-5,
        normalize_pattern_projection: bool = True,
        normalize_pattern_projection_affine: bool = True,
        normalize_pattern_projection_eps: float = 1e-5,
        normalize_hopfield_space: bool = False,
        normalize_hopfield_space_affine: bool = False,
        normalize_hopfield_space_eps: float = 1e-5,
        stored_pattern_as_static: bool = False,
        state_pattern_as_static: bool = False,
        pattern_projection_as_static: bool = False,
        pattern_projection_as_connected: bool = False,
        stored_pattern_size: int | None = None,
        pattern_projection_size: int | None = None,
        batch_first: bool = True,
        association_activation: str | Callable[[Tensor], Tensor] | None = None,
        dropout: float = 0.0,
        input_bias: bool = True,
        concat_bias_pattern: bool = False,
        add_zero_association: bool = False,
        disable_out_projection: bool = False,
        *,
        scaling_as_trainable: bool = False,
        lagrangian: Separation | None = None,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "warn",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = Sizes(
            state=input_size,
            stored=stored_pattern_size,
            projection=pattern_projection_size,
            hidden=hidden_size,
            pattern=pattern_size,
            output=output_size,
            heads=num_heads,
            state_static=state_pattern_as_static,
            stored_static=stored_pattern_as_static,
            projection_static=pattern_projection_as_static,
            connected=pattern_projection_as_connected,
            out_projection=not disable_out_projection,
        )
        if not (isinstance(dropout, Real) and 0 <= float(dropout) <= 1):
            raise ValueError(f"dropout: expected a probability, 0 to 1, got {dropout!r}")
        self._batch_first = batch_first
        self._steps_max = update_steps_max
        self._groups = groups(update_steps_max, num_heads)
        self.solver: Solver = settling_solver(solver, update_steps_eps, num_heads)
        self.adjoint: Adjoint = Implicit() if adjoint is None else adjoint
        if not isinstance(self.adjoint, Adjoint):
            raise TypeError(f"adjoint: expected a hamdeq.Adjoint, got {adjoint!r}")
        self.failures: Failures = Failures(on_failure, once=True)
        self.association_activation: Callable[[Tensor], Tensor] | None = (
            None
            if association_activation is None
            else elementwise("association_activation", association_activation)
        )

        factory = {"device": device, "dtype": dtype}
        self.association_core: HopfieldCore = HopfieldCore(
            sizes,
            lagrangian,
            beta=initial_beta(scaling, sizes),
            learnable=scaling_as_trainable or getattr(scaling, "requires_grad", False),
            dropout=float(dropout),
            bias=input_bias,
            bias_pattern=concat_bias_pattern,
            zero_pattern=add_zero_association,
            normalize=normalize_hopfield_space,
            affine=normalize_hopfield_space and normalize_hopfield_space_affine,
            eps=normalize_hopfield_space_eps,
            factory=factory,
        )

        stored_size, state_size, projection_size = sizes.inputs

        def norm(name: str, size: int | None, wanted: bool, affine: bool, eps: float) -> Any:
            return layer_norm(f"normalize_{name}", size, affine, eps, factory) if wanted else None

        self.norm_stored_pattern: nn.LayerNorm | None = norm(
            "stored_pattern",
            stored_size or sizes.stored or sizes.state,
            normalize_stored_pattern,
            normalize_stored_pattern_affine,
            normalize_stored_pattern_eps,
        )
        self.norm_state_pattern: nn.LayerNorm | None = norm(
            "state_pattern",
            state_size or sizes.state,
            normalize_state_pattern,
            normalize_state_pattern_affine,
            normalize_state_pattern_eps,
        )
        self.norm_pattern_projection: nn.LayerNorm | None = norm(
            "pattern_projection",
            projection_size or sizes.projection or sizes.state,
            normalize_pattern_projection,
            normalize_pattern_projection_affine,
            normalize_pattern_projection_eps,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew: weights from N(0, 0.02²), β as given."""
        core = self.association_core
        core.reset_parameters()
        core.reset_beta()
        norms = (self.norm_stored_pattern, self.norm_state_pattern, self.norm_pattern_projection)
        for norm in norms:
            if norm is not None:
                norm.reset_parameters()

    def extra_repr(self) -> str:
        sizes = self.association_core.sizes
        text = f"{sizes.state}, hidden_size={sizes.hidden}, num_heads={sizes.heads}"
        return f"{text}, update_steps_max={self._steps_max}"
