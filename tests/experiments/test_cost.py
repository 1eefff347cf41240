"""The experiment on cost: what it measures, and what it writes."""

import csv
import math

import pytest
import torch

pytest.importorskip("matplotlib")

from hamdeq.experiments.cost.measure import Chain, main, peak_memory
from hamdeq.experiments.cost.picture import cost_curves, growth


@pytest.mark.slow
def test_writes_every_memory_and_a_picture(tmp_path, capsys):
    sizes = ["--depths", "3", "4", "5", "--width", "8", "--widths", "8", "16", "--narrow", "4"]
    short = ["--batch", "2", "--evaluations", "3", "--repeats", "2"]
    main([*sizes, *short, "--out", str(tmp_path)])
    with (tmp_path / "cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sizes"] for row in rows] == [
        "8-8-8", "8-8-8-8", "8-8-8-8-8", "4-4-8-8-4", "4-4-16-16-4",
    ]  # fmt: skip
    assert [int(row["synapses"]) for row in rows] == [1, 2, 3, 3, 3]
    assert [int(row["weights"]) for row in rows] == [64, 128, 192, 128, 384]
    for row in rows:
        assert float(row["step"]) > float(row["even_odd"]) > 0
        assert float(row["synchronous"]) > 0
        assert int(row["peak"]) > 2 * 4 * int(row["weights"])  # a gradient is as large
    assert (tmp_path / "cost.png").stat().st_size > 1000
    assert "training step" in capsys.readouterr().out


def test_a_training_step_makes_just_so_many_evaluations():
    jobs = Chain((8, 8, 8, 8)).jobs(2, 5)
    jobs["step"]()
    # More than it takes to where nothing moves any more: a step that ends early is no measure.
    with pytest.raises(RuntimeError, match="expected 500 evaluations each way"):
        Chain((8, 8, 8, 8)).jobs(2, 500)["step"]()


def test_memory_is_what_is_held_at_once():
    def run():
        for _ in range(3):
            a = torch.ones(1000, 1000)
            b = a + 1
            del a, b

    assert 8_000_000 <= peak_memory(run) < 8_010_000


@pytest.mark.slow
def test_a_memory_of_twice_the_synapses_takes_twice_the_memory():
    one, two = (
        peak_memory(Chain((64,) * (synapses + 2)).jobs(8, 4)["step"]) for synapses in (8, 16)
    )
    assert 1.8 < two / one < 2.1


def test_powers_are_those_of_large_sizes():
    assert growth({n: 3.0 * n**1.5 for n in (1, 10, 100)}) == pytest.approx(1.5)
    assert growth({n: 50.0 + n for n in (1, 10, 10**4, 10**5, 10**6)}) == pytest.approx(1, abs=0.01)
    assert growth({100: 4.0, 1: 2.0, 50: 2.0}) == pytest.approx(1.0)
    assert math.isnan(growth({1: 2.0}))


def test_the_picture_has_a_column_for_each_axis():
    curves = {
        "depth": {"update": {1: 0.5, 2: 1.0}, "step": {1: 1.0, 2: 2.0}},
        "width": {"update": {8: 0.5}},
    }
    figure = cost_curves(curves, curves)
    top, other, bottom, _ = figure.axes
    assert list(top.lines[0].get_ydata()) == [500.0, 1000.0]  # milliseconds
    assert list(bottom.lines[0].get_ydata()) == pytest.approx([0.5 / 2**20, 1.0 / 2**20])
    assert top.get_legend().get_texts()[0].get_text() == "update, power 1.00"
    assert other.get_legend().get_texts()[0].get_text() == "update"
    for memory in ({"depth": curves["depth"]}, {}):
        with pytest.raises(ValueError, match="memory: expected the axes of times"):
            cost_curves(curves, memory)
    with pytest.raises(ValueError, match="memory: expected the axes of times"):
        cost_curves({}, {})


def test_a_chain_has_free_layers(capsys):
    with pytest.raises(SystemExit):
        main(["--depths", "2"])
    assert "--depths: expected an integer ≥ 3, got '2'" in capsys.readouterr().err
