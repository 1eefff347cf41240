"""Checks of a Hopfield layer's inputs: patterns, masks, numbers of updates, activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hamdeq._checks import floating, whole, wrong
from hamdeq.elimination.cover import Cover, leaves_out
from hamdeq.nn.projections import Sizes
from hamdeq.solvers import Solution

__all__ = [
    "INTEGERS",
    "Group",
    "Input",
    "causal_mask",
    "combined_mask",
    "elementwise",
    "groups",
    "is_batched",
    "of_the_first",
    "patterns_of",
    "without_padding",
]

Input = Tensor | tuple[Tensor, Tensor, Tensor]
"""Stored patterns, state patterns and pattern projections, or one tensor for all three."""

_NAMES = ("stored patterns", "state patterns", "pattern projections")


def is_batched(input: Input) -> bool:
    """True if there is a batch axis."""
    return (input if isinstance(input, Tensor) else input[0]).dim() == 3


def of_the_first(result: Any) -> Any:
    """The result of the only sample, without a batch axis: a tensor, several, or a solution."""
    if isinstance(result, Tensor):
        return result[0]
    if not isinstance(result, Solution):
        return type(result)(*(x[0] for x in result))
    names = ("value", "residual", "steps", "converged", "status")
    first = {name: getattr(result, name)[0] for name in names}
    return replace(result, **first, trace=result.trace[:, 0])


def patterns_of(
    input: Input, sizes: Sizes, batch_first: bool, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Stored patterns, state patterns, pattern projections, and the number of samples N.

    The batch comes first; patterns that all samples share have one. One tensor stays one tensor, so
    that it is projected at once.

    Args:
        input: of the layer.
        sizes: of the layer.
        batch_first: whether the input's batch comes first.
        weight: one of the layer's, if there is any.

    Raises:
        TypeError: neither a tensor nor three of floating point, not dense, or of another dtype
            than the weight's.
        ValueError: a wrong number of axes; patterns whose numbers or sizes do not fit.
    """
    stored, state, projection = _batched(input, batch_first)
    samples = _check_patterns(sizes, stored, state, projection)
    dtype = state.dtype if weight is None else weight.dtype
    if state.dtype != dtype and not torch.is_autocast_enabled(state.device.type):
        remedy = f"convert it by .to({dtype}), or the layer"
        raise wrong("input", f"{dtype} as of the weights", state.dtype, remedy, kind=TypeError)
    return stored, state, projection, samples


def _batched(input: Input, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    three = (input,) * 3 if isinstance(input, Tensor) else tuple(input)
    if len(three) != 3 or not all(isinstance(x, Tensor) for x in three):
        raise wrong(
            "input",
            "a tensor, or three: (stored patterns, state patterns, pattern projections)",
            [type(x).__name__ for x in three],
            kind=TypeError,
        )
    for name, x in zip(_NAMES, three, strict=True):
        if x.is_nested:
            remedy = (
                "give torch.nested.to_padded_tensor(x, 0.0) with stored_pattern_padding_mask True "
                "where it pads"
            )
            raise wrong(name, "a dense tensor", "a nested one", remedy, kind=TypeError)
        if x.layout != torch.strided:
            got = f"a {x.layout} one"
            raise wrong(name, "a dense tensor", got, "give x.to_dense()", kind=TypeError)
    dims = {x.dim() for x in three}
    if len(dims) != 1 or not dims <= {2, 3}:
        raise wrong(
            "input",
            "tensors of three axes (batch, patterns, size), or all of two without the batch",
            f"shapes {[tuple(x.shape) for x in three]}",
        )
    for name, x in zip(_NAMES, three, strict=True):
        floating(name, x, "convert it by x.float()")

    def moved(x: Tensor) -> Tensor:
        return x[None] if x.dim() == 2 else x if batch_first else x.transpose(0, 1)

    # Compared by ``is``: an id() would tie a compiled graph to these very tensors.
    stored = moved(three[0])
    state, projection = (stored if x is three[0] else moved(x) for x in three[1:])
    return stored, state, projection


def _check_patterns(sizes: Sizes, stored: Tensor, state: Tensor, projection: Tensor) -> int:
    statics = (sizes.stored_static, sizes.state_static, sizes.projection_static)
    three = (stored, state, projection)
    for name, x, size, static in zip(_NAMES, three, sizes.inputs, statics, strict=True):
        if size is not None and x.shape[-1] != size:
            got = f"shape {tuple(x.shape)}"
            raise wrong(name, f"size {size} on the last axis", got, _STATIC if static else None)
    if sizes.state_static and sizes.stored_static and stored.shape[-1] != state.shape[-1]:
        raise wrong(
            "static patterns",
            "state and stored patterns of one size",
            f"{state.shape[-1]} and {stored.shape[-1]}",
        )
    batches = [x.shape[0] for x in three]  # len() is no symbol in an export
    several = [n for n in batches if n != 1]
    if any(n != several[0] for n in several):
        raise wrong(
            "input",
            "one batch size for all patterns",
            f"{batches[0]}, {batches[1]} and {batches[2]} for {', '.join(_NAMES)}",
        )
    if stored.shape[1] != projection.shape[1]:
        raise wrong(
            "pattern projections",
            f"one for each of the {stored.shape[1]} stored patterns",
            projection.shape[1],
        )
    return several[0] if several else 1


_STATIC = (
    "static patterns enter every head as they are, in its association space: give hidden_size (of "
    "pattern projections, pattern_size), or let them be projected"
)


def combined_mask(
    padding: Tensor | None,
    association: Tensor | None,
    shape: tuple[int, int, int, int],
    extra: int = 0,
) -> Cover | None:
    """The masks of a call as one that broadcasts over samples, heads and state patterns.

    Args:
        padding: ``(N, S)``, for each sample the stored patterns to leave out.
        association: ``(L, S)``, or ``(N·H, L, S)`` with the heads of a sample side by side.
        shape: N, H, L and S.
        extra: patterns appended by the layer itself, which always take part.

    Returns:
        masks that broadcast with ``(N, H, L, S + extra)``; None for none.

    Raises:
        TypeError: a mask that is neither boolean nor of floating point.
        ValueError: a mask of another shape.
    """
    batch, heads, states, stored = shape
    masks = []
    if padding is not None:
        _check_mask(padding, "stored_pattern_padding_mask", {"(N, S)": (batch, stored)})
        masks.append(padding[:, None, None, :])
    if association is not None:
        shapes = {"(L, S)": (states, stored), "(N·H, L, S)": (batch * heads, states, stored)}
        _check_mask(association, "association_mask", shapes)
        each = (batch, heads) if association.dim() == 3 else (1, 1)
        masks.append(association.reshape(*each, states, stored))
    return Cover(*masks, extra=extra) if masks else None


INTEGERS = (
    "where 1 means keep and 0 padding, as in the attention_mask of a tokenizer, give mask == 0; "
    "where 1 means leave out, give mask.bool()"
)


def _check_mask(mask: Tensor, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    if not isinstance(mask, Tensor):
        raise wrong(name, "a tensor", type(mask).__name__, kind=TypeError)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise wrong(
            name,
            "a boolean mask, True to leave a pattern out, or one of floating point that is added "
            "to the similarities",
            mask.dtype,
            INTEGERS,
            kind=TypeError,
        )
    if tuple(mask.shape) not in shapes.values():
        expected = " or ".join(f"{label} = {shape}" for label, shape in shapes.items())
        raise wrong(name, f"shape {expected}", tuple(mask.shape))


def causal_mask(size: int, device: torch.device) -> Tensor:
    """True where a stored pattern comes after the state pattern: ``(size, size)``."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


def without_padding(
    padding: Tensor, stored: Tensor, projection: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The patterns, with zeros for padding that is not finite: zero times that would be NaN.

    State patterns are left as they are, unless they are the stored ones; one tensor stays one.
    """
    left_out = leaves_out(padding)
    clean, lost = _filled(stored, left_out)
    read, lost_too = (clean, None) if projection is stored else _filled(projection, left_out)
    state = clean if state is stored else state
    for rows in (lost, lost_too):
        if rows is not None:
            state = torch.where(rows[:, None, None], torch.nan, state)
    return clean, read, state


def _filled(x: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Zeros for padding that is not finite; and the samples for which it is no padding.

    These exist only of patterns that all samples share, where the mask differs.
    """
    finite = x.isfinite()
    if x.shape[0] == left_out.shape[0]:
        return x.masked_fill(left_out[..., None] & ~finite, 0.0), None
    lost = (~finite.all(-1) & ~left_out).any(1)
    return x.masked_fill(left_out.any(0)[:, None] & ~finite, 0.0), lost


Group = tuple[tuple[int, ...], int | None]
"""Heads, and the number of updates of their state patterns; None for updates to convergence."""


def groups(steps: int | Sequence[int] | Tensor | None, heads: int) -> list[Group]:
    """The heads by their number of updates; None and negative numbers mean to convergence.

    Raises:
        TypeError: not integers.
        ValueError: not one number for each head.
    """
    name, given = "update_steps_max", steps
    if isinstance(steps, Tensor):
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise wrong(name, "integers", steps.dtype, kind=TypeError)
        steps = steps.tolist()
    if steps is None or whole(steps) is not None:
        return [(tuple(range(heads)), _count(steps))]
    each = None if isinstance(steps, str) or not isinstance(steps, Iterable) else [*steps]
    if each is None or not all(n is None or whole(n) is not None for n in each):
        expected = "an integer, None to update until convergence, or one integer for each head"
        raise wrong(name, expected, repr(given), kind=TypeError)
    if len(each) != heads:
        raise wrong(name, f"one integer for each of {heads} heads", len(each))
    counts = [_count(n) for n in each]
    return [
        (tuple(head for head, n in enumerate(counts) if n == count), count)
        for count in dict.fromkeys(counts)
    ]


def _count(steps: Any) -> int | None:
    return None if steps is None or steps < 0 else int(steps)


_COMMON = "relu, gelu, tanh, sigmoid, selu, celu, silu, softplus"


def elementwise(name: str, given: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of this name in :mod:`torch` or :mod:`torch.nn.functional`, or the one given.

    Raises:
        ValueError: there is none, or it is not elementwise.
        TypeError: neither a name nor a function.
    """
    if callable(given):
        return given
    if not isinstance(given, str):
        raise wrong(name, "a name or a function", type(given).__name__, kind=TypeError)
    function: Any = getattr(torch, given, None) or getattr(F, given, None)
    if isinstance(function, type | None) or not _is_elementwise(function):
        expected = "the name of an elementwise function of torch or torch.nn.functional, such as "
        raise wrong(name, expected + _COMMON, repr(given))
    return function


def _is_elementwise(function: Callable[[Tensor], Any]) -> bool:
    """True if each number of a tensor is mapped by itself, and not all to the same."""
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        x = torch.tensor([[0.5, 0.25, 0.75], [0.125, 0.625, 0.375]], device="cpu")
        x.requires_grad_()
        # A function that warns of a tensor alone wants more, an axis for instance.
        warnings.simplefilter("error")
        try:
            y = function(x)
            alone = torch.cat([function(entry[None, None]) for entry in x.flatten()])
        except Exception:  # whatever the functions of torch raise, those in place for one
            return False
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return False
    # y lacks a gradient where a function cuts the graph.
    distinct = y.requires_grad and len(y.unique()) > 1
    return distinct and torch.allclose(y, alone.reshape(y.shape), equal_nan=True)
