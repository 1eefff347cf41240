"""The capacity experiment: what it measures, and what it writes."""

import csv

import pytest

pytest.importorskip("matplotlib")

from hamdeq.experiments.capacity.attention import main, retrieval_error
from hamdeq.experiments.capacity.attention_picture import capacity_curves


def test_few_patterns_are_retrieved_and_too_many_are_not():
    few, many = (retrieval_error(count, 32) for count in (8, 4096))
    assert few < 0.05  # a quarter of the distance of the probes
    assert many > 0.9  # patterns have norm 1: nothing of them is left
    assert retrieval_error(4096, 64) < 0.05  # more dimensions hold exponentially more


def test_writes_every_draw_and_a_picture(tmp_path, capsys):
    main(["--sizes", "8", "16", "--largest", "3", "--repeats", "2", "--out", str(tmp_path)])
    with (tmp_path / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    first = rows[0]
    assert float(first["error"]) == retrieval_error(int(first["N"]), int(first["d"]), seed=0)
    assert (tmp_path / "capacity.png").stat().st_size > 1000


def test_capacity_is_the_largest_number_before_the_first_failure():
    errors = {4: {1: 0.0, 2: 0.5, 4: 0.05}, 8: {1: 0.0, 2: 0.0, 4: 0.2}, 16: {1: 0.3, 2: 0.4}}
    _, right = capacity_curves(errors).axes
    points = right.lines[0]
    assert list(points.get_xdata()) == [4, 8]  # nothing is known of 16
    assert list(points.get_ydata()) == [1, 2]


def test_growth_is_that_of_what_is_more_than_one_pattern():
    kept = {4: 1, 8: 2, 12: 4, 16: 8}
    errors = {d: {n: float(n > most) for n in (1, 2, 4, 8, 16)} for d, most in kept.items()}
    _, right = capacity_curves(errors).axes
    points, line = right.lines
    assert list(points.get_xdata()) == [4, 8, 12, 16]
    assert list(line.get_xdata()) == [8, 12, 16]
    assert list(line.get_ydata()) == pytest.approx([2, 4, 8])
    assert line.get_label() == "doubles every 4.0 dimensions"
