"""The convergence experiment: what it measures, that it loses nothing, and what it refuses."""

import csv
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lightning")
pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from hamdeq import CHN, CHNDEQ, DEQ, HAM, Anderson, Dense, Neurons, Newton, Picard, Sigmoid
from hamdeq.data import DigitsDataModule
from hamdeq.experiments import claim as claims
from hamdeq.experiments import series
from hamdeq.experiments.claim import claim
from hamdeq.experiments.convergence import (
    Measurement,
    Plan,
    Setting,
    Source,
    measure,
    running,
    table,
)
from hamdeq.experiments.convergence.cli import main
from hamdeq.experiments.convergence.configuration import read, with_sizes
from hamdeq.experiments.convergence.plan import adopted, key
from hamdeq.experiments.convergence.progress import Progress
from hamdeq.experiments.convergence.published import model_of, published
from hamdeq.experiments.convergence.report import Row
from hamdeq.experiments.convergence.running import Experiment
from hamdeq.experiments.convergence.store import load, save
from hamdeq.plots import energy_descent
from hamdeq.training import HAMClassifier
from hamdeq.training.files import DamagedFileError
from hamdeq.training.load import load_run

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs/digits.yaml"
QUICK = ["--wandb=disabled", "--trainer.max_epochs=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def classifier(**options):
    torch.manual_seed(0)
    return HAMClassifier(DEQ(HAM.chain([64, 32, 10], gain=0.5), **options))


def a_run(folder: Path, sizes: dict[str, int], pairs: list[str]) -> Path:
    """The folder of a run whose memory has learned nothing."""
    neurons = {name: Neurons(n, Sigmoid(4.0, 0.5)) for name, n in sizes.items()}
    dense = [(tuple(pair.split("-")), [sizes[name] for name in pair.split("-")]) for pair in pairs]
    ham = HAM(neurons, [(pair, Dense(*shape, gain=0.5)) for pair, shape in dense])
    args = {
        "neurons": {
            name: {
                "class_path": "hamdeq.Neurons",
                "init_args": {"shape": n, "lagrangian": {"class_path": "hamdeq.Sigmoid"}},
            }
            for name, n in sizes.items()
        },
        "connections": [
            [[*pair], {"class_path": "hamdeq.Dense", "init_args": {"n_from": a, "n_to": b}}]
            for pair, (a, b) in dense
        ],
    }
    deq = {"ham": {"class_path": "hamdeq.HAM", "init_args": args}, "splitting": None}
    model = {"deq": {"class_path": "hamdeq.DEQ", "init_args": deq}}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "hamdeq.training.HAMClassifier", "init_args": model},
        "data": {"class_path": "hamdeq.data.DigitsDataModule"},
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    weights = HAMClassifier(DEQ(ham, splitting=None)).state_dict()
    torch.save({"state_dict": weights}, folder / "checkpoints/best.ckpt")
    return folder


@pytest.fixture(scope="module")
def digits():
    data = DigitsDataModule()
    data.setup()
    return data


@pytest.fixture(scope="module")
def a_measurement(digits):
    return measure(classifier(), digits, batch_size=len(digits.split("test")[0]))


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
    assert found.data == "DigitsDataModule"
    small = replace(found, sizes=[784, 512, 10], data="MNISTDataModule")
    assert published(small) == ("4.5 ± 0.3", "96.7 ± 0.3")
    plain = replace(small, splitting="none", solver="Picard")
    assert published(plain) == ("8.2 ± 0.3", "96.9 ± 0.2")
    for other in ({"solver": "Newton"}, {"tol": 1e-3}, {"data": "Other"}, {"sizes": [784, 10]}):
        assert published(replace(small, **other)) is None
    rows = [Row("a", "", one, {}) for one in (small, replace(small, accuracy=1.0))]
    head, _, line = table(rows, with_published=True).splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    accuracies = [100 * small.accuracy, 100.0]
    mean, deviation = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1]) / math.sqrt(2)
    assert cells["accuracy, %"] == f"{mean:.2f} ± {deviation:.2f}"
    assert cells["runs"] == "2"
    assert line.endswith("| 96.7 ± 0.3 | 4.5 ± 0.3 |")


def test_a_picture_takes_all_ways_to_settle():
    ways = {f"{i}": [1.0, 0.5, 0.0] for i in range(12)}
    (axes,) = energy_descent(ways).axes
    assert len({(str(x.get_color()), x.get_linestyle()) for x in axes.lines}) == 12
    with pytest.raises(ValueError, match="at least one, got"):
        energy_descent({})


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
    # The solver that a memory was trained with stays as it was, another one does not.
    Setting("anderson", "even-odd").apply(config)
    assert deq["solver"]["init_args"] == {"tol": 1e-3, "memory": 3, "max_steps": 7}
    Setting("newton", "none").apply(config)
    assert deq == {
        "solver": {"class_path": "hamdeq.Newton", "init_args": {"tol": 1e-3, "max_steps": 7}},
        "splitting": None,
    }


def test_a_solver_of_the_user_s_own_is_compared_on_the_same_weights(here, capsys, monkeypatch):
    (here / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from hamdeq import Picard\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Anderson(Picard):\n    damping: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(here)
    sizes = {"input": 64, "hidden1": 16, "output": 10}
    run = a_run(here / "mine/version_0", sizes, ["input-hidden1", "hidden1-output"])
    solvers = ["anderson", "mine.Anderson"]
    # A run that is not trusted: the one class that is made is the one that was named.
    main([f"--adopt={run}", "--wandb=disabled", "--max_steps=90", "--solvers", *solvers])
    with (here / "runs/convergence/measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Another solver of the same name is told apart.
    assert [row["solver"] for row in rows] == ["Anderson", "mine.Anderson"]
    anderson, mine = (float(row["iterations"]) for row in rows)
    assert mine > anderson
    assert len({row["accuracy"] for row in rows}) == 1
    assert capsys.readouterr().out.count("| mine | 64-16-10 |") == 2


def test_a_solver_of_the_user_s_own_is_trained_with():
    one = Setting("mine.Anderson", tol=1e-6)
    assert one.options() == ("--model.deq.solver=mine.Anderson", "--model.deq.solver.tol=1e-06")


def test_wandb_online_without_a_key_is_refused_before_anything(here, capsys, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def login() -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(SystemExit, match="2"):
        main([str(DIGITS), "--wandb=online"])
    assert "error: wandb online: expected an API key of wandb, got none" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_sizes():
    assert with_sizes(DIGITS, "64-20-30-10") == (
        "--model.deq.ham.sizes=[64, 20, 30, 10]",
        "--model.deq.ham.gain=[3.0, 0.3, 0.3]",
    )
    with pytest.raises(ValueError, match="such as 784-512-10, got '64x10'"):
        with_sizes(DIGITS, "64x10")
    with pytest.raises(ValueError, match="expected configurations of chains"):
        with_sizes(ROOT / "configs/mnist/conv.yaml", "784-10")


def test_what_changes_no_result_trains_nothing_anew():
    one = series.Series(DIGITS, ("--a=1",), Path("runs"))
    moved = replace(one, bookkeeping=("--run.wandb=online", "--data.root=elsewhere"))
    assert moved.folder == one.folder
    assert replace(one, options=("--a=2",)).folder != one.folder
    # Nor does it measure anew what lies elsewhere.
    here, there = Source("a", 0, one), Source("a", 0, replace(moved, root=Path("there")))
    assert key(here, Setting()) == key(there, Setting())
    assert key(here, Setting(tol=1e-5)) != key(here, Setting())


def test_two_configurations_of_one_name_are_told_apart(tmp_path):
    other = tmp_path / "other/digits.yaml"
    other.parent.mkdir()
    other.write_text(DIGITS.read_text())
    both = [series.Series(path, (), Path("runs")) for path in (DIGITS, other, other)]
    plan = Plan.of(both, [0], [Setting()], adopted=[])
    assert [source.name for source, _ in plan] == ["configs-digits", "other-digits"]


def test_runs_that_there_are(tmp_path):
    for name in ("version_0", "version_1"):
        (tmp_path / "mine" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "mine" / name / "config.yaml").write_text(DIGITS.read_text())
    weights = tmp_path / "mine/version_1/checkpoints/best.ckpt"
    weights.write_text("one")
    (tmp_path / "mine/version_0/checkpoints/best.ckpt").write_text("other")
    found = adopted(f"{tmp_path}/mine")
    assert [(run.name, run.folder) for run in found] == [
        ("mine", tmp_path / "mine/version_0"),
        ("mine", tmp_path / "mine/version_1"),
    ]
    (one,) = adopted(f"x={tmp_path}/mine/version_1")
    assert one.name == "x"
    # Such as the folder of an experiment's trainings, a run for each seed.
    assert [(run.name, run.folder) for run in adopted(f"all={tmp_path}")] == [
        ("all", run.folder) for run in found
    ]
    # A run that has gone on has other weights, which have not been measured.
    before = key(one, Setting())
    assert before == key(one, Setting())
    weights.write_text("more")
    assert before != key(one, Setting())


@pytest.mark.parametrize("name", ["mnist/dam_256", "bags/mean", "mnist/reconstruct"])
def test_memories_that_are_measured_are_those_that_classify_by_settling(name):
    with pytest.raises(ValueError, match="expected the configuration of a HAMClassifier"):
        read(ROOT / f"configs/{name}.yaml")


def test_the_sweep_asks_what_can_be_asked(here, monkeypatch):
    sweep = yaml.safe_load((ROOT / "configs/sweeps/convergence.yaml").read_text())
    asked = []
    monkeypatch.setattr(Experiment, "run", lambda self: asked.append(self.plan))
    monkeypatch.setattr(Experiment, "report", lambda self: "")
    monkeypatch.setattr("wandb.login", lambda: True)
    names, values = zip(*((k, v["values"]) for k, v in sweep["parameters"].items()), strict=True)
    for chosen in itertools.product(*values):
        args = [f"--{name}={value}" for name, value in zip(names, chosen, strict=True)]
        args = [arg.replace("=configs/", f"={ROOT}/configs/") for arg in args]
        main(["--wandb=online", *args])
    # Each agent's run is one training with one measurement.
    assert {len(plan) for plan in asked} == {len(plan.trainings) for plan in asked} == {1}
    assert sweep["metric"]["name"] in Measurement.__dataclass_fields__


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


def test_a_training_of_two_processes(here, capsys, digits):
    two = ["--devices=2", "--trainer.accelerator=cpu", "--data.batch_size=64"]
    main([str(DIGITS), "--seed=0", *two, *QUICK])
    assert capsys.readouterr().out.count("| digits | 64-256-10 |") == 1
    # Each saw half of the images.
    (path,) = here.rglob("checkpoints/last.ckpt")
    steps = torch.load(path, weights_only=False)["global_step"]
    assert steps == math.ceil(len(digits.split("train")[0]) / (2 * 64))


def test_a_kill_loses_what_is_in_progress_alone(here):
    command = [sys.executable, "-m", "hamdeq.experiments.convergence", str(DIGITS), "--seeds=1"]
    command += ["--wandb=disabled", "--trainer.max_epochs=9", "--solvers", "picard", "anderson"]
    root = here / "runs/convergence"

    def killed_at(sign: str) -> None:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while not [*root.glob(sign)] and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)  # the training with it
        process.wait()
        assert [*root.glob(sign)]

    # In the training, after an epoch: it goes on from there, in the same folder.
    killed_at("configs/digits/*/seed_0/version_0/checkpoints/last.ckpt")
    assert not [*root.rglob("results.json")]
    # After a measurement: it stays, and so does the training.
    killed_at("measurements/*.json")
    (run,) = root.rglob("results.json")
    with (run.parent / "metrics.csv").open() as file:
        trained = [row["epoch"] for row in csv.DictReader(file) if row["train/loss"]]
    assert trained == [str(epoch) for epoch in range(9)]
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*.json")}
    assert len(before) in (2, 3)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*.json")}
    assert len(after) == 3
    assert before.items() <= after.items()
    assert (root / "table.md").read_text().count("| digits |") == 2


def test_one_failure_does_not_keep_the_rest_from_being_done(here, capsys):
    chain = {"input": 64, "hidden1": 16, "output": 10}
    run = a_run(here / "mine/version_0", chain, ["input-hidden1", "hidden1-output"])
    # Three layers that settle, all connected, are not of two colours.
    triangle = {"input": 64, "hidden1": 8, "hidden2": 8, "output": 10}
    pairs = ["input-hidden1", "hidden1-hidden2", "hidden2-output", "hidden1-output"]
    other = a_run(here / "odd/version_0", triangle, pairs)
    # The weights of a third are damaged.
    third = a_run(here / "cut/version_0", chain, ["input-hidden1", "hidden1-output"])
    weights = third / "checkpoints/best.ckpt"
    weights.write_bytes(weights.read_bytes()[:1000])
    args = [f"--adopt={run}", f"--adopt={other}", f"--adopt={third}"]
    args += ["--splittings", "even-odd", "none", "--wandb=disabled"]
    with pytest.raises(SystemExit, match=r"error: failed: odd-even-odd-.*cycle of odd len") as end:
        main(args)
    assert str(end.value.code).count("error: failed: cut-") == 2
    text = capsys.readouterr().out
    assert "| mine | 64-16-10 | even-odd |" in text
    assert "| mine | 64-16-10 | none |" in text
    assert "| odd | 64-8-8-10 | none |" in text
    assert "| odd | 64-8-8-10 | even-odd |" not in text


def test_progress_counts_what_is_on_disk_whoever_did_it(tmp_path):
    one = series.Series(DIGITS, ("--trainer.max_epochs=7",), tmp_path)
    plan = Plan.of([one], [0, 1], [Setting()], adopted=[])
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].touch()
    with Progress(plan.trainings, files) as progress:
        assert (progress.done, progress.total) == (1, 2 * 7 + 2)
        run = one.folder / "seed_1/version_0"
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text("step,epoch\n1,0\n2,3\n3")
        progress.look()
        assert progress.done == 1 + 4
        (run / "results.json").write_text("{}")
        progress.look()
        assert progress.done == 1 + 7


def test_a_claim_is_held_by_one_and_freed_by_a_kill(tmp_path):
    path = tmp_path / "lock"
    # Straight from its file, without all that its package imports.
    hold = (
        "import runpy, time\nfrom pathlib import Path\n"
        f"claim = runpy.run_path({claims.__file__!r})['claim']\n"
        f"with claim(Path({str(path)!r})):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with claim(path, wait=False) as lock:
            assert lock is None
        # One who waits is asked to look meanwhile, and has it when the other is gone.
        with claim(path, meanwhile=process.kill) as lock:
            assert process.poll() is not None
            assert lock is not None


def test_a_measurement_is_read_as_it_was_written(a_measurement, tmp_path):
    found = a_measurement
    assert load(tmp_path / "a.json") is None
    save(tmp_path / "a.json", found, {"seed": 1})
    again = load(tmp_path / "a.json")
    assert again is not None
    assert again[1] == {"seed": 1}
    assert torch.equal(again[0].trace, found.trace)
    for name, value in vars(found).items():
        assert name == "trace" or getattr(again[0], name) == value
    # A file of an earlier version, which lacks a number, is as none: it is measured again.
    numbers = json.loads((tmp_path / "a.json").read_text())
    numbers.pop("cpu_milliseconds")
    (tmp_path / "a.json").write_text(json.dumps(numbers))
    assert load(tmp_path / "a.json") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda numbers: "",
        lambda numbers: json.dumps(numbers)[:-20],
        lambda numbers: json.dumps([numbers]),
        lambda numbers: json.dumps(numbers | {"iterations": "three"}),
        lambda numbers: json.dumps(numbers | {"energies": [1.0, None]}),
        lambda numbers: json.dumps(numbers | {"about": 1}),
    ],
)
def test_a_damaged_measurement_is_named(tmp_path, a_measurement, change):
    path = tmp_path / "a.json"
    save(path, a_measurement, {"seed": 1})
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(DamagedFileError, match=re.escape(f"{path}: expected")):
        load(path)


def test_damaged_residuals_are_named(tmp_path, a_measurement):
    path = tmp_path / "a.json"
    save(path, a_measurement, {"seed": 1})
    beside = tmp_path / "a.pt"
    whole = beside.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not a tensor"):
        beside.write_bytes(content)
        with pytest.raises(DamagedFileError, match=re.escape(f"{beside}: expected residuals, got")):
            load(path)
    torch.save({"other": 1}, beside)
    with pytest.raises(DamagedFileError, match="expected residuals, got dict"):
        load(path)


def test_what_is_damaged_is_measured_again(here, monkeypatch, a_measurement):
    chain = {"input": 64, "hidden1": 16, "output": 10}
    run = a_run(here / "mine/version_0", chain, ["input-hidden1", "hidden1-output"])
    monkeypatch.setattr(running, "measure", lambda *args, **options: a_measurement)
    monkeypatch.setattr(running, "draw", lambda *args: None)
    args = [f"--adopt={run}", "--wandb=disabled"]
    main(args)
    (path,) = here.glob("runs/convergence/measurements/*.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.warns(
        UserWarning, match=re.escape(path.name) + ": expected .*it is measured again"
    ):
        main(args)
    assert path.read_bytes() == whole


def test_a_run_with_damaged_results_goes_on_to_its_test(tmp_path, monkeypatch):
    one = series.Series(DIGITS, (), tmp_path)
    run = one.folder / "seed_0/version_10"  # after version_9
    for folder in (run, run.with_name("version_9")):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/last.ckpt").touch()
        (folder / "results.json").write_text('{"test/accuracy": 0.5}')
    assert one.run_folder(0) == run
    (run / "results.json").write_text('{"test/accur')
    (run / "metrics.csv").write_bytes(b"\0\0\xff\n\n,,,\n")
    assert one.run_folder(0) is one.results(0) is None
    assert one.epochs(0) == 0

    def tested(command, lock, meanwhile):
        assert command[-1] == "--ckpt_path=last"
        (run / "results.json").write_text('{"test/accuracy": 0.75}')
        return 0, ""

    monkeypatch.setattr(series, "_watch", tested)
    with pytest.warns(UserWarning, match=r"version_10/results.json: expected .*is tested again"):
        assert one.run(0) == {"test/accuracy": 0.75}


@pytest.mark.parametrize(
    "text", ["", "5", "model: 5", "model: {deq: 5}", "model: {deq: {init_args: 5}}", "a: \xff: ["]
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(path)) + ": .*expected "):
        read(path)


def test_a_run_that_cannot_be_read_is_left_out_of_a_folder_of_them(tmp_path):
    pairs = ["input-output"]
    runs = [
        a_run(tmp_path / f"mine/version_{i}", {"input": 64, "output": 10}, pairs) for i in (0, 1)
    ]
    (runs[0] / "config.yaml").write_text("model: [")
    with pytest.warns(
        UserWarning, match=r"left out: \S+version_0/config.yaml: expected .* in YAML"
    ):
        (found,) = adopted(f"{tmp_path}/mine")
    assert found.folder == runs[1]
    with pytest.raises(ValueError, match=r"config.yaml: expected a configuration in YAML, got"):
        adopted(f"{runs[0]}")


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "/tmp/a", "a\\b", "x" * 300, "é" * 60, "a\nb", " "]
)
def test_names_that_no_file_can_have_are_refused(here, capsys, name):
    run = a_run(here / "mine/version_0", {"input": 64, "output": 10}, ["input-output"])
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main([f"--adopt={name}={run}", "--wandb=disabled"])
    error = capsys.readouterr().err
    assert "expected a name of at most 100 bytes that a file can have" in error
    assert "give another one with --adopt NAME=FOLDER" in error
    assert sorted(here.rglob("*")) == before


def test_a_folder_with_an_equals_sign_is_a_folder(here):
    run = a_run(here / "lr=0.1/version_0", {"input": 64, "output": 10}, ["input-output"])
    for text, name in ((f"{run}", "lr=0.1"), ("lr=0.1", "lr=0.1"), (f"best={run}", "best")):
        (source,) = adopted(text)
        assert (source.name, source.folder) == (name, run)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.yaml"], "expected files of configurations, got nowhere.yaml"),
        ([str(DIGITS), "--seeds=0"], "--seeds: expected at least 1, got 0"),
        (
            [str(DIGITS), "--solvers", "andersen"],
            "such as mypackage.MySolver, got 'andersen'; did you mean",
        ),
        ([str(DIGITS), "--solvers", "nowhere.Solver"], "No module named 'nowhere'"),
        ([str(DIGITS), "--solvers", "hamdeq.HAM"], "no complete subclass of hamdeq.Solver"),
        ([str(DIGITS), "--sizes", "a-b"], "--sizes: expected numbers of neurons"),
        (["--adopt=nothing"], "--adopt: expected a run's folder version_N"),
        (["7", str(DIGITS)], "expected files of configurations, got 7"),
    ],
)
def test_mistakes_are_told(here, capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_training_that_fails_says_why(here):
    with pytest.raises(SystemExit, match=r"error: failed: (?s:.)*batchsize"):
        main([str(DIGITS), *QUICK, "--seeds=1", "--data.batchsize=3"])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a run's file .*config.yaml"):
        load_run(tmp_path)


def test_a_run_of_strange_classes_is_adopted_by_who_trusts_it(tmp_path, monkeypatch, capsys):
    run = tmp_path / "runs/version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.ckpt").touch()
    (run / "config.yaml").write_text("model: {class_path: stranger.Module, init_args: {deq: {}}}")
    (tmp_path / "stranger.py").write_text(
        "import hamdeq.training\nModule = hamdeq.training.HAMClassifier"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        main([f"--adopt={run}"])
    assert "got stranger.Module, which may run any code; if you trust" in capsys.readouterr().err
    assert "stranger" not in sys.modules
    assert adopted(str(run), trust=True)
    sys.modules.pop("stranger")  # monkeypatch would put it back in the end


def test_a_source_is_a_series_or_a_run():
    assert Source("a", adopted=Path("run")).folder == Path("run")
    assert Source("a", 0, series.Series(DIGITS, (), Path("nowhere"))).folder is None
