"""Gradient descent in which the rate is how far a row moves, however large its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hamdeq._checks import integer, number

__all__ = ["NormalisedSGD", "normalised"]


class NormalisedSGD(Optimizer):
    """Momentum, and for each row a step whose largest entry is the learning rate.

        V <- momentum · V + ∇,    w <- clamp(w − lr · V / max(max|V|, floor))

    with the maximum over all but the first axis: over the entries of one memory. Gradients of
    dense associative memories span hundreds of decades, and their direction alone is of use. A row
    of zeros stays where it is, and with a floor so does nearly a row whose gradient is far below.

    Args:
        params: parameters; a row is ``w[i]``, or a single number where w has one axis.
        lr: how far the entry with the largest gradient moves.
        momentum: 0 for none, less than 1.
        bound: entries are kept in [−bound, bound]; None for no bounds.
        free: the last so many entries of each row are not bound (class neurons).
        floor: least divisor, ≥ 0, in the units of V; 0 for none. Published code has 1e-30, of the
            gradient of a loss that is summed.

    Source: Krotov & Hopfield, "Dense Associative Memory for Pattern Recognition" (NIPS 2016),
    appendix A; the floor is in their code and that of McAlister et al. (2024), not in the papers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.0,
        bound: float | None = 1.0,
        free: int = 0,
        floor: float = 0.0,
    ) -> None:
        lr = number("lr", lr, least=0)
        momentum = number("momentum", momentum, least=0, below=1)
        if bound is not None:
            bound = number("bound", bound, above=0, remedy="None for no bounds")
        free = integer("free", free, least=0)
        floor = number("floor", floor, least=0)
        settings = {"lr": lr, "momentum": momentum, "bound": bound, "free": free, "floor": floor}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; of closure, if given, the loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._move(w, w.grad, group)
        return loss

    def _move(self, w: Tensor, v: Tensor, group: dict[str, Any]) -> None:
        if v.is_sparse:
            raise TypeError("expected a dense gradient, got a sparse one; use sparse=False")
        if group["momentum"]:
            state = self.state[w]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(w)
            v = state["velocity"].mul_(group["momentum"]).add_(v)
        w.sub_(group["lr"] * normalised(v, floor=group["floor"]))
        if group["bound"] is not None:
            bounded = w[..., : max(w.shape[-1] - group["free"], 0)] if w.dim() > 1 else w
            bounded.clamp_(-group["bound"], group["bound"])


def normalised(v: Tensor, axes: int = 1, *, floor: float = 0.0) -> Tensor:
    """Each row divided by its largest entry; zeros stay zero, and what is not finite not finite.

    Args:
        v: gradients, or what momentum made of them.
        axes: how many leading axes count rows, such as 2 of networks and their memories. If there
            are no others, every number is a row.
        floor: least divisor.
    """
    if v.numel() == 0:
        return v
    largest = v.abs()
    if v.dim() > axes:
        rest = tuple(range(axes, v.dim()))
        largest = largest.amax(rest, keepdim=True)
    if floor:
        largest = largest.clamp(min=floor)
    return torch.where(largest == 0, 0.0, v / largest)
