"""The contract of energy models."""

from __future__ import annotations

import math

import torch

from hamdeq.energy.model import EnergyModel, LayeredEnergy, State
from hamdeq.testing.contract import Contract, normal

__all__ = ["EnergyModelContract"]


class EnergyModelContract(Contract):
    """Contract of a function of named layers, as solvers and gradient methods need it.

    The fields are minus the gradient of the rest of the energy, ∂E/∂x = ∇²L (x − I(g)); all ways
    to compute a step agree; no sample depends on another; and where the model says that its
    updates descend, they do.

    ``make()`` returns a :class:`~hamdeq.EnergyModel`, in float64 and with smooth Lagrangians, of
    ``batch`` samples where it has some fixed.

    Attributes:
        batch: how many samples are tried.
    """

    batch: int = 4

    def state(self, model: EnergyModel, seed: int = 0) -> State:
        """Random states of the layers; needed of what is no :class:`~hamdeq.LayeredEnergy`."""
        layers = model if isinstance(model, LayeredEnergy) else getattr(model, "model", None)
        if not isinstance(layers, LayeredEnergy):
            raise NotImplementedError(
                f"{type(self).__name__}: expected a method state(model, seed), which returns "
                "random states by layer"
            )
        names = getattr(model, "visible", layers.layers)
        return {
            name: normal(self.batch, *layers.layer(name).shape, seed=seed + i)
            for i, name in enumerate(names)
        }

    def test_is_an_energy_model(self) -> None:
        """It has all members of the protocol."""
        self.claim(isinstance(self._made(), EnergyModel), "make() returns an EnergyModel")

    def test_one_energy_a_sample_and_states_like_the_state(self) -> None:
        """The energy is ``(batch,)``; activations, fields and the update are as x."""
        model = self._made()
        x = self.state(model)
        energy = model.energy(x)
        self.claim(energy.shape == (self.batch,), f"energy(x) is (batch,), got {energy.shape}")
        self.claim(energy.dtype == torch.float64, "energy(x) has the dtype of x")
        g = model.activations(x)
        for name, value in {
            "activations(x)": g,
            "fields(g)": model.fields(g),
            "update(x)": model.update(x),
        }.items():
            self.claim(
                {a: v.shape for a, v in value.items()} == {a: v.shape for a, v in x.items()},
                f"{name} has the layers and shapes of x",
            )

    def test_fields_are_minus_the_gradient_of_the_energy(self) -> None:
        """∂E/∂x = ∇²L (x − I(g))."""
        model = self._made()
        for seed in (0, 20):
            x = {a: v.requires_grad_() for a, v in self.state(model, seed).items()}
            g = model.activations(x)
            force = {a: (x[a] - field).detach() for a, field in model.fields(g).items()}
            expected = torch.autograd.grad(
                [g[a] for a in x], [*x.values()], [force[a] for a in x], allow_unused=True
            )
            found = torch.autograd.grad(model.energy(x).sum(), [*x.values()], allow_unused=True)
            for a, one, other in zip(x, found, expected, strict=True):
                zero = torch.zeros_like(x[a])
                self.close(
                    zero if one is None else one,
                    zero if other is None else other,
                    f"the gradient of the energy in layer {a!r} is ∇²L (x − field)",
                    rtol=1e-10,
                    atol=1e-11,
                )

    def test_a_step_is_what_its_parts_are(self) -> None:
        """``step`` gives the activations, fields and update, and the energy but for a constant."""
        model = self._made()
        offsets = []
        for seed in (0, 20):
            x = self.state(model, seed)
            here = model.step(x)
            self.close(here.g, model.activations(x), "step gives activations(x)")
            self.close(here.fields, model.fields(here.g), "step gives fields(g)")
            self.close(here.update, model.update(x), "step gives update(x)")
            if here.at_once:
                self.close(here.update, here.fields, "at_once: the update is the fields")
            offsets.append(model.energy(x) - here.terms().sum(0))
        text = "the terms of step sum up to the energy but for a constant"
        self.close(offsets[0], offsets[1], text, rtol=1e-10, atol=1e-11)

    def test_the_coupling_is_the_derivative_of_the_fields(self) -> None:
        """``coupling``, where a step has it, yields S = ∂I/∂g."""
        model = self._made()
        x = self.state(model)
        here = model.step(x)
        if here.coupling is None:
            return
        g = {a: v.detach().requires_grad_() for a, v in here.g.items()}
        fields, v = model.fields(g), self.state(model, 40)
        products = torch.autograd.grad(
            [fields[a] for a in x],
            [g[a] for a in x],
            [v[a] for a in x],
            materialize_grads=True,
        )
        flat, expected = (torch.cat([t.flatten(1) for t in ts], 1) for ts in (v.values(), products))
        found = (here.coupling() @ flat[..., None])[..., 0]
        self.close(found, expected, "coupling yields ∂I/∂g", rtol=1e-10, atol=1e-11)

    def test_equilibria_are_fixed_points_of_the_update(self) -> None:
        """The update leaves states that equal their fields."""
        model = self._made()
        x = self.state(model)
        for _ in range(2000):
            fields = model.fields(model.activations(x))
            if all(torch.allclose(fields[a], x[a], rtol=1e-12, atol=1e-12) for a in x):
                break
            x = {a: 0.5 * (x[a] + fields[a]) for a in x}
        else:
            return  # no equilibrium within reach
        text = "a state that equals its fields is a fixed point of the update"
        self.close(model.update(x), x, text, rtol=1e-9, atol=1e-9)

    def test_updates_descend_where_it_says_so(self) -> None:
        """``descends``: no update raises the energy."""
        model = self._made()
        self.claim(type(model.descends) is bool, "descends is True or False")
        for seed in (0, 20, 40) if model.descends else ():
            x = {a: 3.0 * v for a, v in self.state(model, seed).items()}
            for _ in range(20):
                before, x = model.energy(x), model.update(x)
                slack = 1e-12 * (1 + before.abs())
                self.claim(
                    model.energy(x) <= before + slack,
                    "no update raises the energy, as descends says",
                )

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """``select`` keeps what some samples have, and a NaN in another changes nothing."""
        model = self._made()
        x = self.state(model)
        rows = torch.tensor([self.batch - 1, 1])
        spoilt = {a: v.clone() for a, v in x.items()}
        for v in spoilt.values():
            v[0] = math.nan
        part = model.select(rows)
        few = {a: v[rows] for a, v in x.items()}
        text = "select(rows) has the {} of these samples"
        self.close(part.energy(few), model.energy(x)[rows], text.format("energy"))
        update = model.update(x)
        expected = {a: v[rows] for a, v in update.items()}
        self.close(part.update(few), expected, text.format("update"))
        found = {a: v[1:] for a, v in model.update(spoilt).items()}
        text = "a sample does not depend on its batch"
        self.close(found, {a: v[1:] for a, v in update.items()}, text)
        self.close(model.energy(spoilt)[1:], model.energy(x)[1:], text)

    def test_states_are_not_written_to(self) -> None:
        """Energy, update and step leave x as it is."""
        model = self._made()
        x = self.state(model)
        for use in (model.energy, model.update, model.step):
            use(x)
        text = "the state is left as it is"
        self.close(x, self.state(model), text, rtol=0, atol=0)

    def test_what_is_no_state_is_refused(self) -> None:
        """A layer too few, one too many or misshapen, and integers, are refused."""
        model = self._made()
        x = self.state(model)
        model.check_state(x)
        name = next(iter(x))
        wrong: dict[str, State] = {
            "a missing layer": {a: v for a, v in x.items() if a != name},
            "an unknown layer": {**x, "no such layer": x[name]},
            "a layer of another shape": {**x, name: torch.cat([x[name], x[name]], dim=-1)},
            "a layer of integers": {**x, name: x[name].long()},
        }
        for what, state in wrong.items():
            try:
                model.check_state(state)
            except (ValueError, TypeError):
                continue
            self.claim(False, f"check_state refuses {what}")
