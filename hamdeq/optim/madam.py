"""Madam: multiplicative weight updates, for weights that keep their sign."""

# torch._foreach_* is documented, but not exported.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hamdeq._checks import number, wrong
from hamdeq._compile import graph_of

__all__ = ["Madam"]


class Madam(Optimizer):
    r"""Multiplicative Adam: each step changes every weight by a bounded *fraction* of itself.

    .. math::
        v &\leftarrow \rho v + (1 - \rho) g^2, \qquad \hat v = v / (1 - \rho^t) \\
        w &\leftarrow w \exp\bigl(-\mathrm{lr}\, \operatorname{sign}(w)\,
             \operatorname{clamp}(g / \sqrt{\hat v}, \pm g_{bound})\bigr) \\
        |w| &\leftarrow \min(|w|,\ p_{scale} \cdot \mathrm{RMS}(w_0))

    A weight never changes sign, and one that is zero stays zero. A tensor that starts at zero
    everywhere can therefore never train and is refused at the first step (not earlier: its value
    may still come from a checkpoint). Give a parameter that has to cross zero to another optimiser.

    The state of a parameter is ``step``, ``exp_avg_sq`` (v, at least float32) and ``bound`` (the
    right-hand side of the third line, taken once, before the first update); all three travel
    through ``state_dict``, so that a resumed run continues bit for bit.

    A NaN or infinite gradient raises on the CPU before any weight has changed. On other devices
    looking would wait for the device in every step, so there it turns its weight into NaN (the
    clamp does not hide it) and shows in the next loss; to raise instead, call
    ``torch.nn.utils.clip_grad_norm_(params, max_norm, error_if_nonfinite=True)`` before the step.

    A gradient below 3e-18 in float32 (5e-153 in float64) gradually counts as zero. A bfloat16
    weight has 8 significant bits: a change by less than 0.2 to 0.4 % is rounded away.

    Source: Bernstein et al., "Learning compositional functions via multiplicative weight
    updates", NeurIPS 2020.

    Args:
        params: parameters, named parameters or parameter groups, as for every torch optimiser.
        lr: relative change of a weight in one step where its gradient has its usual size: 0.01 is
            1 %. A tensor should live on the CPU: it is read as a number in each step.
        p_scale: bound on the weights, in units of the tensor's initial root mean square.
        g_bound: bound on the normalised gradient; one step changes log|w| by at most lr·g_bound.
        decay: decay ρ of the running mean of squared gradients.
        compiled: whether the rule runs as one kernel, compiled by :func:`torch.compile`. The first
            step takes some seconds, and a C++ compiler, without which a warning says so and the
            rule runs operation by operation. No part of a state dict.

    Raises:
        ValueError: at construction, for a hyperparameter out of range; at a step, for a tensor
            without a nonzero finite initial size, or (on the CPU) for a non-finite gradient.
        TypeError: for a parameter that is no real floating-point tensor, or a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        *,
        p_scale: float = 1024.0,
        g_bound: float = 10.0,
        decay: float = 0.999,
        compiled: bool = False,
    ) -> None:
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.compiled: bool = compiled
        defaults = {"lr": lr, "p_scale": p_scale, "g_bound": g_bound, "decay": decay}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._scratch = {}  # pickle and deepcopy leave it behind: it holds nothing between steps
        self.compiled = self.__dict__.get("compiled", False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group after checking its hyperparameters and dtypes."""
        _check_hyperparameters({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                self.param_groups.pop()
                raise TypeError(
                    f"Madam: expected real floating-point parameters, got {p.dtype} of shape "
                    f"{tuple(p.shape)}; for a complex parameter, optimise its real and imaginary "
                    f"parts as two parameters"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state, with the second moments in the precision they were saved in."""
        super().load_state_dict(state_dict)
        # The base class casts state to the parameter's dtype. In bfloat16 v would lose 16 bits
        # and, worse, stop moving: (1 - decay)·v is less than half its last digit.
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved_ids, params, strict=True):
            dtype = _compute_dtype(p)
            if dtype != p.dtype and i in state_dict["state"]:
                v = state_dict["state"][i]["exp_avg_sq"]
                self.state[p]["exp_avg_sq"] = v.to(p.device, dtype, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # All checks come before the first update: after an error every weight is as it was.
        active = [
            [p for p in group["params"] if p.grad is not None and p.numel()]
            for group in self.param_groups
        ]
        for group, params in zip(self.param_groups, active, strict=True):
            for p in params:
                _check_gradient(p.grad)
                if not self.state.get(p):
                    bound = group["p_scale"] * _initial_rms(p)
                    v = torch.zeros_like(p, dtype=_compute_dtype(p))
                    self.state[p].update(step=0, exp_avg_sq=v, bound=bound)
        for group, params in zip(self.param_groups, active, strict=True):
            for p in params:
                self.state[p]["step"] += 1
            for bucket in self._buckets(params):
                self._update_bucket(bucket, group)
        return loss

    def _buckets(self, params: list[Tensor]) -> Iterator[list[Tensor]]:
        """Large tensors one by one, small ones of the same device, dtype and step together."""
        together: dict[Any, list[Tensor]] = {}
        for p in params:
            if p.numel() >= _sizes(p.device)[0]:
                yield [p]
                continue
            key = (p.device, p.dtype, self.state[p]["step"])
            bucket = together.setdefault(key, [])
            bucket.append(p)
            if len(bucket) == 64:  # bounds the memory for the copies
                yield together.pop(key)
        yield from together.values()

    def _update_bucket(self, params: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        moments = [state["exp_avg_sq"] for state in states]
        bounds = [state["bound"] for state in states]
        dtype = _compute_dtype(params[0])
        if len(params) == 1 and all(
            t.is_contiguous() and t.dtype == dtype for t in (*params, *grads, *moments)
        ):
            w, g, v = (t.detach().view(-1) for t in (*params, *grads, *moments))
            self._update_flat(w, g, v, bounds[0], states[0]["step"], group)
            return
        # Anything else (small, strided, half precision) goes through flat copies.
        shape, counts = (3, sum(p.numel() for p in params)), [p.numel() for p in params]
        w, g, v = torch.empty(shape, dtype=dtype, device=params[0].device)
        views = [
            [part.view_as(p) for part, p in zip(flat.split(counts), params, strict=True)]
            for flat in (w, g, v)
        ]
        torch._foreach_copy_(views[0] + views[1] + views[2], params + grads + moments)
        self._update_flat(w, g, v, math.inf, states[0]["step"], group)
        torch._foreach_clamp_max_(views[0], bounds)
        torch._foreach_clamp_min_(views[0], [-bound for bound in bounds])
        torch._foreach_copy_(params + moments, views[0] + views[2])

    def _update_flat(
        self, w: Tensor, g: Tensor, v: Tensor, bound: float, step: int, group: dict[str, Any]
    ) -> None:
        """The rule of :class:`Madam`, in place on w and v, tensors of one dimension."""
        lr, g_bound, decay = float(group["lr"]), group["g_bound"], group["decay"]
        # The floor keeps 0/√0 from being NaN. It is added to g², not to v, because there it costs
        # no pass of its own; (1 - decay)·floor is the smallest normal number, so it only replaces
        # what would be a subnormal and imprecise (and, on many CPUs, slow) v anyway.
        floor = w.new_full((), torch.finfo(w.dtype).tiny / (1 - decay))
        zero = w.new_zeros(())
        # −lr and the bias correction √(1 − decayᵗ) of 1/√v̂ in one.
        scale, most = -lr * math.sqrt(1 - decay**step), lr * g_bound
        if self.compiled:
            for tensor in (w, g, v):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # one program for tensors of any size
            numbers = w.new_tensor([scale, most, bound])
            remedy = "Madam goes on operation by operation; install a C++ compiler"
            if graph_of(self, (w.dtype, w.device), _rule, remedy)(w, g, v, numbers, decay):
                return
        size = min(_sizes(w.device)[1], w.numel())
        key = (w.device, w.dtype)
        if key not in self._scratch or self._scratch[key].shape[1] < size:
            # Kept between steps: fresh pages from the system cost more than the arithmetic.
            self._scratch[key] = torch.empty((2, size), dtype=w.dtype, device=w.device)
        for w_i, g_i, v_i in zip(w.split(size), g.split(size), v.split(size), strict=True):
            s, t = self._scratch[key][:, : w_i.numel()].unbind()
            v_i.lerp_(torch.addcmul(floor, g_i, g_i, out=s), 1 - decay)
            # A square root and a division take less time than rsqrt, and round less.
            torch.addcdiv(zero, g_i, torch.sqrt(v_i, out=s), value=scale, out=s)
            s.mul_(torch.sign(w_i, out=t)).clamp_(-most, most)
            w_i.mul_(s.exp_()).clamp_(-bound, bound)


def _rule(w: Tensor, g: Tensor, v: Tensor, numbers: Tensor, decay: float) -> bool:
    """The loop of :meth:`Madam._update_flat` as one function, for the compiler."""
    scale, most, bound = numbers.unbind()
    moment = v + (g * g + torch.finfo(w.dtype).tiny / (1 - decay) - v) * (1 - decay)
    change = torch.maximum(torch.minimum(scale * g / moment.sqrt(), most), -most)
    moved = w * torch.exp(change * torch.sign(w))
    w.copy_(torch.maximum(torch.minimum(moved, bound), -bound))
    v.copy_(moment)
    return True


def _compute_dtype(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def _initial_rms(p: Tensor) -> float:
    rms = torch.linalg.vector_norm(p, dtype=_compute_dtype(p)).item() / math.sqrt(p.numel())
    if not 0.0 < rms < math.inf:
        raise ValueError(
            f"Madam: expected a tensor with finite entries, not all zero, got root mean square "
            f"{rms} in a parameter of shape {tuple(p.shape)}. A multiplicative update never moves "
            f"a zero: initialise it away from zero, e.g. torch.nn.init.normal_(p, std=0.01), or "
            f"give it to another optimiser (do that too if it has to change its sign)"
        )
    return rms


def _check_gradient(g: Tensor) -> None:
    if g.layout != torch.strided:
        raise TypeError(
            f"Madam: expected dense gradients, got layout {g.layout} of shape {tuple(g.shape)}; "
            f"use sparse=False in the embedding, or torch.optim.SparseAdam for it"
        )
    # The norm overflows when a square does, so this also covers finite but useless gradients.
    if g.device.type == "cpu":
        if g.is_contiguous() and g.dtype == _compute_dtype(g):
            norm = math.sqrt(torch.dot(g.view(-1), g.view(-1)).item())  # in half the time
        else:
            norm = torch.linalg.vector_norm(g, dtype=_compute_dtype(g)).item()
        if not math.isfinite(norm):
            raise ValueError(
                f"Madam: expected a finite gradient, got norm {norm} in shape {tuple(g.shape)}; no "
                f"weight has been changed. Look for the operation with "
                f"torch.autograd.set_detect_anomaly(True), or lower lr"
            )


def _check_hyperparameters(group: dict[str, Any]) -> None:
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        got, remedy = f"shape {tuple(lr.shape)}", "use one parameter group per learning rate"
        raise wrong("lr", "a number or a tensor with one element", got, remedy)
    number("lr", lr, least=0, remedy="0.01 is a good first value")
    for name, usual in (("p_scale", 1024), ("g_bound", 10)):
        number(name, group[name], above=0, remedy=f"{usual} is usual")
    number("decay", group["decay"], least=0, below=1, remedy="0.999 is usual")


def _sizes(device: torch.device) -> tuple[int, int]:
    """Elements below which tensors are updated together, and elements in one block of a large one.

    A call costs as much as the arithmetic on some 10⁴ elements on a CPU and 10⁵ to 10⁶ on a GPU.
    The passes over one block should find it in the cache: 2¹⁹ floats in five arrays are 10 MB, a
    share of the L3. Blocks that fit the L2 lose more to calls than they gain.
    """
    return (2**14, 2**16) if device.type == "cpu" else (2**18, 2**22)
