"""Chains with softmax, layer norm and the sphere among their layers: one equilibrium, by whatever
splitting and solver; descent; gradients. And HAM.chain with a Lagrangian for each layer."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    Broyden,
    ConjugateGradient,
    Identity,
    Implicit,
    LayerNorm,
    Newton,
    Picard,
    Sigmoid,
    Softmax,
    Spherical,
    Tanh,
    Unrolled,
    clamp,
    contract_,
    eliminate,
    two_colouring,
)

EPS = torch.finfo(torch.float64).eps
S, N, R = Softmax, lambda: LayerNorm(0.7, 0.1), lambda: Spherical(0.1)
# The Lagrangians of the free layers.
CHAINS: dict[str, list[Any]] = {
    "3, softmax output": [Tanh, S],
    "3, layer norm hidden": [N, Sigmoid],
    "4, spherical": [R, R, R],
    "4, mixed": [N, S, R],
    "5, mixed": [S, Identity, N, R],
}
TOL = 1e-12
SOLVERS = {
    "picard": Picard(tol=TOL, max_steps=2000),
    "anderson": Anderson(tol=TOL, max_steps=500),
    "broyden": Broyden(tol=TOL, max_steps=500),
    "newton": Newton(tol=1e-13),
}
chains = pytest.mark.parametrize("kind", CHAINS)
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memory(kind: str) -> HAM:
    """A chain in float64 with one equilibrium."""
    free = [make() for make in CHAINS[kind]]
    torch.manual_seed(0)
    ham = HAM.chain([*[5, 7, 6, 6][: len(free)], 4], [Identity(), *free]).double()
    with torch.no_grad():
        for p in ham.synapses.parameters():
            p.copy_((0.2 if p.dim() == 2 else 0.5) * torch.randn_like(p))
    return ham


def images() -> Tensor:
    return normal(4, 5, seed=7)


def deq(kind: str, splitting: Any, adjoint: Any = None) -> DEQ:
    solver = SOLVERS["newton"]
    return DEQ(
        memory(kind), splitting=splitting, solver=solver, adjoint=adjoint, on_failure="raise"
    )


def gradients(model: DEQ) -> dict[str, Tensor]:
    x = images().requires_grad_()
    of = {**dict(model.ham.named_parameters()), "input": x}
    free = torch.cat([*model({"input": x}).value.values()][1:], 1)
    loss = free.sin() * torch.linspace(-1, 2, free.numel(), dtype=free.dtype).view_as(free)
    return dict(zip(of, torch.autograd.grad(loss.sum(), list(of.values())), strict=True))


@functools.cache
def unrolled(kind: str) -> dict[str, Tensor]:
    return gradients(deq(kind, "even-odd", Unrolled(200)))


@chains
def test_every_solver_and_splitting_finds_the_equilibrium_of_plain_steps(kind: str) -> None:
    clamped = clamp(memory(kind), {"input": images()})
    ends = []
    with torch.no_grad():
        for scale in (0.0, 3.0):  # from anywhere
            x = {a: scale * normal(4, *clamped.layer(a).shape) for a in clamped.layers}
            for _ in range(3000):  # until no digit moves
                last, x = x, clamped.update(x)
                if all((x[a] - last[a]).abs().max() < 1e-15 for a in x):
                    break
            ends.append(x)
        x = ends[0]
        torch.testing.assert_close(ends[1], x, rtol=0.0, atol=1e-12)
        for splitting in ("even-odd", None):
            model = deq(kind, splitting)
            for name, solver in SOLVERS.items():
                solution = model({"input": images()}, solver=solver)
                assert solution.converged.all()
                for a in x:
                    assert (solution.value[a] - x[a]).abs().max() < 1e-9, (splitting, name)
                energy = model.energy(solution.value)
                torch.testing.assert_close(energy, clamped.energy(x), rtol=1e-12, atol=1e-12)


LARGE: dict[str, Any] = {
    "softmax": lambda: Softmax(20.0),
    "layer norm": LayerNorm,
    "spherical": Spherical,
}


@pytest.mark.parametrize(("layers", "scale"), [(3, 1.0), (3, 10.0), (4, 10.0)])
def test_energy_never_rises_along_even_odd_steps(layers: int, scale: float) -> None:
    """Large random weights, steep Lagrangians in every order; 32 samples, 12 steps of each."""
    fell = []
    for i, kinds in enumerate(itertools.product(LARGE, repeat=layers - 1)):
        torch.manual_seed(i)
        sizes = [4, *torch.randint(2, 8, (layers - 1,)).tolist()]
        ham = HAM.chain(sizes, [Tanh(), *(LARGE[kind]() for kind in kinds)]).double()
        with torch.no_grad():
            for p in ham.synapses.parameters():
                p.copy_(scale * torch.randn_like(p))
        keep, hide = two_colouring(ham, clamped=["input"])
        reduced = eliminate(clamp(ham, {"input": normal(32, 4, seed=i)}), hide)
        assert reduced.descends
        x = {a: 3 * normal(32, *ham.layer(a).shape, seed=i + 1) for a in keep}
        energies, sizes_of_terms = [], []
        with torch.no_grad():
            for _ in range(12):
                here = reduced.step(x)
                terms = here.terms()
                energies.append(terms.sum(0))
                sizes_of_terms.append(terms.abs().sum(0))
                x = here.update
        # Rounding of the terms, and of the sums in them.
        rounding = 16 * EPS * torch.stack(sizes_of_terms).amax(0)
        assert bool((torch.stack(energies).diff(dim=0) <= rounding).all()), kinds
        fell.append((energies[-1] < energies[0] - 1e-3).double().mean())
    # A softmax may be at its minimum from the start, with all of its weight on one neuron.
    assert torch.stack(fell).mean() > 0.7


@chains
@splittings
def test_the_implicit_gradient_is_the_unrolled_one(kind: str, splitting: Any) -> None:
    """By conjugate gradients, although ∇²L of softmax and layer norm is singular."""
    for adjoint in (
        Implicit(solver=ConjugateGradient(tol=TOL)),
        Implicit(solver=SOLVERS["anderson"]),
    ):
        result = gradients(deq(kind, splitting, adjoint))
        for name, expected in unrolled(kind).items():
            torch.testing.assert_close(
                result[name], expected, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )


# ------------------------------------------------------------------------- HAM.chain


@pytest.mark.slow
@pytest.mark.parametrize(
    "coupled", [lambda: Softmax(1.0), lambda: LayerNorm(0.3, 0.1), lambda: Spherical(0.1)]
)
def test_a_chain_with_a_coupled_layer_learns_digits(coupled: Any) -> None:
    """And then has one equilibrium by either splitting, to which its energy never rises."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    torch.manual_seed(0)
    x, y = torch.tensor(data.data / 16.0), torch.tensor(data.target)
    layers = [Identity(), Tanh(), coupled(), Identity()]
    ham = HAM.chain([64, 48, 24, 10], layers, gain=[2.0, 0.5, 0.5]).double()
    model = DEQ(ham, solver=Anderson(tol=1e-3))
    optimizer = torch.optim.Adam(ham.parameters(), lr=2e-2)
    for step in range(50):
        rows = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        scores = model({"input": x[rows]}).value["output"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(20.0 * scores, y[rows]).backward()
        optimizer.step()
        contract_(ham, rate=0.95)
    x, y = x[1500:1600], y[1500:1600]
    exact = Anderson(tol=1e-11, max_steps=500)
    with torch.no_grad():
        solution = model({"input": x}, solver=exact)
        same = DEQ(ham, splitting=None, solver=exact, start="zeros")({"input": x})
    assert solution.converged.all()
    assert (solution.value["output"].argmax(1) == y).double().mean() > 0.8
    torch.testing.assert_close(same.value, solution.value, rtol=1e-8, atol=1e-8)

    reduced = model.reduced({"input": x})
    state = {a: normal(len(x), *ham.layer(a).shape) for a in reduced.visible}
    energies = []
    with torch.no_grad():
        for _ in range(15):
            energies.append(reduced.energy(state))
            state = reduced.update(state)
    energies = torch.stack(energies)
    assert (energies.diff(dim=0) <= 64 * EPS * energies[:-1].abs()).all()
    assert (energies[0] - energies[-1] > 0.1).all()


def test_a_chain_takes_a_lagrangian_for_each_layer() -> None:
    kinds = [Identity(), Softmax(2.0, learnable=True), LayerNorm()]
    for given in (kinds, tuple(kinds), torch.nn.ModuleList(kinds)):
        ham = HAM.chain([4, 3, 2], given)
        assert [ham.layer(a).lagrangian for a in ham.layers] == kinds
    shared = HAM.chain([4, 3, 2], kinds[1])
    assert all(shared.layer(a).lagrangian is kinds[1] for a in shared.layers)
    assert sum("log_beta" in name for name, _ in shared.named_parameters()) == 1


@pytest.mark.parametrize(
    ("lagrangian", "error", "message"),
    [
        *(
            (
                [Tanh()] * count,
                ValueError,
                "lagrangian: expected one for all layers or 3, one for each of "
                f"['input', 'hidden1', 'output'], got {count}",
            )
            for count in (0, 2, 4)
        ),
        *(
            (wrong, TypeError, "expected a Lagrangian such as hamdeq.Sigmoid")
            for wrong in ("tanh", torch.tanh, Tanh, [Tanh(), "tanh", Tanh()])
        ),
    ],
)
def test_a_chain_refuses_what_are_not_its_lagrangians(
    lagrangian: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        HAM.chain([4, 3, 2], lagrangian)


def test_a_configuration_takes_a_lagrangian_for_each_layer() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(DEQ, "deq")
    # Called so from version 4.49 on.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    text = """
deq:
  class_path: hamdeq.DEQ
  init_args:
    ham:
      class_path: hamdeq.HAM.chain
      init_args:
        sizes: [4, 3, 2]
        lagrangian:
        - hamdeq.Identity
        - class_path: hamdeq.Softmax
          init_args: {beta: 2.0}
        - hamdeq.LayerNorm
"""
    ham = instantiate(parser.parse_string(text)).deq.ham
    kinds = [type(ham.layer(a).lagrangian) for a in ham.layers]
    assert kinds == [Identity, Softmax, LayerNorm]
    assert ham.layer("hidden1").lagrangian.beta == 2.0
    one = text[: text.index("        lagrangian:")] + "        lagrangian: hamdeq.Tanh\n"
    shared = instantiate(parser.parse_string(one)).deq.ham
    assert isinstance(shared.layer("output").lagrangian, Tanh)
