"""Base of all contracts: claims, and their verification."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CLOSE", "EPS", "Contract", "derivative", "importable", "inner", "normal"]

EPS: float = torch.finfo(torch.float64).eps
CLOSE: dict[str, float] = {"rtol": 1e-12, "atol": 1e-13}
"""Tolerance for sums of a few dozen float64 terms of unit size."""


class Contract:
    """Claims about objects of one kind, each a method ``test_…`` that takes no arguments.

    A subclass gives :meth:`make`. It may add claims, and replace one that its objects keep in
    another way by a method of the same name.
    """

    def make(self) -> Any:
        """A new object to test; called once in each claim, with the random seed set to 0."""
        raise NotImplementedError(
            f"{type(self).__name__}: expected a method make(), which returns the object to test"
        )

    def verify(self) -> None:
        """Test every claim, without a test runner.

        Raises:
            AssertionError: claims that do not hold, each with its message.
        """
        broken = []
        for name in dir(self):
            claim = getattr(self, name) if name.startswith("test_") else None
            if claim is None:
                continue
            try:
                claim()
            except Exception as error:
                broken.append(f"{name}: {type(error).__name__}: {error}")
        if broken:
            raise AssertionError(f"{len(broken)} claims do not hold\n" + "\n".join(broken))

    def claim(self, holds: bool | Tensor, text: str) -> None:
        """Refuse a claim unless it holds, in every element if it is a tensor.

        Raises:
            AssertionError: it does not; the message is the claim.
        """
        if not bool(holds.all() if isinstance(holds, Tensor) else holds):
            raise AssertionError(f"{type(self).__name__}: expected that {text}")

    def close(
        self,
        actual: Any,
        expected: Any,
        text: str,
        *,
        rtol: float = CLOSE["rtol"],
        atol: float = CLOSE["atol"],
    ) -> None:
        """Refuse a claim that two tensors, or collections of such, are equal but for rounding.

        Raises:
            AssertionError: they are not; the message is the claim, and how far they are apart.
        """
        prefix = f"{type(self).__name__}: expected that {text}"
        torch.testing.assert_close(
            actual, expected, rtol=rtol, atol=atol, msg=lambda m: f"{prefix}. {m}"
        )

    def parameters_learn(
        self, module: nn.Module, outputs: Mapping[str, Callable[[], Tensor]], *, step: float = 1e-6
    ) -> None:
        """Refuse that a parameter's gradient of an output is not its finite difference.

        Args:
            module: whose parameters are moved.
            outputs: functions of no arguments, by name. Each is contracted with random numbers, so
                that errors of opposite sign do not cancel.
            step: h of the central differences.
        """
        parameters = dict(module.named_parameters())
        for label, f in outputs.items():
            weight = normal(*f().shape, seed=99)
            value = (f() * weight).sum()
            if parameters:
                self.claim(value.requires_grad, f"{label} has a gradient to the parameters")
            grads = torch.autograd.grad(
                value, [*parameters.values()], allow_unused=True, materialize_grads=True
            )
            for (name, p), grad in zip(parameters.items(), grads, strict=True):
                direction = normal(*p.shape, seed=98)
                start, values = p.detach().clone(), []
                with torch.no_grad():
                    for sign in (1, -1):
                        p.copy_(start + sign * step * direction)
                        values.append((f() * weight).sum())
                    p.copy_(start)
                # Central differences: an error of step² = 1e-12 in truncation and of eps/step =
                # 1e-10 in rounding, times sums of some tens of terms.
                self.close(
                    (grad * direction).sum(),
                    (values[0] - values[1]) / (2 * step),
                    f"{label} has the finite difference in {name} as its gradient",
                    rtol=1e-7,
                    atol=1e-8,
                )

    def copies_agree(self, module: nn.Module, f: Callable[[Any], Tensor]) -> None:
        """Refuse that deepcopy, pickle and a state dict give modules that compute otherwise."""
        with torch.no_grad():
            expected = f(module)
            twins = {"deepcopy": copy.deepcopy(module)}
            if importable(type(module)):
                twins["pickle"] = pickle.loads(pickle.dumps(module))
            for way, twin in twins.items():
                self.close(f(twin), expected, f"a copy by {way} computes the same", rtol=0, atol=0)
                for p, q in zip(module.parameters(), twin.parameters(), strict=True):
                    self.claim(
                        p.data_ptr() != q.data_ptr(), f"a copy by {way} has weights of its own"
                    )
            changed = copy.deepcopy(module)
            for p in changed.parameters():
                p.add_(1.0)
            if any(True for _ in module.parameters()):
                self.claim(not torch.equal(f(changed), expected), "the parameters have an effect")
            changed.load_state_dict(module.state_dict())
            text = "the state dict holds all that is computed with"
            self.close(f(changed), expected, text, rtol=0, atol=0)

    def prints(self, module: nn.Module) -> None:
        """Refuse that repr() lacks the name of the class, or warns."""
        before = torch.is_warn_always_enabled()
        torch.set_warn_always(True)  # otherwise only the first of all tests would see a warning
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                text = repr(module)
        finally:
            torch.set_warn_always(before)
        self.claim(type(module).__name__ in text, "repr() names the class")

    def _made(self) -> Any:
        torch.manual_seed(0)
        return self.make()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A normal sample that is the same each time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ per sample: ``(batch,)``."""
    return (a * b).flatten(1).sum(1)


def importable(kind: type) -> bool:
    """Return whether pickle finds a class by its address, unlike one made within a function."""
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def derivative(f: Callable[[Tensor], Tensor], x: Tensor, **options: Any) -> Tensor:
    """Autograd's gradient at x of a function with one number a sample.

    Args:
        f: ``(batch, *shape) -> (batch,)``.
        x: ``(batch, *shape)``.
        **options: of :func:`torch.autograd.grad`.
    """
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x, **options)[0]
