"""Pictures: what is drawn are the numbers given."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from hamdeq import (
    HAM,
    Euler,
    Exp,
    Identity,
    Sigmoid,
    Softmax,
    Tanh,
    TwoLayer,
    clamp,
    eliminate,
    trajectory,
)
from hamdeq.plots import (
    basins,
    energy_descent,
    legendre_curves,
    residual_histogram,
    retrieval_gallery,
    trajectory_curves,
    weight_images,
)


def test_each_state_is_drawn_in_its_place():
    rows = {"stored": torch.sign(torch.randn(3, 6)), "recalled": torch.sign(torch.randn(3, 6))}
    figure = retrieval_gallery(rows, shape=(2, 3))
    assert len(figure.axes) == 6
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    for image, state in zip(drawn, [*rows["stored"], *rows["recalled"]], strict=True):
        assert np.array_equal(np.asarray(image), state.reshape(2, 3).numpy())
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == ["stored", "recalled"]


def test_colours_are_drawn_between_their_limits():
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    x[1, 0, 2, 3] = torch.nan  # unknown
    for rows in ({"given": x}, {"given": x.flatten(1)}):
        figure = retrieval_gallery(rows, (3, 4, 5))
        first, second = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
        wanted = (x.permute(0, 2, 3, 1).numpy() + 1) / 2
        assert np.allclose(first[..., :3], wanted[0])
        assert first[..., 3].all()
        assert second[..., 3].sum() == 19
        assert second[2, 3, 3] == 0
    grey = retrieval_gallery({"a": torch.rand(1, 1, 4, 5)}, (1, 4, 5))
    assert grey.axes[0].images[0].get_array().shape == (4, 5)


def test_weights_of_colours_are_drawn_around_grey():
    weights = torch.zeros(2, 60)
    weights[0, 7] = 2.0
    figure = weight_images(weights, (3, 4, 5))
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    assert drawn[1, 2, :3].tolist() == [1.0, 0.5, 0.5]
    assert len(figure.axes) == 2  # no bar of one colour


def test_weights_with_the_largest_norm_come_first():
    weights = torch.tensor([[1.0, 0, 0, 0], [0, 0, -3, 0], [0, 2, 0, 0]])
    figure = weight_images(weights, (2, 2), count=2)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["1", "2"]
    assert figure.axes[0].images[0].get_array().tolist() == [[0, 0], [-3, 0]]


def test_energies_are_drawn_above_the_lowest():
    ways = {"a": [3.0, 2.0, 1.5], "b": torch.tensor([3.0, 1.0])}
    lines = energy_descent(ways).axes[0].lines
    assert lines[0].get_ydata().tolist() == [2.0, 1.0, 0.5]
    assert lines[1].get_ydata()[0] == 2.0
    assert np.isnan(lines[1].get_ydata()[1])
    assert energy_descent(ways, lowest=0.5).axes[0].lines[1].get_ydata().tolist() == [2.5, 0.5]


def test_residuals_are_averaged_and_unconverged_samples_counted():
    trace = torch.tensor([[1e-1, 1e-2], [1e-3, 1e-1], [1e-5, 1e-2]], dtype=torch.float64)
    axes = residual_histogram(trace, title="two").axes[0]
    assert axes.get_title() == "two: 2 samples, 1 never below 0.0001"
    assert np.allclose(axes.lines[0].get_ydata(), [-1.5, -2.0, -3.5])
    assert axes.lines[-1].get_xdata()[0] == 3.0


def test_the_cost_of_an_activation_is_the_integral_of_its_inverse():
    """L*(g) − L*(g₀) = ∫ g⁻¹(V) dV, by the trapezoidal rule over what is drawn."""
    kinds = {"tanh": Tanh(2.0), "sigmoid": Sigmoid(4.0, 0.5), "identity": Identity(), "exp": Exp()}
    axes = legendre_curves(kinds, reach=2.0).axes[0]
    x = np.linspace(-2.0, 2.0, 401)
    for line, (label, lagrangian) in zip(axes.lines, kinds.items(), strict=True):
        g, dual = line.get_data()
        assert line.get_label() == label
        expected = lagrangian.activation(torch.from_numpy(x)[:, None])[:, 0]
        assert np.allclose(g, expected)
        steps = (x[1:] + x[:-1]) / 2 * np.diff(g)
        assert np.allclose(np.cumsum(steps), dual[1:] - dual[0], atol=1e-3 * np.ptp(dual))


def test_basins_are_numbered_by_rising_energy():
    memory = eliminate(
        TwoLayer.model_b(torch.tensor([[0.5, 0.0], [-1.0, 0.0]]), beta=20.0), ["memories"]
    )
    axes = basins(memory, points=12).axes[0]
    deep, shallow = (line.get_xydata()[0] for line in axes.lines)
    assert np.allclose([deep[0], shallow[0]], [-1.0, 0.5], atol=0.01)
    row = axes.images[0].get_array()[6].tolist()
    assert row == sorted(row)
    assert row[::11] == [0, 1]


@pytest.fixture
def path():
    torch.manual_seed(0)
    clamped = clamp(HAM.chain([5, 9, 3]), {"input": torch.randn(4, 5)})
    x0 = {"hidden1": torch.randn(4, 9), "output": torch.randn(4, 3)}
    return trajectory(clamped, x0, torch.linspace(0, 5, 11), method=Euler(step=0.5))


def test_the_curves_are_the_numbers(path):
    figure = trajectory_curves(path, sample=2, neurons=4)
    top, hidden, output = figure.axes
    assert len(top.lines) == 5  # all samples, and the chosen one again
    assert np.allclose(top.lines[-1].get_ydata(), path.energy[:, 2].detach())
    assert len(hidden.lines) == 4
    assert len(output.lines) == 3
    for i, line in enumerate(output.lines):
        assert np.allclose(line.get_xdata(), path.times)
        assert np.allclose(line.get_ydata(), path.states["output"][:, 2, i].detach())
    assert "hidden1: x, 4 of 9" in hidden.get_ylabel()
    moved = path.states["hidden1"][:, 2].detach()
    most = (moved.amax(0) - moved.amin(0)).topk(4).indices.sort().values
    for i, line in zip(most, hidden.lines, strict=True):
        assert np.allclose(line.get_ydata(), moved[:, i])
    figure.draw_without_rendering()


def test_layers_and_scale_can_be_chosen(path):
    figure = trajectory_curves(path, layers=["output"], scale="log")
    assert len(figure.axes) == 2
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[1].lines[0].get_xdata().min() > 0
    figure.draw_without_rendering()


IMAGE = "expected (height, width), or (3, height, width)"
MISTAKES = [
    (retrieval_gallery, ({}, (2, 3)), {}, "rows: expected as many states in each, at least one"),
    (retrieval_gallery, ({"a": torch.ones(2, 6), "b": torch.ones(3, 6)}, (2, 3)), {}, "got [2, 3]"),
    (
        retrieval_gallery,
        ({"a": torch.ones(2, 5)}, (2, 3)),
        {},
        "rows: expected states of 2 × 3 pixels, (2, 6), got (2, 5) in 'a'",
    ),
    (
        retrieval_gallery,
        ({"a": torch.ones(2, 6)}, (2, 3)),
        {"names": ["x"]},
        "each of 2 columns, got 1",
    ),
    (
        retrieval_gallery,
        ({"a": torch.ones(2, 6)}, (2, 3)),
        {"energy": torch.ones(1, 2)},
        "got (1, 2)",
    ),
    (
        weight_images,
        (torch.ones(2, 5), (2, 3)),
        {},
        "memory: expected weights (neurons, 6) for images",
    ),
    (weight_images, (torch.ones(2, 6), (2, 3)), {"count": 0}, "count: expected a positive integer"),
    (weight_images, (HAM.chain([6, 3]), (2, 3)), {}, "hidden1"),
    *(
        (retrieval_gallery, ({"a": torch.rand(2, 60)}, shape), {}, IMAGE)
        for shape in [(4, 5, 3), (20,)]
    ),
    *(
        (weight_images, (torch.rand(2, 40), shape), {}, IMAGE)
        for shape in [(2, 4, 5), (1, 1, 4, 10)]
    ),
    (energy_descent, ({},), {}, "ways: expected energies or trajectories, at least one, got []"),
    (
        energy_descent,
        ({"a": [1.0], "b": torch.ones(2, 3)},),
        {},
        "the first way, got (2, 3) for 'b'",
    ),
    (
        legendre_curves,
        ({"softmax": Softmax()},),
        {},
        "lagrangians: expected additive ones, with a curve for each neuron, got Softmax",
    ),
    (legendre_curves, ({},), {}, "lagrangians: expected at least one, got none"),
    (
        residual_histogram,
        (torch.ones(0, 3),),
        {},
        "solution: expected residuals (iterations, samples)",
    ),
]


@pytest.mark.parametrize(("draw", "arguments", "options", "message"), MISTAKES)
def test_what_cannot_be_drawn_is_refused(draw, arguments, options, message):
    with pytest.raises((ValueError, KeyError), match=re.escape(message)):
        draw(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 4}, "sample: expected one of 4 samples, got 4"),
        ({"layers": ["input"]}, "layers: expected some of ['hidden1', 'output']"),
        ({"layers": []}, "layers: expected some of"),
        ({"neurons": 0}, "neurons: expected a positive integer, got 0"),
        ({"scale": "cubic"}, "scale: expected 'linear' or 'log', got 'cubic'"),
    ],
)
def test_curves_that_are_not_there_are_refused(path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trajectory_curves(path, **options)
