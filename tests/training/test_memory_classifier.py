"""The Lightning module of a memory that classifies, and its configurations."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from hamdeq.memories import DenseAssociativeMemory, FeedForward, Normalised, RectifiedPolynomial

ROOT = Path(__file__).parents[2]
RAW = Path(os.environ.get("HAMDEQ_DATA", "")) / "MNIST/raw"
SMALL = {
    "size": 64,
    "interaction": RectifiedPolynomial(5),
    "scaling": Normalised(0.1),
    "memories": 64,
    "classes": 10,
    "std": 0.2,
}


def memory(**options) -> DenseAssociativeMemory:
    torch.manual_seed(0)
    return DenseAssociativeMemory(**SMALL | options)  # type: ignore[arg-type]


L = pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from torchmetrics.functional.classification import multiclass_f1_score  # noqa: E402

from hamdeq.data import MNIST_FILES, DigitsDataModule  # noqa: E402
from hamdeq.optim import NormalisedSGD  # noqa: E402
from hamdeq.training import MemoryClassifier  # noqa: E402
from hamdeq.training.cli.main import main  # noqa: E402


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**quiet | options)


def rule(parameters) -> NormalisedSGD:
    return NormalisedSGD(parameters, lr=0.05, momentum=0.6, free=10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [lambda m: m, FeedForward], ids=["memory", "feed-forward"])
def test_learns_digits_and_logs_accuracy_and_f1(kind):
    module = MemoryClassifier(kind(memory()), exponent=2, optimizer=rule)
    data = DigitsDataModule(batch_size=32, eval_batch_size=100)
    fit = trainer(max_epochs=2)
    fit.fit(module, data)
    assert {f"{s}/{m}" for s in ("train", "val") for m in ("loss", "accuracy", "f1")} <= set(
        fit.callback_metrics
    )
    found = fit.test(module, data, verbose=False)[0]
    assert found["test/accuracy"] > 0.8
    x, labels = data.split("test")
    predicted = torch.cat([part.value for part in fit.predict(module, data)])
    assert found["test/accuracy"] == pytest.approx((predicted == labels).double().mean().item())
    # Over all samples of the epoch, not the mean over batches.
    f1 = multiclass_f1_score(predicted, labels, 10, average="macro").item()
    assert found["test/f1"] == pytest.approx(f1, abs=1e-6)
    with torch.no_grad():
        assert torch.equal(module(x.unflatten(1, (8, 8))), module.memory.classify(2 * x - 1))


def test_default_rule_bounds_pixels_and_not_classes():
    module = MemoryClassifier(memory(std=0.9))
    trainer(max_epochs=1, limit_train_batches=15, limit_val_batches=0).fit(
        module, DigitsDataModule(batch_size=32)
    )
    assert module.memory.memories[:, :64].abs().max() == 1
    assert module.memory.memories[:, 64:].abs().max() > 1


def test_temperatures_go_from_the_first_to_the_last_and_travel_with_checkpoints(tmp_path):
    seen = []

    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(pl_module.memory.scaling.temperature)
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def module() -> MemoryClassifier:
        return MemoryClassifier(memory(), temperatures=(0.3, 0.1), optimizer=rule)

    data = DigitsDataModule(batch_size=200)
    trainer(max_epochs=3, limit_train_batches=2, callbacks=[Keep()]).fit(module(), data)
    assert seen == pytest.approx([0.3, 0.2, 0.1])
    other = module()
    trainer().test(other, data, ckpt_path=tmp_path / "1.ckpt", verbose=False)
    assert other.memory.scaling.temperature == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "arguments", "kind", "message"),
    [
        ({"classes": 0}, {}, ValueError, "got 0 and 64; give classes=10"),
        ({"memories": 0}, {}, ValueError, "got 10 and 0"),
        ({}, {"memory": torch.nn.Linear(64, 10)}, TypeError, "got Linear"),
        ({}, {"exponent": 0}, ValueError, "exponent: expected a positive integer m, got 0"),
        ({}, {"temperatures": (1.0, -1.0)}, ValueError, "a finite number > 0, got -1"),
    ],
)
def test_wrong_choices_are_refused(options, arguments, kind, message):
    with pytest.raises(kind, match=message):
        MemoryClassifier(**{"memory": memory(**options)} | arguments)


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (torch.rand(8, 63), ValueError, r"64 numbers a sample.*got \(8, 63\)"),
        (torch.zeros(8, 64, dtype=torch.uint8), TypeError, r"uint8; give images.float\(\) / 255"),
        (torch.full((8, 64), torch.nan), ValueError, "finite numbers, got nan"),
    ],
    ids=["pixels", "dtype", "nan"],
)
def test_images_that_do_not_fit_are_refused(images, kind, message):
    with pytest.raises(kind, match=message):
        MemoryClassifier(memory())(images)


# The command line, with the configuration for MNIST on the embedded digits.

QUICK = [
    "fit",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=disabled",
    "--run.root=runs",
    "--data=hamdeq.data.DigitsDataModule",
    "--data.batch_size=32",
    "--data.val_size=180",
    "--trainer.log_every_n_steps=5",
    "--trainer.limit_train_batches=10",
]


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def call(*args: str, config: str = "dam_256", code: int = 0) -> str:
        got = 0
        path = ROOT / f"configs/mnist/{config}.yaml"
        try:
            main([*QUICK[:1], "--config", str(path), *QUICK[1:], *args])
        except SystemExit as exit:
            got = exit.code
        printed = capfd.readouterr()
        assert got == code, printed.out + printed.err
        return printed.out + printed.err

    return call


def fit(cli, root: str, epochs: int, size: str, config: str, *args: str) -> str:
    small = [f"--model.{size}=64", f"--model.{size.replace('size', 'memories')}=32"]
    options = [f"--run.root={root}", f"--trainer.max_epochs={epochs}"]
    return cli(*small, *options, *args, config=config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size"), [("dam_256", "memory.size"), ("dam_1000", "memory.size")]
)
def test_configurations_run(cli, tmp_path, config, size):
    output = fit(cli, "whole", 1, size, config, "--trainer.limit_train_batches=5")
    results = json.loads((tmp_path / "whole/version_0/results.json").read_text())
    assert f"test F1              {results['test/f1']:.4f}" in output


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(cli, tmp_path):
    def last_loss(root: str, epochs: int, *args: str) -> str:
        fit(cli, root, epochs, "memory.memory.size", "dam_feedforward", *args)
        with (tmp_path / root / "version_0/metrics.csv").open(newline="") as file:
            return [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]][-1]

    whole = last_loss("whole", 2)
    assert last_loss("cut", 1) != whole
    assert last_loss("cut", 2, "--ckpt_path=last") == whole


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "model.memory: expected 64 neurons of inputs, one for each pixel of the images"),
        (
            ["--model.memory.size=64", "--model.memory.classes=9"],
            "expected 10 neurons of classes, one for each class of DigitsDataModule, got 9",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_data_are_refused(cli, tmp_path, args, message):
    assert message in cli(*args, code=2)
    assert not any(tmp_path.glob("runs/*"))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(
    not all((RAW / name).is_file() for name in MNIST_FILES),
    reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
)
def test_learns_mnist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    config = ROOT / "configs/mnist/dam_256.yaml"
    quick = ["--trainer.enable_progress_bar=false", "--run.wandb=disabled", "--run.root=runs"]
    short = [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=60",
        "--trainer.limit_test_batches=2",
    ]
    main(["fit", "--config", str(config), *quick, *short])
    results = json.loads((tmp_path / "runs/version_0/results.json").read_text())
    assert results["test/accuracy"] > 0.75
