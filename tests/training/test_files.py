"""What is written to disk: whole or not at all, named where it fails, and read with care."""

import ast
import csv
import errno
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.figure import Figure

from hamdeq.training import WholeCheckpointIO, files
from hamdeq.training.building import innermost
from hamdeq.training.checkpoint import MovedCheckpoints
from hamdeq.training.cli.main import main
from hamdeq.training.cli.results import MetricsFile, add_results, read_results
from hamdeq.training.files import (
    DamagedFileError,
    append_text,
    is_whole_png,
    save_figure,
    write_csv,
    write_file,
)

ROOT = Path(__file__).parents[2]
# The numbers of processes that have ended, of this machine and of another one.
DEAD, ELSEWHERE = f"{files._HOST}-4194305-0", "00000000-1-0"


def saved(step: int, path: Path) -> None:
    WholeCheckpointIO().save_checkpoint({"step": step, "w": torch.full((300_000,), step)}, path)


def save_for_ever(path: Path) -> None:
    for step in itertools.count(1):
        saved(step, path)


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which nothing comes to rest from now on."""

    def fails(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "fsync", fails)


# ------------------------------------------------------------------------ whole or not at all


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, to save what a process imports")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.subprocess
def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path):
    path = tmp_path / "last.ckpt"
    saved(0, path)
    context = multiprocessing.get_context("fork")
    steps = []
    for kill in range(4):
        before, end = path.stat(), time.monotonic() + 60
        writer = context.Process(target=save_for_ever, args=(path,))
        writer.start()
        while os.path.samestat(path.stat(), before) and time.monotonic() < end:
            time.sleep(1e-3)
        time.sleep(0.005 * kill)
        writer.kill()
        writer.join()
        found = torch.load(path, weights_only=True)
        assert (found["w"] == found["step"]).all()
        steps.append(found["step"])
    assert min(steps) > 0  # each has written at least one
    # The next start clears away what the kills have left.
    files._cleared.clear()
    saved(1, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.subprocess
def test_temporary_files_are_removed_unless_a_process_may_still_write_them(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        left = [f"a.json.{DEAD}.tmp", f"b.json.{files._HOST}-{os.getpid()}-0.tmp"]
        stay = [f"a.json.{files._HOST}-{living.pid}-0.tmp", f"a.json.{ELSEWHERE}.tmp", "mine.tmp"]
        for name in (*left, *stay, f"old.json.{ELSEWHERE}.tmp"):
            (tmp_path / name).touch()
        yesterday = time.time() - 25 * 60 * 60
        os.utime(tmp_path / f"old.json.{ELSEWHERE}.tmp", (yesterday, yesterday))
        write_file(tmp_path / "c.json", "{}")
        assert sorted(os.listdir(tmp_path)) == sorted([*stay, "c.json"])
        living.communicate(b"\n")


WRITERS = {
    "text": ("table.md", lambda path: write_file(path, "| new |")),
    "table": ("cells.csv", lambda path: write_csv(path, ["a"], [[1]])),
    "figure": ("map.png", lambda path: save_figure(Figure(), path)),
    "checkpoint": ("last.ckpt", lambda path: saved(1, path)),
    "results": ("results.json", lambda path: add_results(path.parent, {"test/loss": 1.0})),
    "metrics": (
        "metrics.csv",
        lambda path: MetricsFile(path.parent, resume_step=1).log_metrics({"b": 1}, 2),
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, full_disk, kind):
    name, write = WRITERS[kind]
    path = tmp_path / name
    write(path)
    before = path.read_bytes()
    full_disk()
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert "it is as it was before; free some space there" in str(caught.value)
    assert os.listdir(tmp_path) == [name]
    assert path.read_bytes() == before


def test_a_row_is_appended_as_a_whole_or_not_at_all(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "metrics.csv"
    append_text(path, "step,loss\n1,0.5\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # the row fits in part
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            append_text(path, "2,0.25\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_text() == "step,loss\n1,0.5\n"


def test_what_may_not_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file/a.json", tmp_path):  # no folder; a folder
        with pytest.raises(OSError, match="expected to write the file") as caught:
            write_file(path, "")
        assert caught.value.filename == str(path)
    assert [path.name for path in tmp_path.parent.glob("*.tmp")] == []


def test_a_figure_is_whole_if_its_end_is_there(tmp_path):
    path = tmp_path / "map.png"
    assert not is_whole_png(path)
    save_figure(Figure(), path)
    assert is_whole_png(path)
    for size in (0, 3, len(path.read_bytes()) - 1):
        path.write_bytes(path.read_bytes()[:size])
        assert not is_whole_png(path)


# --------------------------------------------------------------------------------- a training


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_whose_disk_is_full_at_its_end_is_tested_again_and_once(tmp_path, monkeypatch, capfd):
    args = ["fit", "--config", str(ROOT / "configs/digits.yaml"), "--run.wandb=disabled"]
    args += ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
    args += ["--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("hamdeq.training.callbacks.save_figure", lambda figure, path: None)
    # Lightning's own way to write a checkpoint is not taken.
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", None)
    folder = tmp_path / "runs/digits/version_0"
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if target.name == "results.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(SystemExit, match=r"error: \S+/results.json: .*'No space left on dev"):
            main(args)
    assert sorted(os.listdir(folder)) == ["checkpoints", "config.yaml", "metrics.csv"]
    assert len([row for row in rows(folder / "metrics.csv") if row["test/loss"]]) == 1
    main([*args, "--ckpt_path=last"])
    (tested,) = [row for row in rows(folder / "metrics.csv") if row["test/loss"]]
    results = read_results(folder / "results.json")
    assert float(tested["test/loss"]) == pytest.approx(results["test/loss"])


@pytest.mark.parametrize("here", ["moved", "other"])
def test_a_moved_run_keeps_its_best_checkpoint(tmp_path, here):
    for name in ("first/best.ckpt", "first/last.ckpt", "moved/best.ckpt", "other/last.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = ModelCheckpoint(
        tmp_path / "first", filename="best", monitor="val/accuracy", mode="max"
    )
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "first/best.ckpt")
    before.last_model_path = str(tmp_path / "first/last.ckpt")
    before.best_model_score = before.kth_value = torch.tensor(0.9)
    before.best_k_models = {before.best_model_path: torch.tensor(0.9)}
    after = ModelCheckpoint(tmp_path / here, filename="best", monitor="val/accuracy", mode="max")
    checkpoint = {"callbacks": {after.state_key: before.state_dict()}}
    trainer = L.Trainer(
        callbacks=[after, MovedCheckpoints()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    MovedCheckpoints().on_load_checkpoint(trainer, L.LightningModule(), checkpoint)
    state = checkpoint["callbacks"][after.state_key]
    if here == "other":  # another run, which goes on from the weights of this one
        assert state == before.state_dict()
        return
    after.load_state_dict(state)
    assert after.best_model_path == after.kth_best_model_path == str(tmp_path / "moved/best.ckpt")
    assert after.last_model_path == str(tmp_path / "moved/last.ckpt")
    assert not after.check_monitor_top_k(trainer, torch.tensor(0.8))
    assert after.check_monitor_top_k(trainer, torch.tensor(0.95))


def test_a_test_before_further_epochs_stays(tmp_path):
    MetricsFile(tmp_path).log_metrics({"test/loss": 0.5}, 2)
    further = MetricsFile(tmp_path, resume_step=2)
    further.log_metrics({"train/loss": 0.25}, 3)
    further.log_metrics({"test/loss": 0.25}, 4)
    # One that is no end of a fit is logged at step 0, as often as it is run.
    for _ in range(2):
        MetricsFile(tmp_path).log_metrics({"test/loss": 0.125}, 0)
    found = [row["test/loss"] for row in rows(tmp_path / "metrics.csv")]
    assert found == ["0.5", "", "0.25", "0.125", "0.125"]


# ------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("text", ["", '{"test/loss": 0.', "[1]", '{"a": "b"}', "{}}", b"\xff\x00"])
def test_damaged_results_are_named_and_written_anew(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedFileError, match=re.escape(f"{path}: expected numbers by name")):
        read_results(path)
    with pytest.warns(UserWarning, match=re.escape(f"{path}: expected numbers") + ".*anew"):
        add_results(tmp_path, {"test/loss": 0.5})
    assert json.loads(path.read_text()) == {"test/loss": 0.5}


HEAD, ONE, TWO = b"step,epoch,loss\r\n", b"1,0,0.5\r\n", b"2,1,0.25\r\n"


@pytest.mark.parametrize(
    ("damaged", "left"),
    [
        (b"", []),
        (b"\0" * 40, []),
        (b"name,value\r\na,1\r\n", []),
        (HEAD + ONE + b"2,1\r\n" + TWO, ["0.5", "0.25"]),
        (HEAD + ONE + b"2,1,0.0,5,5\r\n", ["0.5"]),
        (HEAD + ONE + b"\0\0\0\xff,1,2\r\n" + TWO, ["0.5", "0.25"]),
        (HEAD + b'"1,0,0.5\r\n' + TWO, ["0.25"]),
    ],
)
def test_damaged_metrics_are_named_and_their_good_rows_go_on(tmp_path, damaged, left):
    path = tmp_path / "metrics.csv"
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match=re.escape(f"{path}: expected rows of metrics, got")):
        metrics = MetricsFile(tmp_path, resume_step=2)
    assert path.read_bytes() == damaged  # until there is something to write
    metrics.log_metrics({"epoch": 2, "loss": 0.125}, 3)
    assert [row["loss"] for row in rows(path)] == [*left, "0.125"]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == damaged


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(HEAD + ONE + b"2,1,0.")
    metrics = MetricsFile(tmp_path, resume_step=2)
    metrics.log_metrics({"epoch": 1, "loss": 0.25}, 2)
    assert (tmp_path / "metrics.csv").read_bytes() == HEAD + ONE + TWO
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_no_module_is_imported_that_windows_lacks():
    names = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
    for path in (ROOT / "hamdeq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported.append(str(node.module))
            assert not names.intersection(imported), path


def test_an_error_that_is_meant_to_be_read_alone_is():
    with pytest.raises(OSError, match="expected") as caught:
        write_file(Path(__file__) / "a", "")
    assert innermost(caught.value) == str(caught.value)
