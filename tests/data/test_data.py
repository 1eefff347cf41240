"""Batches and data modules: order, splits, reading, and what they say when the data is bad."""

import gzip
import hashlib
import os
import struct
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.distributed as dist

lightning = pytest.importorskip("lightning")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from torchvision.datasets import MNIST  # noqa: E402

from hamdeq._torchvision import check_torchvision, mnist_dataset  # noqa: E402
from hamdeq.data import (  # noqa: E402
    MNIST_FILES,
    DigitsDataModule,
    MNISTDataModule,
    TensorBatches,
    TensorDataModule,
)

RAW = Path(os.environ.get("HAMDEQ_DATA", "")) / "MNIST/raw"


def batches(n=10, batch_size=4, **kwargs):
    """Batches of `n` samples, each labelled by its index."""
    return TensorBatches(torch.arange(n) / 1.0, torch.arange(n), batch_size, **kwargs)


def order(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [label for _, labels in loader for label in labels.tolist()]


class Indexed(TensorDataModule):
    """Samples whose label is their index."""

    image_shape, n_classes = (1,), 10

    def load(self):
        images, labels = torch.arange(10)[:, None] / 10, torch.arange(10)
        return images, labels, images, labels


class Recorder(lightning.LightningModule):
    """Records the labels of every batch it sees, by epoch; writes a checkpoint if asked."""

    def __init__(self, save_at=None, path=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated, self.save_at, self.path = [], [], save_at, path

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((self.current_epoch, labels.tolist()))
        return (self.weight * images).mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[1].tolist())

    def test_step(self, batch, batch_idx):
        self.validated.append(batch[1].tolist())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**kwargs):
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


# ----------------------------------------------------------------------- TensorBatches


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_serves_each_sample_once_with_its_label(shuffle):
    loader = batches(10, 4, shuffle=shuffle)
    assert len(loader) == 3
    assert [len(labels) for _, labels in loader] == [4, 4, 2]
    assert all(torch.equal(images, labels / 1.0) for images, labels in loader)
    assert sorted(order(loader)) == list(range(10))


def test_the_order_is_a_function_of_seed_and_epoch():
    loader = batches(100, shuffle=True, seed=3)
    first = order(loader, epoch=5)
    assert first == order(loader, epoch=5) == order(batches(100, shuffle=True, seed=3), epoch=5)
    assert first != order(loader, epoch=6)
    assert first != order(batches(100, shuffle=True, seed=4), epoch=5)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_training_sees_the_samples_in_their_order_unless_shuffled(shuffle):
    seen = Recorder()
    data = Indexed(batch_size=10, val_size=0, shuffle=shuffle)
    trainer(max_epochs=2).fit(seen, data)
    kept = [labels == list(range(10)) for _, labels in seen.seen]
    assert kept == [not shuffle] * 2


def test_the_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    order(batches(shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_unshuffled_batches_are_views():
    images, labels = torch.rand(10, 3), torch.arange(10)
    for start, (image, label) in zip((0, 4, 8), TensorBatches(images, labels, 4), strict=True):
        assert image.data_ptr() == images[start].data_ptr()
        assert label.data_ptr() == labels[start].data_ptr()


@pytest.mark.parametrize("shuffle", [False, True])
def test_no_samples_no_batches(shuffle):
    loader = batches(0, shuffle=shuffle)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_the_samples(monkeypatch, shuffle):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda *_, rank=rank: rank)
        loader = batches(20, 4, shuffle=shuffle)
        assert len(loader) == 3
        shares.append(order(loader, epoch=1))
    assert set(shares[0]).isdisjoint(shares[1])
    assert sorted(shares[0] + shares[1]) == list(range(20))


def test_state_continues_within_its_epoch_only():
    loader = batches(shuffle=True)
    whole = order(loader, epoch=2)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()

    resumed = batches(shuffle=True)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert order(resumed, epoch=2) == whole[4:]
    assert order(resumed, epoch=2) == whole

    resumed.load_state_dict(state)
    assert len(order(resumed, epoch=3)) == 10


# ------------------------------------------------------------------ Lightning's Trainer


def test_each_epoch_of_a_trainer_has_its_own_order():
    model, data = Recorder(), Indexed(batch_size=4, seed=1)
    trainer(max_epochs=2).fit(model, data)
    epochs = [[i for e, labels in model.seen if e == epoch for i in labels] for epoch in (0, 1)]
    expected = batches(shuffle=True, seed=1)
    assert epochs == [order(expected, 0), order(expected, 1)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("save_at", [2, 3])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(tmp_path, save_at):
    path = tmp_path / "last.ckpt"
    whole = Recorder(save_at, path)
    trainer(max_epochs=3).fit(whole, Indexed(batch_size=4))
    assert len(whole.seen) == 9

    resumed = Recorder()
    trainer(max_epochs=3).fit(resumed, Indexed(batch_size=4), ckpt_path=path, weights_only=True)
    assert resumed.seen == whole.seen[save_at:]


def test_validation_is_skipped_without_validation_images():
    model, data = Recorder(), Indexed(val_size=0)
    runner = trainer(max_epochs=1)
    runner.fit(model, data)
    assert data.val_dataloader() == []
    assert len(data.split("val")[0]) == 0
    assert model.seen
    assert model.validated == []


def test_validation_and_test_are_in_order():
    model, data = Recorder(), Indexed(val_size=3, eval_batch_size=2)
    runner = trainer(max_epochs=1, num_sanity_val_steps=0)
    runner.fit(model, data)
    held_out = data.split("val")[1].tolist()
    assert model.validated == [held_out[:2], held_out[2:]]
    model.validated.clear()
    runner.test(model, data, verbose=False)
    assert model.validated == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [y.tolist() for _, y in data.predict_dataloader()] == model.validated


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_sees_the_same_batches_every_epoch():
    model = Recorder()
    trainer(max_epochs=2, overfit_batches=2).fit(model, Indexed(batch_size=4))
    labels = [labels for _, labels in model.seen]
    assert labels == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


# -------------------------------------------------------------------- TensorDataModule


def loaded(images=None, labels=None, test=None, **kwargs):
    """A data module of the given tensors, by default 12 blank images of 2 x 2 and 3 classes."""
    images = torch.zeros(12, 4) if images is None else images
    labels = torch.zeros(12, dtype=torch.int64) if labels is None else labels

    class Given(TensorDataModule):
        image_shape, n_classes = (2, 2), 3

        def load(self):
            return images, labels, *(test or (images, labels))

    return Given(**kwargs)


def broken(tensor, index, value):
    tensor[index] = value
    return tensor


BLANK, ZEROS = torch.zeros(12, 4), torch.zeros(12, dtype=torch.int64)
NAN = broken(broken(torch.zeros(12, 4), (slice(7, 9), 2), torch.nan), 10, -torch.inf)
REFUSED = {
    "batch_size": (lambda: batches(batch_size=0), "a positive integer, got 0"),
    "eval_batch_size": (lambda: loaded(eval_batch_size=0), "a positive integer, got 0"),
    "val_size": (lambda: loaded(val_size=-1), "an integer ≥ 0, got -1"),
    "val_size ": (lambda: loaded(val_size=12).setup(), "fewer than the 12 training images, got 12"),
    "name": (lambda: loaded().split("valid"), "'train', 'val' or 'test', got 'valid'"),
    "test_size": (lambda: DigitsDataModule(test_size=0), "1 to 1796 of the 1797 images, got 0"),
    "test_size ": (lambda: DigitsDataModule(test_size=1797), "1 to 1796 of the 1797 images"),
    "labels": (
        lambda: TensorBatches(torch.zeros(3), torch.zeros(2), 1),
        "3, one for each sample, got 2",
    ),
    "train images": (
        lambda: loaded(BLANK.byte()).setup(),
        "a floating-point tensor, got torch.uint8; give images.float() / 255",
    ),
    "test images": (
        lambda: loaded(test=(BLANK.byte(), ZEROS)).setup(),
        "a floating-point tensor, got torch.uint8; give images.float() / 255",
    ),
    "train images ": (
        lambda: loaded(torch.zeros(12, 2, 2)).setup(),
        "shape (12, 4), got (12, 2, 2); flatten each, as by images.flatten(1)",
    ),
    "train images  ": (
        lambda: loaded(NAN).setup(),
        "finite pixels, got NaN or infinity in 3 of 12, first in sample [7]; repair or remove them",
    ),
    "train labels": (lambda: loaded(labels=ZEROS.int()).setup(), "int64, got torch.int32; give"),
    "train labels ": (
        lambda: loaded(labels=ZEROS[:11]).setup(),
        "shape (12,), got (11,); give one class index per image",
    ),
    "train labels  ": (
        lambda: loaded(labels=broken(ZEROS.clone(), 4, 3)).setup(),
        "0 to 2, got [3] in sample [4]; number the classes from 0",
    ),
    "train labels   ": (
        lambda: loaded(labels=broken(ZEROS.clone(), 9, -1)).setup(),
        "0 to 2, got [-1] in sample [9]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_data_and_settings_are_refused(name):
    call, expected = REFUSED[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(f"{name.strip()}: expected {expected}")
    assert isinstance(caught.value, TypeError) == ("torch." in expected)


def test_images_whose_sum_overflows_are_finite():
    assert len(loaded(torch.full((12, 4), 60000.0).half()).split("train")[0]) == 12


def test_data_is_loaded_once(monkeypatch):
    data, calls, load = Indexed(), [], Indexed.load
    monkeypatch.setattr(Indexed, "load", lambda self: (calls.append(1), load(self))[1])
    data.setup("fit")
    data.setup("test")
    data.split("train")
    assert calls == [1]


# -------------------------------------------------------------------------- the digits


def test_digits_are_split_without_overlap():
    data = DigitsDataModule()
    data.prepare_data()
    data.setup("fit")
    assert {name: len(data.split(name)[0]) for name in ("train", "val", "test")} == {
        "train": 1257,
        "val": 180,
        "test": 360,
    }
    images = torch.cat([data.split(name)[0] for name in ("train", "val", "test")])
    labels = torch.cat([data.split(name)[1] for name in ("train", "val", "test")])
    assert images.shape == (1797, 64)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))
    # All 1797 digits differ, so the splits are disjoint if all the images still do.
    assert len(images.unique(dim=0)) == 1797


def test_digits_are_split_by_the_seed_but_tested_on_the_same_images():
    one, same, other = DigitsDataModule(seed=1), DigitsDataModule(seed=1), DigitsDataModule(seed=2)
    for name in ("train", "val", "test"):
        assert torch.equal(one.split(name)[0], same.split(name)[0])
    assert torch.equal(one.split("test")[0], other.split("test")[0])
    assert not torch.equal(one.split("val")[0], other.split("val")[0])


# ------------------------------------------------------------------------------- MNIST


def idx(array):
    magic = {3: 2051, 1: 2049}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + bytes(array.flatten().tolist())


@pytest.fixture
def tiny_mnist(tmp_path):
    """Root of an MNIST of 6 training and 3 test images; returns (root, raw, its tensors)."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for n in (6, 3):
        tensors.append(torch.randint(256, (n, 28, 28), generator=generator, dtype=torch.uint8))
        tensors.append(torch.randint(10, (n,), generator=generator, dtype=torch.uint8))
    for name, tensor in zip(MNIST_FILES, tensors, strict=True):
        (raw / name).write_bytes(idx(tensor))
    return tmp_path, raw, tensors


def tiny(root, **kwargs):
    return MNISTDataModule(root, val_size=2, **{"download": False, **kwargs})


def no_network(self):
    raise URLError("no route to host")


def test_mnist_is_read(tiny_mnist):
    root, _, (train_images, train_labels, test_images, test_labels) = tiny_mnist
    data = tiny(root)
    data.prepare_data()
    images, labels, *test = data.load()
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(images, train_images.reshape(6, 784) / 255)
    torch.testing.assert_close(test[0], test_images.reshape(3, 784) / 255)
    assert labels.tolist() == train_labels.tolist()
    assert test[1].tolist() == test_labels.tolist()
    assert [len(data.split(name)[0]) for name in ("train", "val", "test")] == [4, 2, 3]
    both = torch.cat([data.split("train")[0], data.split("val")[0]])
    assert sorted(both.sum(1).tolist()) == sorted(images.sum(1).tolist())


def test_the_folder_of_mnist_is_an_argument_or_a_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("HAMDEQ_DATA", raising=False)
    assert MNISTDataModule().raw == Path("data", "MNIST", "raw")
    monkeypatch.setenv("HAMDEQ_DATA", str(tmp_path))
    assert MNISTDataModule().root == tmp_path
    assert MNISTDataModule("elsewhere").root == Path("elsewhere")


def test_mnist_that_is_there_is_not_downloaded(tiny_mnist, monkeypatch):
    monkeypatch.setattr(MNIST, "download", no_network)
    tiny(tiny_mnist[0], download=True).prepare_data()


def test_compressed_mnist_is_unpacked(tiny_mnist, monkeypatch):
    root, raw, _ = tiny_mnist
    resources = []
    for name in MNIST_FILES:
        packed = gzip.compress((raw / name).read_bytes())
        (raw / f"{name}.gz").write_bytes(packed)
        (raw / name).unlink()
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    data = tiny(root, download=True)
    data.prepare_data()
    assert len(data.split("test")[0]) == 3


def assert_says_what_to_do(message, raw):
    assert str(raw) in message
    for name in MNIST_FILES:
        assert name in message
    assert ".gz" in message
    assert "HAMDEQ_DATA" in message
    assert "python train.py fit --config configs/digits.yaml" in message
    assert "\n" not in message


def test_missing_mnist_says_what_to_do(tmp_path):
    data = tiny(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="download=False") as caught:
        data.prepare_data()
    assert_says_what_to_do(str(caught.value), data.raw)
    with pytest.raises(FileNotFoundError, match=r"call prepare_data\(\)") as caught:
        data.setup()
    assert_says_what_to_do(str(caught.value), data.raw)


def test_one_missing_file_is_named(tiny_mnist):
    root, raw, _ = tiny_mnist
    (raw / MNIST_FILES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=f"got no {MNIST_FILES[3]} "):
        tiny(root).prepare_data()


@pytest.mark.parametrize("failure", [URLError("no route"), RuntimeError("mirror:\nno route\n")])
def test_a_failed_download_is_one_error_and_leaves_no_folder(tmp_path, monkeypatch, failure):
    def download(self):
        Path(self.raw_folder).mkdir(parents=True)  # as torchvision does first of all
        raise failure

    monkeypatch.setattr(MNIST, "download", download)
    data = tiny(tmp_path / "data", download=True)
    with pytest.raises(FileNotFoundError, match=r"download failed: .*no route") as caught:
        data.prepare_data()
    assert_says_what_to_do(str(caught.value), data.raw)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert not any(tmp_path.iterdir())


BROKEN = [
    (MNIST_FILES[0], lambda old: old[:-100], "4720 bytes, for [6, 28, 28] values, got 4620"),
    (MNIST_FILES[2], lambda old: old + b"x", "2368 bytes, for [3, 28, 28] values, got 2369"),
    (MNIST_FILES[0], lambda old: old[:9], "an IDX header of 16 bytes, got 9 bytes"),
    (MNIST_FILES[1], lambda old: b"\0\0\x08\x03" + old[4:], "the IDX magic number 2049, got 2051"),
    (MNIST_FILES[3], lambda old: old[:4] + bytes(4), "at least one sample, got [0]"),
]


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN)
def test_a_broken_file_is_named(tiny_mnist, name, content, expected):
    root, raw, _ = tiny_mnist
    (raw / name).write_bytes(
        content((raw / name).read_bytes())[: None if "at" not in expected else 8]
    )
    for read in (tiny(root, download=True).prepare_data, tiny(root).setup):
        with pytest.raises(ValueError, match="; replace it by an intact copy") as caught:
            read()
        assert str(caught.value).startswith(f"{raw / name}: expected {expected}")


def test_labels_that_do_not_fit_the_images_are_refused(tiny_mnist):
    root, raw, tensors = tiny_mnist
    (raw / MNIST_FILES[1]).write_bytes(idx(tensors[1][:5]))
    with pytest.raises(ValueError, match=r"train labels: expected shape \(6,\), got \(5,\)"):
        tiny(root).setup()


@pytest.mark.data
@pytest.mark.skipif(
    not all((RAW / name).is_file() for name in MNIST_FILES),
    reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
)
def test_real_mnist_is_what_it_was_published_as():
    data = MNISTDataModule(download=False, val_size=0)
    data.prepare_data()
    data.setup()
    images, labels = data.split("train")
    assert images.shape == (60000, 784)
    assert data.split("test")[0].shape == (10000, 784)
    assert images.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert labels.bincount().tolist()[:2] == [5923, 6742]
    assert len(data.train_dataloader()) == 938


# ------------------------------------------------------------------------- torchvision


def without_torchvision(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_torchvision_that_fits_is_told_by_its_version():
    assert check_torchvision() == sys.modules["torchvision"].__version__


def test_torchvision_that_is_absent_is_asked_for_only_where_it_is_needed(monkeypatch):
    without_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert check_torchvision() is None
    with pytest.raises(ImportError, match=r"expected torchvision .* pip install torchvision"):
        mnist_dataset()


@pytest.mark.parametrize(
    "line",
    [
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "from torch import torchvision_nms_does_not_exist",
        "import torch; torch.no_such_attribute_does_not_exist",
    ],
)
def test_a_torchvision_that_does_not_fit_is_explained_in_one_line(tmp_path, monkeypatch, line):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(line)
    without_torchvision(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as caught:
        check_torchvision()
    message = str(caught.value)
    assert message.startswith("torchvision ")
    assert f" cannot be used with torch {torch.__version__}: install a matching pair" in message
    assert "pip install --upgrade torch torchvision" in message
    assert "does_not_exist" in message.replace(" ", "_")
    assert "\n" not in message
    assert caught.value.__suppress_context__


def test_another_missing_module_speaks_for_itself(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("import no_such_module")
    without_torchvision(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        check_torchvision()
