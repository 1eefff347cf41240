"""The contracts of synapses, and of those that map one layer to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hamdeq.synapses import Map, Synapse
from hamdeq.testing.contract import Contract, inner, normal

__all__ = ["MapContract", "SynapseContract"]


class SynapseContract(Contract):
    """Contract of a synapse, a function of activations.

    The energy is one number a sample; the field on a layer is −∂E/∂g, a partial derivative with
    the other layers fixed; what is declared to be linear is. No sample depends on another,
    and all parameters learn.

    ``make()`` returns a :class:`~hamdeq.Synapse`.

    Attributes:
        shapes: of the layers, where the synapse's own ``shapes`` leave one open.
    """

    shapes: Sequence[tuple[int, ...]] | None = None

    def _synapse(self) -> Synapse:
        return self._made().double()

    def activations(
        self, synapse: Synapse, batch: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> list[Tensor]:
        """Random activations of the layers."""
        shapes = synapse.shapes if self.shapes is None else self.shapes
        self.claim(
            shapes is not None and None not in shapes,
            "the synapse says the shapes of its layers, or the contract's attribute `shapes` does",
        )
        return [
            normal(batch, *shape, seed=seed + i, dtype=dtype)
            for i, shape in enumerate(shapes or ())
            if shape is not None
        ]

    def _functions(self, synapse: Synapse) -> dict[str, Callable[..., Tensor]]:
        """The energy, and the field on each layer."""
        functions: dict[str, Callable[..., Tensor]] = {"energy": synapse.energy}
        for place in range(len(self.activations(synapse))):
            functions[f"field {place}"] = lambda *g, place=place: synapse.field(place, *g)
        return functions

    def test_shapes_for_any_batch(self) -> None:
        """The energy is ``(batch,)``, a field is as its layer, in every dtype."""
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            synapse = self._synapse().to(dtype)
            for batch in (0, 1, 4):
                g = self.activations(synapse, batch, dtype=dtype)
                for i, (name, f) in enumerate(self._functions(synapse).items()):
                    value, expected = f(*g), (batch,) if i == 0 else tuple(g[i - 1].shape)
                    self.claim(
                        value.shape == expected and value.dtype == dtype,
                        f"{name} has the shape {expected} and {dtype}, got {tuple(value.shape)} "
                        f"and {value.dtype}",
                    )

    def test_field_is_minus_the_gradient_of_the_energy(self) -> None:
        """I = −∂E/∂g, and so are their derivatives in all activations."""
        synapse = self._synapse()
        for seed in (0, 10):
            g = [x.requires_grad_() for x in self.activations(synapse, seed=seed)]
            for place in range(len(g)):
                field = synapse.field(place, *g)
                energy = synapse.energy(*g).sum()
                (gradient,) = torch.autograd.grad(
                    energy, g[place], create_graph=True, allow_unused=True, materialize_grads=True
                )
                text = f"field {place} is minus the gradient of the energy"
                self.close(field, -gradient, text)
                weight = normal(*field.shape, seed=6)
                found, expected = (
                    torch.autograd.grad(
                        (x * weight).sum(), g, allow_unused=True, materialize_grads=True
                    )
                    if x.requires_grad
                    else tuple(map(torch.zeros_like, g))
                    for x in (field, -gradient)
                )
                self.close(found, expected, f"{text}, and so are its derivatives")

    def test_field_is_a_partial_derivative(self) -> None:
        """Activations may depend on one another, as in an unrolled or reduced model."""
        synapse = self._synapse()
        g = self.activations(synapse)
        linked = [g[0] * torch.ones((), dtype=torch.float64, requires_grad=True)]
        for other in g[1:]:
            linked.append(other * linked[0].flatten(1).sum(1).reshape(-1, *[1] * (other.dim() - 1)))
        plain = [x.detach() for x in linked]
        for place in range(len(g)):
            self.close(
                synapse.field(place, *linked),
                synapse.field(place, *plain),
                f"field {place} is a partial derivative: the other layers are fixed",
            )

    def test_linear_where_it_says_so(self) -> None:
        """``is_linear_in(place)`` holds for the energy, and the field then lacks that layer."""
        synapse = self._synapse()
        g, h = self.activations(synapse), self.activations(synapse, seed=20)
        for place in (i for i in range(len(g)) if synapse.is_linear_in(i)):

            def energy(x: Tensor, place: int = place) -> Tensor:
                return synapse.energy(*g[:place], x, *g[place + 1 :])

            text = f"the energy is linear in place {place}, as is_linear_in says"
            mixed = energy(2.0 * g[place] - 3.0 * h[place])
            self.close(mixed, 2.0 * energy(g[place]) - 3.0 * energy(h[place]), text)
            moved = [*g[:place], h[place], *g[place + 1 :]]
            self.close(synapse.field(place, *moved), synapse.field(place, *g), text)
        for seed in (0, 30):
            synapse.check_linear(*self.activations(synapse, seed=seed))

    def test_runs_under_vmap(self) -> None:
        """The energy of one sample, mapped over the batch, and fields that are closed forms."""
        synapse = self._synapse()
        g = self.activations(synapse)
        kinds = [type(module) for module in synapse.modules()]
        # torch.autograd.grad, which derives a field or an adjoint, does not run under vmap.
        derived = Synapse.field in (getattr(kind, "field", None) for kind in kinds) or (
            Map.adjoint in (getattr(kind, "adjoint", None) for kind in kinds)
        )
        for name, f in self._functions(synapse).items():
            if name == "energy" or not derived:

                def of_one(*x: Tensor, f: Callable[..., Tensor] = f) -> Tensor:
                    return f(*(a[None] for a in x))[0]

                text = f"{name} is the same under torch.func.vmap"
                self.close(vmap(of_one)(*g), f(*g), text)

    def test_a_gradient_for_each_sample(self) -> None:
        """Gradients of the parameters for each sample, by vmap of grad."""
        synapse = self._synapse()
        g, weights = self.activations(synapse), dict(synapse.named_parameters())
        if not weights:
            return

        def energy(weights: dict[str, Tensor], *x: Tensor) -> Tensor:
            energies: Any = functional_call(_Energy(synapse), weights, tuple(a[None] for a in x))
            return energies[0]

        weights = {f"synapse.{name}": p.detach() for name, p in weights.items()}
        each = vmap(grad(energy), (None, *[0] * len(g)))(weights, *g)
        for i in range(len(g[0])):
            alone = synapse.energy(*(x[i : i + 1] for x in g)).sum()
            self.close(
                [x[i] for x in each.values()],
                [*torch.autograd.grad(alone, [*synapse.parameters()])],
                "vmap of grad gives every sample's gradient",
            )

    def test_parameters_get_their_gradients(self) -> None:
        """The energy and all fields have the finite differences in every parameter."""
        synapse = self._synapse()
        g = self.activations(synapse)
        outputs = {n: lambda f=f: f(*g) for n, f in self._functions(synapse).items()}
        if any(True for _ in synapse.parameters()):
            self.parameters_learn(synapse, outputs)
        else:
            self.claim(not synapse.energy(*g).requires_grad, "without parameters there is no graph")

    def test_field_needs_no_gradient_mode(self) -> None:
        """Under ``torch.no_grad()`` a field is the same, without a graph."""
        synapse = self._synapse()
        g = self.activations(synapse)
        for place in range(len(g)):
            expected = synapse.field(place, *g).detach()
            with torch.no_grad():
                field = synapse.field(place, *g)
            self.claim(not field.requires_grad, f"field {place} has no graph under no_grad()")
            self.close(field, expected, f"field {place} is the same under no_grad()")

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """Each sample's results are those that it has alone, whatever stands beside it."""
        synapse = self._synapse()
        g = self.activations(synapse)
        spoilt = [x.clone() for x in g]
        for x in spoilt:
            x[0] = float("nan")
        for name, f in self._functions(synapse).items():
            alone = torch.cat([f(*(x[i : i + 1] for x in g)) for i in range(len(g[0]))])
            text = f"{name} of a sample does not depend on its batch"
            self.close(f(*g), alone, text)
            self.close(f(*spoilt)[1:], alone[1:], text)

    def test_activations_are_not_written_to(self) -> None:
        """The energy and the fields leave the activations as they are."""
        synapse = self._synapse()
        g = self.activations(synapse)
        for f in self._functions(synapse).values():
            f(*g)
        for x, before in zip(g, self.activations(synapse), strict=True):
            self.claim(torch.equal(x, before), "the activations are left as they are")
            self.claim(not x.requires_grad, "the activations are left as they are")

    def test_copies_agree(self) -> None:
        """deepcopy, pickle and the state dict keep what is computed."""
        synapse = self._synapse()
        g = self.activations(synapse)
        self.copies_agree(
            synapse, lambda m: torch.cat([f(*g).flatten() for f in self._functions(m).values()])
        )

    def test_has_a_printed_form(self) -> None:
        """repr() names the class, without a warning."""
        self.prints(self._synapse())


class MapContract(SynapseContract):
    """Contract of a map A from one layer to another, a synapse E = −⟨A(g₁), g₂⟩.

    All claims of a synapse; the field on the second layer is A(g₁), that on the first its adjoint.

    ``make()`` returns a :class:`~hamdeq.Map`; ``shapes`` are those of its two layers.
    """

    def test_is_a_map_and_its_adjoint(self) -> None:
        """The fields are the map and its adjoint, and the energy is −⟨A(g₁), g₂⟩."""
        synapse = self._map()
        first, second = self.activations(synapse)
        image, adjoint = synapse(first), synapse.adjoint(second, first)
        exactly = {"rtol": 0.0, "atol": 0.0}
        field = synapse.field(1, first, second)
        self.close(image, field, "the field on the second layer is the map", **exactly)
        field = synapse.field(0, first, second)
        self.close(adjoint, field, "the field on the first layer is the adjoint", **exactly)
        energy = synapse.energy(first, second)
        self.close(inner(image, second), -energy, "the energy is −⟨A(g₁), g₂⟩")
        if synapse.linear:
            self.close(
                inner(image, second), inner(first, adjoint), "of a linear map ⟨Ag, h⟩ = ⟨g, Aᵀh⟩"
            )
            # As a layer is asked for its field without its activation.
            shape = first.new_zeros(()).expand(first.shape)
            text = "the adjoint of a linear map does not depend on the first layer"
            self.close(synapse.adjoint(second, shape), adjoint, text, **exactly)

    def test_adjoint_equals_the_derived_one(self) -> None:
        """A closed form of the adjoint is what automatic differentiation gives."""
        synapse = self._map()
        first, second = self.activations(synapse)
        derived = Map.adjoint(synapse, second, first)
        self.close(synapse.adjoint(second, first), derived, "the adjoint is that of the map")

    def test_says_its_shapes(self) -> None:
        """``output_shape`` is that of the image, and layers of other shapes are refused."""
        synapse = self._map()
        first, second = (tuple(g.shape[1:]) for g in self.activations(synapse))
        found = synapse.output_shape(first)
        self.claim(
            found == second and type(synapse.output_shape(first)) is tuple,
            f"output_shape({first}) is the tuple {second}, got {found}",
        )
        synapse.fit(("a", "b"), (first, second))
        for names, shapes in ((("a", "b"), (first, (*second, 2))), (("a",), (first,))):
            try:
                synapse.fit(names, shapes)
            except ValueError:
                continue
            self.claim(False, f"layers {names} of shapes {shapes} are refused by a ValueError")

    def test_has_two_places(self) -> None:
        """A third place is refused."""
        synapse = self._map()
        try:
            synapse.field(2, *self.activations(synapse))
        except ValueError:
            return
        self.claim(False, "a field in place 2 is refused by a ValueError")

    def _map(self) -> Map:
        synapse = self._synapse()
        assert isinstance(synapse, Map)
        return synapse


class _Energy(nn.Module):
    """A synapse's energy as a module's forward, for functional_call."""

    def __init__(self, synapse: Synapse) -> None:
        super().__init__()
        self.synapse = synapse

    def forward(self, *g: Tensor) -> Tensor:
        return self.synapse.energy(*g)
