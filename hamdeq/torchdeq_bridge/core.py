"""torchdeq's engine on this library: ``get_deq(core="hamdeq")``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchdeq.core import register_deq
from torchdeq.solver.stat import SolverStat
from torchdeq.utils.config import DEQConfig

from hamdeq._checks import instance, require
from hamdeq.implicit import Implicit, Phantom, fixed_point
from hamdeq.solvers import Anderson, OnFailure, Solver
from hamdeq.solvers.state import norm
from hamdeq.torchdeq_bridge.registered import Observed, Registered, configured, refuse_absolute
from hamdeq.torchdeq_bridge.stock import TorchDEQSolver, lookup, refuse_unknown

__all__ = ["HamdeqCore"]


class HamdeqCore(nn.Module):
    """torchdeq's engine on this library: ``get_deq(core="hamdeq", …)``.

    Called as torchdeq's other cores, ``engine(func, z_init) -> ([z], info)``, it differs from them:
    the implicit gradient is the default, in evaluation mode too; samples are independent, and stop
    on their relative residual; unknown keys are refused; it can be pickled and copied.

    torchdeq's own command line (``add_deq_args``) passes its default stop mode ``'abs'``, which is
    refused here: give ``--f_stop_mode rel --b_stop_mode rel``. It passes its phantom gradient too,
    unless given ``--ift``.

    Args:
        args: torchdeq's configuration, left as it is (``get_deq`` itself writes keywords into it).
        **kwargs: the same keys, with precedence: ``f_solver``, ``b_solver`` (a Solver or a name
            registered in torchdeq; default ``Anderson()`` and the forward one), ``f_tol``,
            ``f_max_iter``, ``b_tol``, ``b_max_iter`` (default the solver's own), ``ift`` (default
            True unless the phantom gradient's ``grad`` or ``tau`` is given), ``eval_f_max_iter``,
            ``eval_factor``, and ``on_failure`` as in :func:`~hamdeq.fixed_point`.

    Raises:
        ValueError: an unknown or unsupported key, or absolute stopping.
    """

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        super().__init__()
        config = {**DEQConfig(args).config, **kwargs}
        own = [key for key in config if not key.startswith(_ELSEWHERE)]
        refuse_unknown("get_deq(core='hamdeq')", own, (*_KEYS, *_UNSUPPORTED))
        for key, neutral in _UNSUPPORTED.items():
            given = config.get(key, neutral)
            expected = f"{neutral!r}, as core='hamdeq' returns one state with one gradient"
            remedy = "use core='sliced' or 'indexing' for it"
            require(given in (neutral, None), key, expected, repr(given), remedy)
        for key in ("f_stop_mode", "b_stop_mode"):
            refuse_absolute(config.get(key, "rel"))
        self.f_solver: Solver = _chosen(config, "f", Anderson())
        self.b_solver: Solver = _chosen(config, "b", self.f_solver)
        steps = int(self.f_solver.max_steps * config.get("eval_factor", 1.0))
        self.eval_max_steps: int = config.get("eval_f_max_iter") or steps
        grad: Any = config.get("grad", 1)
        grad = grad[0] if isinstance(grad, list) and len(grad) == 1 else grad
        phantom = Phantom(grad, config.get("tau", 1.0))
        self.phantom: Phantom | None = (
            None if config.get("ift", not {"grad", "tau"} & config.keys()) else phantom
        )
        self.on_failure: OnFailure = config.get("on_failure", "warn")

    def forward(
        self,
        func: Callable[..., Any],
        z_init: Tensor | Sequence[Tensor],
        solver_kwargs: Mapping[str, Any] | None = None,
        sradius_mode: bool = False,
        backward_writer: Callable[[SolverStat], Any] | None = None,
    ) -> tuple[list[Any], SolverStat]:
        """The equilibrium of func, with its gradient.

        Args:
            func: the map; of several tensors, ``func(*z)`` returns as many.
            z_init: initial state, a tensor ``(batch, *shape)`` or several.
            solver_kwargs: options of the forward solver for this call, and ``f_max_iter``.
            sradius_mode: whether ``info["sradius"]`` is to be the Jacobian's spectral radius.
            backward_writer: called with the statistics of each backward pass.

        Returns:
            ``[z]``, and the statistics, with a :class:`~hamdeq.Status` a sample as ``"status"``.
        """
        options = dict(solver_kwargs or {})
        steps = self.f_solver.max_steps if self.training else self.eval_max_steps
        steps = int(options.pop("f_max_iter", steps))
        backward = self.b_solver
        if backward_writer is not None:
            backward = Observed(solver=backward, write=backward_writer)
        several = not isinstance(z_init, Tensor)
        f = (lambda z: tuple(func(*z))) if several else func
        log: list[SolverStat] = []
        solver = configured(self.f_solver, max_steps=steps, **options)
        solution = fixed_point(
            f,
            tuple(z_init) if several else z_init,
            solver=Observed(solver=solver, write=log.append),
            adjoint=self.phantom or Implicit(solver=backward),
            on_failure=self.on_failure,
        )
        if sradius_mode:
            log[0]["sradius"] = _spectral_radius(f, solution.value)
        return [list(solution.value) if several else solution.value], log[0]


_KEYS = (
    "core", "f_solver", "b_solver", "f_max_iter", "b_max_iter", "f_tol", "b_tol", "f_stop_mode",
    "b_stop_mode", "eval_factor", "eval_f_max_iter", "ift", "grad", "tau", "on_failure",
)  # fmt: skip
_UNSUPPORTED = {"hook_ift": False, "n_states": 1, "indexing": [], "sup_gap": -1, "sup_loc": []}
# Keys for other parts of torchdeq, which share the configuration.
_ELSEWHERE = ("norm_", "sn_", "jac_", "gamma", "dropout", "sradius_mode")


def _chosen(config: Mapping[str, Any], side: str, default: Solver) -> Solver:
    """The solver of one side, "f" or "b", with its tolerance and steps."""
    solver = config.get(f"{side}_solver", default)
    if isinstance(solver, str):
        found = lookup(solver)
        solver = found.solver if isinstance(found, Registered) else TorchDEQSolver(name=solver)
    instance(f"{side}_solver", solver, Solver, "a Solver or the name of one")
    keys = {"tol": f"{side}_tol", "max_steps": f"{side}_max_iter"}
    return configured(solver, **{ours: config[key] for ours, key in keys.items() if key in config})


def _spectral_radius(f: Callable[[Any], Any], z: Any, steps: int = 100) -> Tensor:
    """Growth of ‖vᵀJᵏ‖ a step, over the later half of the steps: ``(batch,)``.

    Unlike a quotient of successive vectors it is right for eigenvalues in pairs ±λ, as memories
    with two colours have them.
    """
    with torch.enable_grad():
        z = [z_a.detach().requires_grad_() for z_a in ([z] if isinstance(z, Tensor) else z)]
        out = f(z[0]) if len(z) == 1 else f(z)
    out = [out] if isinstance(out, Tensor) else list(out)
    v = [torch.randn_like(z_a) for z_a in z]
    growth = []
    for _ in range(steps):
        v = torch.autograd.grad(out, z, v, retain_graph=True, materialize_grads=True)
        growth.append(norm(torch.cat([v_a.flatten(1) for v_a in v], dim=1)))
        v = [v_a / growth[-1].reshape(-1, *[1] * (v_a.dim() - 1)) for v_a in v]
    return torch.stack(growth[steps // 2 :]).log().mean(0).exp()


register_deq("hamdeq", HamdeqCore)
