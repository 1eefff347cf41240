"""Any part of an example from any other: questions, training, the way to the answer, pictures."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L

from hamdeq import DEQ, HAM, Anderson, Bias, Dense, Identity, Neurons, Sigmoid, Softmax
from hamdeq.data import MNIST_FILES, DigitsDataModule, MNISTDataModule
from hamdeq.plots import retrieval_gallery
from hamdeq.training import (
    Contraction,
    ConvergenceMonitor,
    HAMReconstructor,
    MaskSampler,
    StoredExamples,
    recall,
)
from hamdeq.training.cli.main import main
from hamdeq.training.reconstruction.masks import generator

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/digits_reconstruct.yaml")
BOTH = ("input", "output")
RAW = Path(os.environ.get("HAMDEQ_DATA", "")) / "MNIST/raw"


def memory(pixels: int = 64, hidden: int = 64, image=None, label=None) -> HAM:
    torch.manual_seed(0)
    sigmoid = Sigmoid(4.0, 0.5)
    sizes = {"input": pixels, "hidden": hidden, "output": 10}
    kinds = {"input": image or sigmoid, "hidden": sigmoid, "output": label or sigmoid}
    return HAM(
        {name: Neurons(n, kinds[name]) for name, n in sizes.items()},
        [
            (("input", "hidden"), Dense(pixels, hidden, gain=0.5)),
            (("hidden", "output"), Dense(hidden, 10, gain=0.3)),
            *(((name,), Bias(n)) for name, n in sizes.items()),
        ],
    )


def attention(memories: int = 128, pixels: int = 64, beta: float = 1.0) -> HAM:
    """As the configurations have it: examples in a softmax layer between image and label."""
    torch.manual_seed(0)
    sizes = {"input": pixels, "memories": memories, "output": 10}
    kinds = {"input": Identity(), "memories": Softmax(beta, learnable=True), "output": Identity()}
    return HAM(
        {name: Neurons(n, kinds[name]) for name, n in sizes.items()},
        [
            (("input", "memories"), Dense(pixels, memories)),
            (("output", "memories"), Dense(10, memories)),
            *(((name,), Bias(n)) for name, n in sizes.items()),
        ],
    )


def module(ham: HAM | None = None, **options) -> HAMReconstructor:
    deq = DEQ(ham or memory(), clamped=BOTH, solver=Anderson(max_steps=60), on_failure="ignore")
    return HAMReconstructor(deq, seed=0, **options)


def trainer(**options) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
    }
    return L.Trainer(**quiet | options)


@pytest.fixture(scope="module")
def trained() -> HAMReconstructor:
    """After an epoch of digits."""
    made = module(attention(), label_scale=2.0, optimizer=lambda p: torch.optim.Adam(p, lr=0.003))
    options = {"max_epochs": 1, "limit_val_batches": 0, "callbacks": [StoredExamples()]}
    trainer(**options).fit(made, DigitsDataModule(batch_size=64))
    return made


@pytest.mark.slow
def test_recalls_better_than_the_mean_image(trained):
    data = DigitsDataModule()
    found = trainer(callbacks=[ConvergenceMonitor()]).test(trained, data, verbose=False)[0]
    assert found["test/pixel_error"] < 0.8 * found["test/mean_image_error"]
    for kind in trained.masks.kinds:
        if kind != "image":
            error = found[f"test/pixel_error_{kind}"]
            assert error < 0.95 * found[f"test/mean_image_error_{kind}"], kind
    assert found["test/accuracy"] > 0.5
    assert found["test/accuracy_image"] > 0.7
    assert found["test/not_converged"] < 0.02


@pytest.mark.slow
def test_energy_never_rises_on_the_way(trained):
    """In float64, where rounding cannot hide a rise nor feign one."""
    deq = DEQ(attention().double(), clamped=BOTH)
    deq.load_state_dict(trained.deq.state_dict())
    double = HAMReconstructor(deq, seed=0).double()
    images, labels = DigitsDataModule().split("test")
    what = MaskSampler().draw(len(labels), (8, 8), generator(1))
    asked = double.ask(images.double(), labels.where(what.label, -1), what.pixels)
    path = recall(deq, *asked, steps=100)
    assert path.energy.shape == (101, len(labels))
    assert path.energy.diff(dim=0).max() <= 1e-12
    assert (path.energy[0] - path.energy[-1]).min() > 1e-4
    # What is known stays, and the last state is at rest.
    known = asked[1]["input"]
    for state in path.states:
        assert torch.equal(state["input"][known], images.double()[known])
    last, before = path.states[-1]["input"], path.states[-2]["input"]
    assert (last - before).norm() < 1e-3 * last.norm()


def test_energy_never_rises_with_sigmoids():
    made = HAMReconstructor(DEQ(memory().double(), clamped=BOTH), seed=0).double()
    with torch.no_grad():
        made.deq.ham.synapses[0].weight.mul_(4.0)
    images = torch.rand(20, 64, dtype=torch.float64)
    what = MaskSampler().draw(20, (8, 8), generator(1))
    path = recall(made.deq, *made.ask(images, torch.full((20,), -1), what.pixels))
    assert path.energy.diff(dim=0).max() <= 1e-12


@pytest.mark.slow
def test_solver_and_plain_steps_end_alike(trained):
    asked = trained.ask(labels=torch.arange(10))
    assert asked[0]["output"].equal(2 * torch.eye(10))
    path = recall(trained.deq, *asked, steps=200)
    settled = trained(labels=torch.arange(10)).value["input"]
    assert torch.allclose(path.states[-1]["input"], settled, atol=1e-2)


# --- questions ---


def test_questions_are_what_they_are_called():
    questions = MaskSampler()
    what = questions.draw(2000, (9, 7), generator(0))
    share = what.pixels.double().mean(1)
    of = {kind: what.kind == index for index, kind in enumerate(questions.kinds)}
    assert set(share[of["half"]].mul(63).round().int().tolist()) == {28, 35, 36, 27}
    assert not what.pixels[of["label"]].any()
    assert what.label[of["label"]].all()
    assert what.pixels[of["image"]].all()
    assert not what.label[of["image"]].any()
    assert share[of["pixels"]].std() > 0.2
    holes = (~what.pixels[of["block"]]).reshape(-1, 9, 7)
    sides = holes.any(2).sum(1), holes.any(1).sum(1)
    assert (sides[0] * sides[1] == holes.sum((1, 2))).all()  # rectangles
    assert sides[0].min() >= 2
    assert sides[0].max() <= 7
    told = what.label[of["half"] | of["block"] | of["pixels"]].double().mean()
    assert told == pytest.approx(0.25, abs=0.05)
    for kind, expected in questions.shares.items():
        assert of[kind].double().mean() == pytest.approx(expected, abs=0.04)


def test_the_same_questions_again(monkeypatch):
    """Validation asks alike in every epoch; training otherwise in each, and alike when resumed."""
    made = module()
    asked = []
    draw = made.masks.draw

    def record(*args):
        asked.append(draw(*args))
        return asked[-1]

    monkeypatch.setattr(made.masks, "draw", record)
    data = DigitsDataModule(batch_size=1000, val_size=100)
    trainer(max_epochs=2).fit(made, data)
    # The baseline is the mean over an epoch, and all epochs are alike.
    assert torch.allclose(made.mean_image, data.split("train")[0].mean(0), atol=1e-5)
    (one, two, val, other_one, _, other_val) = asked
    assert torch.equal(val.pixels, other_val.pixels)
    assert torch.equal(val.label, other_val.label)
    assert not torch.equal(one.pixels[:300], two.pixels[:300])
    assert not torch.equal(one.pixels, other_one.pixels)
    torch.manual_seed(7)  # whatever has been drawn meanwhile
    assert torch.equal(module().draw(1000, "train", 1, 0).pixels, other_one.pixels)
    assert not torch.equal(module().draw(1000, "train", 1, 0).pixels, one.pixels)


def test_seed_follows_lightning(pytestconfig):
    shift = pytestconfig.getoption("--seed-shift")
    L.seed_everything(5, verbose=False)
    made = HAMReconstructor(DEQ(memory(), clamped=BOTH))
    assert made.seed == shift  # memory() has seeded anew, with 0
    ham = memory()
    L.seed_everything(5, verbose=False)
    assert HAMReconstructor(DEQ(ham, clamped=BOTH)).seed == 5 + shift


# --- the command line ---


@pytest.mark.slow
def test_a_run_from_the_command_line_and_on_from_where_it_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    quick = ["--trainer.enable_progress_bar=false", "--run.wandb=disabled"]
    quick += ["--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    # Of few images: the pictures show one of each class.
    quick += ["--trainer.limit_val_batches=1", "--data.batch_size=8"]
    quick += ["--model.deq.on_failure=ignore"]
    fit = ["fit", "--config", CONFIG, *quick, "--trainer.max_epochs=2"]
    whole, cut = tmp_path / "whole/version_0", tmp_path / "cut/version_0"
    step = HAMReconstructor.training_step

    def kept(self, batch, batch_idx):
        """As it lies on the disk when the first epoch has ended."""
        if self.current_epoch == 1 and batch_idx == 0:
            shutil.copytree(whole, cut)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(HAMReconstructor, "training_step", kept)
        main([*fit, "--run.root=whole", "--trainer.limit_test_batches=1"])
    first = torch.load(cut / "checkpoints/last.ckpt", weights_only=True)
    assert first["epoch"] == 0
    # Without test images, and so without pictures of them.
    main([*fit, "--run.root=cut", "--trainer.limit_test_batches=0", "--ckpt_path=last"])
    weights = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (whole, cut)
    ]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    results = json.loads((whole / "results.json").read_text())
    assert results["test/mean_image_error"] > 0
    printed = capfd.readouterr().out
    assert "pixel error of the mean image" in printed
    for name in ("label", "half", "holes"):
        assert f"recall_{name}.png" in printed
        assert (whole / f"recall_{name}.png").read_bytes().startswith(b"\x89PNG")
    header = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    for metric in ("loss", "accuracy", "pixel_error", "mean_image_error", "iterations"):
        assert {f"{stage}/{metric}" for stage in ("train", "val", "test")} <= {*header}, metric


@pytest.mark.slow
def test_a_memory_of_other_sizes_than_the_data(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    data = ["--data=hamdeq.data.MNISTDataModule", "--data.batch_size=64"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", CONFIG, *data, "--run.wandb=disabled"])
    message = capfd.readouterr().err
    assert "expected 784 neurons in the layer 'input'" in message
    assert "got 64; change --model.deq.ham.neurons, or the data" in message


def test_contraction_counts_layers_observed_in_part():
    """In the worst case nothing of them is, and all layers are free."""
    from hamdeq import contraction

    made = module(memory(image=Identity()))
    with torch.no_grad():
        made.deq.ham.synapses[0].weight.mul_(3.0)
    assert contraction(made.deq.ham, clamped=()) > 1
    Contraction(rate=0.9)._project(made)
    assert contraction(made.deq.ham, clamped=()) <= 0.9 + 1e-5


def test_stored_examples_are_found_again():
    """Before any training: as many memories as there are examples, and one of them comes back."""
    made = module(attention(200))
    made.deq.ham.layer("memories").lagrangian = Softmax(4.0)
    images, labels = DigitsDataModule().split("train")
    images, labels = images[:200], labels[:200]
    StoredExamples().store(made, images, labels)
    with torch.no_grad():
        value = made(images, torch.full((200,), -1), torch.arange(64) < 48).value
    assert (value["output"].argmax(1) == labels).double().mean() > 0.9
    assert (value["input"] - images).square().mean() < 0.2 * images.var(0).mean()


@pytest.mark.parametrize(
    ("rows", "energy", "options", "message"),
    [
        ({}, torch.ones(3, 2), {}, "as many states in each"),
        ({"a": torch.ones(2, 5)}, torch.ones(3, 2), {}, r"2 × 3 pixels.*got \(2, 5\) in 'a'"),
        ({"a": torch.ones(2, 6)}, torch.ones(3, 1), {}, r"\(steps \+ 1, 2\).*got \(3, 1\)"),
        ({"a": torch.ones(2, 6)}, torch.ones(3, 2), {"names": ["x"]}, "2 columns, got 1"),
    ],
)
def test_what_is_no_gallery_is_refused(rows, energy, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_gallery(rows, (2, 3), energy=energy, **options)


def test_unknown_pixels_are_marked():
    pytest.importorskip("matplotlib")
    figure = retrieval_gallery(
        {"given": torch.tensor([[0.5, torch.nan]])}, (1, 2), energy=torch.tensor([[2.0], [1.0]])
    )
    axes = next(axes for axes in figure.axes if axes.images)
    image = axes.images[0]
    grey, unknown = image.to_rgba(image.get_array())[0]
    assert grey[0] == grey[1] == grey[2]
    assert grey[3] == 1
    # Through what is unknown the orange, hatched ground shows.
    assert unknown[3] == 0
    red, _, blue, _ = axes.patch.get_facecolor()
    assert red > blue + 0.5
    assert axes.patch.get_hatch()


@pytest.mark.skipif(
    not all((RAW / name).is_file() for name in MNIST_FILES),
    reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
)
@pytest.mark.slow
@pytest.mark.data
def test_mnist():
    """A few batches already recall better than the mean image does."""
    ham = attention(200, 784, beta=0.1)
    options = {"limit_train_batches": 20, "limit_test_batches": 1, "limit_val_batches": 0}
    options["callbacks"] = [StoredExamples()]
    made = module(ham, label_scale=4.0, optimizer=lambda p: torch.optim.Adam(p, lr=0.002))
    data = MNISTDataModule(batch_size=128, download=False)
    fit = trainer(max_epochs=1, **options)
    fit.fit(made, data)
    found = fit.test(made, data, verbose=False)[0]
    assert found["test/pixel_error"] < 0.9 * found["test/mean_image_error"]
    assert found["test/accuracy_image"] > 0.7
