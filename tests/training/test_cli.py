"""The main job as a user runs it: train, look at the results, interrupt, resume, test."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from processes import start_method

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from hamdeq.training import HAMClassifier, callbacks, progress
from hamdeq.training.cli import run as run_folder
from hamdeq.training.cli.main import HAMCLI, main
from hamdeq.training.cli.results import MetricsFile
from hamdeq.training.cli.run import wandb_logger
from hamdeq.training.progress import Progress

ROOT = Path(__file__).parents[2]
# A sweep is wandb's.
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "sweeps")
DIGITS = ["fit", "--config", str(ROOT / "configs/digits.yaml")]
SMALL = ["--model.deq.ham.sizes=[64,16,10]", "--trainer.accelerator=cpu"]
QUICK = ["--trainer.enable_progress_bar=false", "--run.wandb=disabled"]
FEW = ["--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=1", *SMALL]


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """The command line in this process, which starts faster, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def call(*args: str, code: int = 0, draw: bool = False) -> str:
        message, got = "", 0
        with monkeypatch.context() as patch:
            if not draw:  # a picture takes longer than the short trainings do
                patch.setattr(callbacks, "save_figure", lambda figure, path: path.touch())
            try:
                main([*args])
            except SystemExit as exit:
                message, got = (exit.code, 1) if isinstance(exit.code, str) else ("", exit.code)
        printed = capfd.readouterr()
        output = printed.out + printed.err + message
        assert got == code, output
        return output

    return call


@pytest.fixture(scope="module")
def made():
    """A command line that has a parser, and has parsed nothing."""

    class Made(Exception):
        pass

    def keep(self, parser, args):
        raise Made(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr(HAMCLI, "parse_arguments", keep)
        with pytest.raises(Made) as caught:
            main(["fit"])
    return caught.value.args[0]


@pytest.fixture
def parser(made):
    return made.parser


@pytest.fixture
def fit_parser(made):
    """What follows ``fit``, which the whole parser would read twice."""
    return made._subcommand_parsers["fit"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def epochs(folder: Path, column: str) -> list[int]:
    return [int(row["epoch"]) for row in rows(folder) if row.get(column)]


# ------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_run_trains_and_leaves_its_results(cli, tmp_path):
    quick = ["--trainer.max_epochs=4", QUICK[0], "--trainer.accelerator=cpu"]
    output = cli(*DIGITS, "--model.deq.ham.sizes=[64,64,10]", *quick, draw=True)
    folder = tmp_path / "runs/digits/version_0"
    results = json.loads((folder / "results.json").read_text())
    assert results["test/accuracy"] > 0.85
    assert results["test/not_converged"] == 0
    assert f"{results['test/accuracy']:.2%}" in output
    assert (folder / "residuals.png").read_bytes().startswith(b"\x89PNG")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert epochs(folder, "train/iterations") == list(range(4))
    assert epochs(folder, "val/accuracy") == list(range(4))
    for name in ("loss", "accuracy", "iterations", "not_converged", "residual", "energy"):
        for stage in ("train", "val", "test"):
            assert any(row[f"{stage}/{name}"] for row in rows(folder)), (stage, name)
    for name in ("iterations", "not_converged", "residual"):
        assert any(row[f"train/backward_{name}"] for row in rows(folder)), name
    # What was tested is the best checkpoint, by validation accuracy.
    accuracy = [float(row["val/accuracy"]) for row in rows(folder) if row["val/accuracy"]]
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == accuracy.index(max(accuracy))


@pytest.mark.slow
def test_wandb_records_into_the_run_folder_whoever_writes(tmp_path, monkeypatch):
    """One process writes for all runs of a program, and its current folder is not theirs."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "there").mkdir()
    wandb.setup(wandb.Settings(mode="offline"))
    monkeypatch.chdir(tmp_path / "there")
    logger = wandb_logger(Path("run"), project="test", online=False)
    logger.log_metrics({"loss": 1.0})
    wandb.finish()
    assert list((tmp_path / "there/run").glob("wandb/offline-run-*/*.wandb"))


def train_slowly(folder: Path, args: list[str]) -> None:
    """A run that from the third epoch on takes 0.1 s for a batch, to be killed in one."""
    step = HAMClassifier._step

    def slow(self, *args):
        time.sleep(0.1 * (self.current_epoch > 1))
        return step(self, *args)

    HAMClassifier._step = slow
    os.chdir(folder)
    sys.argv = ["train.py"]
    torch.set_num_threads(1)
    main(args)


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_run_that_is_killed_and_resumed_is_the_uninterrupted_one_to_the_last_bit(cli, tmp_path):
    args = [*DIGITS, *QUICK, *SMALL, "--trainer.max_epochs=4", "--data.batch_size=128"]
    cli(*args, "--run.root=whole")

    folder = tmp_path / "cut/version_0"
    process = mp.get_context(start_method()).Process(
        target=train_slowly, args=(tmp_path, [*args, "--run.root=cut"])
    )
    process.start()
    end = time.monotonic() + 120
    try:
        while not (folder / "metrics.csv").exists() or len(epochs(folder, "train/iterations")) < 2:
            assert process.is_alive()
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.02)
        time.sleep(0.3)
    finally:
        process.kill()
        process.join()
    assert 2 <= len(epochs(folder, "train/iterations")) < 4

    cli(*args, "--run.root=cut", "--ckpt_path=last")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert epochs(folder, "train/iterations") == list(range(4))
    for name in ("train/loss", "val/accuracy", "train/iterations"):
        one, other = (
            [row[name] for row in rows(f) if row[name]]
            for f in (tmp_path / "whole/version_0", folder)
        )
        assert one == other


@pytest.mark.slow
def test_a_run_that_is_interrupted_from_the_keyboard_says_how_to_go_on(cli, tmp_path, monkeypatch):
    folder = tmp_path / "runs/digits/version_0"
    step = HAMClassifier._step

    def interrupted(self, *args):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    args = [*DIGITS, *QUICK, *FEW]
    with monkeypatch.context() as patch:
        patch.setattr(HAMClassifier, "_step", interrupted)
        output = cli(*args, "--trainer.max_epochs=1000", code=130)
    assert "interrupted in epoch 2; to go on" in output
    assert "--ckpt_path last" in output
    cli(*args, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert epochs(folder, "train/iterations") == [0, 1]


@pytest.mark.slow
def test_the_last_checkpoint_is_of_the_last_epoch_though_it_be_no_better(cli, tmp_path):
    # Too small a rate for the accuracy to change.
    cli(*DIGITS, *QUICK, *FEW, "--trainer.max_epochs=2", "--model.optimizer.lr=1e-12")
    folder = tmp_path / "runs/digits/version_0/checkpoints"
    kept = [torch.load(folder / f"{n}.ckpt", weights_only=True) for n in ("best", "last")]
    assert [checkpoint["epoch"] for checkpoint in kept] == [0, 1]


@pytest.mark.slow
def test_a_test_of_a_checkpoint_leaves_a_run_that_trains(cli, tmp_path):
    folder = tmp_path / "runs/digits/version_0"
    early, config = folder / "checkpoints/early.ckpt", folder / "config.yaml"
    output = cli(*DIGITS, *QUICK, *FEW, "--trainer.max_epochs=2")
    assert "results.json, residuals.png, metrics.csv, config.yaml, checkpoints\n" in output
    results, text = json.loads((folder / "results.json").read_text()), config.read_text()
    assert "ckpt_path" not in text
    count = len(rows(folder))
    # A test loses no row, though it be of a checkpoint from before the others.
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    torch.save(best | {"global_step": 1}, early)

    output = cli("test", "--config", str(config), *QUICK, f"--ckpt_path={early}")
    assert json.loads((folder / "results.json").read_text()) == results
    output += cli("validate", "--config", str(config), *QUICK, f"--ckpt_path={early}")
    assert "test accuracy" in output
    assert "validation accuracy" in output
    assert "DataLoader 0" not in output
    assert len(rows(folder)) == count + 2

    cli("fit", "--config", str(config), *QUICK, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert config.read_text() == text
    assert epochs(folder, "train/loss") == [0, 1, 2]
    # A new run has a folder of its own; its weights do not fit another architecture.
    cli("fit", "--config", str(config), *QUICK, "--trainer.max_epochs=1")
    assert (tmp_path / "runs/digits/version_1/config.yaml").exists()
    sizes = "--model.deq.ham.sizes=[64,32,10]"
    output = cli(*DIGITS, *QUICK, "--ckpt_path=last", sizes, code=1)
    assert "error: checkpoint of another architecture" in output
    assert "expected (64, 32), got (64, 16)" in output


def test_rows_after_the_step_of_a_resumed_fit_are_written_anew(tmp_path):
    first = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"epoch": step, "loss": 0.5}, step)
    assert len(MetricsFile(tmp_path)._rows) == 3
    resumed = MetricsFile(tmp_path, resume_step=1)
    # A checkpoint may yet be refused: as long as nothing is logged, nothing is lost.
    assert epochs(tmp_path, "loss") == [1, 2, 3]
    for step in (2, 3):
        resumed.log_metrics({"epoch": step, "loss": 0.25}, step)
        assert epochs(tmp_path, "loss") == list(range(1, step + 1))
    assert [row["loss"] for row in rows(tmp_path)] == ["0.5", "0.25", "0.25"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "left", "words"),
    [
        (["--trainer.max_epochs=0"], {"config.yaml", "results.json"}, "test accuracy"),
        (["--trainer.limit_val_batches=0"], {"checkpoints", "metrics.csv"}, "test accuracy"),
        (["--trainer.enable_checkpointing=false"], {"config.yaml"}, "test accuracy"),
        (["--trainer.logger=false"], {"config.yaml", "checkpoints"}, "test accuracy"),
        (["--data.val_size=0"], {"checkpoints", "residuals.png"}, "test accuracy"),
        (["--trainer.fast_dev_run=true"], set(), ""),
    ],
)
def test_a_run_leaves_out_what_it_is_told_to(cli, tmp_path, args, left, words):
    output = cli(*DIGITS, *QUICK, *FEW, "--trainer.max_epochs=1", *args)
    folder = tmp_path / "runs/digits/version_0"
    found = {path.name for path in folder.iterdir()} if left else set()
    assert left <= found
    assert words in output
    for name in ("config.yaml", "metrics.csv", "checkpoints", "residuals.png"):
        assert (name in output) == (name in found), name
    assert [path.name for path in tmp_path.iterdir()] == (["runs"] if left else [])
    if "checkpoints" in left:
        assert (folder / "checkpoints/best.ckpt").exists()


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_is_accepted(fit_parser, path):
    assert fit_parser.parse_args(["--config", str(path)]).model


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.deq.solver.tl=1"], "Did you mean 'tol'"),
        (["--trainer.max_epoch=1"], "Did you mean 'max_epochs'"),
        (["--data.batchsize=1"], "Did you mean 'batch_size'"),
        (["--run.wanb=disabled"], "Did you mean 'wandb'"),
        (["--model.deq.solver=hamdeq.Pickard"], "Did you mean 'Picard'"),
        (["--model.deq.solver=Andersen"], "Did you mean 'Anderson'"),
        (["--model.deq.solver.tolerance", "1"], "argument 'tolerance'. Did you mean 'tol'? There"),
        (
            ["--model.deq.adjoint.solver=Broyden", "--model.deq.adjoint.solver.tl=1"],
            "Did you mean 'tol'",
        ),
        (["--model.deq.tolerance=1"], "hamdeq.DEQ has no argument 'tolerance'. There are ham, "),
        (["--model.optimizer.learning_rate=1"], "There are lr, p_scale, g_bound, decay"),
        (["--model.scheduler=StepLR", "--model.scheduler.step=1"], "Did you mean 'step_size'"),
        (["--model.deq.ham.size=[64,10]"], "hamdeq.HAM.chain has no argument 'size'. Did you"),
        (["--model.deq.solver=hamdeq.HAM"], "expected a subclass of Solver, got hamdeq.HAM"),
        (["--model.deq.splitting=odd"], "expected one of 'even-odd', 'sweep', got odd"),
        (["--model.deq.solver.tol=abc"], "--model.deq.solver.tol: expected a number, got abc"),
        (
            ["--model=hamdeq.experiments.examples.BinaryClassifier"],
            "hamdeq.experiments.examples.BinaryClassifier needs network",
        ),
        (["--trainer.callbacks+=EarlyStoping"], "Did you mean 'EarlyStopping'"),
        (["--seed=3"], "no option --seed. Did you mean 'seed_everything'"),
        (["--modl.loss=mse"], "Did you mean 'model'"),
        (["train"], "no command 'train'. There are fit, validate, test"),
        (["fit", "--model.deq=hamdeq.DEQ"], "hamdeq.DEQ needs ham"),
        ([], "expected a command, one of fit, validate, test"),
    ],
)
def test_a_wrong_option_is_refused_with_the_nearest_that_exists(parser, capfd, args, message):
    alone = not args or not args[0].startswith("--")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([*args] if alone else [*DIGITS, *args])
    output = capfd.readouterr().err
    assert caught.value.code == 2
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) <= 2


@pytest.mark.parametrize(
    "option", [["--model.deq.splitting=null"], ["--model.deq.splitting", "null"]]
)
def test_an_argument_of_a_class_within_a_class_may_be_null(parser, option):
    parsed = parser.parse_args([*DIGITS, *option])
    assert parsed.fit.model.init_args.deq.init_args.splitting is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trainer.num_nodes=2", "--trainer.strategy=nothing"], "nothing"),
        (["--model.deq.solver.tol=-1"], "tol: expected a finite number > 0"),
        (["--model.deq.ham.sizes=[63,10]", "--model.deq.ham.gain=1"], "expected 64 neurons"),
        (["--model.deq.ham.sizes=[64,8,9]"], "one for each class of DigitsDataModule, got 9"),
        (["fit"], "fit: expected a configuration, got none; give --config FILE, such as"),
        (["test", "--ckpt_path=last"], "test: expected a configuration"),
        (["fit", "--config=nowhere.yaml"], "--config: expected a file, found none"),
        (["test", *DIGITS[1:]], "test: expected --ckpt_path FILE, last or best"),
    ],
)
def test_a_refused_call_says_what_to_give_and_leaves_nothing(cli, tmp_path, args, message):
    output = cli(*([*DIGITS, *QUICK] if args[0].startswith("--") else []), *args, code=2)
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) <= 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.val_size=5000"], "val_size: expected fewer than the 1437 training images"),
        (["--trainer.callbacks+=hamdeq.training.StoredExamples"], "expected a HAMReconstructor"),
    ],
)
def test_a_refused_run_leaves_no_folder(cli, tmp_path, monkeypatch, args, message):
    # Recorded by wandb, whose folder is there before the run is refused.
    monkeypatch.setattr(
        run_folder,
        "WandbLogger",
        lambda *args, save_dir, **kwargs: (
            (save_dir / "wandb/offline-run-1").mkdir(parents=True) or MetricsFile(save_dir)
        ),
    )
    output = cli(*DIGITS, *QUICK[:1], *args, code=1)
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_another_run_stays_when_one_is_refused(cli, tmp_path):
    kept = tmp_path / "runs/digits/version_0"
    kept.mkdir(parents=True)
    cli(*DIGITS, *QUICK, "--data.val_size=5000", code=1)
    assert [*tmp_path.rglob("version_*")] == [kept]


def test_wandb_online_without_a_key_is_refused_in_one_line(cli, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def login() -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "login", login)
    output = cli(*DIGITS, QUICK[0], "--run.wandb=online", code=2)
    assert output.startswith("error: wandb online: expected an API key of wandb, got none; run")
    assert len(output.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_metric_that_is_not_there_is_said_in_one_line(cli):
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acc"]
    output = cli(*DIGITS, *QUICK, *stop, "--trainer.max_epochs=1", *FEW, code=1)
    assert "error: Early stopping conditioned on metric `val/acc` which is not available" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--ckpt_path=last"],
            "no checkpoint: expected runs/digits/version_*/checkpoints/last.ckpt",
        ),
        (
            ["--ckpt_path=best"],
            "no checkpoint: expected runs/digits/version_*/checkpoints/best.ckpt",
        ),
        (
            ["--ckpt_path=elsewhere.ckpt"],
            "--ckpt_path: expected a checkpoint file, 'last' or 'best'",
        ),
        (["--run.root=file/runs"], "file/runs: expected a folder that can be written"),
        (
            [f"--config={ROOT}/configs/mnist/ham.yaml", "--data.root=no", "--data.download=false"],
            "configs/digits.yaml",
        ),
    ],
)
def test_files_that_are_not_there_are_said_in_one_line(cli, tmp_path, args, message):
    (tmp_path / "file").touch()
    output = cli(*DIGITS, *QUICK, *args, code=1)
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.subprocess
def test_torchvision_that_does_not_match_is_explained_in_one_line(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    # The core does not care.
    code = "import hamdeq, hamdeq.__main__ as command; command.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *DIGITS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install --upgrade torch torchvision" in done.stderr


# ------------------------------------------------------------------------------------ output


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["fit", "--help"],
        ["test", "--help"],
        ["fit", "--model.help=HAMClassifier"],
        ["fit", "--model.deq.solver.help=hamdeq.Anderson"],
        ["fit", "--data.help=DigitsDataModule"],
    ],
    ids=" ".join,
)
def test_help_is_plain_text(parser, capfd, args):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(args)
    text = capfd.readouterr().out
    assert caught.value.code == 0
    assert not re.search(r":\w+:`|``|Lightning Trainer|__main__", text)
    assert len(text.split("\n\n")[0].splitlines()) < 10
    if args == ["test", "--help"]:
        assert "Measure a checkpoint on the test data." in text
        assert re.search(r"last\s+or\s+best", text)


class Terminal(io.StringIO):
    """What a terminal is given."""

    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_piped_output_is_a_line_for_each_epoch(cli):
    lines = cli(*DIGITS, "--run.wandb=disabled", "--trainer.max_epochs=2", *FEW).split("\n")
    assert not re.search(r"[\r\x1b]", "".join(lines))
    said = [line for line in lines if line.startswith("epoch")]
    assert len(said) == 2
    for number, line in enumerate(said, 1):
        assert re.fullmatch(
            rf"epoch {number}/2  loss \S+  train \S+%  val \d+\.\d\d%  \S+ iterations  "
            r"elapsed \d:\d\d, remaining \d:\d\d",
            line,
        )


@pytest.mark.slow
def test_a_terminal_of_80_columns_shows_the_validation_accuracy(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    cli(*DIGITS, "--run.wandb=disabled", "--trainer.max_epochs=2", *FEW)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert sum(bool(re.match(r"epoch \d/2  .*  val \d+\.\d\d%  ", line)) for line in lines) == 2
    bars = [line for line in lines if "elapsed" in line]
    assert any(line.startswith("epoch 2/2 ") and "remaining" in line for line in bars)
    assert max(len(line) for line in lines if re.match("epoch|test ", line)) <= 80


@pytest.mark.slow
def test_a_progress_bar_of_the_user_takes_the_place_of_ours(cli):
    bar = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    output = cli(*DIGITS, "--run.wandb=disabled", "--trainer.max_epochs=1", *FEW, bar)
    assert "Epoch 0" in output
    assert "epoch 1/1" not in output


def test_progress_in_a_file_is_plain_lines_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Progress(10, done=2, description="train a", file=file) as bar:
        for _ in range(8):
            now[0] += 4
            bar.advance()
            if bar.done == 6:
                bar.describe("train b")
    assert file.getvalue().splitlines() == [
        "train a: 2/10, elapsed 0:00, remaining ?",
        "train a: 5/10, elapsed 0:12, remaining 0:20",
        "train b: 6/10, elapsed 0:16, remaining 0:16",
        "train b: 9/10, elapsed 0:28, remaining 0:04",
    ]


def test_progress_on_a_terminal_moves_without_an_update(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    with Progress(10, description="measure", file=file):
        deadline = time.monotonic() + 5
        while file.getvalue().count("elapsed") < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert file.getvalue().count("elapsed") >= 3
