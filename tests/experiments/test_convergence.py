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

from hamdeq import CHN, CHNDEQ, DEQ, HAM, Anderson, Newton, Picard
from hamdeq.data import DigitsDataModule
from hamdeq.experiments import series
from hamdeq.experiments.convergence import (
    Measurement,
    Setting,
    Source,
    measure,
    plan,
    running,
    table,
)
from hamdeq.experiments.convergence.cli import main
from hamdeq.experiments.convergence.configuration import memory_of, read, with_sizes
from hamdeq.experiments.convergence.plan import adopted, key
from hamdeq.experiments.convergence.report import Row, model_of, published
from hamdeq.experiments.convergence.running import Experiment
from hamdeq.experiments.convergence.store import load, save
from hamdeq.experiments.convergence.tracking import Tracking
from hamdeq.experiments.series import Progress, Series, claim
from hamdeq.plots import energy_descent
from hamdeq.solvers import SuccessiveOutputs, paper_iterations
from hamdeq.training import HAMClassifier
from hamdeq.training.files import DamagedFileError
from hamdeq.training.saving import load_run

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs/digits.yaml"
QUICK = ["--wandb=disabled", "--trainer.max_epochs=1"]


def classifier(**options):
    torch.manual_seed(0)
    return HAMClassifier(DEQ(HAM.chain([64, 32, 10], gain=0.5), **options))


def a_run(folder: Path) -> Path:
    """The folder of a run whose memory, 64-16-10 without splitting, has learned nothing."""
    config = yaml.safe_load(DIGITS.read_text())
    config["model"] = {
        "class_path": "hamdeq.training.HAMClassifier",
        "init_args": config["model"],
    }
    deq = memory_of(config)
    deq["ham"]["init_args"] = {"sizes": [64, 16, 10], "gain": 0.5}
    deq |= {"splitting": None, "solver": {"class_path": "hamdeq.Broyden"}}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    weights = HAMClassifier(DEQ(HAM.chain([64, 16, 10], gain=0.5), splitting=None)).state_dict()
    torch.save({"state_dict": weights}, folder / "checkpoints/best.ckpt")
    return folder


@pytest.fixture(scope="module")
def digits():
    data = DigitsDataModule()
    data.setup()
    return data


@pytest.fixture(scope="module")
def a_measurement(digits):
    return measure(classifier(solver=Anderson()), digits, batch_size=len(digits.split("test")[0]))


@pytest.fixture
def measured(monkeypatch, a_measurement):
    """The solvers' names of what is measured, each with the same result and without pictures."""
    found = []

    def measure(module, data, **options):
        found.append(type(module.deq.solver).__name__)
        return a_measurement

    monkeypatch.setattr(running, "measure", measure)
    monkeypatch.setattr(running, "draw", lambda *args: None)
    return found


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
    with torch.no_grad():
        counted = module(images, solver=SuccessiveOutputs(solver=Anderson(), tol=1e-5))
    papers = float(paper_iterations(counted).double().mean())
    assert found.paper_iterations == pytest.approx(papers)
    assert found.worst == int(steps.max())
    assert found.accuracy == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    assert found.not_converged == 0
    assert found.evaluations == sum(each.n_evals for each in solutions) / len(solutions)
    assert (found.model, found.sizes, found.solver, found.splitting, found.tol) == (
        *("HAM", [64, 32, 10], "Anderson", "even-odd"),
        1e-5,
    )
    assert found.energies[0] > 1e-6 > found.energies[-1] >= 0
    assert found.trace.shape == (40, min(found.samples, 1000))
    assert (found.trace < found.tol).any(0).all()


def test_energies_of_plain_iterations_only_fall(digits):
    found = measure(classifier(solver=Picard()), digits).energies
    assert all(b <= a for a, b in itertools.pairwise(found) if b > 1e-12)


def test_multiplications_are_those_of_the_weights(digits):
    module = classifier(splitting=None, solver=Picard(max_steps=3, tol=1e-30), start="zeros")
    found = measure(module, digits)
    assert found.input_multiplications == 64 * 32
    # The one other synapse is used in both directions, in each evaluation.
    assert found.multiplications == found.evaluations * 2 * 32 * 10
    assert found.not_converged == 1
    assert found.iterations == found.worst == 3
    assert found.paper_iterations == 2  # the pairs of successive outputs, none of which agrees


def test_plain_iteration_counts_two_more_than_the_papers(digits):
    found = measure(classifier(solver=Picard(), start="zeros"), digits)
    assert found.not_converged == 0
    assert found.paper_iterations == pytest.approx(found.iterations - 2)


class WithItsOwnLoop(Picard):
    """A solver that takes no single steps."""

    def solve(self, f, x0):
        return super().solve(f, x0)


def test_a_solver_without_single_steps_has_no_count_of_the_papers(digits):
    found = measure(classifier(solver=WithItsOwnLoop()), digits, batch_size=400)
    assert math.isnan(found.paper_iterations)
    assert "| – |" in table([Row("a", "", found, {})])


@pytest.mark.slow
def test_a_continuous_network_is_measured(digits):
    torch.manual_seed(0)
    module = HAMClassifier(CHNDEQ(CHN.chain([64, 16, 10], gain=0.5), solver=Anderson()))
    found = measure(module, digits)
    assert (found.model, found.not_converged) == ("CHN", 0)
    assert model_of(found) == "CHN-EO-DEQ"


def test_published_figures_stand_beside_the_same_model_alone(a_measurement):
    assert a_measurement.data == "DigitsDataModule"
    small = replace(a_measurement, sizes=[784, 512, 10], data="MNISTDataModule")
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


def test_the_picture_of_energies_tells_many_curves_apart():
    (axes,) = energy_descent({f"{i}": [1.0, 0.5, 0.0] for i in range(12)}).axes
    assert len({(str(x.get_color()), x.get_linestyle()) for x in axes.lines}) == 12
    (axes,) = energy_descent([1.0, 0.5, 0.0], first=1).axes
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="at least one, got"):
        energy_descent({})


# --------------------------------------------------------------------------------- the plan


def test_memories_are_trained_once_or_for_each_setting():
    one = Series(DIGITS, ("--a=1",), Path("runs"))
    settings = [Setting("picard", "none"), Setting("anderson", "even-odd", tol=1e-6)]
    once = plan([one], [0, 1], settings, adopted=[])
    each = plan([one], [0, 1], settings, adopted=[], train_each=True)
    assert [len({source for source, _ in pairs}) for pairs in (once, each)] == [2, 4]
    assert len({key(*pair) for pair in (*once, *each)}) == 8
    assert each[0][0].series == replace(
        one,
        options=("--a=1", "--model.deq.solver=hamdeq.Picard", "--model.deq.splitting=null"),
    )
    own = Setting("mine.Anderson", tol=1e-6)
    assert own.options() == ("--model.deq.solver=mine.Anderson", "--model.deq.solver.tol=1e-06")


def test_a_setting_changes_how_a_memory_converges_and_nothing_else():
    deq = {"solver": {"class_path": "hamdeq.Anderson", "init_args": {"tol": 1e-3, "history": 3}}}
    config = {"model": {"init_args": {"deq": {"init_args": deq}}}}
    Setting().apply(config)
    assert deq["solver"]["init_args"] == {"tol": 1e-3, "history": 3}
    Setting(max_steps=7).apply(config)
    assert deq["solver"]["init_args"] == {"tol": 1e-3, "history": 3, "max_steps": 7}
    # The solver that a memory was trained with stays as it was, another one does not.
    Setting("anderson", "even-odd").apply(config)
    assert deq["solver"]["init_args"] == {"tol": 1e-3, "history": 3, "max_steps": 7}
    Setting("newton", "none").apply(config)
    assert deq == {
        "solver": {"class_path": "hamdeq.Newton", "init_args": {"tol": 1e-3, "max_steps": 7}},
        "splitting": None,
    }


@pytest.mark.slow
def test_a_solver_of_the_user_s_own_is_compared_on_the_same_weights(here, capsys, monkeypatch):
    (here / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from hamdeq import Picard\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Anderson(Picard):\n    damping: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(running, "draw", lambda *args: None)
    run = a_run(here / "mine/version_0")
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


def test_options_that_give_a_chain_other_sizes():
    assert with_sizes(DIGITS, "64-20-30-10") == (
        "--model.deq.ham.sizes=[64, 20, 30, 10]",
        "--model.deq.ham.gain=[3.0, 0.3, 0.3]",
    )
    with pytest.raises(ValueError, match="expected configurations of chains"):
        with_sizes(ROOT / "configs/mnist/conv.yaml", "784-10")


def test_what_changes_no_result_trains_nothing_anew():
    one = Series(DIGITS, ("--a=1",), Path("runs"))
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
    both = [Series(path, (), Path("runs")) for path in (DIGITS, other, other)]
    pairs = plan(both, [0], [Setting()], adopted=[])
    assert [source.name for source, _ in pairs] == ["configs-digits", "other-digits"]


def test_runs_that_exist_are_found_and_told_apart_by_their_weights(tmp_path):
    for name in ("version_0", "version_1"):
        (tmp_path / "mine" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "mine" / name / "config.yaml").write_text(DIGITS.read_text())
        (tmp_path / "mine" / name / "checkpoints/best.ckpt").write_text(name)
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
    (tmp_path / "mine/version_1/checkpoints/best.ckpt").write_text("more")
    assert before != key(one, Setting())


def test_a_folder_with_an_equals_sign_is_a_folder(here):
    run = a_run(here / "lr=0.1/version_0")
    for text, name in ((f"{run}", "lr=0.1"), ("lr=0.1", "lr=0.1"), (f"best={run}", "best")):
        (source,) = adopted(text)
        assert (source.name, source.folder) == (name, run)


@pytest.fixture
def planned(here, monkeypatch):
    """The plans of calls that carry nothing out."""
    found = []
    monkeypatch.setattr(Experiment, "run", lambda self: found.append(self.plan))
    monkeypatch.setattr(Experiment, "report", lambda self: "")
    monkeypatch.setattr("wandb.login", lambda: True)
    return found


@pytest.mark.slow
def test_the_sweep_asks_what_can_be_asked(planned):
    sweep = yaml.safe_load((ROOT / "configs/sweeps/convergence.yaml").read_text())
    names, values = zip(*((k, v["values"]) for k, v in sweep["parameters"].items()), strict=True)
    for chosen in itertools.product(*values):
        args = [f"--{name}={value}" for name, value in zip(names, chosen, strict=True)]
        args = [arg.replace("=configs/", f"={ROOT}/configs/") for arg in args]
        main(["--wandb=online", *args])
    # Each agent's run is one training with one measurement.
    assert {len(pairs) for pairs in planned} == {1}
    assert all(pairs[0][0].series is not None for pairs in planned)
    assert sweep["metric"]["name"] in Measurement.__dataclass_fields__


def test_options_of_trainings_reach_them(planned):
    main([str(DIGITS), "--devices=2", "--seed=3", "--data.root=there", "--a.b", "c"])
    ((source, _),) = planned[0]
    assert source.series is not None
    assert source.seed == 3
    assert source.series.options == ("--a.b=c", "--trainer.devices=2")
    assert source.series.bookkeeping == (
        *("--run.wandb=offline", "--run.project=hamdeq"),
        "--data.root=there",
    )


# ------------------------------------------------------------------------- nothing is lost


@pytest.mark.slow
def test_a_whole_experiment_and_nothing_twice(here, capsys, trainings_in_process):
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
    module, data = load_run(run.parent, change=Setting("newton").apply)
    assert isinstance(module.deq.solver, Newton)
    assert len(data.split("test")[0])


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_kill_loses_what_is_in_progress_alone(
    here, capsys, measured, monkeypatch, trainings_in_process
):
    args = [str(DIGITS), "--seeds=1", "--wandb=disabled", "--trainer.max_epochs=9"]
    args += ["--data.batch_size=128", "--solvers", "picard", "anderson"]
    root = here / "runs/convergence"
    # In the training, after an epoch: it goes on from there, in the same folder.
    process = subprocess.Popen(
        [sys.executable, "-m", "hamdeq.experiments.convergence", *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    checkpoint = "configs/digits/*/seed_0/version_0/checkpoints/last.ckpt"
    while not [*root.glob(checkpoint)] and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the training with it
    process.wait()
    assert [*root.glob(checkpoint)]
    assert not [*root.rglob("results.json")]

    # In the second measurement: the first stays, and so does the training.
    take = running.measure

    def interrupted(*args, **options):
        if measured:
            raise KeyboardInterrupt
        return take(*args, **options)

    monkeypatch.setattr(running, "measure", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(args)
    told = "interrupted; the same command goes on where this one stopped"
    assert capsys.readouterr().err.splitlines()[-1] == told
    (run,) = root.rglob("results.json")
    with (run.parent / "metrics.csv").open() as file:
        trained = [row["epoch"] for row in csv.DictReader(file) if row["train/loss"]]
    # Each epoch once; a kill between a checkpoint and its row of metrics loses that row.
    assert trained in ([str(epoch) for epoch in range(first, 9)] for first in (0, 1))
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*.json")}
    assert len(before) == 2
    monkeypatch.setattr(running, "measure", take)
    main(args)
    assert measured == ["Picard", "Anderson"]
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*.json")}
    assert len(after) == 3
    assert before.items() <= after.items()
    assert (root / "table.md").read_text().count("| digits |") == 1  # both of the same solver


def test_what_another_process_measures_is_left_to_it_first(tmp_path, monkeypatch, a_measurement):
    settings = [Setting("picard"), Setting("anderson")]
    pairs = plan([], [], settings, adopted=adopted(f"{a_run(tmp_path / 'mine/version_0')}"))
    experiment = Experiment(pairs, tmp_path, Tracking("disabled", "", ""))
    measured = []

    def take(self, source, setting, path):
        measured.append(setting.solver)
        save(path, a_measurement, {})

    monkeypatch.setattr(Experiment, "_take", take)
    other = claim(experiment._paths[pairs[0]].with_suffix(".lock"))
    other.__enter__()
    monkeypatch.setattr(series.time, "sleep", lambda seconds: other.__exit__(None, None, None))
    experiment.run()
    assert measured == ["anderson", "picard"]


def test_one_failure_does_not_keep_the_rest_from_being_done(here, capsys, measured, monkeypatch):
    take = running.measure

    def sometimes(module, data, **options):
        if module.deq.splitting:
            raise RuntimeError("cycle of odd length")
        return take(module, data, **options)

    monkeypatch.setattr(running, "measure", sometimes)
    run, cut = (a_run(here / name / "version_0") for name in ("mine", "cut"))
    weights = cut / "checkpoints/best.ckpt"
    weights.write_bytes(weights.read_bytes()[:1000])
    args = [f"--adopt={cut}", f"--adopt={run}", "--splittings", "even-odd", "none"]
    with pytest.raises(SystemExit, match=r"failed: mine-even-odd-\S+: cycle of odd len") as end:
        main([*args, "--wandb=disabled"])
    assert str(end.value.code).count("error: failed: cut-") == 2
    (kept,) = here.glob("runs/convergence/measurements/*.json")
    assert kept.name.startswith("mine-none-")
    assert "| mine |" in capsys.readouterr().out


def test_progress_counts_what_is_on_disk_whoever_did_it(tmp_path):
    one = Series(DIGITS, ("--trainer.max_epochs=7",), tmp_path)
    assert (one.length, Series(DIGITS, (), tmp_path).length) == (7, 30)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].touch()
    with Progress([(one, 0), (one, 1)], files) as progress:
        assert (progress.done, progress.total) == (1, 2 * 7 + 2)
        run = one.folder / "seed_1/version_0"
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text("step,epoch\n1,0\n2,3\n3")
        progress.look()
        assert progress.done == 1 + 4
        (run / "results.json").write_text("{}")
        progress.look()
        assert progress.done == 1 + 7


@pytest.mark.skipif(os.name == "nt", reason="Windows passes no files to children")
def test_a_claim_is_held_by_one_with_its_children_and_freed_by_a_kill(tmp_path):
    path = tmp_path / "new/lock"
    with claim(path) as lock:
        assert lock is not None
        with claim(path, wait=False) as other:
            assert other is None
        child = subprocess.Popen(["sleep", "600"], pass_fds=[lock.fileno()])
    with claim(path, wait=False) as other:
        assert other is None
    # One who waits is asked to look meanwhile, and has it when the other is gone.
    with claim(path, meanwhile=child.kill) as lock:
        assert child.wait() != 0
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
    path, beside = tmp_path / "a.json", tmp_path / "a.pt"
    save(path, a_measurement, {"seed": 1})
    whole = beside.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not a tensor"):
        beside.write_bytes(content)
        with pytest.raises(DamagedFileError, match=re.escape(f"{beside}: expected residuals, got")):
            load(path)
    torch.save({"other": 1}, beside)
    with pytest.raises(DamagedFileError, match="expected residuals, got dict"):
        load(path)


def test_what_is_damaged_is_measured_again(here, measured):
    args = [f"--adopt={a_run(here / 'mine/version_0')}", "--wandb=disabled"]
    main(args)
    (path,) = here.glob("runs/convergence/measurements/*.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    again = re.escape(path.name) + ": expected .*it is measured again"
    with pytest.warns(UserWarning, match=again):
        main(args)
    assert path.read_bytes() == whole


def test_a_run_with_damaged_results_goes_on_to_its_test(tmp_path, monkeypatch):
    one = Series(DIGITS, (), tmp_path)
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
    assert Series(path, (), tmp_path).length == 1


def test_a_run_that_cannot_be_read_is_left_out_of_a_folder_of_them(tmp_path):
    runs = [a_run(tmp_path / f"mine/version_{i}") for i in (0, 1)]
    (runs[0] / "config.yaml").write_text("model: [")
    left_out = r"left out: \S+version_0/config.yaml: expected .* in YAML"
    with pytest.warns(UserWarning, match=left_out):
        (found,) = adopted(f"{tmp_path}/mine")
    assert found.folder == runs[1]
    with pytest.raises(ValueError, match=r"config.yaml: expected a configuration in YAML, got"):
        adopted(f"{runs[0]}")


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "x" * 300, "é" * 60, "a\nb", " "])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"name: expected one of at most 100 bytes .* --adopt NAME="
    ):
        adopted(f"{name}={tmp_path}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.yaml"], "expected files of configurations, got nowhere.yaml"),
        ([str(DIGITS), "--seeds=0"], "--seeds: expected a positive integer, got '0'"),
        (
            [str(DIGITS), "--solvers", "andersen"],
            "such as mypackage.MySolver, got 'andersen'; did you mean",
        ),
        ([str(DIGITS), "--solvers", "nowhere.Solver"], "No module named 'nowhere'"),
        ([str(DIGITS), "--solvers", "hamdeq.HAM"], "no complete subclass of hamdeq.Solver"),
        ([str(DIGITS), "--sizes", "a-b"], "--sizes: expected numbers of neurons"),
        (["--adopt=nothing"], "--adopt: expected a folder version_N with config.yaml"),
        (["--adopt=a/b=nothing"], "name: expected one of at most 100 bytes that a file can have"),
        (["7", str(DIGITS)], "expected files of configurations, got 7"),
        ([str(DIGITS), "--wandb=online"], "expected an API key of wandb, got none"),
        ([str(ROOT / "configs/mnist/dam_256.yaml")], "expected the configuration of a HAMClassif"),
        ([str(ROOT / "configs/bags/mean.yaml")], "expected the configuration of a HAMClassifier"),
        ([str(ROOT / "configs/mnist/reconstruct.yaml")], "expected the configuration of a HAMC"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(here, capsys, monkeypatch, args, message):
    wandb = pytest.importorskip("wandb")

    def login() -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert message in capsys.readouterr().err
    assert not any(here.iterdir())


def test_a_training_that_fails_says_why(here, trainings_in_process):
    with pytest.raises(SystemExit, match=r"error: failed: (?s:.)*batchsize"):
        main([str(DIGITS), *QUICK, "--seeds=1", "--data.batchsize=3"])


@pytest.mark.subprocess
def test_a_command_is_watched_and_ends_with_whoever_watches_it(tmp_path):
    meanwhile = []
    code = "import time; print('said'); time.sleep(1.2); raise SystemExit(3)"
    with claim(tmp_path / "lock") as lock:
        assert lock is not None
        command = [sys.executable, "-S", "-c", code]
        assert series._watch(command, lock, lambda: meanwhile.append(1)) == (3, "said\n")
        assert meanwhile

        def interrupt():
            raise KeyboardInterrupt

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            series._watch(["sleep", "600"], lock, interrupt)
        assert time.monotonic() - began < 60


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.yaml: expected a run's file, got none"):
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
