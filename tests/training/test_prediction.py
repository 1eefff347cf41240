"""A trained module tells class, probabilities, energy, steps and status of each sample."""

import csv

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L

from hamdeq import DEQ, HAM, Picard, Status
from hamdeq.data import ArrayDataModule, DigitsDataModule
from hamdeq.experiments.examples import BinaryClassifier
from hamdeq.memories import DenseAssociativeMemory
from hamdeq.training import (
    HAMClassifier,
    HAMReconstructor,
    HAMRegressor,
    MemoryClassifier,
    Prediction,
)
from hamdeq.training.prediction import nearest_distribution, write_predictions


def classifier(**options) -> HAMClassifier:
    torch.manual_seed(0)
    return HAMClassifier(DEQ(HAM.chain([64, 16, 10], gain=0.5), on_failure="ignore"), **options)


def trainer(**options) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(logger=False, enable_checkpointing=False, **quiet, **options)


def test_a_prediction_is_what_the_solution_says():
    module, x = classifier(), torch.rand(7, 64)
    with torch.no_grad():
        solution = module(x)
    scores = solution.value["output"]
    found = module.predict(x.numpy(), batch_size=3)
    assert found.energy is not None
    torch.testing.assert_close(found.energy, module.deq.energy(solution.value))
    assert torch.equal(found.value, scores.argmax(1))
    assert torch.equal(found.steps, solution.steps)
    assert torch.equal(found.status, solution.status)
    torch.testing.assert_close(found.probabilities, nearest_distribution(scores))
    assert module.training


def test_probabilities_are_those_of_the_loss():
    module, x = classifier(loss="cross-entropy"), torch.rand(5, 64)
    labels = torch.tensor([0, 3, 9, 1, 1])
    module.log = lambda *args, **kwargs: None
    loss = module.training_step((x, labels), 0)
    p = module.predict(x).probabilities
    torch.testing.assert_close(-p.log()[range(5), labels].mean(), loss.detach())


def test_the_nearest_distribution_is_nearest():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 6, generator=g, dtype=torch.float64)
    p = nearest_distribution(scores)
    torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=p.dtype))
    assert bool((p >= 0).all())
    assert torch.equal(p.argmax(1), scores.argmax(1))
    # Of the nearest, no step towards a corner of the simplex comes nearer.
    assert bool((((p - scores) * (torch.eye(6)[:, None] - p)).sum(2) >= -1e-12).all())
    torch.testing.assert_close(nearest_distribution(p), p)
    assert nearest_distribution(torch.full((1, 4), -3.0)).tolist() == [[0.25] * 4]


def test_every_module_predicts():
    x = torch.rand(4, 64)
    memory = MemoryClassifier(DenseAssociativeMemory(64, memories=8, classes=10))
    clamped = DEQ(HAM.chain([64, 16, 10], gain=0.1), clamped=("input", "output"))
    for module in (memory, HAMReconstructor(clamped), classifier()):
        found = module.predict(x)
        assert found.probabilities is not None
        torch.testing.assert_close(found.probabilities.sum(1), torch.ones(4))
        assert torch.equal(found.value, found.probabilities.argmax(1))
        assert (found.status is None) == (module is memory)
    found = HAMRegressor(DEQ(HAM.chain([64, 16, 2], gain=0.1))).predict(x)
    assert (found.value.shape, found.probabilities) == ((4, 2), None)
    found = BinaryClassifier(torch.nn.Sequential(torch.nn.Linear(64, 1), torch.nn.Flatten(0)))
    p = found.predict(x).probabilities
    assert p is not None
    assert torch.equal(found.predict(x).value, (p[:, 1] > 0.5).long())


def test_a_trainer_collects_predictions_and_failures_are_told():
    module = classifier()
    module.deq.solver = Picard(max_steps=1, tol=1e-9)
    parts = trainer(limit_predict_batches=2).predict(module, DigitsDataModule(eval_batch_size=50))
    assert parts is not None
    assert [type(part) for part in parts] == [Prediction] * 2
    assert {len(column) for column in parts[0]} == {50}
    assert parts[0].status is not None
    assert Status.CONVERGED not in parts[0].status.tolist()


def test_predictions_are_written_with_the_names_of_the_classes(tmp_path):
    x, y = torch.rand(60, 3), ["cat", "dog"] * 30
    data = ArrayDataModule(x, y)
    module = HAMClassifier(DEQ(HAM.chain([3, 8, 2], gain=0.5)))
    trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, data)
    found = module.predict(x)
    write_predictions(tmp_path / "p.csv", found, module.encoding.classes)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["class", "p_cat", "p_dog", "energy", "steps", "status"]
    assert [row["class"] for row in rows] == [["cat", "dog"][i] for i in found.value.tolist()]
    assert [float(row["p_dog"]) for row in rows] == found.probabilities[:, 1].tolist()
    assert {row["status"] for row in rows} == {"CONVERGED"}
