"""The contract of Lagrangians."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hamdeq.lagrangians import Lagrangian
from hamdeq.testing.contract import EPS, Contract, derivative, inner, normal

__all__ = ["LagrangianContract"]


class LagrangianContract(Contract):
    """Contract of the Lagrangian of a layer of neurons.

    L is convex, one number a sample; the activation is its gradient; the energy is its Legendre
    transform L*(g) = ⟨x, g⟩ − L(x). No sample depends on another, all parameters learn, and float32
    keeps its digits where states are large.

    ``make()`` returns a :class:`~hamdeq.Lagrangian` that is finite on states of size ten.

    Attributes:
        shapes: of the states that are tried, batch first.
        largest: size of the states for which float32 is compared to float64: of a Lagrangian that
            grows fast, the largest one that float32 can hold.
    """

    shapes: Sequence[tuple[int, ...]] = [(4, 5), (3, 2, 4), (2, 3, 2, 2)]
    largest: float = 1e4

    def _lagrangian(self) -> Lagrangian:
        return self._made().double()

    def states(self, scale: float = 1.0) -> Iterator[Tensor]:
        """Random states, zeros, and random states with exact zeros among them, of each shape."""
        for shape in self.shapes:
            x = scale * normal(*shape, seed=len(shape))
            yield x
            yield torch.zeros(shape, dtype=torch.float64)
            holes = x.clone()
            holes[..., ::2] = 0.0
            yield holes

    def _rows(self, rows: int) -> Tensor:
        """States of the first shape, of another batch."""
        return normal(rows, *self.shapes[0][1:], seed=5)

    # ------------------------------------------------------------------ shapes

    def test_one_number_a_sample_and_an_activation_like_the_state(self) -> None:
        """L and L* are ``(batch,)``, g is as x, in float32 and float64, and of an empty batch."""
        for dtype in (torch.float32, torch.float64):
            lagrangian = self._lagrangian().to(dtype)
            for shape in self.shapes:
                for batch in (0, 1, 3):
                    x = normal(batch, *shape[1:], dtype=dtype)
                    for name, value, expected in (
                        ("L(x)", lagrangian(x), (batch,)),
                        ("energy(x)", lagrangian.energy(x), (batch,)),
                        ("activation(x)", lagrangian.activation(x), x.shape),
                        ("the gradient of L", derivative(lagrangian, x), x.shape),
                        ("the gradient of the energy", derivative(lagrangian.energy, x), x.shape),
                    ):
                        self.claim(
                            value.shape == expected and value.dtype == dtype,
                            f"{name} of states {tuple(x.shape)} has the shape {tuple(expected)} "
                            f"and {dtype}, got {tuple(value.shape)} and {value.dtype}",
                        )

    def test_states_are_not_written_to(self) -> None:
        """L, its activation and its energy leave x as it is."""
        lagrangian, x = self._lagrangian(), self._rows(4)
        before = x.clone()
        for use in (lagrangian, lagrangian.activation, lagrangian.energy):
            use(x)
        self.claim(torch.equal(x, before) and not x.requires_grad, "the state is left as it is")

    # ------------------------------------------------------------- derivatives

    def test_activation_is_the_gradient(self) -> None:
        """g = ∇L(x), and so are their derivatives."""
        lagrangian = self._lagrangian()
        for x in self.states(2.0):
            gradient = derivative(lagrangian, x)
            self.close(lagrangian.activation(x), gradient, "activation(x) is the gradient of L")
            w = normal(*x.shape, seed=7)

            def of_gradient(x: Tensor, w: Tensor = w) -> Tensor:
                (g,) = torch.autograd.grad(lagrangian(x).sum(), x, create_graph=True)
                return inner(g, w)

            self.close(
                derivative(lambda x, w=w: inner(lagrangian.activation(x), w), x),
                derivative(of_gradient, x, allow_unused=True, materialize_grads=True),
                "the derivative of activation(x) is the second derivative of L",
            )

    def test_second_derivative_at_zero_lies_between_the_slopes_of_both_sides(self) -> None:
        """The slopes are equal where L is smooth; at the kink of a rectifier they differ."""
        h, lagrangian = 1e-6, self._lagrangian()
        zero = torch.zeros_like(self._rows(1))
        hessian = torch.autograd.functional.jacobian(
            lambda x: lagrangian.activation(x[None])[0], zero[0]
        )
        assert isinstance(hessian, Tensor)
        hessian = hessian.reshape(zero.numel(), zero.numel())
        g = lagrangian.activation(zero)
        # One-sided differences err by h/2 times the next derivative, 1e-6·β² here.
        slack = 1e-4 * hessian.abs().max().clamp_min(1.0)
        for i, column in enumerate(hessian.unbind(1)):
            step = torch.zeros_like(zero)
            step.view(-1)[i] = h
            right = (lagrangian.activation(step) - g).flatten() / h
            left = (g - lagrangian.activation(-step)).flatten() / h
            self.claim(
                (column >= torch.minimum(left, right) - slack)
                & (column <= torch.maximum(left, right) + slack),
                "the second derivative at zero lies between the slopes of both sides",
            )

    def test_derivatives_agree_with_finite_differences(self) -> None:
        """First and second derivatives of L, the energy and the activation, away from zero."""
        lagrangian = self._lagrangian()
        row = torch.tensor([0.5, -1.25, 0.75, -0.3, 1.5, 0.2], dtype=torch.float64)
        shape = self.shapes[0][1:]
        x = row.repeat(1 + torch.Size(shape).numel() // 6)[: torch.Size(shape).numel()]
        x = x.reshape(1, *shape).requires_grad_()
        for name, f in (
            ("L", lagrangian),
            ("energy", lagrangian.energy),
            ("activation", lagrangian.activation),
        ):
            for order, check in (("first", gradcheck), ("second", gradgradcheck)):
                self.claim(
                    check(f, (x,), raise_exception=False),
                    f"the {order} derivative of {name} is its finite difference",
                )

    def test_parameters_get_their_gradients(self) -> None:
        """L, the energy and the activation have the finite differences in every parameter."""
        lagrangian, x = self._lagrangian(), self._rows(3)
        outputs = {
            "L": lambda: lagrangian(x),
            "energy": lambda: lagrangian.energy(x),
            "activation": lambda: lagrangian.activation(x),
        }
        if any(True for _ in lagrangian.parameters()):
            self.parameters_learn(lagrangian, outputs)
        else:
            self.claim(not lagrangian(x).requires_grad, "without parameters there is no graph")

    # --------------------------------------------------------- convex duality

    def test_energy_is_the_legendre_transform(self) -> None:
        """L*(g) = ⟨x, g⟩ − L(x)."""
        lagrangian = self._lagrangian()
        for x in self.states(2.0):
            expected = inner(x, lagrangian.activation(x)) - lagrangian(x)
            self.close(lagrangian.energy(x), expected, "energy(x) is ⟨x, g⟩ − L(x)")

    def test_is_convex(self) -> None:
        """Jensen's inequality: L(tx + (1−t)y) ≤ tL(x) + (1−t)L(y)."""
        lagrangian = self._lagrangian()
        for shape in self.shapes:
            for seed, (scale, t) in enumerate([(0.1, 0.5), (1.0, 0.25), (3.0, 0.5), (3.0, 0.9)]):
                x, y = scale * normal(*shape, seed=seed), scale * normal(*shape, seed=seed + 50)
                above = t * lagrangian(x) + (1 - t) * lagrangian(y)
                below = lagrangian(t * x + (1 - t) * y)
                self.claim(below <= above + 16 * EPS * (above.abs() + 1), "L is convex")

    def test_curvature_lies_between_zero_and_max_slope(self) -> None:
        """∇²L is symmetric, without negative eigenvalues, and none is above ``max_slope``."""
        lagrangian = self._lagrangian()
        bound = lagrangian.max_slope
        self.claim(type(bound) is float and bound > 0, f"max_slope is a float > 0, got {bound!r}")
        values = torch.zeros(1)
        for x in (*self.states(0.01), *self.states(2.0)):
            hessian = torch.autograd.functional.hessian(lambda x: lagrangian(x[None]).sum(), x[0])
            assert isinstance(hessian, Tensor)
            hessian = hessian.reshape(x[0].numel(), -1)
            self.close(hessian, hessian.T, "the second derivative of L is symmetric")
            values = torch.linalg.eigvalsh(hessian)
            least = -64 * EPS * values.abs().max()
            self.claim(values.min() >= least, "L is convex: no eigenvalue of ∇²L is negative")
            self.claim(
                values.max() <= bound * (1 + 64 * EPS),
                f"no eigenvalue of ∇²L is above max_slope = {bound:g}, got {values.max():g}",
            )
        self.claim(values.max() > 0, "L is not flat")  # the last state is random

    def test_fenchel_inequality(self) -> None:
        """L(y) + L*(g) ≥ ⟨y, g⟩ for every y, with equality at y = x."""
        lagrangian = self._lagrangian()
        for shape in self.shapes:
            x = 2.0 * normal(*shape, seed=1)
            g, dual = lagrangian.activation(x), lagrangian.energy(x)
            equality = lagrangian(x) - inner(x, g) + dual
            scale = lagrangian(x).abs() + inner(x, g).abs() + dual.abs() + 1
            self.claim(equality.abs() <= 64 * EPS * scale, "L(x) + L*(g) = ⟨x, g⟩")
            for seed in range(20):
                y = x + (0.01, 0.3, 3.0)[seed % 3] * normal(*shape, seed=100 + seed)
                gap = lagrangian(y) - inner(y, g) + dual
                least = -64 * EPS * (scale + lagrangian(y).abs())
                self.claim(gap >= least, "L(y) + L*(g) ≥ ⟨y, g⟩ for every y")

    # ------------------------------------------------------- numbers and batches

    def test_large_states_keep_their_digits_in_float32(self) -> None:
        """At states of size ``largest`` float32 is finite and agrees with float64."""
        for shape in self.shapes:
            x = self.largest * normal(*shape, seed=3, dtype=torch.float32).clamp(-1, 1)
            x[0], x[1] = self.largest, -self.largest
            exact, rounded = self._lagrangian(), self._made().float()
            size = exact(x.double()).abs() + inner(x, exact.activation(x.double())).abs() + 1
            for name, precise, found, scale in (
                ("L", exact(x.double()), rounded(x), size),
                ("energy", exact.energy(x.double()), rounded.energy(x), size),
                ("activation", exact.activation(x.double()), rounded.activation(x), None),
            ):
                scale = precise.abs() + 1e-6 if scale is None else scale
                self.claim(
                    (found - precise).abs() <= 1e-4 * scale,
                    f"{name} of states of size {self.largest:g} is the same in float32 and float64",
                )

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """Each sample's results are those that it has alone, whatever stands beside it."""
        lagrangian = self._lagrangian()
        functions = {
            "L": lagrangian,
            "energy": lagrangian.energy,
            "activation": lagrangian.activation,
            "the gradient of L": lambda x: derivative(lagrangian, x),
            "the gradient of the energy": lambda x: derivative(lagrangian.energy, x),
        }
        for shape in self.shapes:
            x = normal(*shape, seed=11)
            spoilt = x.clone()
            spoilt[0] = float("nan")
            spoilt[1] = 1e30
            for name, f in functions.items():
                alone = torch.cat([f(sample[None]) for sample in x])
                text = f"{name} of a sample does not depend on its batch"
                self.close(f(x), alone, text, rtol=8 * EPS, atol=0)
                self.close(f(spoilt)[2:], alone[2:], text, rtol=8 * EPS, atol=0)

    # ------------------------------------------------------- the rest of torch

    def test_copies_agree(self) -> None:
        """deepcopy, pickle and the state dict keep what is computed."""
        x = self._rows(4)
        self.copies_agree(
            self._lagrangian(), lambda m: torch.cat([m(x), m.energy(x), m.activation(x).flatten()])
        )

    def test_has_a_printed_form(self) -> None:
        """repr() names the class, without a warning."""
        self.prints(self._lagrangian())
