"""The change of variables ς(s) = s/ρ′(s): whether it has an inverse, and what the inverse is.

ς grows exponentially where ρ saturates, so that everything here is about ln|ς| as a function of
ln|s|, which is tame: for a sigmoid it goes from a straight line to an exponential. It has no
closed inverse: for ρ = sigmoid(βs) the equation is β u = 4 s cosh²(βs/2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hamdeq.lagrangians.base import Lagrangian, gradient, total

__all__ = ["InverseTable", "check_elementwise", "log_slope"]

# Where ς is looked at: |s| from 1e-9 to 1e9 in steps of 0.2 %. Outside of that range ln|ς| is
# continued as a straight line, which it is for every ρ with a slope at zero, or with a power law
# at infinity.
_LOWEST, _HIGHEST, _STEP = 1e-9, 1e9, 0.002
# Size of the cells of ln|u| in the table.
_CELL = 0.05
# ln of the largest float64: beyond it, no u can lie.
_TOP = math.log(torch.finfo(torch.float64).max)
# A doubling of s, at the end of the range, must add this to ln|ς|. It does not where ρ grows like
# s|s|, and ς towards a limit.
_GROWTH = 0.01
# Of ln|ς|, whose size is below 1000.
_ROUNDING = 1e-12
# Newton's method squares its error: after a step as small as this nothing is left to do.
_LAST_STEP = {torch.float64: 1e-9, torch.float32: 3e-5}
_MOST_STEPS = 12


def log_slope(rho: Lagrangian, x: Tensor) -> tuple[Tensor, Tensor]:
    """ln ρ′(x) and its derivative ρ″/ρ′, elementwise: in closed form if ρ has one."""
    if hasattr(rho, "log_slope"):
        return rho.log_slope(x)  # pyright: ignore[reportCallIssue]
    parameters = tuple(rho.parameters())

    def log(x: Tensor) -> Tensor:
        return gradient(lambda x: total(rho.activation(x)), x, parameters).log()

    return log(x), gradient(lambda x: total(log(x)), x, parameters)


class InverseTable:
    """ς of one ρ, tabulated: a table of ln|ς| against ln|s| on either side of zero.

    Args:
        rho: a Lagrangian whose activation is ρ, elementwise.

    Raises:
        ValueError: ρ′ is not positive, or ς does not increase from −∞ to ∞.
    """

    def __init__(self, rho: Lagrangian) -> None:
        self._of = [p.detach().clone() for p in rho.parameters()]
        device = self._of[0].device if self._of else torch.device("cpu")
        log_s = torch.arange(
            math.log(_LOWEST), math.log(_HIGHEST), _STEP, dtype=torch.float64, device=device
        )
        sides = [_log_u(rho, sign, log_s) for sign in (1.0, -1.0)]
        # Equal cells of ln|u| for either sign, in each of which ln|s| is taken for linear: a cell
        # is then found without a search, which would take longer than all the rest.
        self._least = min(float(side[0]) for side in sides)
        self._count = math.ceil((max(float(side[-1]) for side in sides) - self._least) / _CELL)
        nodes = self._least + _CELL * torch.arange(self._count + 1, device=device).double()
        values = torch.stack([_interpolated(nodes, side, log_s) for side in sides])
        gain = values.diff(dim=1) / _CELL
        self._cells = torch.stack([values[:, :-1] - gain * nodes[:-1], gain]).flatten(1)
        self._cast = self._cells
        self._steps = self._needed(rho, sides)

    def holds_for(self, rho: Lagrangian) -> bool:
        """Return whether the parameters are those of the table."""
        return all(
            p.dtype == q.dtype and p.device == q.device and torch.equal(p, q)
            for p, q in zip(self._of, rho.parameters(), strict=True)
        )

    def solve(self, rho: Lagrangian, u: Tensor) -> Tensor:
        """s = ς⁻¹(u) to rounding, elementwise; of infinities that of the largest number.

        Every element takes the same few steps, whatever else is in the batch.
        """
        steps = self._steps[u.dtype]
        size, sign, s = self._start(u)
        for _ in range(steps):
            s, _ = _newton(rho, s, sign, size)
        # One of the sign of u, or what was cut off below: there s is proportional to u.
        return s * (u / size).clamp(-1.0, 1.0)

    def _start(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """|u|, its sign, and |s| from the table."""
        limits = torch.finfo(u.dtype)
        # Below, s might come out as zero, and be divided by.
        size, sign = u.abs().clamp(limits.smallest_normal / limits.eps, limits.max), u.sign()
        log_u = size.log()
        cell = ((log_u - self._least) / _CELL).long().clamp(0, self._count - 1)
        cell = (cell + (u < 0) * self._count).flatten()
        offset, gain = (part.index_select(0, cell).view(u.shape) for part in self._of_kind(u))
        return size, sign, torch.exp(offset + gain * log_u)

    def _of_kind(self, u: Tensor) -> Tensor:
        """The table in the dtype and on the device of u."""
        if self._cast.dtype != u.dtype or self._cast.device != u.device:
            self._cast = self._cells.to(u)
        return self._cast

    @torch.no_grad()
    def _needed(self, rho: Lagrangian, sides: list[Tensor]) -> dict[torch.dtype, int]:
        """Return the number of Newton steps needed from the table, tried between its nodes."""
        u = torch.cat([sides[0].exp(), -sides[1].exp()])
        size, sign, s = self._start(u)
        needed: dict[torch.dtype, int] = {}
        for step in range(1, _MOST_STEPS + 1):
            s, change = _newton(rho, s, sign, size)
            last = float(change.abs().max())
            for dtype in (dtype for dtype, tol in _LAST_STEP.items() if last <= tol):
                needed.setdefault(dtype, step)
            if len(needed) == len(_LAST_STEP):
                return needed
        raise ValueError(
            f"rho: ς(s) = s/ρ′(s) of {rho} increases too little somewhere to be inverted; {_REMEDY}"
        )


def check_elementwise(rho: Lagrangian) -> None:
    """Refuse a Lagrangian whose activation of a neuron depends on the others.

    Raises:
        ValueError: so it is; the message says how that was seen.
    """
    parameter = next(rho.parameters(), None)
    device = None if parameter is None else parameter.device
    x = torch.tensor([[-0.6, 0.1, 0.4, 1.1]], dtype=torch.float64, device=device)
    with torch.no_grad():
        together = rho.activation(x)
        alone = torch.cat([rho.activation(x[:, i : i + 1]) for i in range(x.shape[1])], dim=1)
    if not torch.allclose(together, alone, rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"rho: expected an elementwise activation, got {rho}, which gives "
            f"{together[0, -1].item():.3g} to a neuron of state {x[0, -1].item():g} beside three "
            f"others and {alone[0, -1].item():.3g} to it alone; {_REMEDY}"
        )


_REMEDY = (
    "expected neurons such as Sigmoid(beta, center) with |beta·center| < 3, Tanh(beta) or "
    "Identity(); a HAM takes any Lagrangian as it is"
)


@torch.no_grad()
def _log_u(rho: Lagrangian, sign: float, log_s: Tensor) -> Tensor:
    """ln|ς(s)| on one side of zero, up to where ς leaves the range of float64."""
    s = sign * log_s.exp()
    log, _ = log_slope(rho, s)
    log_u = log_s - log
    out = ~(log_u < _TOP)
    end = int(out.nonzero()[0]) if bool(out.any()) else len(log_u)
    falls = log_u[:end].diff() < -_ROUNDING
    if bool(falls.any()):
        at = s[int(falls.nonzero()[0])].item()
        raise ValueError(
            f"rho: ς(s) = s/ρ′(s) of {rho} does not increase at s = {at:.4g}: different states s "
            f"would have the same u = ς(s); {_REMEDY}" + _hint(rho)
        )
    # A slope that underflows has taken ς to the end of its range before; one that is zero has not.
    if end < len(log_u) and (end < 2 or log_u[end - 1] < 0.8 * _TOP):
        at, slope = s[end].item(), log[end].exp().item()
        raise ValueError(
            f"rho: expected ρ′(s) > 0 everywhere, got {slope:.3g} at s = {at:.4g} of {rho}, "
            f"where s/ρ′(s) has no finite value; {_REMEDY}" + _hint(rho) * bool(end)
        )
    doubling = round(math.log(2.0) / _STEP)
    if end == len(log_u) and log_u[-1] - log_u[-1 - doubling] < _GROWTH:
        raise ValueError(
            f"rho: ς(s) = s/ρ′(s) of {rho} goes to {sign * log_u[-1].exp().item():.4g}, not to "
            f"infinity: a larger field would have no state; {_REMEDY}"
        )
    return log_u[:end]


def _interpolated(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """y(x) of a piecewise linear function through (xs, ys), its ends continued."""
    i = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    return ys[i - 1] + (x - xs[i - 1]) * (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])


def _hint(rho: Lagrangian) -> str:
    if hasattr(rho, "log_slope"):
        return ""
    return "; if ρ′ is only lost to rounding there, give it a method log_slope(x) in closed form"


def _newton(rho: Lagrangian, s: Tensor, sign: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """A step for ln|s| − ln ρ′(s) = ln|u| in ln|s|, given |s|, the sign and |u|; and its length."""
    log, slope = log_slope(rho, s * sign)
    # The logarithm of a ratio near one, as the difference of two large ones would lose digits; its
    # factors in an order, and by halves, in which none of them leaves the range of the dtype.
    half = torch.exp(0.5 * log)
    change = torch.log(size * half / s * half) / (1.0 - s * sign * slope)
    # As good as the exponential for the small steps that come here, and positive for all.
    return s * (1.0 + change * (1.0 + 0.5 * change)), change
