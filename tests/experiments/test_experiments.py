"""The experiments: what defines their data, what their networks compute, and that they learn."""

import itertools
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

import lightning as L
from sklearn.metrics import roc_auc_score

from hamdeq import training
from hamdeq.data import MNIST_FILES, TensorBatches
from hamdeq.experiments import compare, examples, series
from hamdeq.experiments.__main__ import main as experiments_main
from hamdeq.experiments.capacity import attention, binary
from hamdeq.experiments.convergence.cli import main as convergence_main
from hamdeq.experiments.cost import measure
from hamdeq.experiments.examples import (
    BinaryClassifier,
    BitPatternDataModule,
    DigitEncoder,
    GatedAttention,
    LastState,
    LatchDataModule,
    MeanPooling,
    MNISTBagsDataModule,
    Readout,
)
from hamdeq.experiments.hyperparameters.cli import main as hyperparameters_main
from hamdeq.experiments.options import Parser
from hamdeq.nn import Hopfield, HopfieldLayer, HopfieldPooling
from hamdeq.training.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path
    for name in ("latch", "bit_patterns", "bags")
    for path in (ROOT / "configs" / name).iterdir()
)
MNIST = Path(os.environ.get("HAMDEQ_DATA", "")) / "MNIST/raw"
needs_mnist = pytest.mark.skipif(
    not all((MNIST / name).is_file() for name in MNIST_FILES),
    reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
)
SPLITS = ("train", "val", "test")


def trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **options,
    )


def fit(network: nn.Module, data, epochs: int, lr: float = 1e-3) -> dict[str, float]:
    """The metrics of the test split after a training."""
    module = BinaryClassifier(network, optimizer=lambda p: torch.optim.AdamW(p, lr=lr))
    runner = trainer(max_epochs=epochs, limit_val_batches=0)
    runner.fit(module, data)
    return dict(runner.test(module, data, verbose=False)[0])


# -------------------------------------------------------------------------------- data


@pytest.mark.parametrize("kind", [LatchDataModule, BitPatternDataModule])
def test_data_is_a_function_of_the_seed(kind):
    one, same, other = kind(seed=1), kind(seed=1), kind(seed=2)
    for name in SPLITS:
        for a, b, c in zip(one.split(name), same.split(name), other.split(name), strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, c)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kind().setup()
    assert torch.equal(torch.rand(3), expected)


def test_latch_sequences():
    data = LatchDataModule()
    assert {name: len(data.split(name)[1]) for name in SPLITS} == {
        "train": 3072,
        "val": 1024,
        "test": 1024,
    }
    sequences, labels = data.split("train")
    assert sequences.shape == (3072, 32, 20)
    assert set(sequences.unique().tolist()) == {0, 1}
    assert (sequences.sum(2) == 1).all()
    symbols = sequences.argmax(2)
    assert torch.equal(symbols[:, 0], labels)
    assert set(symbols[:, 1:].unique().tolist()) == set(range(2, 20))
    assert labels.float().mean() == pytest.approx(0.5, abs=0.05)
    share = symbols[:, 1:].flatten().bincount()[2:] / symbols[:, 1:].numel()
    torch.testing.assert_close(share, torch.full((18,), 1 / 18), atol=0.003, rtol=0)


def test_bit_patterns():
    data = BitPatternDataModule()
    data.setup()
    signals = {tuple(row) for row in data.signals.tolist()}
    assert len(signals) == 8
    assert (0.0,) * 8 not in signals
    seen, places = set(), set()
    for name, n in (("train", 1536), ("val", 512), ("test", 512)):
        bags, labels = data.split(name)
        assert bags.shape == (n, 16, 8)
        assert labels.sum() == n // 2
        for bag, label in zip(bags.tolist(), labels.tolist(), strict=True):
            rows = [tuple(row) for row in bag]
            found = [place for place, row in enumerate(rows) if row in signals]
            assert len(found) == label
            assert (0.0,) * 8 not in rows
            seen.update(rows)
            places.update(found)
    # Every pattern of eight bits but zero, and every place of a signal, occurs.
    assert seen == set(itertools.product((0.0, 1.0), repeat=8)) - {(0.0,) * 8}
    assert places == set(range(16))


class GivenImages:
    """In the place of MNIST: images that show their index, and their digits."""

    def __init__(self, n: int) -> None:
        images = torch.arange(1.0, n + 1)[:, None].expand(-1, 784)
        digits = torch.arange(n) % 10
        self.load = lambda: (images, digits, images + 0.5, digits)


def given_bags(n: int = 4000, **options) -> MNISTBagsDataModule:
    data = MNISTBagsDataModule(**options)
    data.mnist = GivenImages(n)  # pyright: ignore[reportAttributeAccessIssue]
    return data


def test_bags_of_digits():
    data = given_bags(train_size=60, val_size=20, test_size=100, seed=3)
    used: list[float] = []
    lengths = []
    for name, n in (("train", 60), ("val", 20), ("test", 100)):
        (images, padding), labels = data.split(name)
        assert len(images) == len(padding) == len(labels) == n
        assert labels.sum() == n // 2
        for bag, hidden, label in zip(images, padding, labels, strict=True):
            length = int((~hidden).sum())
            assert not hidden[:length].any()
            assert (bag[length:] == 0).all()
            shown = bag[:length, 0, 0].tolist()
            digits = [int(number - 1) % 10 for number in shown]
            assert (9 in digits) == bool(label)
            # Test images were made to differ by a half from training images.
            assert {number % 1 for number in shown} == {0.5 if name == "test" else 0.0}
            used += shown
            lengths.append(length)
        assert (~padding).any(0).all(), "longer than the longest bag"
    assert len(set(used)) == len(used)
    assert sum(lengths) / len(lengths) == pytest.approx(10, abs=0.5)
    assert torch.tensor(lengths).float().std() == pytest.approx(2, abs=0.4)


def test_bags_do_not_depend_on_what_is_not_theirs():
    one, same = given_bags(test_size=10, seed=1), given_bags(test_size=10, seed=1, val_size=20)
    for name in ("train", "test"):
        (images, padding), labels = one.split(name)
        (same_images, same_padding), same_labels = same.split(name)
        assert torch.equal(images, same_images)
        assert torch.equal(padding, same_padding)
        assert torch.equal(labels, same_labels)
    other = given_bags(test_size=10, seed=2).split("train")[0]
    assert not torch.equal(one.split("train")[1], other[1])


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_several_tensors_stay_together(shuffle):
    index = torch.arange(10)
    batches = list(TensorBatches((index / 1.0, index[:, None] > 4), index, 4, shuffle=shuffle))
    for inputs, labels in batches:
        assert isinstance(inputs, tuple)
        assert torch.equal(inputs[0], labels / 1.0)
        assert torch.equal(inputs[1], labels[:, None] > 4)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(10))
    with pytest.raises(ValueError, match="labels: expected 9, one for each sample, got 10"):
        TensorBatches((index, index[1:]), index, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatchDataModule(train_size=0), "train_size: expected a positive integer, got 0"),
        (lambda: LatchDataModule(n_symbols=2), "n_symbols: expected an integer ≥ 3, got 2"),
        (lambda: LatchDataModule(length=0), "length: expected a positive integer, got 0"),
        (lambda: BitPatternDataModule(n_bits=17), "n_bits: expected 2 to 16, got 17"),
        (lambda: BitPatternDataModule(n_bits=2, n_signals=3), "n_signals: expected 1 to 2, got 3"),
        (lambda: BitPatternDataModule(n_instances=0), "n_instances: expected a positive integer"),
        (lambda: MNISTBagsDataModule(target=10), "target: expected a digit 0 to 9, got 10"),
        (lambda: MNISTBagsDataModule(mean_length=0.5), "mean_length: expected a finite number ≥ 1"),
        (lambda: MNISTBagsDataModule(std_length=-1), "std_length: expected a finite number ≥ 0"),
        (lambda: given_bags(100).setup(), "with images of their own, got some that take more"),
    ],
)
def test_wrong_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# ---------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    "layer",
    [
        MeanPooling(),
        GatedAttention(6, 5),
        HopfieldPooling(input_size=6, quantity=2),
        Hopfield(input_size=6),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_padding_changes_nothing(layer):
    torch.manual_seed(0)
    features = {HopfieldPooling: 12}.get(type(layer), 6)
    network = Readout(layer, features, nn.Linear(3, 6), average=isinstance(layer, Hopfield)).eval()
    bags = torch.randn(4, 5, 3)
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[:, 5:] = True
    padded = torch.cat([bags, torch.full((4, 2, 3), 1e6)], 1)
    torch.testing.assert_close(network(padded, padding), network(bags))
    # In another order, with the padding first.
    torch.testing.assert_close(network(padded.flip(1), padding.flip(1)), network(bags))


def test_gated_attention_is_its_formula():
    torch.manual_seed(0)
    layer, bag = GatedAttention(4, 3), torch.randn(1, 6, 4)
    v, u, w = layer.content, layer.gate, layer.score.weight[0]
    scores = [w @ (torch.tanh(v(h)) * torch.sigmoid(u(h))) for h in bag[0]]
    weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
    expected = sum(a * h for a, h in zip(weights, bag[0], strict=True))
    torch.testing.assert_close(layer(bag)[0], expected)


def test_last_state_reads_the_end_alone():
    torch.manual_seed(0)
    layer, sequence = LastState(3, 4), torch.randn(2, 5, 3)
    states, _ = layer.lstm(sequence)
    torch.testing.assert_close(layer(sequence), states[:, -1])


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected 9 .* got 6 from MeanPooling; give features=6"):
        Readout(MeanPooling(), 9)(torch.randn(2, 5, 6))


# ------------------------------------------------------------------ the Lightning module


def test_metrics_are_those_of_all_samples():
    torch.manual_seed(0)
    # Confident answers, which a sigmoid would round to ties, and no batch has as many as another.
    logits, labels = 60 * torch.randn(50) + 20, torch.randint(2, (50,))

    class Given(LatchDataModule):
        def make_splits(self) -> dict:
            return dict.fromkeys(SPLITS, (logits, labels))

    module = BinaryClassifier(nn.Identity())
    found = trainer().test(module, Given(eval_batch_size=16), verbose=False)[0]
    assert found["test/accuracy"] == pytest.approx(((logits > 0) == labels).double().mean().item())
    assert found["test/auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert found["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert torch.equal(module.predict_step((logits, labels), 0).value, (logits > 0).long())


def test_logits_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\), one for each sample, got \(3, 1\)"):
        BinaryClassifier(nn.Linear(2, 1))(torch.randn(3, 2))


# ---------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("layer", "features", "expected"),
    [
        (lambda: Hopfield(input_size=8), 128, pytest.approx(1)),
        (lambda: HopfieldPooling(input_size=8), 8, pytest.approx(1)),
        (lambda: HopfieldLayer(input_size=8, quantity=4), 128, pytest.approx(1)),
        (lambda: LastState(8, 4), 4, pytest.approx(0.5, abs=0.1)),
    ],
    ids=["Hopfield", "HopfieldPooling", "HopfieldLayer", "LSTM"],
)
def test_hopfield_layers_latch_and_an_lstm_does_not(layer, features, expected):
    torch.manual_seed(0)
    data = LatchDataModule(length=16, n_symbols=8, train_size=1024, val_size=0, test_size=256)
    found = fit(Readout(layer(), features), data, epochs=2, lr=3e-3)
    assert found["test/accuracy"] == expected
    assert found["test/auc"] == expected


@pytest.mark.slow
def test_the_zero_association_finds_signals():
    """With it a head can answer "not here"; without, near misses of all signals add up."""
    found = {}
    for zero in (True, False):
        torch.manual_seed(0)
        layer = HopfieldPooling(
            input_size=5, hidden_size=8, num_heads=16, add_zero_association=zero
        )
        data = BitPatternDataModule(n_bits=5, n_signals=3, n_instances=8, train_size=1024)
        found[zero] = fit(Readout(layer, 5), data, epochs=6, lr=1e-2)["test/accuracy"]
    assert found[True] > 0.9
    assert found[True] > found[False] + 0.1


@needs_mnist
@pytest.mark.slow
@pytest.mark.data
def test_pooling_finds_nines():
    torch.manual_seed(0)
    data = MNISTBagsDataModule(download=False, batch_size=2, train_size=120, test_size=60)
    (images, _), _ = data.split("train")
    assert images.max() == 1
    layer = HopfieldPooling(
        input_size=32, pattern_projection_as_static=True, disable_out_projection=True
    )
    network = Readout(layer, 32, DigitEncoder(32, (8, 16)))
    assert fit(network, data, epochs=4, lr=2e-3)["test/auc"] > 0.65


# ------------------------------------------------------------------------- command line


QUICK = ["--trainer.enable_progress_bar=false", "--run.wandb=disabled"]


@pytest.mark.slow
def test_a_configuration_trains_is_tested_and_goes_on(here, capfd):
    config = str(ROOT / "configs/latch/pooling.yaml")
    small = ["--data.train_size=256", "--data.val_size=64", "--data.test_size=64"]
    small.append("--trainer.log_every_n_steps=1")
    main(["fit", "--config", config, *QUICK, "--trainer.max_epochs=1", *small])
    folder = here / "runs/latch/pooling/version_0"
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"test/accuracy", "test/auc", "test/loss", "fit_seconds"}
    printed = capfd.readouterr().out
    assert re.search(r"test AUC +[01]\.\d{4}", printed)
    assert "results.json, metrics.csv, config.yaml, checkpoints" in printed
    saved = str(folder / "config.yaml")
    main(["fit", "--config", saved, *QUICK, "--trainer.max_epochs=2", "--ckpt_path=last"])
    main(["validate", "--config", saved, *QUICK, "--ckpt_path=last"])
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert {f"{stage}/auc" for stage in SPLITS} <= set(header.split(","))
    assert len(rows) == 2 * 3 + 1
    # Weights of another layer are refused.
    other = ["--config", str(ROOT / "configs/latch/lstm.yaml")]
    with pytest.raises(SystemExit, match="checkpoint of another architecture"):
        main(["fit", *other, *QUICK, f"--ckpt_path={folder}/checkpoints/last.ckpt"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configurations_run(here, config, monkeypatch):
    monkeypatch.setattr(MNISTBagsDataModule, "prepare_data", lambda self: None)
    made = MNISTBagsDataModule.make_splits

    def make_splits(self):
        self.mnist = GivenImages(8000)
        return made(self)

    monkeypatch.setattr(MNISTBagsDataModule, "make_splits", make_splits)
    # The one batch has both classes: the area under the curve is that of two.
    small = ["--data.train_size=8", "--data.test_size=8", "--data.batch_size=8"]
    small.append("--trainer.fast_dev_run=true")
    main(["fit", "--config", str(config), *QUICK, *small])
    text = config.read_text()
    assert f"--config configs/{config.parent.name}/{config.name}" in text
    assert f"root: runs/{config.parent.name}/{config.stem}\n" in text
    epochs = re.search(r"max_epochs: (\d+)", text)
    decay = re.search(r"T_max: (\d+)", text)
    assert epochs
    assert decay is None or decay[1] == epochs[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.network.layer.inputsize=3", "Did you mean 'input_size'"),
        ("--model.network.layer=hamdeq.nn.HopfieldPoling", "Did you mean 'HopfieldPooling'"),
        ("--model.network.layer=hamdeq.experiments.examples.GatdAttention", "'GatedAttention'"),
        ("--data=hamdeq.experiments.examples.LatchDataModul", "Did you mean 'LatchDataModule'"),
    ],
)
def test_wrong_names_are_refused(here, capfd, option, message):
    config = str(ROOT / "configs/latch/pooling.yaml")
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, *QUICK, option])
    assert message in capfd.readouterr().err
    assert not (here / "runs").exists()


def test_compare_runs_once_and_takes_means(here, capfd, trainings_in_process):
    config = ROOT / "configs/latch/pooling.yaml"
    options = ["--trainer.max_epochs=1", "--data.train_size=64", "--run.wandb=disabled"]
    options.append("--trainer.log_every_n_steps=1")
    args = [str(config), "--seeds=1", *options]
    compare.main(args)
    found = series.Series(config, tuple(options), Path("runs/compare"))
    first = found.results(0)
    assert first is not None
    assert "| latch/pooling | 1 |" in capfd.readouterr().out

    # A second seed, made up: only the missing run would be run, and none is.
    folder = found.folder / "seed_1/version_0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(first | {"test/accuracy": 0.25}))
    before = sorted(here.rglob("*"))
    compare.main([*args, "--seeds=2"])
    assert set(here.rglob("*")) == set(before)
    mean = (first["test/accuracy"] + 0.25) / 2
    assert f"| latch/pooling | 2 | {mean:.3f} ± " in (here / "runs/compare/table.md").read_text()
    assert found.results(2) is None
    # Other options are another series.
    assert series.Series(config, (), found.root).folder != found.folder


def test_a_comparison_says_what_fails(here, capfd, monkeypatch):
    config = str(ROOT / "configs/latch/pooling.yaml")

    monkeypatch.setattr(series, "_watch", lambda *args: (2, "what was wrong"))
    with pytest.raises(SystemExit, match=r"a run failed: .*--data.batchsize=3\nwhat was wrong"):
        compare.main([config, "--seeds=1", "--data.batchsize=3"])
    for args in (["nowhere.yaml"], [config, "--seeds=0"]):
        with pytest.raises(SystemExit, match="2"):
            compare.main(args)
    assert "expected files of configurations, got nowhere.yaml" in capfd.readouterr().err


def test_one_run_that_fails_does_not_keep_the_others_from_being_compared(here, capfd, monkeypatch):
    config = ROOT / "configs/latch/pooling.yaml"

    def run(self, seed, **options):
        if seed == 1:
            raise RuntimeError("diverged")
        return {"test/accuracy": 0.25 * (seed + 1)}

    monkeypatch.setattr(series.Series, "run", run)
    with pytest.raises(SystemExit, match="error: a run failed: diverged"):
        compare.main([str(config), "--seeds=3"])
    assert "| latch/pooling | 2 | 0.500 ± 0.354 |" in capfd.readouterr().out
    assert "| latch/pooling | 2 |" in (here / "runs/compare/table.md").read_text()


def test_everything_public_is_exported():
    for module in (examples, training):
        for name in module.__all__:
            assert getattr(module, name).__doc__


# ------------------------------------------------------------------------ their command lines


def test_an_option_s_value_may_follow_after_a_space_or_an_equals_sign():
    parser = Parser("name", "what", operands="CONFIG...")
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--data.root", dest="root")
    expected = ("--trainer.max_epochs=3", "--model.x=-1", "--model.sizes=[64, 10]")
    for args in (
        "--trainer.max_epochs 3 a.yaml --seeds 2 --model.x -1 b.yaml --data.root d",
        "a.yaml b.yaml --seeds=2 --trainer.max_epochs=3 --model.x=-1 --data.root=d",
    ):
        known, options = parser.parse_split([*args.split(), "--model.sizes", "[64, 10]"])
        assert options == expected
        assert (known.configs, known.seeds, known.root) == (["a.yaml", "b.yaml"], 2, "d")


@pytest.mark.parametrize("name", ["latch", "bags", "bit_patterns"])
def test_modules_of_data_say_what_to_run(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    module = f"hamdeq.experiments.examples.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__")
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"usage: python -m {module} [options]")
    assert f"python train.py fit --config configs/{name}/NAME.yaml" in said


def test_a_module_of_data_is_imported_only_when_it_is_asked_for():
    # Or else Python warns of one that runs as a program.
    assert not {*examples.__all__} & {*vars(examples)}
    assert examples.LatchDataModule is LatchDataModule


@pytest.mark.parametrize(
    "call",
    [
        *(compare.main, convergence_main, hyperparameters_main),
        *(attention.main, binary.main, measure.main),
    ],
    ids=lambda call: call.__module__,
)
def test_help_and_errors_of_an_experiment_are_short(here, call, capsys):
    with pytest.raises(SystemExit, match="0"):
        call(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m hamdeq.experiments.")
    assert not re.search(r":\w+:`|``", text)
    # Every option is explained.
    bare = re.compile(r"^  --?[a-z][^\n]*\n(?=  -|\n|$)", re.MULTILINE)
    assert [line for line in bare.findall(text) if not re.search(r"\S  +\S", line)] == []
    with pytest.raises(SystemExit, match="2"):
        call(["--repeats=x", "--seeds=x", "nothing.yaml"])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 2
    assert not any(here.iterdir())


@pytest.mark.parametrize(
    ("module", "call"),
    [(attention, "retrieval_error"), (binary, "measure"), (measure, "peak_memory")],
    ids=["capacity", "capacity.binary", "cost"],
)
def test_an_interrupted_experiment_ends_with_one_line(here, monkeypatch, capsys, module, call):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, call, interrupted)
    sizes = {measure: ["--depths=3", "--widths=8", "--width=8", "--narrow=4", "--batch=2"]}
    with pytest.raises(SystemExit, match="130"):
        module.main(sizes.get(module, ["--sizes=8"]))
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


def test_a_folder_that_cannot_be_written_is_named(here):
    (here / "file").touch()
    with pytest.raises(SystemExit, match="error: file: File exists"):
        attention.main(["--sizes=8", "--largest=1", "--out=file"])


def test_the_list_of_experiments_is_whole(capsys):
    experiments_main()
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]}
    programs = {
        ".".join(path.relative_to(ROOT / "hamdeq/experiments").with_suffix("").parts)
        for path in (ROOT / "hamdeq/experiments").rglob("*.py")
        if '\nif __name__ == "__main__":\n    main()' in path.read_text()
    }
    assert listed == {name.removesuffix(".__main__") for name in programs} - {"__main__"}


def test_comparisons_count_epochs_and_say_so_in_plain_lines(here, capfd, monkeypatch):
    config = ROOT / "configs/latch/pooling.yaml"
    monkeypatch.setattr(
        series.Series, "run", lambda self, seed, meanwhile: meanwhile() or {"test/accuracy": 1.0}
    )
    compare.main([str(config), "--seeds=2", "--trainer.max_epochs", "7"])
    error = capfd.readouterr().err
    assert error.splitlines() == [
        "train latch/pooling, seed 0: 0/14, elapsed 0:00, remaining ?",
        "train latch/pooling, seed 1: 0/14, elapsed 0:00, remaining ?",
    ]
