"""The parts of a Hopfield layer, made from its arguments."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq.lagrangians import Separation, Softmax
from hamdeq.nn.sizes import Sizes
from hamdeq.solvers import Picard, Solver

__all__ = ["initial_beta", "layer_norm", "memory_layer", "settling_solver"]


def initial_beta(scaling: float | Tensor | None, sizes: Sizes) -> float | list[float]:
    """The inverse temperature β, for all heads or for each.

    Raises:
        ValueError: not one value, or one for each head; not finite; not > 0.
        TypeError: not a number.
    """
    if scaling is None:
        return 1.0 if sizes.bare else 1.0 / math.sqrt(sizes.hidden or 1)
    if not isinstance(scaling, Real | Tensor) or isinstance(scaling, bool):
        raise TypeError(
            f"scaling: expected a number β > 0 or a tensor of one for each head, got {scaling!r}"
        )
    if isinstance(scaling, Tensor) and scaling.dim() == 0 and not scaling.is_meta:
        scaling = scaling.expand(sizes.heads)
    if isinstance(scaling, Tensor) and (scaling.is_meta or tuple(scaling.shape) != (sizes.heads,)):
        raise ValueError(
            f"scaling: expected one β for each of {sizes.heads} heads, shape ({sizes.heads},), "
            f"got {tuple(scaling.shape)}" + " without values" * scaling.is_meta
        )
    values = [*map(float, scaling.tolist())] if isinstance(scaling, Tensor) else [float(scaling)]
    if not all(math.isfinite(beta) and beta > 0 for beta in values):
        raise ValueError(
            f"scaling: expected a finite inverse temperature β > 0, got {values}; a larger one "
            "retrieves more sharply, the default is 1/√hidden_size"
        )
    return values if isinstance(scaling, Tensor) else values[0]


def memory_layer(
    lagrangian: Separation | None,
    beta: float | list[float],
    heads: int,
    learnable: bool,
    factory: dict[str, Any],
) -> Separation:
    """The Lagrangian of the memory layer: one β, or one for each head, ``(H, 1, 1)``.

    Raises:
        TypeError: not a Separation.
        ValueError: a Separation that brings its own β.
    """
    lagrangian = Softmax() if lagrangian is None else lagrangian
    if not isinstance(lagrangian, Separation):
        raise TypeError(
            "lagrangian: expected a hamdeq.Separation, such as Softmax(), Sparsemax() or "
            f"Entmax(1.5), got {lagrangian!r}"
        )
    if lagrangian.learnable or isinstance(lagrangian.beta, Tensor) or lagrangian.beta != 1:
        raise ValueError(
            f"lagrangian: expected beta 1, got {lagrangian!r}; give the inverse temperature as "
            "scaling, and scaling_as_trainable=True to have it trained"
        )
    if isinstance(beta, float) and not learnable:
        return lagrangian.at(beta)
    values = [beta] * heads if isinstance(beta, float) else beta
    return lagrangian.at(torch.tensor(values, **factory).reshape(heads, 1, 1), learnable=learnable)


def layer_norm(
    name: str, size: int | None, affine: bool, eps: float, factory: dict[str, Any]
) -> nn.LayerNorm:
    """Layer norm of one of the inputs.

    Raises:
        ValueError: its size is not known.
    """
    if size is None:
        raise ValueError(
            f"{name}: expected the size of the patterns (input_size, or their own), got None; "
            f"give it, or {name}=False"
        )
    return nn.LayerNorm(size, eps=eps, elementwise_affine=affine, **factory)


def settling_solver(solver: Solver | None, eps: float | Tensor, heads: int) -> Solver:
    """The solver of the converged mode; eps is its tolerance.

    Raises:
        ValueError: a tolerance that is not finite and > 0, or given twice.
        TypeError: not a Solver.
    """
    if isinstance(eps, Tensor) and tuple(eps.shape) not in ((), (heads,)):
        raise ValueError(
            f"update_steps_eps: expected one number, or one for each of {heads} heads, got shape "
            f"{tuple(eps.shape)}"
        )
    # One tolerance for all heads: the strictest of those given.
    tol = float(eps.min()) if isinstance(eps, Tensor) else eps
    if not (isinstance(tol, Real) and math.isfinite(tol) and tol > 0):
        raise ValueError(
            f"update_steps_eps: expected a finite relative residual > 0, such as 1e-4, got {eps!r}"
        )
    default = Picard()
    if solver is None:
        return replace(default, tol=tol)
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: expected a hamdeq.Solver such as Anderson(), got {solver!r}")
    if tol not in (default.tol, solver.tol):
        raise ValueError(
            f"update_steps_eps: expected the tolerance once, got {tol} here and {solver.tol} in "
            f"the solver; leave this one out, or write {type(solver).__name__}(tol={tol})"
        )
    return solver
