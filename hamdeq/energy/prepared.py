"""A memory with its weights as they are now: computed once for each use, not in each step.

A weight need not be a parameter. Weight and spectral normalisation and pruning compute it from
others, in a hook that torch calls before a module's forward, or, as a parametrization, whenever the
attribute is read. A memory calls its synapses' fields many times while it settles. So before that
every such weight is computed, and modules that have some are replaced by copies that hold the
results: what settles is one energy, and its gradient goes to the parameters that the weights were
computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hamdeq.energy.model import Connection, LayeredEnergy, Neurons
from hamdeq.lagrangians import Lagrangian
from hamdeq.synapses import Synapse

__all__ = ["Prepared", "is_plain", "prepared"]

M = TypeVar("M", bound=nn.Module)

# Modules whose methods are called, and not they themselves, so that torch does not call the hooks.
_OURS = (Neurons, Lagrangian, Synapse)
_METHODS = ("field", "activation", "energy", "forward", "adjoint")
# Hooks that compute weights, whatever the inputs.
_OF_WEIGHTS = (BasePruningMethod, SpectralNorm, WeightNorm)


class Prepared(LayeredEnergy):
    """The energy of a HAM with its weights as they are now, for one use.

    Args:
        neurons: the layers by name.
        connections: the synapses with the layers that they connect.
    """

    def __init__(self, neurons: Mapping[str, Neurons], connections: list[Connection]) -> None:
        copies: dict[nn.Module, nn.Module] = {}
        self._neurons = {name: prepared(layer, copies) for name, layer in neurons.items()}
        self.connections: Sequence[Connection] = [
            (names, prepared(synapse, copies)) for names, synapse in connections
        ]
        self._layers = tuple(self._neurons)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names."""
        return self._layers

    def layer(self, name: str) -> Neurons:
        """The neurons of a layer."""
        return self._neurons[name]

    def select(self, rows: Tensor) -> Prepared:
        """Itself: a memory of which nothing is clamped does not depend on samples."""
        return self


def is_plain(module: nn.Module) -> bool:
    """Tell if neither a module nor a part of it has hooks or parametrizations to see to."""
    if "parametrizations" in module._modules or _hooks(module) or _forward_hooks(module):
        return False
    return all(is_plain(part) for part in module._modules.values() if part is not None)


def prepared(module: M, copies: dict[nn.Module, nn.Module] | None = None) -> M:
    """A module with its weights as they are now; itself where all are plain parameters.

    The hooks that torch would call before forward are called once, without inputs. A forward hook
    is called once, after the first field, activation or energy, with what that was computed of.

    Args:
        module: neurons, a Lagrangian, a synapse, or a part of one.
        copies: modules that have been prepared, with their copies; what is shared stays shared.

    Raises:
        TypeError: a hook that replaces inputs or outputs, or a hook before forward that needs
            inputs.
    """
    if is_plain(module):
        return module
    copies = {} if copies is None else copies
    if module not in copies:
        copies[module] = _copy(module, copies)
    return copies[module]  # type: ignore[return-value]


def _copy(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    hooks = _hooks(module)
    for number, hook in hooks.items():
        _call_before(module, hook, number in module._forward_pre_hooks_with_kwargs)
    parametrized = _parametrized(module)
    # Torch makes a parametrized module one of a subclass, in which the weight is a property.
    kind: type[nn.Module] = type(module).__bases__[0] if parametrized else type(module)
    copy = kind.__new__(kind)
    copy.__dict__.update(module.__dict__)
    for name in parametrized:
        copy.__dict__[name] = getattr(module, name)
    copy._modules = {
        # What a parametrization is made of is used no more, but its parameters are the copy's.
        name: part if part is None or name == "parametrizations" else prepared(part, copies)
        for name, part in module._modules.items()
    }
    left = {n: hook for n, hook in module._forward_pre_hooks.items() if n not in hooks}
    copy.__dict__["_forward_pre_hooks"] = left
    if isinstance(module, _OURS):
        copy.__dict__["_forward_hooks"] = {}
        if module._forward_hooks:
            _call_once_after(copy, module)
    return copy


def _parametrized(module: nn.Module) -> list[str]:
    lists = module._modules.get("parametrizations")
    if not isinstance(lists, nn.ModuleDict):
        return []
    return [name for name, each in lists.items() if isinstance(each, ParametrizationList)]


def _hooks(module: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """The hooks before forward that are to be called for a use."""
    hooks = module._forward_pre_hooks
    if not hooks or isinstance(module, _OURS):
        return hooks
    return {n: hook for n, hook in hooks.items() if isinstance(hook, _OF_WEIGHTS)}


def _forward_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks) and isinstance(module, _OURS)


def _call_before(module: nn.Module, hook: Callable[..., Any], with_kwargs: bool) -> None:
    kind, remedy = type(module).__name__, ""
    try:
        replaced = hook(module, (), {}) if with_kwargs else hook(module, ())
    except IndexError as error:
        remedy = f"one that needs them ({error})"
    else:
        if replaced is None:
            return
        remedy = "one that replaces them"
    raise TypeError(
        f"{kind}: expected a forward pre-hook that sees to the module itself, as it is called once "
        f"for each use of the memory, without inputs, got {remedy}; use register_forward_hook to "
        "look at inputs, or make a subclass"
    )


def _call_once_after(copy: nn.Module, module: nn.Module) -> None:
    """Let the first of a copy's methods that is called call the module's forward hooks."""

    def wrapped(name: str) -> Callable[..., Any]:
        method = getattr(copy, name)

        def first(*args: Any) -> Any:
            for other in _METHODS:
                copy.__dict__.pop(other, None)
            result = method(*args)
            inputs = tuple(x for x in args if isinstance(x, Tensor))
            for number, hook in module._forward_hooks.items():
                more = ({},) if number in module._forward_hooks_with_kwargs else ()
                if hook(module, inputs, *more, result) is not None:
                    raise TypeError(
                        f"{type(module).__name__}: expected a forward hook that returns None, got "
                        "one that replaces the output; fields follow from an energy, so make a "
                        "subclass with the energy that you want"
                    )
            return result

        return first

    for name in _METHODS:
        if hasattr(copy, name):
            copy.__dict__[name] = wrapped(name)
