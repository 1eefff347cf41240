"""The main job as a user runs it: train, look at the results, interrupt, resume, test."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")


from hamdeq.training import progress
from hamdeq.training.cli import run as run_folder
from hamdeq.training.cli.main import main
from hamdeq.training.cli.run import MetricsFile, wandb_logger
from hamdeq.training.progress import Progress

ROOT = Path(__file__).parents[2]
# A sweep is wandb's.
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "sweeps")
DIGITS = ["fit", "--config", str(ROOT / "configs/digits.yaml")]
QUICK = ["--trainer.enable_progress_bar=false", "--run.wandb=disabled"]
FEW = ["--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=1"]


def command(*args: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *args]


def run(folder: Path, *args: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*args), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    return output


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """The command line in this process, which starts faster, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def call(*args: str, code: int = 0) -> str:
        message, got = "", 0
        try:
            main([*args])
        except SystemExit as exit:
            message, got = (exit.code, 1) if isinstance(exit.code, str) else ("", exit.code)
        printed = capfd.readouterr()
        output = printed.out + printed.err + message
        assert got == code, output
        return output

    return call


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def epochs(folder: Path, column: str) -> list[int]:
    return [int(row["epoch"]) for row in rows(folder) if row.get(column)]


def test_a_run_trains_and_leaves_its_results(tmp_path):
    output = run(
        tmp_path, *DIGITS, "--trainer.max_epochs=12", "--trainer.enable_progress_bar=false"
    )
    folder = tmp_path / "runs/digits/version_0"
    results = json.loads((folder / "results.json").read_text())
    assert results["test/accuracy"] > 0.9
    assert results["test/not_converged"] == 0
    assert f"{results['test/accuracy']:.2%}" in output
    assert (folder / "residuals.png").read_bytes().startswith(b"\x89PNG")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert epochs(folder, "train/iterations") == list(range(12))
    assert epochs(folder, "val/accuracy") == list(range(12))
    for name in ("loss", "accuracy", "iterations", "not_converged", "residual", "energy"):
        for stage in ("train", "val", "test"):
            assert any(row[f"{stage}/{name}"] for row in rows(folder)), (stage, name)
    for name in ("iterations", "not_converged", "residual"):
        assert any(row[f"train/backward_{name}"] for row in rows(folder)), name
    # What was tested is the best checkpoint, by validation accuracy.
    accuracy = [float(row["val/accuracy"]) for row in rows(folder) if row["val/accuracy"]]
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == accuracy.index(max(accuracy))


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


def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path):
    args = [*DIGITS, *QUICK, "--trainer.max_epochs=6"]
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, *args)

    cut = tmp_path / "cut"
    cut.mkdir()
    folder = cut / "runs/digits/version_0"
    # A batch takes 50 ms, so that the kill comes in the middle of an epoch.
    slow = (
        "import time, runpy, hamdeq.training.classifier as c\nstep = c.HAMClassifier._step\n"
        "c.HAMClassifier._step = lambda *a: (time.sleep(0.05), step(*a))[1]\n"
        f"import sys; sys.argv = {command(*args)[1:]!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=cut)
    try:
        wait_for(
            lambda: (
                (folder / "checkpoints/last.ckpt").exists()
                and len(epochs(folder, "train/iterations")) >= 2
            )
        )
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = epochs(folder, "train/iterations")
    assert 2 <= len(before) < 6

    run(cut, *args, "--ckpt_path=last")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert epochs(folder, "train/iterations") == list(range(6))
    # The resumed run is the uninterrupted one, to the last bit.
    for name in ("train/loss", "val/accuracy", "train/iterations"):
        one, other = (
            [row[name] for row in rows(f) if row[name]]
            for f in (whole / "runs/digits/version_0", folder)
        )
        assert one == other


def test_interrupted_from_the_keyboard(tmp_path):
    folder = tmp_path / "runs/digits/version_0"
    process = subprocess.Popen(
        command(*DIGITS, *QUICK, "--trainer.max_epochs=1000"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs ignore this signal, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # Lightning writes an epoch's row after its checkpoint: not between the two.
        wait_for(lambda: (folder / "metrics.csv").exists() and epochs(folder, "train/iterations"))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in output
    assert "--ckpt_path last" in output
    done = len(epochs(folder, "train/iterations"))
    run(tmp_path, *DIGITS, *QUICK, f"--trainer.max_epochs={done + 1}", "--ckpt_path=last")
    assert epochs(folder, "train/iterations") == list(range(done + 1))


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_test_of_a_checkpoint_leaves_a_run_that_trains(cli, tmp_path):
    folder = tmp_path / "runs/digits/version_0"
    early, config = folder / "checkpoints/early.ckpt", folder / "config.yaml"
    output = cli(*DIGITS, *QUICK, "--trainer.max_epochs=2")
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
    cli("fit", "--config", str(config), *QUICK, "--trainer.max_epochs=1")
    assert (tmp_path / "runs/digits/version_1/config.yaml").exists()


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
def test_runs_with_parts_left_out(cli, tmp_path, args, left, words):
    output = cli(*DIGITS, *QUICK, "--trainer.max_epochs=1", *args)
    folder = tmp_path / "runs/digits/version_0"
    found = {path.name for path in folder.iterdir()} if left else set()
    assert left <= found
    assert words in output
    for name in ("config.yaml", "metrics.csv", "checkpoints", "residuals.png"):
        assert (name in output) == (name in found), name
    assert [path.name for path in tmp_path.iterdir()] == (["runs"] if left else [])
    if "checkpoints" in left:
        assert (folder / "checkpoints/best.ckpt").exists()


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
        (["--trainer.num_nodes=2", "--trainer.strategy=nothing"], "nothing"),
        (["--model.deq.solver.tol=-1"], "tol: expected a finite relative residual > 0"),
        (["--model.deq.ham.sizes=[64]"], "at least two layers"),
        (["--model.deq.ham.sizes=[63,10]", "--model.deq.ham.gain=1"], "expected 64 neurons"),
        (["--model.deq.ham.sizes=[64,8,9]"], "one for each class of DigitsDataModule, got 9"),
        (["--model.deq.clamped=[inputs]"], "unknown layer 'inputs'"),
    ],
)
def test_wrong_options_are_refused(cli, tmp_path, args, message):
    output = cli(*DIGITS, *QUICK, *args, code=2)
    assert message in output
    assert len(output.splitlines()) <= 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit"], "fit: expected a configuration, got none; give --config FILE, such as"),
        (["fit", "--trainer.max_epochs=1"], "fit: expected a configuration"),
        (["test", "--ckpt_path=last"], "test: expected a configuration"),
        (["train", *DIGITS[1:]], "no command 'train'. There are fit, validate, test"),
        ([], "expected a command, one of fit, validate, test"),
        (["fit", "--model.deq=hamdeq.DEQ"], "hamdeq.DEQ needs ham"),
        (["fit", "--config=nowhere.yaml"], "--config: expected a file, found none"),
    ],
)
def test_calls_without_what_they_need_say_what_to_give(cli, tmp_path, args, message):
    output = cli(*args, code=2)
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) <= 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.val_size=5000"], "expected val_size < 1437"),
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
    short = ["--trainer.max_epochs=1", *FEW]
    output = cli(*DIGITS, *QUICK, *stop, *short, code=1)
    assert "error: Early stopping conditioned on metric `val/acc` which is not available" in output
    assert "Traceback" not in output


# ------------------------------------------------------------------------------------ help


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["fit", "--help"],
        ["test", "--help"],
        ["fit", "--model.help=HAMClassifier"],
        ["fit", "--model.deq.help=hamdeq.DEQ"],
        ["fit", "--model.deq.solver.help=hamdeq.Anderson"],
        ["fit", "--data.help=DigitsDataModule"],
    ],
    ids=" ".join,
)
def test_help_is_plain_text(cli, args):
    text = cli(*args)
    assert not re.search(r":\w+:`|``|Lightning Trainer|__main__", text)
    assert len(text.split("\n\n")[0].splitlines()) < 10


# ---------------------------------------------------------------------------------- output


class Terminal(io.StringIO):
    """What a terminal is given."""

    def isatty(self) -> bool:
        return True


def test_piped_output_is_a_line_for_each_epoch(cli):
    short = ["--trainer.max_epochs=2", *FEW]
    lines = cli(*DIGITS, "--run.wandb=disabled", *short).split("\n")
    assert not re.search(r"[\r\x1b]", "".join(lines))
    said = [line for line in lines if line.startswith("epoch")]
    assert len(said) == 2
    for number, line in enumerate(said, 1):
        assert re.fullmatch(
            rf"epoch {number}/2  loss \S+  train \S+%  val \d+\.\d\d%  \S+ iterations  "
            r"elapsed \d:\d\d, remaining \d:\d\d",
            line,
        )


def test_a_terminal_of_80_columns_shows_the_validation_accuracy(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    short = ["--trainer.max_epochs=2", *FEW]
    cli(*DIGITS, "--run.wandb=disabled", *short)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert sum(bool(re.match(r"epoch \d/2  .*  val \d+\.\d\d%  ", line)) for line in lines) == 2
    bars = [line for line in lines if "elapsed" in line]
    assert any(line.startswith("epoch 2/2 ") and "remaining" in line for line in bars)
    assert max(len(line) for line in lines if re.match("epoch|test ", line)) <= 80


def test_a_progress_bar_of_the_user_takes_the_place_of_ours(cli):
    bar = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    short = ["--trainer.max_epochs=1", *FEW]
    output = cli(*DIGITS, "--run.wandb=disabled", *short, bar)
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


def test_weights_that_are_not_there_are_said(cli, tmp_path):
    for name in ("test", "validate"):
        output = cli(name, *DIGITS[1:], *QUICK, code=2)
        assert f"{name}: expected --ckpt_path FILE, last or best" in output
    for which in ("last", "best"):
        missing = cli(*DIGITS, *QUICK, f"--ckpt_path={which}", code=1)
        assert f"no checkpoint: expected runs/digits/version_*/checkpoints/{which}.ckpt" in missing
    output = cli(*DIGITS, *QUICK, "--ckpt_path=elsewhere.ckpt", code=1)
    assert "expected a checkpoint file, 'last' or 'best'" in output
    assert not (tmp_path / "runs").exists()


def test_root_that_cannot_be_written_is_said_in_one_line(cli, tmp_path):
    (tmp_path / "file").touch()
    output = cli(*DIGITS, *QUICK, "--run.root=file/runs", code=1)
    assert output.startswith("error: file/runs: expected a folder that can be written")
    assert len(output.splitlines()) == 1


def test_checkpoint_of_another_architecture_is_refused(cli):
    cli(*DIGITS, *QUICK, "--trainer.max_epochs=1")
    sizes = "--model.deq.ham.sizes=[64,32,10]"
    output = cli(*DIGITS, *QUICK, "--ckpt_path=last", sizes, code=1)
    assert "error: checkpoint of another architecture" in output
    assert "expected (64, 32), got (64, 256)" in output


def test_missing_mnist_is_said_in_one_line(cli, tmp_path):
    config = str(ROOT / "configs/mnist/ham_eo_deq.yaml")
    missing = ["--data.root=nowhere", "--data.download=false"]
    output = cli("fit", "--config", config, *QUICK, *missing, code=1)
    assert len(output.splitlines()) == 1
    assert "configs/digits.yaml" in output
    assert not any(tmp_path.iterdir())


def test_torchvision_that_does_not_match_is_explained_in_one_line(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = subprocess.run(
        command(*DIGITS),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install --upgrade torch torchvision" in done.stderr
    # The core does not care.
    subprocess.run(
        [sys.executable, "-c", "import hamdeq"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_is_accepted(cli, path):
    printed = cli("fit", "--config", str(path), "--print_config")
    assert "model:" in printed
