"""The bridge to torchdeq, in both directions.

- Our solvers serve torchdeq's users by name: ``hamdeq_picard``, ``hamdeq_anderson`` and
  ``hamdeq_broyden`` are registered on import, others with :func:`register`.
- torchdeq's solvers serve here: :class:`TorchDEQSolver`.
- ``get_deq(core="hamdeq")`` gives torchdeq's users this library's equilibria and gradients behind
  the call that they know: :class:`HamdeqCore`.

Source: Geng & Kolter, "TorchDEQ: A Library for Deep Equilibrium Models" (2023).
"""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq.implicit import Implicit, OnFailure, Phantom, fixed_point
from hamdeq.solvers import Anderson, Broyden, Method, Picard, Solution, Solver, Status
from hamdeq.solvers.base import norm, relative_residual

with warnings.catch_warnings():
    # torchdeq's docstrings have invalid escapes, of which Python warns when it compiles them.
    warnings.simplefilter("ignore")
    from torchdeq.core import register_deq
    from torchdeq.solver import get_solver, register_solver
    from torchdeq.solver.stat import SolverStat
    from torchdeq.utils.config import DEQConfig

__all__ = ["HamdeqCore", "TorchDEQSolver", "register"]

_STOCK = ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter")
_OURS = {"hamdeq_picard": Picard(), "hamdeq_anderson": Anderson(), "hamdeq_broyden": Broyden()}


def register(name: str, solver: Solver) -> None:
    """Give torchdeq a configured solver under a name, for its ``f_solver`` and ``b_solver``.

    The only way to options for torchdeq's backward solver: ``register("mine", Anderson(memory=8))``
    and ``get_deq(ift=True, b_solver="mine", b_stop_mode="rel")``. Tolerance and steps are
    torchdeq's own keys, ``f_tol``, ``f_max_iter``, ``b_tol`` and ``b_max_iter``.

    Raises:
        TypeError: not a Solver.
        ValueError: a name of torchdeq's own, or a ``tol`` or ``max_steps`` that it would override.
    """
    if not isinstance(solver, Solver):
        kind = type(solver).__name__
        raise TypeError(f"solver: expected a Solver such as Anderson(memory=8), got {kind}")
    if name in _STOCK:
        raise ValueError(f"name: expected another than torchdeq's own {_STOCK}, got {name!r}")
    if (solver.tol, solver.max_steps) != (Solver.tol, Solver.max_steps):
        raise ValueError(
            f"solver: expected the default tol and max_steps, got {solver.tol}, {solver.max_steps},"
            " which torchdeq would override; give it f_tol and f_max_iter, b_tol and b_max_iter"
        )
    register_solver(name, _Registered(solver))


@dataclass(frozen=True)
class _Registered:
    """A solver with the signature that torchdeq calls."""

    solver: Solver

    def __call__(
        self,
        func: Callable[[Tensor], Tensor],
        x0: Tensor,
        max_iter: float = 50,
        tol: float = 1e-3,
        stop_mode: str = "rel",
        indexing: Sequence[float] | None = None,
        **options: Any,
    ) -> tuple[Tensor, list[Tensor], SolverStat]:
        _refuse_absolute(stop_mode)
        solver = _configured(self.solver, tol=tol, max_steps=int(max_iter), **options)
        x = x0.flatten(1) if x0.dim() > 1 else x0.reshape(-1, 1)

        def f(x: Tensor) -> Tensor:
            return func(x.reshape(x0.shape)).reshape(x.shape)

        def state(step: float) -> Tensor:
            if step >= solution.n_evals:
                return solution.value.reshape(x0.shape)
            return replace(solver, max_steps=int(step)).solve(f, x).value.reshape(x0.shape)

        log: list[SolverStat] = []
        solution = _Observed(solver=solver, write=log.append).solve(f, x)
        # One state for each entry, reached or not: torchdeq pairs them with its gradients, and
        # drops the last, which is the implicit one, when there are fewer.
        return solution.value.reshape(x0.shape), [state(step) for step in indexing or ()], log[0]


@dataclass(frozen=True, kw_only=True)
class _Observed(Solver):
    """A solver that also hands its statistics, in torchdeq's form, to ``write``."""

    solver: Solver
    write: Callable[[SolverStat], Any]

    def start(self, x0: Tensor) -> Method:
        return self.solver.start(x0)

    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        sizes: list[Tensor] = []

        def measured(x: Tensor) -> Tensor:
            fx = f(x)
            sizes.append(norm(fx - x))
            return fx

        solution = self.solver.solve(measured, x0)
        # A column before the first evaluation, for states of which the residual is not known.
        unknown = solution.residual.new_full((len(x0),), math.inf)
        absolute = torch.stack([unknown, *sizes], dim=1)
        relative = torch.stack([unknown, *solution.trace], dim=1)
        nstep = (relative == solution.residual[:, None]).int().argmax(dim=1, keepdim=True)
        self.write(
            SolverStat(
                abs_lowest=absolute.gather(1, nstep)[:, 0],
                rel_lowest=solution.residual,
                abs_trace=absolute[:, 1:],
                rel_trace=relative[:, 1:],
                nstep=nstep[:, 0].to(x0.dtype),
                status=solution.status,
            )
        )
        return solution


@dataclass(frozen=True, kw_only=True)
class TorchDEQSolver(Solver):
    """One of torchdeq's solvers. **Its results depend on the batch**: it stops on the worst sample.

    The residual is measured once more, at the state returned. A sample that becomes infinite or
    not a number, or has a singular linear system, keeps its initial state and is ``DIVERGED``.

    Args:
        name: its name in torchdeq, such as ``"anderson"`` or ``"broyden"``.
        options: the solver's own, such as ``{"m": 6, "lam": 1e-8}``.
        tol: relative residual to reach.
        max_steps: torchdeq's ``max_iter``; one more evaluation of f measures the residual.

    Raises:
        ValueError: an unknown name or option, or fewer than three steps of Anderson.
    """

    name: str = "anderson"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", dict(self.options))
        reserved = {"func", "x0", "max_iter", "tol", "stop_mode", "indexing"}
        known = {
            name
            for name, parameter in inspect.signature(_lookup(self.name)).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD and name not in reserved
        }
        _refuse_unknown(f"options of {self.name!r}", self.options, known)
        if self.name == "anderson" and self.max_steps <= 2:
            raise ValueError(
                "max_steps: torchdeq's Anderson returns its initial state after 2 steps or fewer, "
                f"got {self.max_steps}; use max_steps ≥ 3 or hamdeq.Anderson"
            )

    def start(self, x0: Tensor) -> Method:
        raise TypeError("torchdeq's solvers have no single steps; call solve")

    @torch.no_grad()
    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        """Solve x = f(x) from x0; see :meth:`Solver.solve`."""
        alive = x0.isfinite().all(1)
        x = torch.where(alive[:, None], x0, 0.0)
        value = x.clone()
        trace: list[Tensor] = []

        def evaluate(x: Tensor) -> Tensor:
            fx = f(x)
            trace.append(relative_residual(norm(fx - x), fx))
            return fx

        def solve_rows(rows: Tensor) -> None:
            def part(z: Tensor, tau: float = 1.0) -> Tensor:
                fz = evaluate(x.index_copy(0, rows, z))[rows]
                alive[rows] &= fz.isfinite().all(1)
                # A sample that is lost stands still, so that it does not hold up the others.
                fz = torch.where(alive[rows, None], fz, z)
                return fz if tau == 1 else z + tau * (fz - z)

            try:
                value[rows] = _lookup(self.name)(
                    part, x[rows], max_iter=self.max_steps, tol=self.tol, stop_mode="rel",
                    **self.options,
                )[0]  # fmt: skip
            except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
                # One singular sample fails its whole batch: narrowed down until it is alone.
                if len(rows) == 1:
                    alive[rows] = False
                else:
                    for half in rows.tensor_split(2):
                        solve_rows(half)

        if len(x0):
            solve_rows(torch.arange(len(x0), device=x0.device))
        value = torch.where(alive[:, None], value, x0)
        evaluate(value)
        residual = torch.where(trace[-1].isfinite(), trace[-1], math.inf)
        converged = residual < self.tol
        status = torch.where(alive & residual.isfinite(), Status.MAX_STEPS, Status.DIVERGED)
        return Solution(
            value=value,
            residual=residual,
            steps=torch.full_like(status, len(trace)),
            converged=converged,
            status=torch.where(converged, int(Status.CONVERGED), status),
            n_evals=len(trace),
            trace=torch.stack(trace),
        )


class HamdeqCore(nn.Module):
    """torchdeq's engine on this library: ``get_deq(core="hamdeq", …)``.

    Called as torchdeq's other cores, ``engine(func, z_init) -> ([z], info)``, it differs from them:
    the implicit gradient is the default, in evaluation mode too; samples are independent, and stop
    on their relative residual; unknown keys are refused; it can be pickled and copied.

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
        _refuse_unknown("get_deq(core='hamdeq')", own, (*_KEYS, *_UNSUPPORTED))
        for key, neutral in _UNSUPPORTED.items():
            if config.get(key, neutral) not in (neutral, None):
                raise ValueError(
                    f"{key}: core='hamdeq' returns one state with one gradient and expects "
                    f"{neutral!r}, got {config[key]!r}; use core='sliced' or 'indexing' for it"
                )
        for key in ("f_stop_mode", "b_stop_mode"):
            _refuse_absolute(config.get(key, "rel"))
        self.f_solver = _chosen(config, "f", Anderson())
        self.b_solver = _chosen(config, "b", self.f_solver)
        steps = int(self.f_solver.max_steps * config.get("eval_factor", 1.0))
        self.eval_max_steps: int = config.get("eval_f_max_iter") or steps
        grad: Any = config.get("grad", 1)
        grad = grad[0] if isinstance(grad, list) and len(grad) == 1 else grad
        phantom = Phantom(grad, config.get("tau", 1.0))
        self.phantom = None if config.get("ift", not {"grad", "tau"} & config.keys()) else phantom
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
            backward = _Observed(solver=backward, write=backward_writer)
        several = not isinstance(z_init, Tensor)
        f = (lambda z: tuple(func(*z))) if several else func
        log: list[SolverStat] = []
        solver = _configured(self.f_solver, max_steps=steps, **options)
        solution = fixed_point(
            f,
            tuple(z_init) if several else z_init,
            solver=_Observed(solver=solver, write=log.append),
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
        known = _lookup(solver)
        solver = known.solver if isinstance(known, _Registered) else TorchDEQSolver(name=solver)
    if not isinstance(solver, Solver):
        raise TypeError(f"{side}_solver: expected a Solver or the name of one, got {solver!r}")
    keys = {"tol": f"{side}_tol", "max_steps": f"{side}_max_iter"}
    return _configured(solver, **{ours: config[key] for ours, key in keys.items() if key in config})


def _configured(solver: Solver, **options: Any) -> Solver:
    """The solver with some of its options changed."""
    own = {f.name for f in fields(solver)}
    if isinstance(solver, TorchDEQSolver):
        theirs = {name: options.pop(name) for name in options.keys() - own}
        return replace(solver, **options, options={**solver.options, **theirs})
    _refuse_unknown(type(solver).__name__, options, own)
    return replace(solver, **options)


def _lookup(name: str) -> Callable[..., Any]:
    try:
        return get_solver(name)
    except (AssertionError, KeyError):
        raise ValueError(
            f"solver: torchdeq knows no {name!r}{_hint(name, (*_STOCK, *_OURS))}; use one of "
            f"{(*_STOCK, *_OURS)}, or register it"
        ) from None


def _refuse_absolute(stop_mode: str) -> None:
    if stop_mode != "rel":
        raise ValueError(
            f"stop_mode: hamdeq stops on the relative residual, got {stop_mode!r}, which is "
            "torchdeq's default; use f_stop_mode='rel', b_stop_mode='rel'"
        )


def _refuse_unknown(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in set(names).difference(known):
        raise ValueError(
            f"{where}: unknown option {name!r}{_hint(name, known)}; expected some of {[*known]}"
        )


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


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


for _name, _solver in _OURS.items():
    register(_name, _solver)
register_deq("hamdeq", HamdeqCore)
