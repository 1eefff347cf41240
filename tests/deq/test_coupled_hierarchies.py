"""Chains with softmax, layer norm and the sphere among their layers: one equilibrium, by whatever
splitting and solver; descent; gradients. And HAM.chain with a Lagrangian for each layer."""

import functools
import itertools
import re

import pytest
import torch
from contracts import EPS, normal

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

S, N, R = Softmax, lambda: LayerNorm(0.7, 0.1), lambda: Spherical(0.1)
# The Lagrangians of the free layers.
CHAINS = {
    "3, softmax hidden": [S, Identity],
    "3, softmax output": [Tanh, S],
    "3, layer norm hidden": [N, Sigmoid],
    "3, layer norm output": [Sigmoid, N],
    "3, spherical hidden": [R, Identity],
    "3, spherical output": [Tanh, R],
    "4, softmax": [S, S, S],
    "4, layer norm": [N, N, N],
    "4, spherical": [R, R, R],
    "4, mixed": [N, S, R],
    "5, softmax": [S, S, S, S],
    "5, layer norm": [N, N, N, N],
    "5, spherical": [R, R, R, R],
    "5, mixed": [R, N, Tanh, S],
    "5, mixed again": [S, Identity, N, R],
}
TOL = 1e-12
SOLVERS = {
    "picard": Picard(tol=TOL, max_steps=2000),
    "anderson": Anderson(tol=TOL, max_steps=500),
    "broyden": Broyden(tol=TOL, max_steps=500),
    "newton": Newton(tol=1e-13),
}
chains = pytest.mark.parametrize("kind", CHAINS)
solvers = pytest.mark.parametrize("solver", SOLVERS)
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])


def memory(kind, weights=0.2, biases=0.5, seed=0):
    """A chain in float64; with the default weights it has one equilibrium."""
    free = [make() for make in CHAINS[kind]]
    torch.manual_seed(seed)
    ham = HAM.chain([*[5, 7, 6, 6][: len(free)], 4], [Identity(), *free]).double()
    with torch.no_grad():
        for p in ham.synapses.parameters():
            p.copy_(weights * torch.randn_like(p) if p.dim() == 2 else biases * torch.randn_like(p))
    return ham


def images(batch=4):
    return normal(batch, 5, seed=7)


def deq(kind, solver, splitting, adjoint=None):
    return DEQ(
        memory(kind), splitting=splitting, solver=solver, adjoint=adjoint, on_failure="raise"
    )


def flat(state, layers):
    return torch.cat([state[name] for name in layers], 1)


def loss(solution):
    free = flat(solution.value, list(solution.value)[1:])
    return (free.sin() * torch.linspace(-1, 2, free.numel(), dtype=free.dtype).view_as(free)).sum()


def gradients(model):
    x = images().requires_grad_()
    of = {**dict(model.ham.named_parameters()), "input": x}
    found = torch.autograd.grad(loss(model({"input": x})), list(of.values()))
    return dict(zip(of, found, strict=True))


@functools.cache
def settled(kind):
    """The equilibrium, by many plain steps of all layers at once."""
    held = clamp(memory(kind), {"input": images()})
    with torch.no_grad():
        x = held.ham.zero_state(images(), held.layers)
        for _ in range(400):
            x = held.update(x)
    return x


@functools.cache
def unrolled(kind):
    return gradients(deq(kind, SOLVERS["newton"], "even-odd", Unrolled(200)))


# ----------------------------------------------------------------------- equilibrium


@chains
def test_the_reference_is_an_equilibrium_that_is_reached_from_anywhere(kind):
    held = clamp(memory(kind), {"input": images()})
    x = settled(kind)
    for name, fx in held.update(x).items():
        assert (fx - x[name]).abs().max() < 1e-13
    for seed in range(3):
        y = {name: 3 * normal(*x[name].shape, seed=seed) for name in x}
        with torch.no_grad():
            for _ in range(400):
                y = held.update(y)
        assert all((y[name] - x[name]).abs().max() < 1e-12 for name in x)


@chains
@solvers
@splittings
def test_every_way_leads_to_the_same_equilibrium(kind, solver, splitting):
    model = deq(kind, SOLVERS[solver], splitting)
    with torch.no_grad():
        solution = model({"input": images()})
    assert bool(solution.converged.all())
    x = settled(kind)
    for name in x:
        assert (solution.value[name] - x[name]).abs().max() < 1e-9
    held = clamp(model.ham, {"input": images()})
    torch.testing.assert_close(model.energy(solution.value), held.energy(x), rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------- descent


LARGE = {"softmax": lambda: Softmax(20.0), "layer norm": LayerNorm, "spherical": Spherical}


@pytest.mark.parametrize("layers", [3, 4, 5])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_energy_never_rises_along_even_odd_steps(layers, scale):
    """Large random weights, steep Lagrangians in every order; 64 samples, 25 steps of each."""
    fell = []
    for i, kinds in enumerate(itertools.product(LARGE, repeat=layers - 1)):
        torch.manual_seed(i)
        sizes = [4, *torch.randint(2, 8, (layers - 1,)).tolist()]
        ham = HAM.chain(sizes, [Tanh(), *(LARGE[kind]() for kind in kinds)]).double()
        with torch.no_grad():
            for p in ham.synapses.parameters():
                p.copy_(scale * torch.randn_like(p))
        keep, hide = two_colouring(ham, clamped=["input"])
        reduced = eliminate(clamp(ham, {"input": normal(64, 4, seed=i)}), hide)
        assert reduced.descends
        x = {a: 3 * normal(64, *ham.layer(a).shape, seed=i + 1) for a in keep}
        energies, sizes_of_terms = [], []
        with torch.no_grad():
            for _ in range(25):
                here = reduced.step(x)
                terms = here.terms()
                energies.append(terms.sum(0))
                sizes_of_terms.append(terms.abs().sum(0))
                x = here.update
        # Rounding of the terms, and of the sums in them.
        rounding = 16 * EPS * torch.stack(sizes_of_terms).amax(0)
        assert bool((torch.stack(energies).diff(dim=0) <= rounding).all()), kinds
        fell.append((energies[-1] < energies[0] - 1e-3).double().mean())
    # A softmax may be at rest from the start, with all of its weight on one neuron.
    assert torch.stack(fell).mean() > 0.7


# -------------------------------------------------------------------------- gradients


@chains
def test_the_unrolled_gradient_agrees_with_finite_differences(kind):
    model = deq(kind, SOLVERS["newton"], "even-odd")
    found, h = unrolled(kind), 2e-6
    x = images()
    for i, (name, p) in enumerate([*model.ham.named_parameters(), ("input", x)]):
        direction, kept, ends = normal(*p.shape, seed=i), p.detach().clone(), []
        with torch.no_grad():
            for sign in (1, -1):
                p.copy_(kept + sign * h * direction)
                ends.append(loss(model({"input": x})))
            p.copy_(kept)
        expected = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close((found[name] * direction).sum(), expected, rtol=1e-7, atol=1e-8)


@chains
@solvers
@splittings
def test_the_implicit_gradient_is_the_unrolled_one(kind, solver, splitting):
    """By conjugate gradients, although ∇²L of softmax and layer norm is singular, and by the
    forward solver."""
    adjoints = [Implicit(), Implicit(solver=ConjugateGradient(tol=TOL))]
    if solver != "newton":
        adjoints.append(Implicit(solver=SOLVERS[solver]))
    for adjoint in adjoints:
        found = gradients(deq(kind, SOLVERS[solver], splitting, adjoint))
        for name, expected in unrolled(kind).items():
            torch.testing.assert_close(
                found[name], expected, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )


# ------------------------------------------------------------------------- HAM.chain


@pytest.mark.parametrize(
    "coupled", [lambda: Softmax(1.0), lambda: LayerNorm(0.3, 0.1), lambda: Spherical(0.1)]
)
def test_trained_on_digits(coupled):
    """A hierarchy with a coupled layer in its middle learns, settles to one equilibrium by either
    splitting, and never raises its energy on the way."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor(data.data / 16.0)
    y = torch.tensor(data.target)
    layers = [Identity(), Tanh(), coupled(), Identity()]
    ham = HAM.chain([64, 48, 24, 10], layers, gain=[2.0, 0.5, 0.5]).double()
    model = DEQ(ham, solver=Anderson(tol=1e-4), adjoint=Implicit())
    optimizer = torch.optim.Adam(ham.parameters(), lr=1e-2)
    for step in range(200):
        rows = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        scores = model({"input": x[rows]}).value["output"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(20.0 * scores, y[rows]).backward()
        optimizer.step()
        contract_(ham, rate=0.95)
    x, y = x[1500:], y[1500:]
    exact = Anderson(tol=1e-11, max_steps=500)
    with torch.no_grad():
        found = DEQ(ham, solver=exact)({"input": x})
        same = DEQ(ham, splitting=None, solver=exact, start="zeros")({"input": x})
    assert found.converged.all()
    assert (found.value["output"].argmax(1) == y).double().mean() > 0.85
    for name in ("hidden1", "hidden2", "output"):
        torch.testing.assert_close(same.value[name], found.value[name], rtol=1e-8, atol=1e-8)

    reduced = DEQ(ham).reduced({"input": x})
    state = {name: torch.randn(len(x), *ham.layer(name).shape).double() for name in reduced.visible}
    energies = []
    for _ in range(30):
        energies.append(reduced.energy(state).detach())
        state = reduced.update(state)
    energies = torch.stack(energies)
    assert (energies.diff(dim=0) <= 64 * EPS * energies[:-1].abs()).all()
    assert (energies[0] - energies[-1] > 0.1).all()


def test_a_chain_takes_a_lagrangian_for_each_layer():
    kinds = [Identity(), Softmax(2.0, learnable=True), LayerNorm()]
    for given in (kinds, tuple(kinds), torch.nn.ModuleList(kinds)):
        ham = HAM.chain([4, 3, 2], given)
        assert [ham.layer(a).lagrangian for a in ham.layers] == kinds
    shared = HAM.chain([4, 3, 2], kinds[1])
    assert all(shared.layer(a).lagrangian is kinds[1] for a in shared.layers)
    assert sum("log_beta" in name for name, _ in shared.named_parameters()) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_chain_refuses_another_number_of_lagrangians(count):
    message = (
        "lagrangian: expected one for all layers or 3, one for each of "
        f"['input', 'hidden1', 'output'], got {count}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        HAM.chain([4, 3, 2], [Tanh()] * count)


@pytest.mark.parametrize("wrong", ["tanh", torch.tanh, Tanh, [Tanh(), "tanh", Tanh()]])
def test_a_chain_refuses_what_is_no_lagrangian(wrong):
    with pytest.raises(TypeError, match=re.escape("expected a Lagrangian such as hamdeq.Sigmoid")):
        HAM.chain([4, 3, 2], wrong)


def test_a_configuration_takes_a_lagrangian_for_each_layer():
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
