"""An equilibrium under the transforms of :mod:`torch.func`: ``grad``, ``vmap``, ``jacrev``.

A transform hands a module tensors that stand for many, or for functions of others, whose numbers no
solver can look at. An :class:`torch.autograd.Function` gets them back: at the bottom, below all
transforms, its forward solves with plain tensors, and its backward, a second such function, builds
the graph of the equilibrium there and takes the gradient. All that the equilibrium depends on are
its arguments, the parameters included.

``vmap`` over states becomes a larger batch, as samples do not depend on one another; over
parameters, one call after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hamdeq.energy.model import State
from hamdeq.solvers import Failures, Solution

__all__ = ["are_active", "solve_below"]

_Inputs = TypeVar("_Inputs")


def are_active() -> bool:
    """Tell if the code runs inside of a transform."""
    return torch._C._are_functorch_transforms_active()


def solve_below(
    module: nn.Module,
    inputs: _Inputs,
    layers: Sequence[str],
    *,
    solve: Callable[[_Inputs], tuple[Solution, State]],
    value: Callable[[_Inputs, Solution, State], State],
    failures: Failures,
) -> Solution:
    """An equilibrium below all transforms.

    Args:
        module: whose parameters and buffers it depends on.
        inputs: what else it depends on: tensors with the batch first, in any containers.
        layers: names of the state's layers.
        solve: from the inputs to a Solution without a graph, and the state that was solved for.
        value: from these, the Solution's value once more, with a graph.
        failures: what to do about samples that do not converge.
    """
    # A name for each place that holds a tensor, also where modules share one.
    named = {
        f"{path}.{name}".lstrip("."): tensor
        for path, owner in module.named_modules()
        for named_tensors in (owner.named_parameters, owner.named_buffers)
        for name, tensor in named_tensors(recurse=False, remove_duplicate=False)
    }
    call = _Call(module, inputs, layers, tuple(named), solve, value, failures)
    out = _Equilibrium.apply(call, *tree_flatten(inputs)[0], *named.values())
    count = len(layers)
    names = ("residual", "steps", "converged", "status", "trace")
    return Solution(
        value=dict(zip(layers, out[:count], strict=True)),
        **dict(zip(names, out[count : count + len(names)], strict=True)),
        n_evals=call.n_evals,
        adjoint=call.adjoint,
    )


class _Method(nn.Module):
    """A function that uses a module as a module itself, for ``functional_call``."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any) -> Any:
        return self.method(*args)


class _Call:
    """One call of a module: all but its tensors, which are the inputs and then the parameters."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Any,
        layers: Sequence[str],
        names: Sequence[str],
        solve: Callable[[Any], tuple[Solution, State]],
        value: Callable[[Any, Solution, State], State],
        failures: Failures,
    ) -> None:
        self.module, self.layers, self.names = module, layers, names
        self._solve, self._value, self.failures = solve, value, failures
        leaves, self._structure = tree_flatten(inputs)
        self.batched: int = len(leaves)
        self.visible: list[str] = []
        self.n_evals: int = 0
        self.adjoint: list[Solution] = []
        kind = leaves[0].device.type
        self._precision: dict[str, Any] = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }

    def _with(self, method: Callable[..., Any], tensors: Sequence[Tensor], *args: Any) -> Any:
        """Call a method with these parameters in the module."""
        named = {f"module.{a}": p for a, p in zip(self.names, tensors[self.batched :], strict=True)}
        inputs = tree_unflatten(list(tensors[: self.batched]), self._structure)
        with torch.autocast(**self._precision):
            # Tied, a module that is in two places would keep the tensors that it gets here.
            return torch.func.functional_call(
                _Method(self.module, method), named, (inputs, *args), tie_weights=False
            )

    def solve(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The state, what the Solution says of it, and the visible layers."""
        with torch.no_grad():
            solution, visible = self._with(self._solve, tensors)
        self.failures(solution, "equilibrium")
        self.visible = list(visible)
        self.n_evals = max(self.n_evals, solution.n_evals)
        return (
            *(solution.value[name] for name in self.layers),
            solution.residual,
            solution.steps,
            solution.converged,
            solution.status,
            solution.trace,
            *visible.values(),
        )

    def pull(
        self,
        needed: Sequence[bool],
        tensors: Sequence[Tensor],
        status: Tensor,
        visible: Sequence[Tensor],
        grads: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """The gradients of the needed tensors, from those of the state."""
        leaves = [x.detach().requires_grad_(need) for x, need in zip(tensors, needed, strict=True)]
        nothing = status.new_zeros(0)
        solution = Solution(
            value=None,
            residual=nothing,
            steps=nothing,
            converged=nothing,
            status=status,
            n_evals=0,
            trace=nothing,
            adjoint=self.adjoint,
        )
        with torch.enable_grad():
            state = dict(zip(self.visible, visible, strict=True))
            value = self._with(self._value, leaves, solution, state)
        pairs = zip((value[name] for name in self.layers), grads, strict=True)
        outputs = [(x, grad) for x, grad in pairs if x.requires_grad]
        wanted = [x for x in leaves if x.requires_grad]
        if not outputs:
            return tuple(torch.zeros_like(x) for x in wanted)
        values, sent = zip(*outputs, strict=True)
        return torch.autograd.grad(values, wanted, sent, materialize_grads=True)


class _Equilibrium(torch.autograd.Function):
    """Forward: the equilibrium, and what the solver says of it. Backward: :class:`_Pull`."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.solve(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, *tensors = inputs
        count = len(call.layers)
        ctx.call = call
        ctx.mark_non_differentiable(*output[count:])
        status, visible = output[count + 3], output[count + 5 :]
        ctx.save_for_backward(*tensors, status, *visible)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needed, sent = ctx.needs_input_grad[1:], grads[: len(ctx.call.layers)]
        pulled = iter(_Pull.apply(ctx.call, needed, *ctx.saved_tensors, *sent))
        return None, *(next(pulled) if need else None for need in needed)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        call, *tensors = args
        dims, size, shared = in_dims[1:], info.batch_size, slice(call.batched, None)
        residual, trace = len(call.layers), len(call.layers) + 4
        if all(dim is None for dim in dims[shared]):
            out = [*_Equilibrium.apply(call, *_folded(tensors, dims, size, shared))]
            out[trace] = out[trace].T
            out = [_unfolded(x, size) for x in out]
            out[trace] = out[trace].mT
        else:
            calls = [[*_Equilibrium.apply(call, *_entries(i, tensors, dims))] for i in range(size)]
            longest = max(len(outputs[trace]) for outputs in calls)
            for outputs in calls:
                # From where a sample has stopped its residual is that of its value.
                rest = outputs[residual].expand(longest - len(outputs[trace]), -1)
                outputs[trace] = torch.cat([outputs[trace], rest])
            out = [torch.stack(xs) for xs in zip(*calls, strict=True)]
        return tuple(out), (0,) * len(out)


class _Pull(torch.autograd.Function):
    """The gradient of :class:`_Equilibrium`, as a function of all that it depends on."""

    @staticmethod
    def forward(call: _Call, needed: tuple[bool, ...], *args: Tensor) -> tuple[Tensor, ...]:
        n, layers = len(needed), len(call.layers)
        return call.pull(needed, args[:n], args[n], args[n + 1 : -layers], args[-layers:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing to keep: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "torch.func: expected a first derivative of an equilibrium, got a second one; for "
            "higher derivatives use torch.autograd.grad(…, create_graph=True) outside of any "
            "transform, with adjoint=Unrolled(steps)"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        call, needed, *tensors = args
        dims, size, shared = in_dims[2:], info.batch_size, slice(call.batched, len(needed))
        if any(needed[shared]) or any(dim is not None for dim in dims[shared]):
            calls = [_Pull.apply(call, needed, *_entries(i, tensors, dims)) for i in range(size)]
            out = [torch.stack(xs) for xs in zip(*calls, strict=True)]
        else:
            together = _Pull.apply(call, needed, *_folded(tensors, dims, size, shared))
            out = [_unfolded(x, size) for x in together]
        return tuple(out), (0,) * len(out)


def _folded(
    tensors: Sequence[Tensor], dims: Sequence[int | None], size: int, shared: slice
) -> list[Tensor]:
    """Many batches as one, ``(size, batch, …) -> (size · batch, …)``, but for what all share."""
    kept = range(len(tensors))[shared]
    folded = []
    for i, (x, dim) in enumerate(zip(tensors, dims, strict=True)):
        if i not in kept:
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.reshape(size * x.shape[1], *x.shape[2:])
        folded.append(x)
    return folded


def _unfolded(x: Tensor, size: int) -> Tensor:
    """One batch as many: ``(size · batch, …) -> (size, batch, …)``."""
    return x.reshape(size, len(x) // size, *x.shape[1:])


def _entries(i: int, tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """Entry i of each tensor along its dimension."""
    return [x if dim is None else x.select(dim, i) for x, dim in zip(tensors, dims, strict=True)]


def _forward_mode() -> RuntimeError:
    return RuntimeError(
        "torch.func: expected derivatives in reverse mode of an equilibrium, such as grad, vjp and "
        "jacrev, got forward mode (jvp, jacfwd, hessian), which it does not have"
    )
