"""The convergence experiment: what it measures, that it loses nothing, and what it refuses."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from hamdeq import CHN, CHNDEQ, DEQ, HAM, Anderson, Newton, Picard
from hamdeq.data import DigitsDataModule
from hamdeq.experiments import series
from hamdeq.experiments.claim import claim
from hamdeq.experiments.convergence import Plan, Setting, Source, measure, table
from hamdeq.experiments.convergence.cli import main
from hamdeq.experiments.convergence.plan import key, with_sizes
from hamdeq.experiments.convergence.published import model_of, published
from hamdeq.experiments.convergence.store import load, save
from hamdeq.training import HAMClassifier
from hamdeq.training.load import load_run

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "configs/digits.yaml"
QUICK = ["--wandb=disabled", "--trainer.max_epochs=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def classifier(**options):
    torch.manual_seed(0)
    return HAMClassifier(DEQ(HAM.chain([64, 32, 10], gain=0.5), **options))


@pytest.fixture(scope="module")
def digits():
    data = DigitsDataModule()
    data.setup()
    return data


# ------------------------------------------------------------------------- what is measured


def test_a_measurement_is_what_the_solution_says(digits):
    module = classifier(solver=Anderson(tol=1e-5))
    found = measure(module, digits, batch_size=50)
    images, labels = digits.split("test")
    with torch.no_grad():
        solutions = [module(x) for x in images.split(50)]
    steps = torch.cat([each.steps for each in solutions])
    scores = torch.cat([each.value["output"] for each in solutions])
    assert found.samples == len(images)
    assert found.iterations == pytest.approx(float(steps.double().mean()))
    assert found.worst == int(steps.max())
    assert found.accuracy == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    assert found.not_converged == 0
    assert found.evaluations == sum(each.n_evals for each in solutions) / len(solutions)
    assert (found.model, found.sizes, found.solver, found.splitting, found.tol) == (
        *("HAM", [64, 32, 10], "Anderson", "even-odd"),
        1e-5,
    )


def test_multiplications_are_those_of_the_weights(digits):
    module = classifier(splitting=None, solver=Picard(max_steps=3, tol=1e-30), start="zeros")
    found = measure(module, digits)
    assert found.input_multiplications == 64 * 32
    # The one other synapse is used in both directions, in each evaluation.
    assert found.multiplications == found.evaluations * 2 * 32 * 10
    assert found.not_converged == 1
    assert found.iterations == found.worst == 3


def test_energies_fall_to_zero_and_residuals_to_the_tolerance(digits):
    found = measure(classifier(solver=Picard()), digits)
    assert all(
        b <= a for a, b in zip(found.energies, found.energies[1:], strict=False) if b > 1e-12
    )
    assert found.energies[0] > 1e-6 > found.energies[-1] >= 0
    assert found.trace.shape == (40, min(found.samples, 1000))
    below = (found.trace < found.tol).any(0)
    assert below.all()


def test_of_a_continuous_network(digits):
    torch.manual_seed(0)
    module = HAMClassifier(CHNDEQ(CHN.chain([64, 16, 10], gain=0.5), solver=Anderson()))
    found = measure(module, digits)
    assert (found.model, found.not_converged) == ("CHN", 0)
    assert model_of(found) == "CHN-EO-DEQ"


def test_published_figures_stand_beside_the_same_model_alone(digits):
    found = measure(classifier(solver=Anderson()), digits)
    assert published(found) is None
    small = replace(found, sizes=[784, 512, 10])
    assert published(small) == (4.5, 96.7)
    assert published(replace(small, splitting="none", solver="Picard")) == (8.2, 96.9)
    assert published(replace(small, solver="Newton")) is None
    text = table([("a", small, {}), ("a", replace(small, accuracy=1.0), {})], with_published=True)
    head, _, line = text.splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    accuracies = [100 * small.accuracy, 100.0]
    mean, deviation = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1]) / math.sqrt(2)
    assert cells["accuracy, %"] == f"{mean:.2f} ± {deviation:.2f}"
    assert cells["runs"] == "2"
    assert line.endswith("| 96.7 | 4.5 |")


# --------------------------------------------------------------------------------- the plan


def test_memories_are_trained_once_or_for_each_setting():
    one = series.Series(DIGITS, ("--a=1",), Path("runs"))
    settings = [Setting("picard", "none"), Setting("anderson", "even-odd", tol=1e-6)]
    once = Plan.of([one], [0, 1], settings, adopted=[])
    each = Plan.of([one], [0, 1], settings, adopted=[], train_each=True)
    assert len(once) == len(each) == 4
    assert len(once.trainings) == 2
    assert len(each.trainings) == 4
    assert each.trainings[0].series is not None
    assert each.trainings[0].series.options == (
        *("--a=1", "--model.deq.solver=hamdeq.Picard", "--model.deq.splitting=null"),
    )
    assert len({key(*pair) for pair in (*once, *each)}) == 8


def test_a_setting_changes_how_a_memory_settles_and_nothing_else():
    deq = {"solver": {"class_path": "hamdeq.Anderson", "init_args": {"tol": 1e-3, "memory": 3}}}
    config = {"model": {"init_args": {"deq": {"init_args": deq}}}}
    Setting().apply(config)
    assert deq["solver"]["init_args"] == {"tol": 1e-3, "memory": 3}
    Setting(max_steps=7).apply(config)
    assert deq["solver"]["init_args"] == {"tol": 1e-3, "memory": 3, "max_steps": 7}
    Setting("newton", "none").apply(config)
    assert deq == {
        "solver": {"class_path": "hamdeq.Newton", "init_args": {"tol": 1e-3, "max_steps": 7}},
        "splitting": None,
    }


def test_sizes():
    assert with_sizes(DIGITS, "64-20-30-10") == (
        "--model.deq.ham.sizes=[64, 20, 30, 10]",
        "--model.deq.ham.gain=[3.0, 0.3, 0.3]",
    )
    with pytest.raises(ValueError, match="such as 784-512-10, got '64x10'"):
        with_sizes(DIGITS, "64x10")
    with pytest.raises(ValueError, match="expected configurations of chains"):
        with_sizes(ROOT / "configs/mnist/conv.yaml", "784-10")


# ------------------------------------------------------------------------- nothing is lost


def test_a_whole_experiment_and_nothing_twice(here, capsys):
    args = [str(DIGITS), "--seed", "3", "--splittings", "none", "even-odd", *QUICK]
    main(args)
    out = capsys.readouterr().out
    assert out.count("| digits | 64-256-10 |") == 2
    root = here / "runs/convergence"
    with (root / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["splitting"] for row in rows] == ["none", "even-odd"]
    assert {row["seed"] for row in rows} == {"3"}
    assert len({*(root / "pictures").glob("*.png")}) == 3
    # The accuracy is that of the run's own test.
    (run,) = root.glob("configs/digits/*/seed_3/version_0/results.json")
    assert float(rows[1]["accuracy"]) == pytest.approx(json.loads(run.read_text())["test/accuracy"])

    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.json")}
    main(args)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.json")} == times
    # The run is there for other questions.
    main([f"--adopt=mine={run.parent}", "--solvers", "newton", "--wandb=disabled"])
    assert "| mine | 64-256-10 | even-odd | Newton | 1 |" in capsys.readouterr().out
    module, data = load_run(run.parent, change=Setting("newton").apply)
    assert isinstance(module.deq.solver, Newton)
    assert len(data.split("test")[0])


def test_a_kill_loses_what_is_in_progress_alone(here):
    command = [sys.executable, "-m", "hamdeq.experiments.convergence", str(DIGITS), "--seeds=1"]
    command += ["--wandb=disabled", "--trainer.max_epochs=3", "--solvers", "picard", "anderson"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = here / "runs/convergence/measurements"
    deadline = time.monotonic() + 300
    while not [*results.glob("*.json")] and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*.json")}
    assert len(before) in (2, 3)  # of the training and the first measurement, if not both
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*.json")}
    assert len(after) == 3
    assert before.items() <= after.items()


def test_a_claim_is_held_by_one_and_freed_by_a_kill(tmp_path):
    path = tmp_path / "lock"
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom hamdeq.experiments.claim import claim\n"
    )
    hold += (
        f"with claim(Path({str(path)!r})):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with claim(path, wait=False) as lock:
            assert lock is None
        process.kill()
        process.wait()
    with claim(path, wait=False) as lock:
        assert lock is not None


def test_a_measurement_is_read_as_it_was_written(digits, tmp_path):
    found = measure(classifier(), digits)
    assert load(tmp_path / "a.json") is None
    save(tmp_path / "a.json", found, {"seed": 1})
    again = load(tmp_path / "a.json")
    assert again is not None
    assert again[1] == {"seed": 1}
    assert torch.equal(again[0].trace, found.trace)
    for name, value in vars(found).items():
        assert name == "trace" or getattr(again[0], name) == value


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.yaml"], "expected files of configurations, got nowhere.yaml"),
        ([str(DIGITS), "--seeds=0"], "--seeds: expected at least 1, got 0"),
        ([str(DIGITS), "--solvers", "andersen"], "invalid choice: 'andersen'"),
        ([str(DIGITS), "--sizes", "a-b"], "--sizes: expected numbers of neurons"),
        (["--adopt=nothing"], "--adopt: expected a run's folder version_N"),
    ],
)
def test_mistakes_are_told(here, capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_training_that_fails_says_why(here):
    with pytest.raises(SystemExit, match=r"a run failed: (?s:.)*batchsize"):
        main([str(DIGITS), *QUICK, "--data.batchsize=3"])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a run's file .*config.yaml"):
        load_run(tmp_path)


def test_a_source_is_a_series_or_a_run():
    assert Source("a", adopted=Path("run")).folder == Path("run")
    assert Source("a", 0, series.Series(DIGITS, (), Path("nowhere"))).folder is None
