"""What deep memories train with: learning rates by width, weights within one equilibrium."""

import math

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L
from torch.optim.lr_scheduler import ExponentialLR, LinearLR

from hamdeq import (
    DEQ,
    HAM,
    AvgPool2d,
    Bias,
    Composed,
    Conv2d,
    Dense,
    Flatten,
    Identity,
    Lateral,
    Madam,
    Neurons,
    Tanh,
    contraction,
)
from hamdeq.data import DigitsDataModule
from hamdeq.data.batches import TensorBatches
from hamdeq.training import Contraction, HAMClassifier
from hamdeq.training.cli.main import main


def deep(sizes=(64, 32, 16, 10), **options) -> HAMClassifier:
    torch.manual_seed(0)
    ham = HAM.chain(sizes, Tanh(), gain=0.5, orthogonal=True)
    adam = {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01)}
    return HAMClassifier(DEQ(ham), **adam | options)


def trainer(**options) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**quiet | options)


def rates(module: HAMClassifier, optimizer) -> dict[str, float]:
    """The learning rate of each parameter by name."""
    names = {p: name for name, p in module.deq.ham.named_parameters()}
    return {
        names[p]: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]
    }


def optimizer_of(module: HAMClassifier):
    found = module.configure_optimizers()
    return found["optimizer"] if isinstance(found, dict) else found


# ------------------------------------------------------------------- width


def test_weights_between_free_layers_learn_at_a_rate_of_their_own():
    module = deep(width=8.0)
    found = rates(module, optimizer_of(module))
    assert len(found) == len([*module.parameters()])
    expected = dict.fromkeys(found, 0.01)
    expected["synapses.1.weight"] = 0.01 * 8 / math.sqrt(32 * 16)
    expected["synapses.2.weight"] = 0.01 * 8 / math.sqrt(16 * 10)
    assert found == pytest.approx(expected)
    # Narrow weights never learn faster than the others.
    module = deep(width=20.0)
    found = rates(module, optimizer_of(module))
    assert found["synapses.1.weight"] == pytest.approx(0.01 * 20 / math.sqrt(32 * 16))
    assert found["synapses.2.weight"] == 0.01
    module = deep()
    assert {*rates(module, optimizer_of(module)).values()} == {0.01}


def test_of_images_only_kernels_between_free_layers_learn_more_slowly():
    shape = (4, 6, 6)
    ham = HAM(
        {
            "input": Neurons((1, 8, 8), Identity()),
            "maps": Neurons(shape, Tanh(learnable=True)),
            "more": Neurons((8, 4, 4), Tanh()),
            "output": Neurons(10, Tanh()),
        },
        [
            (("input", "maps"), Conv2d(1, 4, 3)),
            (("maps", "more"), Conv2d(4, 8, 3)),
            (("more", "output"), Composed(AvgPool2d(2), Flatten(), Dense(32, 10))),
            (("output",), Lateral(10)),
            (("maps",), Bias(shape)),
        ],
    )
    module = HAMClassifier(DEQ(ham, splitting="sweep"), width=4.0)
    found = rates(module, optimizer_of(module))
    slow = {
        "synapses.1.weight": 4 / math.sqrt(8 * 4 * 3 * 3),
        "synapses.2.maps.2.weight": 4 / math.sqrt(32 * 10),
        "synapses.3.weight": 4 / math.sqrt(10 * 10),
    }
    assert found == pytest.approx({name: 0.01 * slow.get(name, 1.0) for name in found})


def test_a_learning_rate_in_a_tensor_is_not_scaled_twice():
    module = deep(width=8.0, optimizer=lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)))
    found = rates(module, optimizer_of(module))
    assert found["synapses.0.weight"] == pytest.approx(0.01)
    assert found["synapses.1.weight"] == pytest.approx(0.01 * 8 / math.sqrt(32 * 16))
    assert found["synapses.2.weight"] == pytest.approx(0.01 * 8 / math.sqrt(16 * 10))


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: ExponentialLR(optimizer, 0.5),
        lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=3),
    ],
)
def test_schedules_keep_the_ratios(scheduler):
    module = deep(width=8.0, scheduler=scheduler)
    fit = trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    before = rates(module, optimizer_of(module))
    fit.fit(module, DigitsDataModule())
    after = rates(module, fit.optimizers[0])
    ratios = {after[name] / before[name] for name in before}
    assert max(ratios) == pytest.approx(min(ratios))
    assert max(ratios) < 0.9


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.Adam(p, lr=0.01), Madam])
@pytest.mark.slow
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, optimizer):
    options = {
        "width": 8.0,
        "optimizer": optimizer,
        "scheduler": lambda optimizer: ExponentialLR(optimizer, 0.5),
    }
    # In order, as where a shuffled loader stands is the command line's affair.
    images, labels = DigitsDataModule().split("train")
    batches = TensorBatches(images[:128], labels[:128], 32)

    def fit(epochs, path=None):
        module = deep(**options)
        one = trainer(max_epochs=epochs, log_every_n_steps=1, callbacks=[Contraction(every=3)])
        one.fit(module, batches, batches, ckpt_path=path)
        return module, one

    _, half = fit(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = fit(2, tmp_path / "half.ckpt")
    whole, once = fit(2)
    assert rates(resumed, again.optimizers[0]) == rates(whole, once.optimizers[0])
    for p, q in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)


# ------------------------------------------------------------- contraction


class Watch(L.Callback):
    """The contraction after each step; listed after Contraction, that is once it has acted."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.found.append(contraction(pl_module.deq.ham))


def watched(*callbacks, **options) -> list[float]:
    watch = Watch()
    module = deep(optimizer=lambda p: torch.optim.Adam(p, lr=0.03))
    module.deq.failures.on_failure = "ignore"
    fit = trainer(max_epochs=1, limit_val_batches=0, callbacks=[*callbacks, watch], **options)
    fit.fit(module, DigitsDataModule(batch_size=32))
    return watch.found


def test_keeps_one_equilibrium_where_learning_would_lose_it():
    limits = {"limit_train_batches": 10}
    assert max(watched(**limits)) > 1.0
    assert max(watched(Contraction(0.9, every=1), **limits)) <= 0.9 * (1 + 1e-6)


def test_every_few_steps_and_at_the_end_of_an_epoch():
    found = watched(Contraction(0.9, every=4), limit_train_batches=10)
    within = [rate <= 0.9 * (1 + 1e-6) for rate in found]
    assert [within[i] for i in (3, 7, 9)] == [True] * 3  # of ten steps the last is the last batch
    assert not all(within)


def test_before_a_validation_in_the_middle_of_an_epoch():
    class Validated(Watch):
        def on_validation_start(self, trainer, pl_module):
            self.found.append(contraction(pl_module.deq.ham))

        def on_train_batch_end(self, *args):
            pass

    found = {}
    for every, callbacks in {"never": [], "at the end": [Contraction(0.9, every=1000)]}.items():
        watch = Validated()
        module = deep(optimizer=lambda p: torch.optim.Adam(p, lr=0.03))
        module.deq.failures.on_failure = "ignore"
        limits = {"limit_train_batches": 10, "limit_val_batches": 1, "val_check_interval": 5}
        trainer(max_epochs=1, callbacks=[*callbacks, watch], **limits).fit(
            module, DigitsDataModule(batch_size=32)
        )
        found[every] = watch.found
    assert max(found["never"]) > 1.0
    assert len(found["at the end"]) == 2
    assert max(found["at the end"]) <= 0.9 * (1 + 1e-6)


def test_counts_optimiser_steps():
    found = watched(Contraction(0.9, every=2), limit_train_batches=8, accumulate_grad_batches=2)
    assert found[3] <= 0.9 * (1 + 1e-6)
    assert found[7] <= 0.9 * (1 + 1e-6)


def test_a_memory_that_starts_too_strong_is_brought_within_before_its_first_step():
    module = deep()
    with torch.no_grad():
        for synapse in module.deq.ham.synapses:
            if isinstance(synapse, Dense):
                synapse.weight.mul_(9.0)
    inputs = module.deq.ham.synapses[0].weight.clone()
    trainer(max_epochs=0, callbacks=[Contraction(0.8)]).fit(module, DigitsDataModule())
    assert contraction(module.deq.ham) == pytest.approx(0.8, rel=1e-5)
    assert torch.equal(module.deq.ham.synapses[0].weight, inputs)


@pytest.mark.slow
def test_from_a_configuration(tmp_path, monkeypatch):
    config = tmp_path / "deep.yaml"
    config.write_text(
        """
seed_everything: 0
run: {root: runs, wandb: disabled}
trainer:
  max_epochs: 1
  log_every_n_steps: 5
  enable_progress_bar: false
  callbacks:
    - class_path: hamdeq.training.Contraction
      init_args: {rate: 0.7, every: 5}
model:
  deq:
    class_path: hamdeq.DEQ
    init_args:
      ham:
        class_path: hamdeq.HAM.chain
        init_args:
          sizes: [64, 32, 16, 10]
          lagrangian: {class_path: hamdeq.Tanh}
          orthogonal: true
  width: 8.0
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.03}}
data: {class_path: hamdeq.data.DigitsDataModule}
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    main(["fit", "--config", str(config), "--trainer.limit_test_batches=0"])
    weights = torch.load(tmp_path / "runs/version_0/checkpoints/last.ckpt", weights_only=True)[
        "state_dict"
    ]
    module = deep()
    module.load_state_dict(weights)
    assert contraction(module.deq.ham) <= 0.7 * (1 + 1e-6)
