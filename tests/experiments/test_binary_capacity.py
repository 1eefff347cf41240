"""The capacity of binary memories: what is measured, what theory says, and what is written."""

import csv
import math

import pytest

pytest.importorskip("matplotlib")

from hamdeq.experiments.capacity.binary import (
    Load,
    capacity,
    main,
    measure,
    stored,
    turning,
)
from hamdeq.experiments.capacity.binary_picture import binary_capacity


def test_classical_networks_hold_few_patterns_and_not_many():
    few, many = (measure(Load("classical", 300, count), probes=20) for count in (15, 75))
    assert few.turning == few.wrong == 0.0
    assert many.wrong > 0.1  # recall ends far from where it began
    assert many.turning < 0.05  # though each pattern was nearly at rest


@pytest.mark.parametrize(("n", "count"), [(2, 11), (3, 300)])
def test_steeper_memories_hold_as_many_as_published(n, count):
    assert measure(Load(str(n), 100, count), probes=20).wrong < 0.01


def test_more_neurons_hold_more_with_the_exponential():
    assert measure(Load("exp", 18, 512), probes=20).wrong < 0.005
    assert measure(Load("exp", 10, 512), probes=20).wrong > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("n", "load"), [(2, 0.2), (3, 0.3)])
def test_as_many_neurons_want_to_turn_as_in_theory(n, load):
    count = stored(n, 100, load)
    draws = [measure(Load(str(n), 100, count), probes=20, seed=seed).turning for seed in range(3)]
    # 6,000 neurons, of which some hundred turn: three standard deviations, and a fifth for the
    # law of large numbers that the theory takes for granted.
    expected = turning(load)
    relative = 0.2 + 3 / math.sqrt(6000 * expected)
    assert sum(draws) / len(draws) == pytest.approx(expected, rel=relative)


def test_loads_are_those_of_the_paper():
    # N/(2 ln N), N²/(6 ln N) and N³/(30 ln N) patterns.
    for n, divisor in ((2, 2), (3, 6), (4, 30)):
        expected = round(100 ** (n - 1) / (divisor * math.log(100)))
        assert stored(n, 100, capacity(100)) == expected


@pytest.mark.slow
def test_writes_every_draw_and_a_picture(tmp_path):
    sizes = ["--sizes", "20", "--dense-sizes", "6", "12", "--small-sizes", "6"]
    main([*sizes, "--repeats", "2", "--probes", "3", "--out", str(tmp_path)])
    with (tmp_path / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["memory"] for row in rows} == {"classical", "2", "3", "4", "exp"}
    row = rows[1]
    load = Load(row["memory"], int(row["N"]), int(row["K"]))
    assert float(row["wrong"]) == measure(load, probes=3, seed=1).wrong
    assert (tmp_path / "binary_capacity.png").stat().st_size > 1000


def test_the_picture_shows_what_it_is_given():
    errors = {
        ("classical", 50, 5): (0.0, 0.25),
        ("classical", 50, 10): (0.1, 0.5),
        ("3", 10, 10): (0.1, 0.5),
    }
    figure = binary_capacity(errors, turning=turning, capacity=capacity, patterns=stored)
    classical, turn, wrong, _ = figure.axes
    assert list(classical.lines[0].get_xdata()) == [0.1, 0.2]
    assert list(classical.lines[0].get_ydata()) == [0.25, 0.5]
    assert list(turn.lines[0].get_xdata()) == pytest.approx([10 * 3 / 100])
    assert [list(axes.lines[0].get_ydata()) for axes in (turn, wrong)] == [[0.1], [0.5]]
