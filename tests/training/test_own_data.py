"""Arrays of a user's own: splits, standardisation, class names, regression, and clear refusals."""

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")

import lightning as L

from hamdeq import DEQ, HAM, Bias, Dense, Identity, Neurons, Sigmoid, Softmax
from hamdeq.data import ArrayDataModule, Encoding, TensorDataModule
from hamdeq.data.encoding import as_samples
from hamdeq.experiments.examples import BinaryClassifier
from hamdeq.memories import DenseAssociativeMemory, Normalised, RectifiedPolynomial
from hamdeq.training import (
    HAMClassifier,
    HAMReconstructor,
    HAMRegressor,
    MemoryClassifier,
)
from hamdeq.training.cli.main import main

NAMES = np.array(["ash", "birch", "cedar"])


def trainer(**options) -> L.Trainer:
    return L.Trainer(
        **{
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "accelerator": "cpu",
        }
        | options
    )


def table(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different scales and offsets, and a class that two of them tell."""
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 4))
    y = NAMES[(x[:, 0] > 0.4).astype(int) + (x[:, 1] > 0)]
    return x * [1e3, 1e-3, 1.0, 0.0] + [5e3, 0.02, -7.0, 3.0], y


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.03)


def memory(*sizes: int) -> DEQ:
    torch.manual_seed(0)
    linear = [Identity(), Sigmoid(4.0, 0.5), Identity()]  # standardised inputs are not in [0, 1]
    return DEQ(HAM.chain(sizes, linear, gain=[2.0, 0.3]))


@pytest.fixture(scope="module")
def trained() -> tuple[HAMClassifier, ArrayDataModule]:
    data = ArrayDataModule(*table(), batch_size=16)
    module = HAMClassifier(memory(data.n_features, 16, data.n_classes), optimizer=adam)
    trainer(max_epochs=4).fit(module, data)
    return module, data


# ------------------------------------------------------------------ from a table to predictions


def test_a_table_is_learned_whatever_the_units_of_its_columns(trained):
    module, data = trained
    result = trainer().test(module, data, verbose=False)[0]
    assert result["test/accuracy"] > 0.85
    assert data.classes == module.encoding.classes == ("ash", "birch", "cedar")


def test_a_loaded_module_predicts_the_same_from_raw_numbers(trained, tmp_path):
    module, data = trained
    x, y = table()
    raw = torch.from_numpy(x).float()
    torch.save(module.state_dict(), tmp_path / "weights.pt")

    fresh = HAMClassifier(memory(4, 16, 3))
    assert fresh.encoding.is_blank
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        ours, theirs = (each(raw).value["output"] for each in (module, fresh))
    assert torch.equal(ours, theirs)
    assert fresh.encoding.classes is not None
    named = np.array(fresh.encoding.classes)[theirs.argmax(1)]
    assert (named == y).mean() > 0.85
    # Tables are often of float64: standardised as they are, then as precise as the weights.
    with torch.no_grad():
        double = fresh(torch.from_numpy(x)).value["output"]
    torch.testing.assert_close(double, theirs, atol=1e-3, rtol=1e-3)
    # The numbers that a data module serves are the raw ones as well.
    assert torch.isin(data.split("test")[0][:, 0], raw[:, 0]).all()


def test_a_checkpoint_of_lightning_brings_its_encoding_along(trained, tmp_path):
    module, data = trained
    runner = trainer()
    runner.test(module, data, verbose=False)
    runner.save_checkpoint(tmp_path / "some.ckpt")
    other = ArrayDataModule(table()[0] * 2.0, table()[1])
    fresh = HAMClassifier(memory(4, 16, 3))
    trainer().test(fresh, other, ckpt_path=tmp_path / "some.ckpt", weights_only=True, verbose=False)
    assert module.encoding.input_mean is not None
    assert fresh.encoding.input_mean is not None
    assert torch.equal(fresh.encoding.input_mean, module.encoding.input_mean)


def test_weights_without_an_encoding_leave_none_behind(trained):
    blank = HAMClassifier(memory(4, 16, 3))
    assert not [name for name in blank.state_dict() if name.startswith("encoding")]
    module = HAMClassifier(memory(4, 16, 3))
    module.load_state_dict(trained[0].state_dict())
    module.load_state_dict(blank.state_dict())
    assert module.encoding.is_blank
    with pytest.raises(RuntimeError, match=r"Unexpected key.*encoding\.other"):
        module.load_state_dict(blank.state_dict() | {"encoding.other": torch.zeros(())})


def test_data_with_other_classes_than_those_learned_are_refused(trained):
    x, y = table()
    with pytest.raises(ValueError, match=r"\['ash', 'birch', 'cedar'\], got \['a', 'b', 'c'\]"):
        trainer().test(trained[0], ArrayDataModule(x, [name[0] for name in y]), verbose=False)
    with pytest.raises(ValueError, match=r"expected 5, one for each output .* got 3; .*n_classes"):
        trainer().fit(HAMClassifier(memory(4, 8, 5)), ArrayDataModule(x, y))


# ------------------------------------------------------------------------------------ the parts


def test_statistics_are_those_of_the_training_part_alone():
    x, y = table()
    outliers = (x[:20] * 1e6, y[:20])
    data = ArrayDataModule(x, y, val=0.2, test=outliers)
    train = data.split("train")[0].double()
    assert len(train) == 240
    assert data.encoding.input_mean is not None
    assert data.encoding.input_std is not None
    torch.testing.assert_close(data.encoding.input_mean.double(), train.mean(0))
    std = train.std(0, correction=0)
    assert std[3] == 0
    torch.testing.assert_close(data.encoding.input_std[:3].double(), std[:3])
    z = data.encoding(data.split("train")[0])
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        z.std(0, correction=0), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-4, rtol=0
    )


def test_every_sample_is_in_one_part_with_its_target():
    x = np.arange(200.0)[:, None]
    y = np.where(np.arange(200) % 10 == 0, "rare", "common")
    data = ArrayDataModule(x, y, val=30, test=0.25, seed=3)
    assert data.classes == ("common", "rare")
    rows = {name: data.split(name)[0][:, 0].long() for name in ("train", "val", "test")}
    assert {name: len(each) for name, each in rows.items()} == {"train": 120, "val": 30, "test": 50}
    assert torch.cat([*rows.values()]).sort()[0].tolist() == list(range(200))
    for name, each in rows.items():
        labels = data.split(name)[1]
        assert torch.equal(labels, (each % 10 == 0).long())
        assert labels.sum() == len(each) // 10  # the classes in proportion
    again = ArrayDataModule(x, y, val=30, test=0.25, seed=3)
    other = ArrayDataModule(x, y, val=30, test=0.25, seed=4)
    assert torch.equal(again.split("train")[0], data.split("train")[0])
    assert not torch.equal(other.split("test")[0], data.split("test")[0])


def test_parts_of_ones_own_are_used_as_they_are():
    x, y = table(60)
    data = ArrayDataModule(x[:40], y[:40], val=(x[40:50], y[40:50]), test=(x[50:], y[50:]))
    assert [len(data.split(name)[0]) for name in ("train", "val", "test")] == [40, 10, 10]
    assert data.val_size == 10
    assert NAMES[data.split("test")[1]].tolist() == y[50:].tolist()
    assert torch.equal(data.split("val")[0], torch.from_numpy(x[40:50]).float())


class Frame:
    """Anything that NumPy can see as an array, as a table of pandas."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        (lambda x, y: (x.tolist(), y.tolist()), ("ash", "birch", "cedar")),
        (
            lambda x, y: (Frame(x.astype(object)), Frame(y.astype(object))),
            ("ash", "birch", "cedar"),
        ),
        (lambda x, y: (torch.from_numpy(x), torch.from_numpy(y == "ash")), (False, True)),
        (lambda x, y: (torch.from_numpy(x).bfloat16(), 10 * (y == "ash") - 3), (-3, 7)),
        (lambda x, y: ((x > 0), np.array([len(name) for name in y], dtype=object)), (3, 5)),
    ],
    ids=["lists", "objects", "tensors", "integers", "booleans"],
)
def test_anything_like_an_array_will_do(kind, classes):
    data = ArrayDataModule(*kind(*table(60)))
    assert data.classes == classes
    inputs, labels = data.split("train")
    assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (data.n_features, data.n_classes) == (4, len(classes))
    assert labels.unique().tolist() == list(range(len(classes)))


def test_the_repr_tells_parts_and_classes():
    text = repr(ArrayDataModule(*table(60), val=0))
    assert "train 51, val 0, test 9 samples of 4 features" in text
    assert "3 classes (in training): 'ash' (" in text
    x, y = torch.rand(20, 3, 8, 8), torch.rand(20)
    assert "of 3 × 8 × 8 features; 1 real-valued target" in str(ArrayDataModule(x, y))


# -------------------------------------------------------------------------------- real values


@pytest.mark.slow
def test_real_values_are_learned_in_their_own_units():
    x = np.random.default_rng(0).normal(size=(300, 3)) * 10
    y = 5000 + 20 * x[:, 0] - 30 * x[:, 1]
    data = ArrayDataModule(x, y, batch_size=16)
    module = HAMRegressor(memory(data.n_features, 16, data.n_targets), optimizer=adam)
    runner = trainer(max_epochs=4)
    runner.fit(module, data)
    found = runner.test(module, data, verbose=False)[0]
    inputs, targets = data.split("test")
    with torch.no_grad():
        predicted = module.predict_step((inputs, targets), 0).value
    assert predicted.shape == targets.shape == (45, 1)
    error = (predicted - targets).double()
    assert found["test/mae"] == pytest.approx(error.abs().mean().item(), rel=1e-4)
    explained = 1 - error.square().sum() / (targets - targets.mean()).double().square().sum()
    assert found["test/r2"] == pytest.approx(explained.item(), abs=1e-3)
    assert found["test/r2"] > 0.9
    assert module.accuracy is None


def test_several_targets_and_a_single_sample_can_be_regressed():
    x, y = torch.rand(41, 3), torch.rand(41, 2)
    data = ArrayDataModule(x, y, val=0, test=1, standardise=False)
    module = HAMRegressor(memory(3, 4, data.n_targets))
    trainer().fit(module, data)
    assert np.isnan(trainer().test(module, data, verbose=False)[0]["test/r2"])
    assert module.predict_step(x, 0).value.shape == (41, 2)
    # Unstandardised, states are the values themselves.
    assert torch.equal(module.predict_step(x, 0).value, module(x).value["output"])


def test_one_target_may_be_a_column_or_flat():
    module = HAMRegressor(memory(3, 4, 1))
    module.log = lambda *args, **kwargs: None
    x, y = torch.rand(8, 3), torch.rand(8)
    flat, column = (module.training_step((x, each), 0) for each in (y, y[:, None]))
    assert torch.equal(flat, column)
    torch.testing.assert_close(flat, (module(x).value["output"][:, 0] - y).square().mean())


class Slopes(ArrayDataModule):
    """Data of one's own for the command line."""

    def __init__(self, n: int = 60, seed: int = 0) -> None:
        x = np.random.default_rng(seed).normal(size=(n, 3))
        super().__init__(x, x[:, :2].sum(1), seed=seed)


@pytest.mark.slow
def test_the_command_line_trains_on_data_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    main(
        [
            *("fit", "--run.root", str(tmp_path), "--run.wandb", "disabled"),
            *("--model", "hamdeq.training.HAMRegressor", "--model.deq", "hamdeq.DEQ"),
            *("--model.deq.ham", "hamdeq.HAM.chain", "--model.deq.ham.sizes", "[3, 8, 1]"),
            *("--data", f"{__name__}.Slopes", "--trainer.max_epochs", "1"),
            *("--trainer.log_every_n_steps", "1"),
            *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        ]
    )
    assert "test R²" in capsys.readouterr().out
    assert (tmp_path / "version_0/checkpoints/best.ckpt").exists()
    with pytest.raises(SystemExit):
        main(
            [
                *("fit", "--run.root", str(tmp_path), "--run.wandb", "disabled"),
                *("--model", "hamdeq.training.HAMRegressor", "--model.deq", "hamdeq.DEQ"),
                *("--model.deq.ham", "hamdeq.HAM.chain", "--model.deq.ham.sizes", "[4, 8, 1]"),
                *("--data", f"{__name__}.Slopes"),
            ]
        )
    assert "expected 3 neurons in the layer 'input'" in capsys.readouterr().err


# --------------------------------------------------- batches and shapes, of every module alike


def reconstructor(shape=(4, 4), sizes=None, **options) -> HAMReconstructor:
    """Of images of this shape, held by a layer of these sizes, and three classes."""
    sizes = shape if sizes is None else sizes
    n = int(np.prod(shape))
    ham = HAM(
        {
            "input": Neurons(sizes, Identity()),
            "memories": Neurons(5, Softmax(beta=1.0)),
            "output": Neurons(3, Identity()),
        },
        [
            (("input", "memories"), Flat(n, 5) if len(sizes) > 1 else Dense(n, 5)),
            (("memories", "output"), Dense(5, 3)),
            (("memories",), Bias(5)),
        ],
    )
    return HAMReconstructor(DEQ(ham, clamped=("input", "output")), seed=0, **options)


def Flat(n: int, m: int):
    """`Dense` on a layer of any shape."""
    from hamdeq.synapses import Composed, Flatten

    return Composed(Flatten(), Dense(n, m))


class Sum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(16))

    def forward(self, x):
        return x.flatten(1) @ self.weight


def dense_memory() -> DenseAssociativeMemory:
    return DenseAssociativeMemory(
        size=16,
        interaction=RectifiedPolynomial(3),
        scaling=Normalised(0.1),
        memories=8,
        classes=3,
        std=0.2,
    )


MODULES = {
    "classifier": lambda: HAMClassifier(memory(16, 8, 3)),
    "reconstructor": lambda: reconstructor(sizes=(16,)),
    "dense": lambda: MemoryClassifier(dense_memory()),
    "binary": lambda: BinaryClassifier(Sum()),
}


def step(module, batch, stage="training"):
    return getattr(module, f"{stage}_step")(batch, 0)


@pytest.mark.parametrize("name", ["reconstructor", "dense"])
def test_modules_that_want_pixels_take_them_as_they_are(name):
    x, y = torch.rand(30, 4, 4), torch.arange(30) % 3
    data = ArrayDataModule(x, y, standardise=False)
    module = MODULES[name]()
    trainer(fast_dev_run=True).fit(module, data)
    assert module.encoding.classes == (0, 1, 2)


@pytest.mark.parametrize(
    ("shape", "into"),
    [
        ((4, 6), (24,)),
        ((24,), (4, 6)),
        ((1, 4, 6), (4, 6)),
        ((4, 6), (4, 6, 1)),
        ((2, 3, 4), (24,)),
        ((), (1,)),
    ],
)
def test_shapes_change_where_no_number_changes_place(shape, into):
    x = torch.rand(5, *shape)
    changed = as_samples(x, into, "x", "as wanted")
    assert changed.shape == (5, *into)
    assert torch.equal(changed.flatten(), x.flatten())


def test_images_of_another_shape_are_refused_by_a_layer_of_images():
    ham = HAM(
        {"input": Neurons((4, 4), Identity()), "output": Neurons(3, Identity())},
        [(("input", "output"), Flat(16, 3))],
    )
    module = HAMClassifier(DEQ(ham))
    assert module(torch.rand(5, 16)).value["output"].shape == (5, 3)
    assert module(torch.rand(5, 1, 4, 4)).value["output"].shape == (5, 3)
    with pytest.raises(ValueError, match=r"\('batch', 4, 4\).*layer 'input', got \(5, 2, 8\)"):
        module(torch.rand(5, 2, 8))


@pytest.mark.parametrize("name", ["classifier", "reconstructor", "dense", "binary"])
def test_images_of_another_shape_than_the_trained_ones_are_refused(name):
    module, n = MODULES[name](), 30
    data = ArrayDataModule(
        torch.rand(n, 4, 4), torch.arange(n) % (2 if name == "binary" else 3), standardise=False
    )
    trainer(fast_dev_run=True).fit(module, data)
    for shape in ((16,), (4, 4), (1, 4, 4)):
        assert len(step(module, torch.rand(5, *shape), "predict")) == 5
    with pytest.raises(ValueError, match=r"\('batch', 4, 4\).*got \(5, 2, 8\), as many numbers"):
        step(module, torch.rand(5, 2, 8), "predict")


def test_a_mask_may_be_flat_or_an_image_of_one_or_of_all():
    module = reconstructor(sizes=(16,))
    x = torch.rand(6, 16)
    upper = torch.arange(16) < 8
    wanted = module(x, observed=upper).value["output"]
    for part in (upper.reshape(4, 4), upper.expand(6, 16), upper.reshape(1, 1, 4, 4)):
        assert torch.equal(module(x, observed=part).value["output"], wanted)


# ---------------------------------------------------------------------- images with colours


def test_colour_images_are_reconstructed_and_drawn():
    from hamdeq.training.reconstruction.recollection import pictures

    module = reconstructor((3, 4, 5))
    assert module.image_shape == (3, 4, 5)
    x, y = torch.rand(30, 3, 4, 5), torch.arange(30) % 3
    trainer(fast_dev_run=True).fit(module, ArrayDataModule(x, y, standardise=False))
    observed = module.draw(40, "train", 0).pixels.unflatten(1, (3, 4, 5))
    assert torch.equal(observed, observed[:, :1].expand_as(observed))
    assert not torch.equal(observed[0], observed[1])
    module.encoding = Encoding(classes=("ash", "birch", "cedar"))
    figures = pictures(module, x[:3].flatten(1), [0, 1, 2], steps=2)
    assert figures["label"].axes[0].get_title() == "ash"
    assert figures["half"].axes[0].images[0].get_array().shape == (4, 5, 4)
    flat = reconstructor((3, 4, 5), (60,), image_shape=(3, 4, 5))
    assert flat(x[:2], observed=x[:2] > 0.5).value["input"].shape == (2, 60)


def test_a_data_module_needs_no_more_than_load():
    class Given(TensorDataModule):
        def load(self):
            x, y = torch.rand(12, 6), torch.arange(12) % 4
            return x, y, x[:4], y[:4]

    data = Given(val_size=2)
    assert len(data.split("train")[0]) == 10
    assert (data.image_shape, data.n_classes) == ((6,), 4)
    module = HAMClassifier(memory(6, 4, 4))
    trainer(fast_dev_run=True).fit(module, Given(val_size=2))
