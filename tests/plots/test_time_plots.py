"""Pictures of trajectories."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from hamdeq import HAM, Euler, clamp, trajectory
from hamdeq.plots import trajectory_curves


@pytest.fixture
def path():
    torch.manual_seed(0)
    held = clamp(HAM.chain([5, 9, 3]), {"input": torch.randn(4, 5)})
    x0 = {"hidden1": torch.randn(4, 9), "output": torch.randn(4, 3)}
    return trajectory(held, x0, torch.linspace(0, 5, 11), method=Euler(step=0.5))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 4}, "one of 4 samples, got 4"),
        ({"layers": ["input"]}, r"expected some of \['hidden1', 'output'\]"),
        ({"layers": []}, "expected some of"),
        ({"neurons": 0}, "at least 1"),
        ({"scale": "cubic"}, "'linear' or 'log'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(path, options, message):
    with pytest.raises(ValueError, match=message):
        trajectory_curves(path, **options)
