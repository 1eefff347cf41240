"""The parts of a Hopfield layer, made from its arguments."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq._checks import instance, number, wrong
from hamdeq.energy.ham import HAM
from hamdeq.energy.model import Neurons
from hamdeq.lagrangians import Identity, Separation, Softmax
from hamdeq.nn.projections import Sizes
from hamdeq.solvers import Picard, Solver
from hamdeq.synapses import Association

__all__ = [
    "initial_beta",
    "input_norms",
    "memory_layer",
    "memory_of_attention",
    "settling_solver",
]


def initial_beta(scaling: float | Tensor | None, sizes: Sizes) -> float | list[float]:
    """The inverse temperature β, for all heads or for each.

    Raises:
        ValueError: not one value, or one for each head; not finite; not > 0.
        TypeError: not a number.
    """
    if scaling is None:
        return 1.0 if sizes.bare else 1.0 / math.sqrt(sizes.hidden or 1)
    if not isinstance(scaling, Real | Tensor) or isinstance(scaling, bool):
        expected = "a number β > 0 or a tensor of one for each head"
        raise wrong("scaling", expected, repr(scaling), kind=TypeError)
    if isinstance(scaling, Tensor) and scaling.dim() == 0 and not scaling.is_meta:
        scaling = scaling.expand(sizes.heads)
    if isinstance(scaling, Tensor) and (scaling.is_meta or tuple(scaling.shape) != (sizes.heads,)):
        raise wrong(
            "scaling",
            f"one β for each of {sizes.heads} heads, shape ({sizes.heads},)",
            f"{tuple(scaling.shape)}{' without values' * scaling.is_meta}",
        )
    values = [*map(float, scaling.tolist())] if isinstance(scaling, Tensor) else [float(scaling)]
    if not all(math.isfinite(beta) and beta > 0 for beta in values):
        raise wrong(
            "scaling",
            "a finite inverse temperature β > 0",
            values,
            "a larger one retrieves more sharply, the default is 1/√hidden_size",
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
    expected = "a hamdeq.Separation, such as Softmax(), Sparsemax() or Entmax(1.5)"
    lagrangian = Softmax() if lagrangian is None else lagrangian
    lagrangian = instance("lagrangian", lagrangian, Separation, expected)
    if lagrangian.learnable or isinstance(lagrangian.beta, Tensor) or lagrangian.beta != 1:
        remedy = "give β as scaling, and scaling_as_trainable=True to have it trained"
        raise wrong("lagrangian", "beta 1", repr(lagrangian), remedy)
    if isinstance(beta, float) and not learnable:
        return lagrangian.at(beta)
    values = [beta] * heads if isinstance(beta, float) else beta
    return lagrangian.at(torch.tensor(values, **factory).reshape(heads, 1, 1), learnable=learnable)


Norm = tuple[bool, bool, float]
"""Settings of a layer norm: whether it is wanted, with scale and shift or not, and the ε."""


def input_norms(
    sizes: Sizes, stored: Norm, state: Norm, projection: Norm, factory: dict[str, Any]
) -> list[nn.LayerNorm | None]:
    """Layer norms of stored patterns, state patterns and pattern projections, if wanted.

    Raises:
        ValueError: the size of patterns that are to be normalised is not given.
    """
    defaults = (sizes.stored, None, sizes.projection)
    names = ("stored_pattern", "state_pattern", "pattern_projection")
    norms: list[nn.LayerNorm | None] = []
    for name, (wanted, affine, eps), size, default in zip(
        names, (stored, state, projection), sizes.inputs, defaults, strict=True
    ):
        size = size or default or sizes.state
        if wanted and size is None:
            expected, remedy = "the size of the patterns (input_size, or their own)", "give it, or "
            raise wrong(f"normalize_{name}", expected, None, f"{remedy}normalize_{name}=False")
        norm = nn.LayerNorm(size or 0, eps, affine, **factory) if wanted else None
        norms.append(norm)
    return norms


def memory_of_attention(sizes: Sizes, memories: Separation, stored: int, states: int) -> HAM:
    """The memory that a Hopfield layer eliminates: see :meth:`Hopfield.as_ham`.

    Raises:
        ValueError: the size of the association space is that of the data.
    """
    heads, size = sizes.heads, sizes.hidden
    if size is None:
        raise wrong("as_ham", "the size of the association space", None, "give hidden_size")
    return HAM(
        {
            "state": Neurons((heads, states, size), Identity()),
            "stored": Neurons((heads, stored, size), Identity()),
            "memories": Neurons((heads, states, stored), memories),
        },
        [(("state", "stored", "memories"), Association(heads, states, stored, size))],
    )


def settling_solver(solver: Solver | None, eps: float | Tensor, heads: int) -> Solver:
    """The solver of the converged mode; eps is its tolerance.

    Raises:
        ValueError: a tolerance that is not finite and > 0, or given twice.
        TypeError: not a Solver, or a tolerance that is no number.
    """
    name = "update_steps_eps"
    if isinstance(eps, Tensor) and tuple(eps.shape) not in ((), (heads,)):
        expected = f"one number, or one for each of {heads} heads"
        raise wrong(name, expected, f"shape {tuple(eps.shape)}")
    # One tolerance for all heads: the strictest of those given.
    eps = eps.min() if isinstance(eps, Tensor) else eps
    tol = number(name, eps, above=0, remedy="give a relative residual, such as 1e-4")
    default = Picard()
    if solver is None:
        return replace(default, tol=tol)
    instance("solver", solver, Solver, "a hamdeq.Solver such as Anderson()")
    if tol not in (default.tol, solver.tol):
        raise wrong(
            name,
            "the tolerance once",
            f"{tol} here and {solver.tol} in the solver",
            f"leave this one out, or write {type(solver).__name__}(tol={tol})",
        )
    return solver
