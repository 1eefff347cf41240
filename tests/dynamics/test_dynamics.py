"""Dynamics in time: Euler is Picard, adaptive solutions end at the equilibrium, energy falls."""

import builtins
import math
import re

import pytest
import torch
from refusals import assert_refused

from hamdeq import (
    DEQ,
    HAM,
    Adaptive,
    Bias,
    Dense,
    Euler,
    Exp,
    Identity,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    ReLU,
    RePU,
    Sigmoid,
    Softmax,
    Spherical,
    Tanh,
    Trajectory,
    clamp,
    eliminate,
    fixed_point,
    trajectory,
)
from hamdeq.testing import inner, normal

adaptive = pytest.mark.usefixtures("torchdiffeq")
FAST = Adaptive(rtol=1e-4, atol=1e-6)


@pytest.fixture
def torchdiffeq():
    pytest.importorskip("torchdiffeq")


LAGRANGIANS = {
    "identity": Identity,
    "sigmoid": lambda: Sigmoid(4.0, 0.5),
    "tanh": lambda: Tanh(2.0),
    "relu": ReLU,
    "repu": lambda: RePU(3),
    "exp": lambda: Exp(0.5),
    "softmax": lambda: Softmax(2.0),
    "layer norm": lambda: LayerNorm(eps=0.1),
    "spherical": lambda: Spherical(eps=0.1),
}


def chain(*sizes, lagrangian=None, gain=1.0, seed=0):
    torch.manual_seed(seed)
    return HAM.chain(sizes, lagrangian, gain=gain).double()


def start(model, batch=3, seed=0, scale=1.0):
    return {
        name: scale * normal(batch, *model.layer(name).shape, seed=seed + i)
        for i, name in enumerate(model.layers)
    }


def clamped_chain(*sizes, batch=3, **options):
    """A chain whose input is clamped, and a state of the others."""
    memory = clamp(chain(*sizes, **options), {"input": normal(batch, sizes[0], seed=9)})
    return memory, start(memory, batch)


def distance(a, b):
    """Relative distance of the states of the worst sample."""
    a, b = ({n: x.detach() for n, x in state.items()} for state in (a, b))
    gap = sum((a[n] - b[n]).flatten(1).square().sum(1) for n in a).sqrt()
    return float((gap / sum(b[n].flatten(1).square().sum(1) for n in b).sqrt()).max())


# ------------------------------------------------------------------------- Euler


@pytest.mark.parametrize("h", [1.0, 0.5, 0.1, 0.3])
@pytest.mark.parametrize("kind", ["ham", "clamped", "reduced"])
def test_euler_is_damped_picard_iteration(h, kind):
    memory, x0 = clamped_chain(5, 4, 3, gain=2.0)
    if kind == "ham":
        memory = memory.ham
        x0 = start(memory)
    if kind == "reduced":
        memory, x0 = eliminate(memory, ["hidden1"]), {"output": x0["output"]}
    count, seen = 12, []

    def update(x):
        seen.append(x)
        return memory.update(x)

    solver = Picard(damping=h, tol=1e-30, max_steps=count)
    with torch.no_grad():
        path = trajectory(memory, x0, [i * h for i in range(count)], method=Euler(step=h))
        solution = fixed_point(update, x0, solver=solver, on_failure="ignore")
    assert path.n_evals == count - 1
    for n in x0:
        iterates = torch.stack([x[n] for x in seen[:count]])
        torch.testing.assert_close(path.states[n], iterates, rtol=0, atol=1e-14)
    torch.testing.assert_close(path.residual, solution.trace, rtol=1e-9, atol=1e-15)


def test_euler_steps_end_at_the_times():
    memory, x0 = clamped_chain(5, 4, 3)
    path = trajectory(memory, x0, [0.0, 0.1, 0.35, 1.0], method=Euler(step=0.1))
    assert path.n_evals == 1 + 3 + 7
    x = x0
    for h in (0.1, *[0.25 / 3] * 3, *[0.65 / 7] * 7):
        fx = memory.update(x)
        x = {n: x[n] + h * (fx[n] - x[n]) for n in x}
    assert distance(path.final, x) < 1e-14


def test_a_linear_layer_decays_at_its_time_constant():
    """Without neighbours x follows x(t) = b + (x0 − b) e^(−t/τ)."""
    ham = HAM({"a": Neurons(2, Identity())}, [(("a",), Bias(2, std=1.0))]).double()
    b, x0, times = ham.synapses[0].bias.detach(), normal(4, 2), torch.linspace(0.0, 3.0, 7)
    exact = b + (x0 - b) * torch.exp(-times.double() / 0.7)[:, None, None]
    errors = []
    for step in (0.02, 0.01, 0.005):
        with torch.no_grad():
            path = trajectory(ham, {"a": x0}, times, tau=0.7, method=Euler(step=step))
        errors.append(float((path.states["a"] - exact).abs().max()))
    # First order: half the step, half the error.
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.05)


@adaptive
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun"])
def test_adaptive_methods_meet_their_tolerance(method):
    ham = HAM({"a": Neurons(2, Identity())}, [(("a",), Bias(2, std=1.0))]).double()
    b, x0 = ham.synapses[0].bias.detach(), normal(4, 2)
    times = torch.linspace(0.0, 3.0, 7, dtype=torch.float64)
    exact = b + (x0 - b) * torch.exp(-times / 0.7)[:, None, None]
    with torch.no_grad():
        path = trajectory(
            ham, {"a": x0}, times, tau=0.7, method=Adaptive(method=method, rtol=1e-5, atol=1e-7)
        )
    # What steps of 1e-5 add up to; between steps torchdiffeq would be out by 2e-4 and more.
    assert (path.states["a"] - exact).abs().max() < 2e-5
    assert torch.equal(path.times, times)


# ----------------------------------------------------------------------- equilibrium


@adaptive
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_end_of_a_path_is_the_equilibrium_of_the_deq(dtype):
    ham = chain(64, 32, 10, gain=[3.0, 0.3]).to(dtype)
    image = {"input": normal(16, 64, seed=3, dtype=dtype).abs().clamp(max=1.0)}
    tol = 1e-11 if dtype == torch.float64 else 1e-6
    solution = DEQ(ham, solver=Newton(tol=tol))(image)
    assert bool(solution.converged.all())
    memory = clamp(ham, image)
    x0 = ham.zero_state(image["input"], memory.layers)
    with torch.no_grad():
        path = trajectory(memory, x0, [0.0, 30.0], method=Adaptive())
        slow = trajectory(memory, x0, [0.0, 90.0], tau={"output": 3.0}, method=Adaptive())
        rough = trajectory(memory, x0, [0.0, 30.0], method=Euler(step=0.5))
    settled = {n: solution.value[n] for n in memory.layers}
    for found in (path, slow, rough):
        assert distance(found.final, settled) < 1e-5
        assert found.residual[-1].max() < 1e-5


@adaptive
def test_the_end_of_a_path_is_the_fixed_point_of_attention():
    torch.manual_seed(0)
    ham = HAM(
        {"query": Neurons(8, Identity()), "memories": Neurons(20, Softmax(0.5))},
        [(("query", "memories"), Dense(8, 20))],
    ).double()
    x0 = start(ham, batch=5)
    reduced = eliminate(ham, ["memories"])
    settled = fixed_point(reduced, {"query": x0["query"]}, solver=Picard(tol=1e-13, max_steps=5000))
    path = trajectory(ham, x0, [0.0, 60.0], tau={"memories": 0.5}, method=Adaptive())
    full = reduced.restore(settled.value)
    gap = {n: (path.final[n] - full[n]).abs().max() / full[n].abs().max() for n in full}
    assert max(gap.values()) < 1e-5


@adaptive
def test_a_fast_layer_is_an_eliminated_one():
    """τ → 0 is adiabatic elimination: the gap falls in proportion to τ."""
    memory, x0 = clamped_chain(5, 8, 3, gain=2.0)
    reduced = eliminate(memory, ["hidden1"])
    x0 = reduced.restore({"output": x0["output"]})
    times = torch.linspace(0.0, 2.0, 5)
    with torch.no_grad():
        exact = trajectory(reduced, {"output": x0["output"]}, times, method=Adaptive())
        gaps = []
        for tau in (0.1, 0.01, 0.002):
            path = trajectory(memory, x0, times, tau={"hidden1": tau}, method=FAST)
            gaps.append(float((path.states["output"] - exact.states["output"]).abs().max()))
            gaps.append(float((path.energy - exact.energy).abs().max()))
    for i in (0, 1):
        assert gaps[i] < 1.0
        assert 5 < gaps[i] / gaps[i + 2] < 12
        assert 4 < gaps[i + 2] / gaps[i + 4] < 6


# ---------------------------------------------------------------------------- energy


def coupled(kind, seed=0):
    """Three layers, of which two have the Lagrangian, with weights that give it something to do."""
    torch.manual_seed(seed)
    grows = kind in ("identity", "relu", "repu", "exp")  # kept in bounds by small weights
    neurons = {
        "a": Neurons(4, LAGRANGIANS[kind]()),
        "b": Neurons(5, Tanh(1.0)),
        "c": Neurons(6, LAGRANGIANS[kind]()),
    }
    edges = [(("a", "b"), Dense(4, 5)), (("b", "c"), Dense(5, 6)), (("b",), Bias(5, std=0.3))]
    ham = HAM(neurons, edges).double()
    with torch.no_grad():
        for p in ham.parameters():
            p.mul_(0.3 if grows else 3.0)
    return ham


PACES = [1.0, {"a": 0.2, "b": 1.0, "c": 3.0}]


@adaptive
@pytest.mark.parametrize("kind", LAGRANGIANS)
def test_energy_never_rises(kind):
    ham = coupled(kind)
    with torch.no_grad():
        path = trajectory(
            ham,
            start(ham, 16),
            torch.linspace(0.0, 8.0, 21),
            tau=PACES[1],
            method=Adaptive(rtol=1e-8, atol=1e-10),
        )
    size = path.energy.abs().max()
    # Error of the states, 1e-8, times what is left of the slope of the energy: rounding at rest.
    assert path.energy.diff(dim=0).max() < 1e-9 * size
    assert (path.energy[0] - path.energy[-1]).min() > 1e-3 * size


@pytest.mark.parametrize("tau", PACES, ids=["one pace", "three paces"])
@pytest.mark.parametrize("kind", LAGRANGIANS)
def test_the_rate_of_the_energy(kind, tau):
    """dE/dt = −Σ τ ẋᵀ ∇²L ẋ, by central differences along the flow."""
    ham = coupled(kind)
    x = start(ham, 8)
    fx = ham.update(x)
    pace = tau if isinstance(tau, dict) else dict.fromkeys(x, tau)
    v = {n: (fx[n] - x[n]) / pace[n] for n in x}
    expected = torch.zeros(8, dtype=torch.float64)
    for n in x:
        activation = ham.layer(n).activation
        _, bent = torch.autograd.functional.jvp(activation, x[n], v[n])
        expected -= pace[n] * inner(v[n], bent)
    h = 1e-5
    ahead, behind = ({n: x[n] + s * v[n] for n in x} for s in (h, -h))
    rate = (ham.energy(ahead) - ham.energy(behind)) / (2 * h)
    torch.testing.assert_close(rate, expected, rtol=1e-6, atol=1e-8)
    assert bool((expected < 0).all())


def test_several_paces_in_one_layer_need_an_additive_lagrangian():
    """With a coupled one ∇²L and the paces do not commute: the energy may rise, and does."""
    paces = torch.tensor([0.05, 5.0, 0.5, 50.0], dtype=torch.float64)
    rises = {}
    for kind in ("tanh", "softmax"):
        ham = coupled(kind)
        path = trajectory(
            ham,
            start(ham, 256),
            [0.0, 0.001],
            tau={"a": paces, "b": 10.0},
            method=Euler(step=0.001),
        )
        rises[kind] = int((path.energy.diff(dim=0) > 1e-9).sum())
    assert rises["tanh"] == 0
    assert rises["softmax"] > 0


# ------------------------------------------------------------------------- gradients


@adaptive
@pytest.mark.parametrize(
    "method", [Euler(step=0.1), Adaptive(rtol=1e-9, atol=1e-11)], ids=["euler", "adaptive"]
)
@pytest.mark.slow
def test_gradients_agree_with_finite_differences(method):
    ham = chain(4, 3, 2, gain=2.0, lagrangian=[Sigmoid(2.0), Softmax(2.0), Spherical(0.1)])
    image = normal(2, 4, seed=5)
    hidden, tau = normal(2, 3, seed=6), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    inputs = [image, hidden, tau, *(p.detach().clone() for p in ham.parameters())]
    names = [n for n, _ in ham.named_parameters()]

    def loss(image, hidden, tau, *weights):
        # functional_call takes a forward only, so the weights are put in place by hand.
        for name, weight in zip(names, weights, strict=True):
            owner, _, last = name.rpartition(".")
            module = ham.get_submodule(owner)
            module._parameters.pop(last, None)
            setattr(module, last, weight)
        memory = clamp(ham, {"input": image})
        x0 = {"hidden1": hidden, "output": torch.zeros(2, 2, dtype=torch.float64)}
        path = trajectory(memory, x0, [0.0, 0.4, 2.0], tau={"hidden1": tau}, method=method)
        return (
            (path.states["output"] * normal(3, 2, 2, seed=1)).sum()
            + (path.states["hidden1"] * normal(3, 2, 3, seed=2)).sum()
            + path.energy.sum()
        )

    leaves = [t.clone().requires_grad_() for t in inputs]
    grads = torch.autograd.grad(loss(*leaves), leaves)
    # Central differences. The adaptive solution is a function of its steps too, whose choice has
    # no gradient: what that costs is of the order of its tolerance over the difference's step.
    h, rtol = (1e-5, 1e-7) if isinstance(method, Euler) else (1e-3, 1e-5)
    for i, grad in enumerate(grads):
        direction = normal(*inputs[i].shape, seed=50 + i)
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[i] = inputs[i] + sign * h * direction
            ends.append(loss(*moved))
        expected = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close((grad * direction).sum(), expected, rtol=rtol, atol=rtol)


@adaptive
def test_the_gradient_of_a_long_path_is_that_of_the_equilibrium():
    ham = chain(5, 4, 3)
    image = normal(3, 5, seed=5)
    deq = DEQ(ham, solver=Newton(tol=1e-12))
    weight = ham.synapses[0].weight
    (expected,) = torch.autograd.grad(
        (deq({"input": image}).value["output"] * normal(3, 3)).sum(), weight
    )
    memory = clamp(ham, {"input": image})
    for method in (Adaptive(), Euler(step=0.5)):
        path = trajectory(memory, start(memory), [0.0, 80.0], method=method)
        (found,) = torch.autograd.grad(
            (path.final["output"] * normal(3, 3)).sum(), weight, retain_graph=True
        )
        assert (found - expected).norm() < 1e-5 * expected.norm()


# -------------------------------------------------------------------------- the batch


def test_in_euler_a_sample_does_not_depend_on_its_batch():
    ham = chain(5, 4, 3, gain=2.0)
    image, x0 = normal(6, 5), {"hidden1": normal(6, 4, seed=1), "output": normal(6, 3, seed=2)}
    image[3], x0["output"][4] = math.nan, 1e30
    together = trajectory(clamp(ham, {"input": image}), x0, [0.0, 1.0, 3.0])
    for i in range(6):
        rows = slice(i, i + 1)
        alone = trajectory(
            clamp(ham, {"input": image[rows]}), {n: x[rows] for n, x in x0.items()}, [0.0, 1.0, 3.0]
        )
        for n in x0:
            torch.testing.assert_close(
                together.states[n][:, rows], alone.states[n], rtol=1e-12, atol=1e-13, equal_nan=True
            )


@adaptive
def test_an_adaptive_sample_meets_its_tolerance_whatever_its_batch():
    """Steps follow the worst sample: companions change a result by the tolerance at most, and
    many that are at rest do not hide one that is not."""
    ham = chain(5, 4, 3, gain=2.0)
    image = normal(1, 5)
    rest = DEQ(ham, solver=Newton(tol=1e-12))({"input": image}).value
    memory = clamp(ham, {"input": image})
    x0 = {"hidden1": 5 * normal(1, 4, seed=1), "output": 5 * normal(1, 3, seed=2)}
    times, method = [0.0, 0.5, 1.0, 3.0], Adaptive(rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        exact = trajectory(memory, x0, times, method=Adaptive(rtol=1e-12, atol=1e-14))
        alone = trajectory(memory, x0, times, method=method)
        crowd = clamp(ham, {"input": image.expand(1000, -1)})
        among = {n: torch.cat([x0[n], rest[n].detach().expand(999, -1)]) for n in x0}
        hidden = trajectory(crowd, among, times, method=method)
    assert hidden.n_evals == alone.n_evals
    for n in x0:
        assert (alone.states[n] - exact.states[n]).abs().max() < 2e-4
        assert (hidden.states[n][:, :1] - exact.states[n]).abs().max() < 2e-4
        torch.testing.assert_close(hidden.states[n][:, :1], alone.states[n], rtol=1e-9, atol=1e-10)


@adaptive
@pytest.mark.parametrize("method", [Euler(), Adaptive(rtol=1e-4)], ids=["euler", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_shapes_and_dtypes(method, dtype, batch):
    torch.manual_seed(0)
    neurons = {"a": Neurons((2, 3), LayerNorm(eps=0.1)), "b": Neurons(4, Sigmoid())}
    ham = HAM(neurons, [(("a",), Bias((2, 3))), (("b",), Bias(4))]).to(dtype)
    x0 = {"a": normal(batch, 2, 3, dtype=dtype), "b": normal(batch, 4, dtype=dtype)}
    before = {n: x.clone() for n, x in x0.items()}
    path = trajectory(ham, x0, torch.linspace(0, 1, 5), method=method, tau={"b": 2})
    assert path.states["a"].shape == (5, batch, 2, 3)
    assert path.states["b"].shape == (5, batch, 4)
    assert path.energy.shape == path.residual.shape == (5, batch)
    assert path.times.dtype == torch.float64
    assert {x.dtype for x in (*path.states.values(), path.energy, path.residual)} == {dtype}
    assert path.final["a"].shape == (batch, 2, 3)
    for n in x0:
        assert torch.equal(path.states[n][0], before[n])
        assert torch.equal(x0[n], before[n])
    assert "5 times from 0 to 1" in repr(path)
    assert isinstance(path, Trajectory)


@adaptive
def test_autocast_leaves_the_dynamics_alone():
    memory, x0 = clamped_chain(5, 4, 3)
    memory = clamp(memory.ham.float(), {"input": normal(3, 5, dtype=torch.float32)})
    x0 = {n: x.float() for n, x in x0.items()}
    for method in (Euler(), Adaptive()):
        plain = trajectory(memory, x0, [0.0, 2.0], method=method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = trajectory(memory, x0, [0.0, 2.0], method=method)
        for n in x0:
            assert torch.equal(plain.final[n], cast.final[n])


# ------------------------------------------------------------------------ what is refused


def integrated(**change):
    memory, x0 = clamped_chain(5, 4, 3)
    return trajectory(**{"model": memory, "x0": x0, "times": [0.0, 1.0]} | change)


POSITIVE = "a finite number > 0"
ARGUMENTS = [
    *(
        ({"tau": tau}, (ValueError, "tau of layer 'hidden1'", POSITIVE, f"got {tau}"))
        for tau in (0.0, -1.0, math.nan)
    ),
    ({"tau": {"output": math.inf}}, (ValueError, "tau of layer 'output'", POSITIVE, "got inf")),
    ({"tau": {"input": 1.0}}, (ValueError, "tau", r"layers among \['hidden1', 'output'\]",
      "got 'input'; a layer that is clamped or eliminated has no time constant")),
    ({"tau": {"hidden": 1.0}}, (ValueError, "tau", "layers among", "got 'hidden'")),
    ({"tau": {"output": torch.ones(4)}}, (ValueError, "tau of layer 'output'",
      r"one number or the layer's shape \(3,\)", r"got \(4,\)")),
    ({"tau": {"output": torch.tensor([1.0, 0.0, 1.0])}},
     (ValueError, "tau of layer 'output'", "finite numbers > 0", "got 0.0")),
    ({"tau": torch.tensor(-1.0)},
     (ValueError, "tau of layer 'hidden1'", "finite numbers > 0", "got -1.0")),
    ({"tau": "1"}, (TypeError, "tau of layer 'hidden1'", POSITIVE, "got str")),
    ({"tau": torch.tensor(1)},
     (TypeError, "tau of layer 'hidden1'", "a floating-point tensor", "got torch.int64")),
    *(
        ({"times": times}, (ValueError, "times", "at least two in a row", rf"shape \({shape}\)"))
        for times, shape in (([0.0], "1,"), (1.0, ""), (torch.ones(2, 2), "2, 2"))
    ),
    ({"times": [0.0, 2.0, 1.0]},
     (ValueError, "times", "strictly increasing times", "got 1 after 2, at place 2")),
    ({"times": [0.0, 0.0]}, (ValueError, "times", "strictly increasing times", "got 0 after 0")),
    ({"times": [0.0, math.nan]}, (ValueError, "times", "finite numbers", "got nan")),
    ({"times": ["a", "b"]}, (TypeError, "times", "numbers, such as", r"got \['a', 'b'\]")),
    ({"method": "dopri5"}, (TypeError, "method", "Euler", "got str")),
    ({"method": Euler(step=2.0)}, (ValueError, "step", "at most the whole time 1, from 0 to 1",
      "got 2; use a smaller step or later times")),
    ({"tau": {"output": 0.05}}, (ValueError, "step",
      "at most the time constant 0.05 of layer 'output', beyond which a step overshoots",
      r"got 0.1; use Euler\(step=0.05\), Adaptive\(\), or eliminate\(\)")),
    ({"model": DEQ(chain(5, 4, 3))},
     (TypeError, "model", "an energy model", r"got DEQ; of a DEQ it is deq.reduced")),
    ({"x0": {"output": normal(3, 3)}}, (ValueError, "state", "the layers", "")),
]  # fmt: skip

METHODS = [
    (Euler, {"step": 0.0}, (ValueError, "step", POSITIVE, "got 0.0")),
    (Adaptive, {"method": "rk4"},
     (ValueError, "method", "'dopri5', .* or 'adaptive_heun'", "got 'rk4'")),
    (Adaptive, {"rtol": -1.0}, (ValueError, "rtol", "a finite number ≥ 0", "got -1.0")),
    (Adaptive, {"atol": 0.0}, (ValueError, "atol", POSITIVE, "got 0.0")),
    (Adaptive, {"max_steps": 0}, (ValueError, "max_steps", "an integer ≥ 1", "got 0")),
]  # fmt: skip


@pytest.mark.parametrize(("change", "refusal"), ARGUMENTS)
def test_an_argument_is_refused(change, refusal):
    assert_refused(refusal, lambda: integrated(**change))


@pytest.mark.parametrize(("kind", "options", "refusal"), METHODS)
def test_an_option_of_an_integrator_is_refused(kind, options, refusal):
    assert_refused(refusal, lambda: kind(**options))


@adaptive
def test_what_stops_an_adaptive_method_is_told():
    x0 = clamped_chain(5, 4, 3)[1]
    x0["output"][1] = math.nan
    remedy = r"NaN or infinity in samples \[1\].*; remove them, or use Euler\(\)"
    row = (ValueError, "x0", "finite states", remedy)
    assert_refused(row, lambda: integrated(x0=x0, method=Adaptive()))
    with pytest.raises(RuntimeError, match="max_num_steps exceeded"):
        integrated(method=Adaptive(max_steps=1), times=[0.0, 50.0])
    # Rectified cubes with large weights: an energy without a lower bound.
    growing = chain(5, 4, 3, lagrangian=RePU(4), gain=5.0)
    x0 = {n: 10 * x.abs() for n, x in start(growing).items()}
    with pytest.raises(RuntimeError, match="where states grow without bound"):
        integrated(model=growing, x0=x0, times=[0.0, 100.0], method=Adaptive())


def test_without_torchdiffeq_there_is_euler(monkeypatch):
    real = builtins.__import__

    def none(name, *args, **kwargs):
        if name.startswith("torchdiffeq"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    memory, x0 = clamped_chain(5, 4, 3)
    trajectory(memory, x0, [0.0, 1.0], method=Euler())
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'hamdeq[ode]'")):
        trajectory(memory, x0, [0.0, 1.0], method=Adaptive())
