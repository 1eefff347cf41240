"""The capacity experiment: what it measures, and what it writes."""

import csv
import math

import pytest

pytest.importorskip("matplotlib")

from hamdeq.experiments.capacity.attention import (
    growth,
    guaranteed_capacity,
    main,
    retrieval_error,
)
from hamdeq.experiments.capacity.attention_picture import capacity_curves


def test_few_patterns_are_retrieved_and_too_many_are_not():
    few, many = (retrieval_error(count, 32) for count in (8, 4096))
    assert few < 0.05  # a quarter of the distance of the probes
    assert many > 0.9  # patterns have norm 1: nothing of them is left
    assert retrieval_error(4096, 64) < 0.05  # more dimensions hold exponentially more


def test_the_base_of_the_proven_growth_is_the_published_one():
    """The two examples of theorem 3: β = 1 and p = 0.001."""
    assert 3.1546 <= growth(20, 9.0) < 3.1547  # K = 3
    assert 1.3718 <= growth(75, 1.0) < 1.3719  # K = 1


@pytest.mark.parametrize("size", [2, 20, 75, 400])
@pytest.mark.parametrize("steepness", [0.05, 1.0, 9.0, 100.0])
def test_the_base_solves_its_equation(size, steepness):
    c, b = growth(size, steepness, 0.01), 2 * steepness / 5
    a = 2 / (size - 1) * (1 + math.log(2 * steepness * 0.01 * (size - 1)))
    assert b / c * math.exp(b / c) == pytest.approx(math.exp(a) * b, rel=1e-10)


def test_what_is_proven_is_less_than_what_is_stored():
    """β = 4d: ten times as many patterns as are proven to be stored are retrieved."""
    size, sharpness = 64, 4.0
    proven = guaranteed_capacity(size, sharpness)
    assert proven > 100
    assert retrieval_error(int(10 * proven), size, sharpness=sharpness) < 0.01
    assert guaranteed_capacity(16, 0.25) is None  # not even two patterns
    with pytest.raises(ValueError, match="size: expected an integer ≥ 2"):
        growth(1, 1.0)
    with pytest.raises(ValueError, match="failure: expected"):
        growth(8, 1.0, 0.0)


def test_writes_every_draw_and_a_picture(tmp_path, capsys):
    main(["--sizes", "8", "16", "--largest", "3", "--repeats", "2", "--out", str(tmp_path)])
    with (tmp_path / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    with (tmp_path / "capacity.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["d"] for row in table] == ["8", "16"]
    assert all(row["proven"] == "–" for row in table)  # at β = d/4 nothing is
    first = rows[0]
    assert float(first["error"]) == retrieval_error(int(first["N"]), int(first["d"]), seed=0)
    assert (tmp_path / "capacity.png").stat().st_size > 1000


def test_capacity_is_the_largest_number_before_the_first_failure():
    errors = {4: {1: 0.0, 2: 0.5, 4: 0.05}, 8: {1: 0.0, 2: 0.0, 4: 0.2}, 16: {1: 0.3, 2: 0.4}}
    _, right = capacity_curves(errors).axes
    points = right.lines[0]
    assert list(points.get_xdata()) == [4, 8]  # nothing is known of 16
    assert list(points.get_ydata()) == [1, 2]


def test_what_is_proven_is_drawn_beside_what_is_measured():
    errors = {8: {1: 0.0, 2: 0.0, 4: 0.2}, 16: {1: 0.0, 2: 0.0, 4: 0.0, 8: 0.3}}
    _, right = capacity_curves(errors, proven={8: None, 16: 2.5}).axes
    (line,) = [line for line in right.lines if "proven" in line.get_label()]
    assert line.get_xydata().tolist() == [[16, 2.5]]


def test_growth_is_that_of_what_is_more_than_one_pattern():
    kept = {4: 1, 8: 2, 12: 4, 16: 8}
    errors = {d: {n: float(n > most) for n in (1, 2, 4, 8, 16)} for d, most in kept.items()}
    _, right = capacity_curves(errors).axes
    points, line = right.lines
    assert list(points.get_xdata()) == [4, 8, 12, 16]
    assert list(line.get_xdata()) == [8, 12, 16]
    assert list(line.get_ydata()) == pytest.approx([2, 4, 8])
    assert line.get_label() == "doubles every 4.0 dimensions"
