"""Training by two processes, each on its half of the data, is training by one on all of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import start_method
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hamdeq import DEQ, HAM, Anderson, Bias, Implicit, Sigmoid, Unrolled

ROOT = Path(__file__).parents[2]
BATCH = 8

pytestmark = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch without gloo"
    ),
    pytest.mark.slow,
    pytest.mark.subprocess,
]


def memory(
    adjoint: Any = None,
    *,
    sizes: tuple[int, ...] = (6, 8, 7, 5),
    learnable: bool = False,
    idle: bool = False,
    splitting: Any = "even-odd",
) -> DEQ:
    ham = HAM.chain(sizes, Sigmoid(4.0, 0.5, learnable=learnable), gain=0.5)
    if idle:  # The bias of a clamped layer acts on nothing that moves.
        ham = HAM(dict(ham.neurons.items()), [*ham.connections, (("input",), Bias(sizes[0]))])
    solver = Anderson(tol=1e-12, max_steps=500)
    # Samples without an equilibrium are no surprise here.
    return DEQ(
        ham.double(), splitting=splitting, solver=solver, adjoint=adjoint, on_failure="ignore"
    )


MEMORIES: dict[str, Callable[[], DEQ]] = {
    "implicit": memory,
    "implicit by Anderson": lambda: memory(Implicit(solver=Anderson(tol=1e-12, max_steps=500))),
    "unrolled": lambda: memory(Unrolled(5)),
    "learnable beta": lambda: memory(learnable=True),
    "without splitting": lambda: memory(splitting=None),
    "nothing to solve": lambda: memory(sizes=(6, 5)),
}
WAYS: dict[str, dict[str, bool]] = {
    "plain": {},
    "unused are sought": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "views of buckets": {"gradient_as_bucket_view": True},
    "static graph, views of buckets": {"static_graph": True, "gradient_as_bucket_view": True},
}


class Case(NamedTuple):
    memory: Callable[[], DEQ]
    way: str = "plain"
    lost: slice | None = None
    """Samples of NaN."""

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(BATCH, 6, generator=generator, dtype=torch.float64)
        targets = torch.rand(BATCH, 5, generator=generator, dtype=torch.float64)
        if self.lost is not None:
            images[self.lost] = torch.nan
        return images, targets


CASES = {f"implicit, {way}": Case(memory, way) for way in WAYS}
CASES |= {
    f"{name}, {way}": Case(made, way)
    for name, made in MEMORIES.items()
    for way in ("plain", "static graph, views of buckets")
}
CASES |= {
    f"idle parameter, {way}": Case(lambda: memory(idle=True), way)
    for way in WAYS
    if {"find_unused_parameters", "static_graph"} & WAYS[way].keys()
}
CASES |= {
    "a lost sample": Case(memory, lost=slice(2, 3)),
    "all samples of a process lost": Case(memory, lost=slice(BATCH // 2, None)),
}


def gradients(module: nn.Module, case: Case, samples: slice) -> list[Tensor | None]:
    """Of the mean loss of some samples, in which lost ones count as zero."""
    images, targets = case.batch()
    output = module({"input": images[samples]}).value["output"]
    found = output.isfinite().all(1)
    loss = (output[found] - targets[samples][found]).square().sum() / len(output)
    module.zero_grad()
    loss.backward()
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


OPTIONS = [
    *("fit", "--config", str(ROOT / "configs/digits.yaml")),
    *("--trainer.enable_progress_bar=false", "--run.wandb=disabled", "--trainer.accelerator=cpu"),
    *("--trainer.devices=2", "--trainer.strategy=ddp", "--model.deq.ham.sizes=[64,32,10]"),
]


def work(rank: int, folder: Path, port: int) -> None:
    """One of two processes that know one another, as torchrun starts them."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    found = {}
    for name, case in CASES.items():
        torch.manual_seed(rank)  # The first one's parameters are to become the other's.
        module = DistributedDataParallel(case.memory(), **WAYS[case.way])
        # Twice, because the first pass is another, or leaves something undone for the next.
        found[name] = [gradients(module, case, half) for _ in range(2)]
    torch.save(found, folder / f"{rank}.pt")
    # Last, since it is the longest: a run of the command line within these two.
    warnings.resetwarnings()
    from hamdeq.training.cli.main import main

    sys.argv = ["train.py"]
    with (folder / f"{rank}.txt").open("w") as file, redirect_stdout(file):
        main([*OPTIONS, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes, started once for all cases."""
    for name in ("lightning", "sklearn", "torchvision"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(work, (folder, port), nprocs=2, start_method=start_method())
    return folder


@pytest.fixture(scope="module")
def processes(started: Path) -> list[dict[str, Any]]:
    return [torch.load(started / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_both_processes_have_the_gradient_of_the_whole_batch(
    name: str, processes: list[dict[str, Any]]
) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    deq = case.memory()
    expected = gradients(deq, case, slice(None))
    assert all(grad is None or grad.abs().max() > 1e-6 for grad in expected)
    assert any(grad is None for grad in expected) == name.startswith("idle")
    for found in processes:
        for grads in found[name]:
            torch.testing.assert_close(grads, expected, rtol=1e-10, atol=1e-10)


# Lightning starts the second process by the command line of the first, which runpy would change
# to that of train.py.
RECORD = f"""
import os, torch
from hamdeq.training import HAMClassifier

rank, batches, step = os.environ.get("LOCAL_RANK", "0"), [], HAMClassifier.training_step

def training_step(self, batch, batch_idx):
    batches.append(batch)
    return step(self, batch, batch_idx)

def on_train_end(self):
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    seen = {{"images": images, "labels": labels, "weights": self.state_dict()}}
    torch.save(seen, f"seen{{rank}}.pt")

plain = HAMClassifier.training_step, HAMClassifier.on_train_end
HAMClassifier.training_step, HAMClassifier.on_train_end = training_step, on_train_end
from hamdeq.training.cli.main import main

options = {OPTIONS!r}
main([*options, "--trainer.max_epochs=1"])
HAMClassifier.training_step, HAMClassifier.on_train_end = plain
main([*options, "--trainer.max_epochs=2", "--ckpt_path=last", "--trainer.limit_train_batches=2"])
"""


def run(folder: Path, *command: str) -> str:
    """The output of a command that succeeds, and of the processes that it starts."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=600)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # lest a process wait for the other for ever
        raise
    assert process.returncode == 0, output
    return output


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Trained(NamedTuple):
    """A run of one epoch by two processes, and then of a second one."""

    root: Path
    output: str
    seen: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        return self.root / "runs/digits/version_0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    for name in ("lightning", "sklearn", "torchvision"):
        pytest.importorskip(name)
    root = tmp_path_factory.mktemp("trained")
    (root / "record.py").write_text(RECORD)
    output = run(root, "record.py")
    seen = [torch.load(root / f"seen{rank}.pt", weights_only=True) for rank in range(2)]
    return Trained(root, output, seen)


class TestCommandLine:
    def test_both_processes_share_one_run_folder(self, trained: Trained) -> None:
        assert [path.name for path in trained.folder.parent.iterdir()] == ["version_0"]
        found = {path.name for path in trained.folder.iterdir()}
        wanted = {"config.yaml", "metrics.csv", "results.json", "residuals.png", "checkpoints"}
        assert found == wanted
        checkpoints = {path.name for path in (trained.folder / "checkpoints").iterdir()}
        assert checkpoints == {"best.ckpt", "last.ckpt"}

    def test_each_sample_is_seen_by_one_process(self, trained: Trained) -> None:
        from hamdeq.data import DigitsDataModule

        images, labels = DigitsDataModule().split("train")
        wanted = Counter(map(tuple, torch.cat([images, labels[:, None]], 1).tolist()))
        assert set(wanted.values()) == {1}
        one, other = (
            Counter(map(tuple, torch.cat([part["images"], part["labels"][:, None]], 1).tolist()))
            for part in trained.seen
        )
        # Of an odd number of samples one is repeated, lest the shares differ in length.
        assert one.total() == other.total() == (len(images) + 1) // 2
        assert set(one + other) == set(wanted)
        assert (one + other - wanted).total() == len(images) % 2

    def test_both_processes_have_the_same_weights(self, trained: Trained) -> None:
        one, other = (part["weights"] for part in trained.seen)
        assert list(one) == list(other)
        for name, weight in one.items():
            assert torch.equal(other[name], weight), name

    def test_a_result_is_printed_once(self, trained: Trained) -> None:
        accuracy = json.loads((trained.folder / "results.json").read_text())["test/accuracy"]
        assert trained.output.count("test accuracy") == 2  # of the first fit, and of the second
        assert f"{accuracy:.2%}" in trained.output

    def test_there_is_nothing_to_warn_of(self, trained: Trained) -> None:
        for word in ("Warning", "It is recommended", "Traceback"):
            assert word not in trained.output

    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_results_are_of_all_samples(self, trained: Trained, stage: str) -> None:
        from hamdeq.data import DigitsDataModule

        # The first epoch's validation is of the weights that both had at its end.
        weights = trained.seen[0]["weights"]
        solver = Anderson(history=5, tol=1e-4, max_steps=40)  # of configs/digits.yaml
        deq = DEQ(HAM.chain([64, 32, 10]), solver=solver)
        of_deq = {name: x for name, x in weights.items() if name.startswith("deq.")}
        deq.load_state_dict({name.removeprefix("deq."): x for name, x in of_deq.items()})
        images, labels = DigitsDataModule().split(stage)
        with torch.no_grad():
            solution = deq({"input": images})
            energy = deq.energy(solution.value)
        scores = solution.value["output"]
        samples = {
            "accuracy": scores.argmax(1) == labels,
            "loss": (scores - nn.functional.one_hot(labels, 10)).square(),
            "iterations": solution.steps,
            "not_converged": ~solution.converged,
            "residual": solution.residual,
            "energy": energy,
        }
        expected = {f"{stage}/{name}": x.double().mean().item() for name, x in samples.items()}
        row, _ = (row for row in rows(trained.folder) if row[f"{stage}/loss"])
        # Rounding shows in a residual, a difference of nearly equal numbers.
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-3)

    def test_a_resumed_run_goes_on_in_its_folder(self, trained: Trained) -> None:
        assert [row["epoch"] for row in rows(trained.folder) if row["train/loss"]] == ["0", "1"]


def test_processes_that_torchrun_starts_share_one_run(started: Path) -> None:
    assert [path.name for path in (started / "runs/digits").iterdir()] == ["version_0"]
    outputs = [(started / f"{rank}.txt").read_text() for rank in range(2)]
    assert [output.count("test accuracy") for output in outputs] == [1, 0]
