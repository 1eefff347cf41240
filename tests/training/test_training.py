"""The Lightning module and its callbacks, in-process."""

import copy
import functools
import math

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau

import hamdeq
from hamdeq import DEQ, HAM, ConvergenceWarning, Picard, TorchDEQSolver
from hamdeq.data import DigitsDataModule
from hamdeq.solvers import SuccessiveOutputs, paper_iterations
from hamdeq.training import ConvergenceMonitor, HAMClassifier, ResidualPicture


def small(**options) -> HAMClassifier:
    torch.manual_seed(0)
    return HAMClassifier(DEQ(HAM.chain([64, 16, 10], gain=0.5)), **options)


def trainer(**options) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return L.Trainer(**quiet | options)


def test_monitor_reports_the_measure_of_the_solutions():
    module, data = small(), DigitsDataModule(eval_batch_size=50)
    found = trainer(callbacks=[ConvergenceMonitor()]).test(module, data, verbose=False)[0]
    images, labels = data.split("test")
    with torch.no_grad():
        solution = module(images)
    state = solution.value["output"]
    assert found["test/iterations"] == pytest.approx(solution.steps.double().mean().item())
    with torch.no_grad():
        counted = module(images, solver=SuccessiveOutputs(solver=module.deq.solver))
    papers = paper_iterations(counted).double().mean().item()
    assert found["test/paper_iterations"] == pytest.approx(papers)
    # Far below 1 a residual is a difference of nearly equal numbers: rounding shows in it.
    residual = solution.residual.double().mean().item()
    assert found["test/residual"] == pytest.approx(residual, rel=1e-3)
    assert found["test/accuracy"] == pytest.approx((state.argmax(1) == labels).double().mean())
    energy = module.deq.energy(solution.value).double().mean().item()
    assert found["test/energy"] == pytest.approx(energy, rel=1e-5)
    assert found["test/not_converged"] == 0


def test_samples_that_do_not_converge_show_in_the_metrics_and_warn_once():
    module = small()
    module.deq.solver = Picard(max_steps=2, fallback_steps=0)
    data = DigitsDataModule(eval_batch_size=50)
    with pytest.warns(ConvergenceWarning, match="even-odd") as caught:
        found = trainer(callbacks=[ConvergenceMonitor()]).test(module, data, verbose=False)[0]
    assert [w.category for w in caught].count(ConvergenceWarning) == 1
    assert found["test/not_converged"] == 1


def test_picture_and_metrics_of_a_solver_of_torchdeq(tmp_path):
    module = small()
    module.deq.solver = TorchDEQSolver(max_steps=20)
    picture = ResidualPicture(tmp_path, steps=12)
    found = trainer(callbacks=[ConvergenceMonitor(), picture], limit_test_batches=1).test(
        module, DigitsDataModule(), verbose=False
    )[0]
    assert (tmp_path / "residuals.png").exists()
    assert picture._traces[0].shape == (12, 360)
    assert found["test/iterations"] <= 21
    assert "test/paper_iterations" not in found  # it takes no single steps


def test_solution_holds_no_graph_and_reports_the_backward_pass():
    module = small()
    module.log = lambda *args, **kwargs: None
    loss = module.training_step((torch.rand(8, 64), torch.zeros(8, dtype=torch.long)), 0)
    copy.deepcopy(module)
    loss.backward()
    assert module.solution is not None
    assert len(module.solution.adjoint) == 1
    assert not any(x.requires_grad for x in module.solution.value.values())


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.slow
def test_both_losses_learn(loss):
    module = small(loss=loss, optimizer=lambda p: hamdeq.Madam(p, lr=0.02))
    data = DigitsDataModule(batch_size=32)
    before = trainer().validate(module, data, verbose=False)[0]["val/loss"]
    fit = trainer(max_epochs=2, num_sanity_val_steps=0)
    fit.fit(module, data)
    after = fit.validate(module, data, verbose=False)[0]["val/loss"]
    assert after < 0.7 * before


@pytest.mark.parametrize(
    ("make", "monitored"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "val/loss"),
        (lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val/accuracy"), "val/accuracy"),
    ],
    ids=["torch", "lightning"],
)
def test_reduce_on_plateau_follows_its_monitor(make, monitored):
    module = small(scheduler=make)
    assert module.configure_optimizers()["lr_scheduler"]["monitor"] == monitored


def test_the_learning_rate_that_was_found_reaches_every_group_and_the_schedule(tmp_path):
    finder = LearningRateFinder(min_lr=1e-3, max_lr=1e-2, num_training_steps=15)
    limits = {"max_epochs": 1, "limit_train_batches": 16, "limit_val_batches": 0}
    fit = trainer(callbacks=[finder], default_root_dir=tmp_path, **limits)
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)
    module = small(scheduler=cosine, width=1.0)
    rates: list[list[float]] = []
    module.on_train_start = lambda: rates.append(
        [group["lr"] for group in fit.optimizers[0].param_groups]
    )
    fit.fit(module, DigitsDataModule())
    assert module.lr is not None
    assert 1e-3 <= module.lr <= 1e-2
    # The matrix between the free layers is slower, as the module says.
    expected = [module.lr, module.lr / math.sqrt(16 * 10)]
    assert rates[-1] == pytest.approx(expected)  # the first are those of the search
    assert fit.lr_scheduler_configs[0].scheduler.base_lrs == pytest.approx(expected)
