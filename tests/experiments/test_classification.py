"""Maps of the F1 score: the paper's protocol, small, on handwritten digits."""

import csv
import math

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("torchmetrics")

from sklearn.datasets import load_digits

from hamdeq.experiments.hyperparameters.classification import (
    Cell,
    Classification,
    Images,
    f1_maps,
    main,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    states = torch.where(torch.as_tensor(data.data) > 7, 1.0, -1.0).double()
    labels = torch.as_tensor(data.target)
    return Images(states[:300], labels[:300], states[300:600], labels[300:600])


def test_a_memory_learns_to_classify_and_the_two_formulations_of_a_power_are_one(digits):
    protocol = Classification("rectified", floor=0.0, memories=20, epochs=6)
    scores = [protocol.measure(Cell(f, 3, 0.1, 10.0), digits) for f in ("normalised", "original")]
    assert scores[0] > 0.7
    assert scores[1] == pytest.approx(scores[0], abs=0.02)
    # Where similarities are too small for their power nothing is learned.
    assert protocol.measure(Cell("normalised", 3, 1e-4, 0.1), digits) < 0.3


def test_a_floor_keeps_steep_functions_from_learning(digits):
    cell = Cell("normalised", 30, 0.1, 1.0)
    with_floor, without = (
        Classification("polynomial", floor=floor, memories=5, epochs=1).measure(cell, digits)
        for floor in (1e-30, 0.0)
    )
    assert with_floor < 0.1
    assert without > with_floor + 0.05


def test_overflow_is_not_a_score(digits):
    protocol = Classification("polynomial", memories=5, epochs=1)
    assert math.isnan(protocol.measure(Cell("original", 400, 0.1, 1.0), digits))


def test_the_command_writes_every_cell_a_table_and_maps(digits, tmp_path, monkeypatch, capsys):
    given = {}

    def of_mnist(root, learned, others, seed):
        given.update(root=root, learned=learned, others=others)
        return digits

    def measure(self, cell, images):
        given["protocol"] = self
        return math.nan if cell.n == 5 else cell.rate

    monkeypatch.setattr(Images, "of_mnist", of_mnist)
    monkeypatch.setattr(Classification, "measure", measure)
    arguments = ["--n", "2", "5", "--rates", "0.1", "0.5", "--inverse-temperatures", "1", "2"]
    main([*arguments, "--others", "off", "--floor", "0", "--out", str(tmp_path)])
    assert "table.csv" in capsys.readouterr().out
    assert given["protocol"] == Classification(floor=0.0, teacher=False)
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2
    assert rows[0] == {
        "formulation": "original",
        "n": "2",
        "rate": "0.1",
        "inverse_temperature": "1.0",
        "f1": "0.1",
    }
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["formulation", "n", "rate", "1/T = 1", "1/T = 2"]
    assert lines[1] == ["original", "2", "0.1", "0.10", "0.10"]
    assert lines[3] == ["original", "5", "0.1", "–", "–"]
    assert (tmp_path / "f1.png").stat().st_size > 1000
    main([*arguments, "--full", "--out", str(tmp_path)])
    protocol = given["protocol"]
    assert (protocol.memories, protocol.epochs, protocol.batch) == (256, 500, 128)
    assert (given["learned"], given["others"]) == (50000, 10000)


def test_a_panel_has_the_scores_of_its_n_and_formulation():
    scores = {
        Cell(formulation, n, rate, t): rate + t / 100 + n / 1000
        for formulation in ("original", "normalised")
        for n in (2, 3)
        for rate in (0.1, 0.5)
        for t in (1.0, 2.0, 3.0)
    }
    figure = f1_maps(scores)
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert [panel.get_title() for panel in panels[:2]] == ["original, n = 2", "original, n = 3"]
    shown = panels[3].images[0].get_array()
    assert shown[1].tolist() == pytest.approx([0.513, 0.523, 0.533])
    assert [text.get_text() for text in panels[3].get_yticklabels()] == ["0.1", "0.5"]


def test_missing_images_are_an_error_of_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data-root", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert "MNIST: expected its files in" in capsys.readouterr().err
