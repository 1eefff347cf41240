"""Checkpoints bring whole modules back, run no code, and say what is wrong with a damaged one."""

import csv
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

import hamdeq.nn
from hamdeq import (
    CHN,
    CHNDEQ,
    DEQ,
    HAM,
    Adjoint,
    Anderson,
    BengioFischer,
    Bias,
    Composed,
    ConjugateGradient,
    Conv2d,
    Dense,
    Flatten,
    FunctionSynapse,
    Identity,
    Implicit,
    Lateral,
    LayerNorm,
    Madam,
    MaxPool2d,
    Neurons,
    Picard,
    ReLU,
    SelfAttention,
    Sigmoid,
    Softmax,
    Tanh,
    TwoLayer,
    Unrolled,
)
from hamdeq.data import DigitsDataModule
from hamdeq.experiments.examples import BinaryClassifier
from hamdeq.memories import DenseAssociativeMemory, FeedForward, Normalised, RectifiedPolynomial
from hamdeq.training import (
    CheckpointError,
    HAMClassifier,
    HAMReconstructor,
    MaskSampler,
    MemoryClassifier,
    UntrustedError,
    load_run,
    load_weights,
    save_weights,
)
from hamdeq.training.building import CannotDescribeError, build, describe
from hamdeq.training.checkpoint import read_checkpoint
from hamdeq.training.cli.main import main
from hamdeq.training.module import OtherArchitectureError

ROOT = Path(__file__).parents[2]


def saved(module: L.LightningModule, path: Path, **changes) -> Path:
    """A checkpoint as a Trainer writes it, without its loops."""
    checkpoint: dict = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint | changes, path)
    return path


def classifier(**options) -> HAMClassifier:
    torch.manual_seed(0)
    return HAMClassifier(DEQ(HAM.chain([64, 16, 10], gain=0.5)), **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run from the command line."""
    root = tmp_path_factory.mktemp("run")
    args = ["fit", "--config", str(ROOT / "configs/digits.yaml"), f"--run.root={root}"]
    args += ["--run.wandb=disabled", "--trainer.enable_progress_bar=false"]
    args += ["--trainer.max_epochs=1", "--model.deq.ham.sizes=[64,16,10]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        main(args)
    return root / "version_0"


# ------------------------------------------------------------------- descriptions

IMAGES = {
    "input": Neurons((1, 8, 8), Identity()),
    "maps": Neurons((2, 3, 3), ReLU()),
    "output": Neurons(10, Softmax(beta=torch.tensor(2.0), learnable=True)),
}
IMAGE_SYNAPSES = [
    (("input", "maps"), Composed(Conv2d(1, 2, 3), MaxPool2d(2))),
    (("maps", "output"), Composed(Flatten(), Dense(18, 10))),
    (("maps",), Bias((2, 3, 3), by_channel=True)),
    (("output",), Bias(10)),
]
OBJECTS = {
    "even-odd": DEQ(HAM.chain([4, 3, 2]), solver=Picard(damping=0.5), adjoint=Unrolled(3)),
    "adjoint": DEQ(HAM.chain([4, 2]), adjoint=Implicit(solver=ConjugateGradient(tol=0.1))),
    "images": HAM(IMAGES, IMAGE_SYNAPSES),
    "lateral": HAM({"x": Neurons(3, Tanh())}, [(("x",), Lateral(3))]),
    "attention": HAM(
        {"x": Neurons((3, 4), LayerNorm(gamma=0.5))}, [(("x",), SelfAttention(4, 2, 2))]
    ),
    "chn": CHNDEQ(CHN.chain([4, 3, 2])),
    "lagrangian of a lagrangian": BengioFischer(Sigmoid(2.0, learnable=True)),
    "two layers": TwoLayer.model_a(torch.randn(5, 6)),
    "dense": DenseAssociativeMemory(10, RectifiedPolynomial(3), memories=4, classes=2),
    "feed-forward": FeedForward(DenseAssociativeMemory(10, memories=4, classes=2)),
    "Hopfield": hamdeq.nn.Hopfield(4, num_heads=2, scaling=0.5, association_activation="tanh"),
    "pooling": hamdeq.nn.HopfieldPooling(4, quantity=3, dropout=0.1),
    "encoder": hamdeq.nn.HopfieldEncoderLayer(hamdeq.nn.Hopfield(4), dim_feedforward=8),
}


def rebuilt(described, **options) -> nn.Module:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "it")
    return build(parser, {"it": described}, trust=False, source="a test", **options).it


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_built_again_from_its_description(name):
    thing = OBJECTS[name]
    again = rebuilt(describe(thing))
    assert repr(again) == repr(thing)
    weights, others = thing.state_dict(), again.state_dict()
    assert {k: w.shape for k, w in others.items()} == {k: w.shape for k, w in weights.items()}
    for (key, one), (_, other) in zip(thing.named_buffers(), again.named_buffers(), strict=True):
        assert key in weights or torch.equal(one, other), key
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in thing.parameters()
    ]


def test_a_description_is_that_of_now():
    deq = DEQ(HAM.chain([4, 3, 2]))
    deq.solver, deq.failures.on_failure = Picard(max_steps=7), "raise"
    again = rebuilt(describe(deq))
    assert (again.solver, again.failures.on_failure) == (deq.solver, "raise")
    memory = DenseAssociativeMemory(6).store(torch.ones(3, 6))
    memory.scaling = Normalised(0.25)
    again = rebuilt(describe(memory))
    assert (again.memories.shape, again.scaling) == ((3, 6), Normalised(0.25))


def test_what_plain_data_cannot_say_is_refused():
    same = Dense(6, 6)
    layers = {name: Neurons(6, Identity()) for name in "abc"}
    with pytest.raises(CannotDescribeError, match="a Dense is shared"):
        describe(HAM(layers, [(("a", "b"), same), (("b", "c"), same)]))
    with pytest.raises(CannotDescribeError, match="lambda"):
        describe(FunctionSynapse(lambda a: a.sum(1)))
    with pytest.raises(CannotDescribeError, match="Linear does not tell"):
        describe(nn.Linear(1, 1))


# ----------------------------------------------------------------------- checkpoints


@pytest.mark.slow
def test_a_module_comes_back_whole(tmp_path):
    module = classifier(optimizer=partial(Madam, lr=0.02), loss="cross-entropy").double()
    module.deq.solver = Anderson(history=3)
    x = torch.rand(5, 64, dtype=torch.float64)
    save_weights(module, tmp_path / "its.safetensors")
    for path in (saved(module, tmp_path / "its.ckpt"), tmp_path / "its.safetensors"):
        again = HAMClassifier.load_from_checkpoint(path)
        assert torch.equal(again(x).value["output"], module(x).value["output"])
        assert (again.loss, again.deq.solver) == ("cross-entropy", Anderson(history=3))
        (group,) = again.configure_optimizers().param_groups
        assert group["lr"] == 0.02
        # It can be saved and loaded once more.
        third = HAMClassifier.load_from_checkpoint(saved(again, tmp_path / "third.ckpt"))
        assert third.configure_optimizers().param_groups[0]["lr"] == 0.02


def test_all_modules_come_back(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(5, 64)
    memory = DenseAssociativeMemory(64, memories=8, classes=10)
    learner = MemoryClassifier(memory, temperatures=(1.0, 0.5))
    memory.scaling = memory.scaling.at(0.5)
    chain = HAM.chain([64, 16, 10], lagrangian=Identity(), gain=0.1)
    clamped = DEQ(chain, clamped=("input", "output"))
    modules = {
        "memory": learner,
        "reconstructor": HAMReconstructor(clamped, MaskSampler({"half": 1.0}), seed=3),
        "binary": BinaryClassifier(hamdeq.nn.HopfieldPooling(1, hidden_size=2)),
    }
    for name, module in modules.items():
        again = type(module).load_from_checkpoint(saved(module, tmp_path / f"{name}.ckpt"))
        for key, weight in module.state_dict().items():
            assert torch.equal(weight, again.state_dict()[key]), key
        if name == "memory":
            assert torch.equal(again(x), module(x))
        if name == "reconstructor":
            assert repr(again.masks) == repr(module.masks)
            assert torch.equal(again(x).value["output"], module(x).value["output"])


def test_arguments_that_no_data_describes_are_asked_for(tmp_path):
    class Mine(HAMClassifier):
        pass

    def energy(a, b):
        return -a.sum(1) * b.sum(1)

    layers = {"input": Neurons(64, Identity()), "output": Neurons(10, Tanh())}
    deq = DEQ(HAM(layers, [(("input", "output"), FunctionSynapse(energy, linear_in=[0, 1]))]))
    path = saved(Mine(deq, optimizer=lambda p: Madam(p)), tmp_path / "mine.ckpt")
    with pytest.raises(ValueError, match=r"'deq', got none .*energy has no import path.*deq=…"):
        Mine.load_from_checkpoint(path)
    again = Mine.load_from_checkpoint(path, deq=deq)
    assert again.deq is deq
    with pytest.raises(RuntimeError, match=r"optimizer: expected one to train with"):
        again.configure_optimizers()
    Mine.load_from_checkpoint(path, deq=deq, optimizer=Madam).configure_optimizers()
    with pytest.raises(CheckpointError, match=r"checkpoint of HAMClassifier, got .*Mine"):
        HAMClassifier.load_from_checkpoint(path, deq=deq)
    with pytest.raises(TypeError, match="instance"):
        again.load_from_checkpoint(path)


@pytest.mark.slow
def test_a_run_from_the_command_line_comes_back(run, tmp_path):
    module, data = load_run(run)
    assert isinstance(data, DigitsDataModule)
    x = data.split("test")[0]
    best = run / "checkpoints/best.ckpt"
    again = HAMClassifier.load_from_checkpoint(best)
    assert torch.equal(again(x).value["output"], module(x).value["output"])
    assert again.configure_optimizers()["optimizer"].param_groups[0]["lr"] == 0.02
    # A checkpoint without a configuration has that which lies in its run folder.
    checkpoint = read_checkpoint(best)
    del checkpoint["configuration"]
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints/old.ckpt")
    with pytest.raises(ValueError, match=r"'deq', got none"):
        HAMClassifier.load_from_checkpoint(tmp_path / "checkpoints/old.ckpt")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    again = HAMClassifier.load_from_checkpoint(tmp_path / "checkpoints/old.ckpt")
    assert torch.equal(again(x).value["output"], module(x).value["output"])


@pytest.mark.slow
def test_the_command_line_predicts(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    best = run / "checkpoints/best.ckpt"
    args = ["--trainer.enable_progress_bar=false", f"--ckpt_path={best}"]
    before = (run / "metrics.csv").read_text()
    main(["predict", "--config", str(run / "config.yaml"), *args])
    assert "predictions.csv: 360 predictions" in capsys.readouterr().out
    module, data = load_run(run)
    found = module.predict(data.split("test")[0])
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class"]) for row in rows] == found.value.tolist()
    for name in ("energy", "steps"):
        assert [float(row[name]) for row in rows] == pytest.approx(getattr(found, name).tolist())
    assert [float(row["p_3"]) for row in rows] == pytest.approx(found.probabilities[:, 3].tolist())
    assert (run / "metrics.csv").read_text() == before
    best = run / "checkpoints/cut.ckpt"
    best.write_bytes((run / "checkpoints/best.ckpt").read_bytes()[:1000])
    with pytest.raises(SystemExit, match=r"error: .*cut.ckpt: expected a checkpoint, got"):
        main(["test", "--config", str(run / "config.yaml"), args[0], f"--ckpt_path={best}"])
    best.unlink()


def test_weights_go_into_a_module_that_fits(tmp_path):
    module, other = classifier(), classifier()
    with torch.no_grad():
        module.deq.ham.synapses[0].weight += 1
    save_weights(module, tmp_path / "w.safetensors")
    save_weights(HAMClassifier(DEQ(HAM(IMAGES, IMAGE_SYNAPSES))), tmp_path / "images.safetensors")
    images = HAMClassifier.load_from_checkpoint(tmp_path / "images.safetensors")
    assert images.deq.ham.layer("output").lagrangian.beta == 2
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(module.deq.ham.synapses[0].weight, other.deq.ham.synapses[0].weight)
    assert {path.name for path in tmp_path.iterdir()} == {"images.safetensors", "w.safetensors"}
    wide = HAMClassifier(DEQ(HAM.chain([64, 32, 10])))
    with pytest.raises(OtherArchitectureError, match=r"expected \(64, 32\), got \(64, 16\)"):
        load_weights(wide, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        save_weights(module, tmp_path / "w.pt")


# -------------------------------------------------------------------------- damages


class Foreign:
    """An object that a checkpoint must not hold."""


def test_damaged_checkpoints_are_said_in_one_sentence(tmp_path):
    whole = saved(classifier(), tmp_path / "last.ckpt").read_bytes()
    kinds = {
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "bytes": bytes(range(256)),
        "text": b"hello\n",
        "flipped": whole[:100] + b"\x80" * 100 + whole[200:],
    }
    for name, content in kinds.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"expected a checkpoint, got .*; try ") as caught:
            HAMClassifier.load_from_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value), name
    (tmp_path / "cut.safetensors").write_bytes(whole[:50])
    with pytest.raises(CheckpointError, match="cut off, damaged"):
        read_checkpoint(tmp_path / "cut.safetensors")
    for content, message in (({"a": 1}, "'state_dict'"), (Foreign(), "pickled objects")):
        torch.save(content, tmp_path / "foreign.ckpt")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(FileNotFoundError, match="got no such file"):
        read_checkpoint(tmp_path / "none.ckpt")


def copy_of(run: Path, folder: Path, change=None) -> Path:
    """A run's folder whose configuration is changed."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/best.ckpt").write_bytes((run / "checkpoints/best.ckpt").read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    if change is not None:
        change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_that_cannot_be_read_raises_an_exception(run, tmp_path):
    folder = copy_of(run, tmp_path / "a")
    (folder / "checkpoints/best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best.ckpt: expected a checkpoint, got an empty"):
        load_run(folder)
    (folder / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"config.yaml: expected the configuration of a run"):
        load_run(folder)

    def misspell(config):
        config["data"]["init_args"]["batchsize"] = 3

    with pytest.raises(ValueError, match=r"(?s)config.yaml: .*batchsize"):
        load_run(copy_of(run, tmp_path / "b", misspell))


# ----------------------------------------------------------------------------- trust


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module on the path that leaves a trace when it is imported."""
    (tmp_path / "stranger.py").write_text(
        "import pathlib, hamdeq, hamdeq.data\n"
        "pathlib.Path(__file__).with_name('trace').touch()\n"
        "class Solver(hamdeq.Picard): pass\n"
        "class Data(hamdeq.data.DigitsDataModule): pass\n"
        "class Module(hamdeq.training.HAMClassifier): pass\n"
        "def make(params): return hamdeq.Madam(params)\n"
    )
    (tmp_path / "solver.yaml").write_text("class_path: stranger.Solver\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "trace"
    sys.modules.pop("stranger", None)


def deq_of(config):
    return config["model"]["init_args"]["deq"]["init_args"]


CHANGES = {
    "solver": lambda c, _: deq_of(c).update(solver={"class_path": "stranger.Solver"}),
    "solver by name": lambda c, _: deq_of(c).update(solver="stranger.Solver"),
    "solver in a file": lambda c, at: deq_of(c).update(solver=str(at / "solver.yaml")),
    "solver in text": lambda c, _: deq_of(c).update(solver='{"class_path": "stranger.Solver"}'),
    "data": lambda c, _: c["data"].update(class_path="stranger.Data"),
    "module": lambda c, _: c["model"].update(class_path="stranger.Module"),
    "optimiser": lambda c, _: c["model"]["init_args"].update(optimizer="stranger.make"),
    "function of torch": lambda c, _: c["model"]["init_args"].update(optimizer="torch.hub.load"),
    "system": lambda c, _: c["model"]["init_args"].update(optimizer="os.system"),
    "system by another way": lambda c, _: c["model"]["init_args"].update(
        optimizer="hamdeq.training.cli.run.os.system"
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_known_is_refused_before_it_is_imported(run, tmp_path, stranger, name):
    folder = copy_of(run, tmp_path / "a", lambda c: CHANGES[name](c, tmp_path))
    with pytest.raises(UntrustedError, match=r"config.yaml: .*got .*trust=True"):
        load_run(folder)
    assert not stranger.exists()
    assert "stranger" not in sys.modules


def test_functions_are_not_called_either(run, tmp_path):
    with pytest.raises(UntrustedError, match=r"torch\.nn\.functional\.softmax, which"):
        rebuilt(
            {
                "class_path": "hamdeq.FunctionSynapse",
                "init_args": {"function": "torch.nn.functional.softmax"},
            }
        )

    def load_another(config):
        arguments = {"checkpoint_path": str(tmp_path / "x.ckpt"), "trust": True}
        path = "hamdeq.training.HAMClassifier.load_from_checkpoint"
        config["model"] = {"class_path": path, "init_args": arguments}

    with pytest.raises(ValueError, match="not correspond to a subclass"):
        load_run(copy_of(run, tmp_path / "a", load_another))


def test_what_is_trusted_is_imported(run, tmp_path, stranger):
    folder = copy_of(run, tmp_path / "a", lambda c: CHANGES["solver"](c, tmp_path))
    module, _ = load_run(folder, trust=True)
    assert type(module.deq.solver).__name__ == "Solver"
    assert stranger.exists()


def test_a_checkpoint_names_no_strange_classes(tmp_path, stranger):
    module = classifier()
    path = saved(module, tmp_path / "a.ckpt")
    checkpoint = torch.load(path)
    deq = checkpoint["configuration"]["init_args"]["deq"]["init_args"]
    deq["solver"] = {"class_path": "stranger.Solver"}
    torch.save(checkpoint, path)
    with pytest.raises(UntrustedError, match=r"a.ckpt: .*stranger.Solver"):
        HAMClassifier.load_from_checkpoint(path)
    assert not stranger.exists()
    HAMClassifier.load_from_checkpoint(path, trust=True)
    assert stranger.exists()


@pytest.mark.slow
def test_a_checkpoint_chooses_no_classes_on_the_command_line(run, stranger, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    named = {"_class_path": "stranger.Module", "_instantiator": "stranger.make"}
    path = run / "checkpoints/strange.ckpt"
    torch.save(read_checkpoint(run / "checkpoints/best.ckpt") | {"hyper_parameters": named}, path)
    args = ["--trainer.enable_progress_bar=false", f"--ckpt_path={path}"]
    main(["validate", "--config", str(run / "config.yaml"), *args])
    path.unlink()
    assert not stranger.exists()


def test_the_list_of_what_is_known_is_that_of_one_call():
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    rebuilt(describe(Sigmoid()))
    with pytest.raises(UntrustedError):
        rebuilt({"class_path": "os.system"})
    assert _common.parsing_settings == before


def test_a_checkpoint_is_of_the_memory_that_the_module_has_now(tmp_path):
    module = HAMClassifier(DEQ(HAM.chain([4, 6, 3])))
    module.deq = DEQ(HAM.chain([4, 6, 3], Tanh()))
    save_weights(module, tmp_path / "w.safetensors")
    again = HAMClassifier.load_from_checkpoint(tmp_path / "w.safetensors")
    x = torch.rand(5, 4)
    assert torch.equal(again.predict(x).value, module.predict(x).value)


def test_a_module_without_its_optimiser_can_be_saved_again(tmp_path):
    module = HAMClassifier(DEQ(HAM.chain([4, 6, 3])), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    for _ in range(2):
        save_weights(module, tmp_path / "w.safetensors")
        module = HAMClassifier.load_from_checkpoint(tmp_path / "w.safetensors")
    with pytest.raises(RuntimeError, match="expected one to train with"):
        module.configure_optimizers()


def test_loading_that_is_not_strict_takes_the_weights_that_fit(tmp_path):
    module = HAMClassifier(DEQ(HAM.chain([4, 6, 3])))
    path = saved(module, tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"state_dict": checkpoint["state_dict"] | {"x": torch.ones(1)}}, path)
    with pytest.raises(OtherArchitectureError, match="x: expected no such weight"):
        HAMClassifier.load_from_checkpoint(path)
    again = HAMClassifier.load_from_checkpoint(path, strict=False, weights_only=True)
    for name, weight in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_the_solver_of_a_gradient_comes_back_from_a_run_of_the_command_line():
    """There a dataclass that has no subclasses is written without its name."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=Adjoint)
    plain = {"tol": 0.01, "max_steps": 40, "fallback_steps": 500}
    written = {"class_path": "hamdeq.Implicit", "init_args": {"solver": plain}}
    found = build(parser, {"it": written}, trust=False, source="a test").it
    assert found == Implicit(solver=ConjugateGradient(**plain))
