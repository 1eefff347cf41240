"""Newton's method: what it linearises, where it starts, and maps that depend on nothing."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from hamdeq import (
    DEQ,
    HAM,
    AvgPool2d,
    Bias,
    Broyden,
    Composed,
    Conv2d,
    Dense,
    FixedSteps,
    Flatten,
    Identity,
    Lagrangian,
    LayerNorm,
    Neurons,
    Newton,
    Picard,
    Reduced,
    Sigmoid,
    Softmax,
    Solution,
    Synapse,
    Tanh,
    fixed_point,
)
from hamdeq.solvers.energy_map import EnergyMap, StateLayout
from hamdeq.testing import normal


class Product(Synapse):
    """Three layers, neuron by neuron, with its field in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 0.4, 4))

    def energy(self, *g: Tensor) -> Tensor:
        return -(g[0] * g[1] * g[2] * self.weight).sum(-1)

    def field(self, to: int, *g: Tensor) -> Tensor:
        a, b = (x for place, x in enumerate(g) if place != to)
        return a * b * self.weight

    def is_linear_in(self, place: int) -> bool:
        return True


@pytest.mark.parametrize("batch", [0, 1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_newton_solves_a_map_that_does_not_depend_on_its_state(batch: int, bias: bool) -> None:
    x = torch.rand(batch, 4)
    deq = DEQ(HAM.chain([4, 5], bias=bias), splitting=None, start="zeros", solver=Newton(tol=1e-6))
    solution = deq({"input": x})
    assert solution.converged.all()
    expected = DEQ(deq.ham)({"input": x}).value["output"]
    torch.testing.assert_close(solution.value["output"], expected)


def test_newton_solves_a_layer_without_synapses() -> None:
    neurons = {name: Neurons(3, Sigmoid()) for name in ("input", "a", "alone")}
    ham = HAM(neurons, [(("input", "a"), Dense(3, 3))])
    init = {"alone": torch.ones(2, 3)}
    for solver in (Newton(), Picard()):
        deq = DEQ(ham, splitting=None, start="zeros", solver=solver)
        solution = deq({"input": torch.rand(2, 3)}, init=init)
        assert solution.converged.all()
        assert not solution.value["alone"].any()


def test_newton_solves_a_plain_map_that_depends_on_parameters_alone() -> None:
    w = torch.rand(3, 2, requires_grad=True)
    solution = fixed_point(lambda x: 2 * w, torch.zeros(3, 2), solver=Newton())
    torch.testing.assert_close(solution.value, 2 * w)


@pytest.mark.parametrize("known", [False, True])
def test_newton_works_in_inference_mode(known: bool) -> None:
    torch.manual_seed(0)
    neurons = {name: Neurons(4, Sigmoid()) for name in "abcd"}
    connections: Any = [(("a", "b", "c"), Product()), (("c", "d"), Dense(4, 4, gain=0.3))]
    deq = DEQ(HAM(neurons, connections), ("a", "d"), splitting=None, solver=Newton(tol=1e-6))
    given = {name: torch.rand(9, 4) for name in "ad"}
    mask = {"d": torch.tensor([True, False, True, False])} if known else None
    expected = deq(given, observed=mask).value
    with torch.inference_mode():
        found = deq(given, observed=mask).value
    torch.testing.assert_close(found, {name: x.detach() for name, x in expected.items()})


def visible_state(model: Reduced, batch: int) -> tuple[EnergyMap, Tensor]:
    x = {a: normal(batch, *model.model.layer(a).shape, seed=i) for i, a in enumerate(model.visible)}
    f = EnergyMap(model, StateLayout(x))
    return f, f.layout.flatten(x)


def chain(*sizes: int, lagrangian: Lagrangian | None = None) -> HAM:
    torch.manual_seed(0)
    return HAM.chain(sizes, lagrangian or Sigmoid(4.0, 0.5)).double()


class Bilinear(Synapse):
    """Linear in both of its layers, with a field by automatic differentiation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2))

    def energy(self, *g: Tensor) -> Tensor:
        return -torch.einsum("bi,bcxy,icxy->b", *g, self.weight)

    def is_linear_in(self, place: int) -> bool:
        return True


def pictures() -> HAM:
    """A convolution with its pooling, between two layers of which one is eliminated."""
    torch.manual_seed(0)
    neurons = {
        "input": Neurons((1, 6, 6), Sigmoid()),
        "a": Neurons((3, 2, 2), Tanh(2.0)),
        "output": Neurons(4, Sigmoid(4.0, 0.5)),
    }
    connections: Any = [
        (("input", "a"), Composed(Conv2d(1, 3, 3), AvgPool2d(2))),
        (("output", "a"), Bilinear()),
        (("a",), Bias((3, 2, 2), by_channel=True)),
        (("a", "output"), Composed(Flatten(), Dense(12, 4))),
    ]
    return HAM(neurons, connections).double()


@pytest.mark.parametrize("batch", [1, 3, 40])  # fewer samples than numbers, and more
@pytest.mark.parametrize(
    "ham", [chain(9, 8, 3, 7, 4), chain(9, 30, 5, lagrangian=Tanh(2.0)), pictures()]
)
def test_the_coupling_in_closed_form_is_the_derivative_of_the_fields(ham: HAM, batch: int) -> None:
    inputs = normal(batch, *ham.layer("input").shape, seed=9)
    f, x = visible_state(DEQ(ham).reduced({"input": inputs}), batch)
    _, info = f.step(x)
    assert info.coupling is not None
    g = info.g.detach()
    expected = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda row, i=i: f.select(torch.tensor([i])).fields(row[None])[0], g[i]
            )
            for i in range(batch)
        ]
    )
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(info.coupling().detach(), expected, rtol=1e-12, atol=1e-14)
    fields, coupling = f.linearised(g)
    assert coupling is not None
    torch.testing.assert_close(fields, info.fields)
    torch.testing.assert_close(coupling(), info.coupling())


def test_there_is_no_closed_form_where_more_than_hidden_neurons_matter() -> None:
    x, mask = normal(3, 6), torch.tensor([True, False] * 3)
    lines = [DEQ(chain(6, 5, 4, lagrangian=each)) for each in (Softmax(2.0), LayerNorm())]
    models = [
        DEQ(chain(6, 5, 4), splitting=None).reduced({"input": x}),  # no layer is hidden
        DEQ(chain(6, 5, 4)).reduced({"input": x}, {"input": mask}),  # one is clamped in part
        *(deq.reduced({"input": x}) for deq in lines),  # neurons depend on one another
    ]
    for model in models:
        f, state = visible_state(model, 3)
        assert f.step(state)[1].coupling is None
        assert f.linearised(state)[1] is None


# ------------------------------------------------------------------------------ evaluations


def linear_hidden() -> HAM:
    """Hidden neurons that are linear, so that the fields on the others are."""
    torch.manual_seed(0)
    lagrangians = [Sigmoid(), Identity(), Tanh(1.5)]
    return HAM.chain([6, 9, 4], lagrangians, gain=0.4).double()


@pytest.mark.parametrize(
    ("start", "tol", "evaluations"), [("forward", 1e-10, 2), ("linearised", 1e-3, 1)]
)
def test_linear_fields_take_one_step_and_none_from_a_linearised_start(
    start: Any, tol: float, evaluations: int
) -> None:
    x = {"input": normal(20, 6)}
    solution = DEQ(linear_hidden(), start=start, solver=Newton(tol=tol))(x)
    plain = DEQ(linear_hidden(), solver=Picard(tol=tol, max_steps=300))(x)
    assert solution.n_evals == evaluations
    assert plain.n_evals >= evaluations + 3
    value, expected = solution.value["output"], plain.value["output"]
    torch.testing.assert_close(value, expected, rtol=0, atol=10 * tol)


def test_what_a_step_neglects_is_of_second_order_in_the_hidden_layers() -> None:
    """Half as far from the equilibrium, a step ends at a quarter of the distance or less."""
    ham = chain(6, 40, 5)
    x = {"input": normal(10, 6)}
    deq = DEQ(ham, solver=Newton(tol=1e-13))
    rest = deq(x).value["output"].detach()
    away = normal(10, 5, seed=3)
    errors = []
    for size in (1e-1, 1e-2, 1e-3):
        one = Newton(tol=1e-13, max_steps=2, fallback_steps=0)
        init = {"output": rest + size * away}
        with torch.no_grad():
            after = deq(x, init=init, solver=one, on_failure="ignore").value["output"]
        errors.append((after - rest).norm())
    orders = [torch.log10(a / b).item() for a, b in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.2 for order in orders), orders


@pytest.mark.parametrize(("gain", "least"), [([2.0, 0.3], 3), (0.6, 5)])
def test_two_evaluations_reach_the_worst_sample_of_a_batch(gain: Any, least: int) -> None:
    """Of a classifier as it is initialised, where the default solver takes more."""
    torch.manual_seed(0)
    ham = HAM.chain([50, 300, 10], gain=gain)
    x = {"input": torch.rand(64, 50)}
    with torch.no_grad():
        solution = DEQ(ham, solver=Newton(), start="linearised")(x)
        other = DEQ(ham, solver=Broyden())(x)
    assert solution.n_evals == 2
    assert other.n_evals >= least
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, other.value, rtol=0, atol=1e-2)


# --------------------------------------------------------------------- the linearised start


STARTS: dict[str, dict[str, Any]] = {
    "even-odd": {},
    "sweep": {"splitting": "sweep"},
    "all at once": {"splitting": None},
}


@pytest.mark.parametrize("options", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("kind", [Sigmoid, Tanh, Softmax, LayerNorm])
@pytest.mark.parametrize("part", [False, True], ids=["whole", "in part"])
def test_a_linearised_start_leads_to_the_equilibrium(kind: Any, options: Any, part: bool) -> None:
    torch.manual_seed(0)
    lagrangians = [Sigmoid(), *(kind() for _ in range(3))]
    ham = HAM.chain([6, 5, 7, 4], lagrangians, gain=0.3).double()
    x = {"input": normal(8, 6)}
    observed = {"input": torch.tensor([True, False] * 3)} if part else None
    found: list[Solution] = []
    for start in ("linearised", "zeros"):
        deq = DEQ(ham, start=start, solver=Newton(tol=1e-10), **options)  # type: ignore[arg-type]
        found.append(deq(x, observed=observed))
    one, other = found
    assert one.converged.all()
    if kind is not LayerNorm:  # which is not smooth where all of its neurons are equal
        assert one.trace[0].max() < other.trace[0].min()
    torch.testing.assert_close(one.value, other.value, rtol=1e-7, atol=1e-8)


def test_no_sample_of_a_linearised_start_depends_on_its_batch() -> None:
    torch.manual_seed(0)
    # So strong that some samples take more steps of the linearised equation than others.
    deq = DEQ(HAM.chain([6, 30, 8, 20, 5], gain=4.0).double(), start="linearised")
    x = 3 * normal(40, 6)
    with torch.no_grad():
        whole = deq({"input": x}, solver=Newton(tol=1e-9))
        assert len(whole.steps.unique()) >= 4
        for rows in ([3], [7, 2, 39], [*range(39, -1, -1)]):
            part = deq({"input": x[rows]}, solver=Newton(tol=1e-9))
            assert part.steps.tolist() == whole.steps[rows].tolist()
            expected = {name: state[rows] for name, state in whole.value.items()}
            torch.testing.assert_close(part.value, expected, rtol=1e-9, atol=1e-11)


def test_a_given_state_goes_before_the_linearised_one() -> None:
    deq = DEQ(chain(6, 5, 4), start="linearised", solver=Newton(max_steps=1, fallback_steps=0))
    x, given = {"input": normal(3, 6)}, normal(3, 4, seed=1)
    solution = deq(x, init={"output": given}, on_failure="ignore")
    assert torch.equal(solution.value["output"], given)
    assert not torch.equal(deq(x, on_failure="ignore").value["output"], given)


def test_a_linearised_start_gets_the_gradient_of_the_equilibrium_alone() -> None:
    grads = []
    for start in ("forward", "linearised"):
        deq = DEQ(chain(6, 12, 4), start=start, solver=Newton(tol=1e-12))  # type: ignore[arg-type]
        deq({"input": normal(5, 6)}).value["output"].square().sum().backward()
        grads.append([p.grad for p in deq.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_an_overflow_in_the_linearised_start_leaves_zero() -> None:
    """Where the fields without feedback are not finite, as if zeros had been asked for."""
    deq = DEQ(chain(6, 5, 4), start="linearised", solver=Newton(max_steps=0, fallback_steps=0))
    model = deq.reduced({"input": normal(3, 6)})
    f, _ = visible_state(model, 3)
    assert f.linearised(torch.zeros(3, 4).double())[0].isfinite().all()
    with torch.no_grad():
        deq.ham.synapses[1].weight[0, 0] = 1e308  # type: ignore[index]
        deq.ham.synapses[1].weight[1, 0] = 1e308  # type: ignore[index]
    x = torch.tensor([[50.0] * 6, [-50.0] * 6]).double()
    with torch.no_grad():
        solution = deq({"input": x}, on_failure="ignore")
    assert solution.value["output"].isfinite().all()


def test_steps_of_a_graph_begin_at_no_linearised_start() -> None:
    deq = DEQ(chain(6, 5, 4), start="linearised", solver=Picard(), compiled=2)
    x = {"input": normal(3, 6)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert deq(x).converged.all()  # step by step, without a word
    with pytest.raises(ValueError, match=r"start 'forward' or 'zeros'"):
        FixedSteps(deq, 2)
