"""Every wrong argument of training is refused by its name, with what was expected."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L

from hamdeq import DEQ, HAM, Bias, Dense, Identity, Neurons, Sigmoid, Softmax
from hamdeq.data import ArrayDataModule, DigitsDataModule, Encoding
from hamdeq.data.encoding import as_samples
from hamdeq.experiments.examples import BinaryClassifier
from hamdeq.memories import DenseAssociativeMemory
from hamdeq.training import (
    Contraction,
    HAMClassifier,
    HAMReconstructor,
    HAMRegressor,
    MaskSampler,
    MemoryClassifier,
    RecallPictures,
    ResidualPicture,
    StoredExamples,
    recall,
    save_weights,
)

BOTH = ("input", "output")
N = 40
X = np.random.default_rng(0).normal(size=(N, 4))
Y = np.array(["ash", "birch", "cedar", "elm"])[np.arange(N) % 4]
HOLE = X.copy()
HOLE[7, 2] = np.nan


def deq(*sizes: int, clamped=("input",), kinds=None) -> DEQ:
    return DEQ(HAM.chain(sizes, kinds or Identity(), gain=0.1), clamped=clamped)


def classifier(**options) -> HAMClassifier:
    return HAMClassifier(deq(64, 8, 10), **options)


def reconstructor(pixels: int = 64, hidden: int = 8, **options) -> HAMReconstructor:
    return HAMReconstructor(deq(pixels, hidden, 10, clamped=BOTH), seed=0, **options)


def attention(memories: int) -> HAMReconstructor:
    sizes = {"input": 64, "memories": memories, "output": 10}
    kinds = {"input": Identity(), "memories": Softmax(), "output": Identity()}
    ham = HAM(
        {name: Neurons(n, kinds[name]) for name, n in sizes.items()},
        [
            (("input", "memories"), Dense(64, memories)),
            (("output", "memories"), Dense(10, memories)),
            (("memories",), Bias(memories)),
        ],
    )
    return HAMReconstructor(DEQ(ham, clamped=BOTH), seed=0)


def nan(x: torch.Tensor) -> torch.Tensor:
    x[3, 5] = torch.nan
    return x


def fit(module, *data, **options) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = quiet | {"logger": False, "enable_checkpointing": False, "max_epochs": 1} | options
    L.Trainer(num_sanity_val_steps=0, **options).fit(module, *data)


def step(module, batch, stage="training"):
    module.log = module.log_dict = lambda *args, **kwargs: None
    return getattr(module, f"{stage}_step")(batch, 0)


IMAGES, LABELS = torch.rand(8, 64), torch.arange(8)
STORED = torch.rand(20, 64), torch.zeros(20, dtype=torch.long)
ARRAYS = ArrayDataModule
LOADERS = [DigitsDataModule().train_dataloader()] * 2
ASIDE = "got (5, 2, 12), as many numbers in another arrangement; bring the samples into"
SAMPLES = torch.rand(5, 2, 12), torch.rand(5, 7)

REFUSED = [
    # ----------------------------------------------------------------- arrays of one's own
    ("targets", f"{N}, one for each sample, got 39", lambda: ARRAYS(X, Y[:39])),
    (
        "inputs",
        "(n, features), got (40,); give one feature as x[:, None]",
        lambda: ARRAYS(X[:, 0], Y),
    ),
    ("inputs", "rows of one length, got a list", lambda: ARRAYS([[1.0, 2.0], [3.0]], ["a", "b"])),
    ("inputs", "samples and features, got (0, 4)", lambda: ARRAYS(X[:0], Y[:0])),
    ("inputs", "real numbers, got <U32, such as ", lambda: ARRAYS(X.astype(str), Y)),
    ("inputs", "real numbers, got complex128", lambda: ARRAYS(X.astype(complex), Y)),
    (
        "inputs",
        "finite numbers, got nan at (7, 2), and such values in 1 of",
        lambda: ARRAYS(HOLE, Y),
    ),
    ("inputs", "finite numbers, got ", lambda: ARRAYS(X * 1e40, Y)),
    ("inputs", "numbers that float32 can tell apart, got ", lambda: ARRAYS(X + 1e9, Y)),
    ("targets", "(n,), got (40, 1); give the column itself", lambda: ARRAYS(X, Y[:, None])),
    ("targets", "(n,), got (40, 40); one-hot classes", lambda: ARRAYS(X, np.eye(N, dtype=int))),
    ("targets", "all strings, all integers", lambda: ARRAYS(X, [*Y[:39], None])),
    ("targets", "all strings, all integers", lambda: ARRAYS(X, [*Y[:39], 3])),
    ("targets", "finite numbers", lambda: ARRAYS(X, np.where(X[:, 0] > 0, np.nan, 1.0))),
    ("targets", "at least two classes, got ['ash']", lambda: ARRAYS(X, ["ash"] * N)),
    ("targets", f"at most 20 classes in {N} samples, got {N}", lambda: ARRAYS(X, range(N))),
    (
        "training samples",
        "some of each class, got none of ['a'",
        lambda: ARRAYS(X, ["a", "b", *["c"] * 38], val=0, test=0.6),
    ),
    ("val + test", f"fewer than the {N} samples, got {N}", lambda: ARRAYS(X, Y, val=20, test=20)),
    ("val", "a share below 1, a number of samples", lambda: ARRAYS(X, Y, val=1.5)),
    ("val", "a share below 1, a number of samples", lambda: ARRAYS(X, Y, val=-1)),
    ("test", "a share below 1, a number of samples", lambda: ARRAYS(X, Y, test="half")),
    ("test", "(inputs, targets), got 1 parts", lambda: ARRAYS(X, Y, test=(X,))),
    (
        "test samples",
        "shape (4,) with classes, got shape (3,)",
        lambda: ARRAYS(X, Y, test=(X[:, :3], Y)),
    ),
    ("val samples", "shape (4,) with classes, got ", lambda: ARRAYS(X, Y, val=(X, X[:, 0]))),
    ("val targets", "some of the classes ['ash'", lambda: ARRAYS(X, Y, val=(X, ["oak"] * N))),
    ("n_classes", "classes, got real-valued targets", lambda: ARRAYS(X, X[:, 0]).n_classes),
    ("n_targets", "real-valued targets, got 4 classes", lambda: ARRAYS(X, Y).n_targets),
    # ------------------------------------------------------------------------------ shapes
    (
        "x",
        f"('batch', 4, 6), as wanted, {ASIDE}",
        lambda: as_samples(SAMPLES[0], (4, 6), "x", "as wanted"),
    ),
    (
        "x",
        "(batch, …) with 24 numbers a sample, as wanted, got (5, 7)",
        lambda: as_samples(SAMPLES[1], (4, 6), "x", "as wanted"),
    ),
    (
        "inputs",
        "a floating-point tensor, got torch.int64; give inputs.float()",
        lambda: Encoding(inputs=(torch.zeros(1), torch.ones(1)))(torch.ones(3, 1).long()),
    ),
    ("images", "(batch, …) with 64 numbers a sample", lambda: classifier()(torch.rand(8, 63))),
    # ----------------------------------------------------------------------------- modules
    ("loss", "'mse' or 'cross-entropy', got 'l1'", lambda: classifier(loss="l1")),
    ("width", "a finite number > 0, got 0.0", lambda: classifier(width=0.0)),
    ("width", "a finite number > 0, got inf", lambda: classifier(width=math.inf)),
    ("deq", "one clamped layer, the input", lambda: HAMClassifier(deq(4, 8, 3, clamped=BOTH))),
    (
        "deq",
        "two clamped layers, the images' and the labels'",
        lambda: HAMReconstructor(deq(4, 8, 3)),
    ),
    (
        "deq",
        "independent neurons in 'output', of which a part can be observed, got Softmax; use",
        lambda: HAMReconstructor(deq(4, 3, clamped=BOTH, kinds=[Identity(), Softmax()])),
    ),
    ("label_weight", "a finite number ≥ 0, got -1", lambda: reconstructor(label_weight=-1.0)),
    ("label_scale", "a finite number > 0, got 0.0", lambda: reconstructor(label_scale=0.0)),
    ("image_shape", "a shape, as 63 pixels are no square", lambda: reconstructor(63)),
    ("image_shape", "(height, width) or", lambda: reconstructor(63, image_shape=(8, 8))),
    ("image_shape", "1 or 3 channels first", lambda: reconstructor(64, image_shape=(4, 4, 4))),
    ("shares", "'half', 'block'", lambda: MaskSampler({"third": 1.0})),
    ("shares['half']", "a finite number ≥ 0, got -1.0", lambda: MaskSampler({"half": -1.0})),
    ("shares", "at least one above 0", lambda: MaskSampler({"half": 0.0})),
    (
        "label_observed",
        "a finite number ≥ 0 and ≤ 1, got 1.5",
        lambda: MaskSampler(label_observed=1.5),
    ),
    # ------------------------------------------------------------------------------- calls
    ("inputs", "(n, …) with n ≥ 1", lambda: classifier().predict(IMAGES[:0])),
    ("batch_size", "a positive integer", lambda: classifier().predict(IMAGES, batch_size=0)),
    (
        "training batch 0",
        "finite images, got",
        lambda: step(classifier(), (nan(IMAGES + 0), LABELS)),
    ),
    ("training batch 0", "finite images", lambda: step(reconstructor(), (nan(IMAGES + 0), LABELS))),
    ("observed", "images, labels or both, got neither", lambda: reconstructor()()),
    ("images", "(batch, …) with 64 numbers a sample", lambda: reconstructor()(torch.rand(3, 63))),
    ("observed", "a boolean tensor", lambda: reconstructor()(IMAGES, observed=torch.ones(64))),
    (
        "observed",
        "one for each of 64 pixels",
        lambda: reconstructor()(IMAGES, observed=IMAGES[:2] > 0),
    ),
    (
        "observed",
        "('batch', 8, 8)",
        lambda: reconstructor()(IMAGES, observed=torch.ones(4, 16) > 0),
    ),
    ("labels", "−1 (unknown) to 9", lambda: reconstructor()(labels=torch.tensor([10]))),
    ("labels", "(3,) integers, −1 where unknown", lambda: reconstructor()(labels=torch.rand(3))),
    ("labels", "(8,) integers", lambda: reconstructor()(IMAGES, LABELS[:1])),
    ("steps", "a positive integer", lambda: recall(deq(4, 3), {"input": IMAGES[:, :4]}, steps=0)),
    (
        "targets",
        "real values in floating point, got torch.int64; give y.astype(float)",
        lambda: step(HAMRegressor(deq(64, 8, 2)), (IMAGES, torch.zeros(8, 2).long())),
    ),
    (
        "targets",
        "(8, 2), one number for each neuron of 'output', got (8,)",
        lambda: step(HAMRegressor(deq(64, 8, 2)), (IMAGES, torch.zeros(8))),
    ),
    (
        "targets",
        "finite numbers, got NaN or infinity in samples [0, 1",
        lambda: step(HAMRegressor(deq(64, 8, 2)), (IMAGES, torch.zeros(8, 2).log())),
    ),
    (
        "labels",
        "classes of int64, got torch.float32",
        lambda: step(classifier(), (IMAGES, torch.rand(8))),
    ),
    # --------------------------------------------------------------------------- callbacks
    ("rate", "a finite number > 0 and < 1, got 1.0", lambda: Contraction(1.0)),
    ("rate", "a finite number > 0 and < 1, got nan", lambda: Contraction(math.nan)),
    ("every", "a positive integer, got 1.5", lambda: Contraction(every=1.5)),
    ("steps", "a positive integer, got 0", lambda: ResidualPicture(steps=0)),
    ("steps", "a positive integer, got 0", lambda: RecallPictures(steps=0)),
    (
        "Contraction",
        "a HAMClassifier or HAMReconstructor, got BinaryClassifier",
        lambda: Contraction().on_fit_start(None, BinaryClassifier(torch.nn.Linear(1, 1))),
    ),
    (
        "StoredExamples",
        "a HAMReconstructor, got HAMClassifier",
        lambda: StoredExamples().on_fit_start(
            L.Trainer(logger=False, accelerator="cpu"), classifier()
        ),
    ),
    (
        "StoredExamples",
        "a data module with split('train')",
        lambda: fit(attention(10), *LOADERS, callbacks=[StoredExamples()]),
    ),
    (
        "StoredExamples",
        "at most 20 neurons in 'memories', as many as training examples, got 21",
        lambda: StoredExamples().store(attention(21), *STORED),
    ),
    (
        "StoredExamples",
        "only a Bias on 'hidden1', and Dense to layers",
        lambda: StoredExamples("hidden1").store(
            HAMReconstructor(deq(64, 8, 10, clamped=BOTH, kinds=Sigmoid())), *STORED
        ),
    ),
    # ------------------------------------------------------------ data for another module
    (
        "data",
        "the data module, whose standardisation the module takes over, got its batches alone",
        lambda: fit(HAMClassifier(deq(4, 8, 4)), *[ARRAYS(X, Y, val=0).train_dataloader()] * 2),
    ),
    (
        "data",
        "inputs to learn from as they are, got a data module that standardises them",
        lambda: fit(HAMReconstructor(deq(4, 8, 4, clamped=BOTH)), ARRAYS(X, Y)),
    ),
    (
        "data",
        "inputs to learn from as they are, got a data module that standardises them",
        lambda: fit(
            MemoryClassifier(DenseAssociativeMemory(4, memories=3, classes=4)), ARRAYS(X, Y)
        ),
    ),
    (
        "classes",
        "5, one for each output of the module, got 4; give it as many outputs",
        lambda: fit(HAMClassifier(deq(4, 8, 5)), ARRAYS(X, Y)),
    ),
    (
        "labels",
        "classes of int64, got torch.float32; give strings or integers as classes",
        lambda: fit(HAMClassifier(deq(4, 8, 3)), ARRAYS(X, X[:, 0], val=0)),
    ),
    (
        "targets",
        "real values in floating point, got torch.int64; give y.astype(float) to the data module",
        lambda: fit(HAMRegressor(deq(4, 8, 4)), ARRAYS(X, Y, val=0)),
    ),
    (
        "inputs",
        "('batch', 8, 8), as the data that the model was trained on, got (5, 4, 16)",
        lambda: (
            fit(
                module := classifier(),
                DigitsDataModule(),
                limit_train_batches=1,
                limit_val_batches=0,
            ),
            module(torch.rand(5, 4, 16)),
        ),
    ),
    (
        "path",
        "a name that ends in .safetensors, got 'w.pt'",
        lambda: save_weights(classifier(), "w.pt"),
    ),
]


@pytest.mark.parametrize(
    ("name", "expected", "call"), REFUSED, ids=[f"{name}: {text[:30]}" for name, text, _ in REFUSED]
)
def test_a_wrong_argument_is_named_with_what_was_expected(name, expected, call):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(f"{name}: expected {expected}")


MODULES = {
    "classifier": classifier,
    "reconstructor": reconstructor,
    "dense": lambda: MemoryClassifier(DenseAssociativeMemory(64, memories=8, classes=10)),
    "binary": lambda: BinaryClassifier(
        torch.nn.Sequential(torch.nn.Linear(64, 1), torch.nn.Flatten(0))
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_refuses_batches_and_labels_that_are_none(name):
    module, labels = MODULES[name](), LABELS % 2
    assert step(module, (IMAGES, labels)).isfinite()
    assert step(module, [IMAGES, labels]).isfinite()  # as a DataLoader gives them
    refused = [
        ((IMAGES, labels[:, None]), "got (8, 1); give labels.squeeze(1)"),
        ((IMAGES, torch.eye(8, 3).long()), "got (8, 3); one-hot labels"),
        ((IMAGES, labels + 10), "expected classes 0 to "),
        (
            {"x": 1, "y": 2},
            "batch: expected (inputs, targets), got a dict with the keys ['x', 'y']",
        ),
        ((1, 2, 3), "batch: expected (inputs, targets), got 3 parts"),
        (IMAGES, "batch: expected (inputs, targets), got a Tensor, without targets"),
    ]
    for stage in ("training", "validation", "test"):
        for batch, message in refused:
            with pytest.raises((ValueError, TypeError)) as caught:
                step(module, batch, stage)
            assert message in str(caught.value)
    with pytest.raises(TypeError, match="batch: expected inputs, or"):
        step(module, {"x": 1}, "predict")
