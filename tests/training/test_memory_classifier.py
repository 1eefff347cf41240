"""A dense associative memory that classifies, its feed-forward equivalent, and the command line."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hamdeq.memories import (
    DenseAssociativeMemory,
    FeedForward,
    LeakyRectifiedPolynomial,
    Normalised,
    Original,
    Polynomial,
    RectifiedPolynomial,
    few,
    flips,
)

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


def images(count: int = 9) -> Tensor:
    return 2 * torch.rand(count, 64, generator=torch.Generator().manual_seed(1)) - 1


# Few neurons of many: another order of the same sums.


@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize("exponent", [1, 3])
@pytest.mark.parametrize("interaction", [Polynomial(3), LeakyRectifiedPolynomial(4)])
def test_gradient_of_few_neurons_is_that_of_a_block(lead, exponent, interaction, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    factors = (0.2 + draw(1, 1).abs(), 0.7) if lead else (0.3, 0.7)
    given = (0.3 * draw(7, 60), draw(11, 60), draw(11, 4).sign())
    rest = (interaction, factors, exponent, slice(56, None))
    wanted = flips.loss_and_gradient(*given, *rest, kernel=flips.error_of_block)
    for block, span in ((2**18, 2**22), (60, 2**22), (60, 35)):
        monkeypatch.setattr(flips, "_BLOCK", block)
        monkeypatch.setattr(few, "_SPAN", span)
        for one, other in zip(flips.loss_and_gradient(*given, *rest), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# The feed-forward equivalent.


@pytest.mark.parametrize("scaling", [Normalised(0.5), Original(16.0)])
def test_feed_forward_network_is_the_memory_to_first_order_of_its_class_entries(scaling):
    exact = memory(interaction=Polynomial(3), scaling=scaling, std=0.3).double()
    x, given = images().double(), exact.memories.detach().clone()

    def difference(scale: float) -> float:
        with torch.no_grad():
            exact.memories.copy_(given)
            exact.memories[:, 64:] *= scale
            a, b = exact.classify(x).atanh(), FeedForward(exact).classify(x).atanh()
        return ((a - b).norm() / scale).item()

    # What is left out is of second order: it falls with the square, and its share as it is.
    large, small = difference(1e-2), difference(1e-3)
    assert large > 0
    assert small == pytest.approx(large / 10, rel=0.1)


def test_feed_forward_gradient_is_near_that_of_the_memory():
    exact = memory(interaction=Polynomial(4)).double()
    with torch.no_grad():
        exact.memories[:, 64:] *= 1e-3
    x, labels = images().double(), torch.arange(9)
    found = []
    for each in (exact, FeedForward(exact)):
        exact.memories.grad = None
        loss, predicted = each.class_loss(x, labels, 2)
        loss.backward()
        assert not predicted.requires_grad
        assert exact.memories.grad is not None
        found.append(exact.memories.grad)
    difference = (found[0] - found[1]).norm() / found[0].norm()
    assert 0 < difference < 1e-2


def test_feed_forward_network_shares_the_memory():
    exact = memory()
    network = FeedForward(exact)
    assert [*network.parameters()] == [exact.memories]
    assert (network.inputs, network.classes) == (64, 10)
    network.scaling = Normalised(2.0)
    assert exact.scaling == Normalised(2.0)
    with torch.no_grad():
        exact.memories.fill_(3.0)
    network.clamp_()
    assert exact.memories[:, :64].max() == 1
    assert exact.memories[:, 64:].min() == 3


def test_feed_forward_network_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="class neurons, got none; give classes=10"):
        FeedForward(memory(classes=0))
    with pytest.raises(TypeError, match="expected a DenseAssociativeMemory, got 3"):
        FeedForward(3)  # type: ignore[arg-type]
    network = FeedForward(memory())
    with pytest.raises(ValueError, match="expected 64 neurons, got 63"):
        network.classify(torch.zeros(2, 63))
    with pytest.raises(ValueError, match="positive integer m, got 0"):
        network.class_loss(images(), torch.arange(9), 0)
    with pytest.raises(ValueError, match="classes 0 to 9, got 10"):
        network.class_loss(images(), torch.arange(9) + 4)
    steep = FeedForward(memory(interaction=Polynomial(60), scaling=Normalised(1e-4)))
    with pytest.raises(OverflowError, match="higher temperature"):
        steep.classify(images())


# Training, with Lightning.

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


@pytest.mark.parametrize("kind", [lambda m: m, FeedForward], ids=["memory", "feed-forward"])
def test_learns_digits_and_logs_accuracy_and_f1(kind):
    module = MemoryClassifier(kind(memory()), exponent=2, optimizer=rule)
    data = DigitsDataModule(batch_size=32, eval_batch_size=100)
    fit = trainer(max_epochs=3)
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
    trainer(max_epochs=1, limit_train_batches=40, limit_val_batches=0).fit(
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


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match=r"got 0 and 64; give classes=10"):
        MemoryClassifier(memory(classes=0))
    with pytest.raises(ValueError, match=r"got 10 and 0"):
        MemoryClassifier(memory(memories=0))
    with pytest.raises(TypeError, match="got Linear"):
        MemoryClassifier(torch.nn.Linear(64, 10))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive integer m, got 0"):
        MemoryClassifier(memory(), exponent=0)
    with pytest.raises(ValueError, match=r"finite numbers > 0, got -1"):
        MemoryClassifier(memory(), temperatures=(1.0, -1.0))
    module = MemoryClassifier(memory())
    with pytest.raises(ValueError, match=r"64 numbers a sample.*got \(8, 63\)"):
        module(torch.rand(8, 63))
    with pytest.raises(TypeError, match=r"uint8; give images.float\(\) / 255"):
        module(torch.zeros(8, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="finite numbers, got nan"):
        module(torch.full((8, 64), torch.nan))


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


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ("dam_256", "--model.memory.size=64"),
        ("dam_1000", "--model.memory.size=64"),
        ("dam_feedforward", "--model.memory.memory.size=64"),
    ],
)
def test_configurations_run_and_resume(cli, tmp_path, config, size):
    small = [size, size.replace("size=64", "memories=32")]

    def fit(root: str, epochs: int, *args: str) -> str:
        options = [f"--run.root={root}", f"--trainer.max_epochs={epochs}"]
        return cli(*small, *options, *args, config=config)

    def last_loss(root: str) -> str:
        with (tmp_path / root / "version_0/metrics.csv").open(newline="") as file:
            return [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]][-1]

    output = fit("whole", 3)
    results = json.loads((tmp_path / "whole/version_0/results.json").read_text())
    assert f"test F1              {results['test/f1']:.4f}" in output
    fit("cut", 2)
    assert last_loss("cut") != last_loss("whole")
    fit("cut", 3, "--ckpt_path=last")
    # The resumed run is the uninterrupted one, to the last bit.
    assert last_loss("cut") == last_loss("whole")


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


@pytest.mark.skipif(
    not all((RAW / name).is_file() for name in MNIST_FILES),
    reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
)
def test_learns_mnist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    config = ROOT / "configs/mnist/dam_256.yaml"
    quick = ["--trainer.enable_progress_bar=false", "--run.wandb=disabled", "--run.root=runs"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=200"]
    main(["fit", "--config", str(config), *quick, *short])
    results = json.loads((tmp_path / "runs/version_0/results.json").read_text())
    assert results["test/accuracy"] > 0.85
