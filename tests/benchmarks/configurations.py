"""The memories of ``configs/mnist``, as their files have them."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, OptimizerCallable

from hamdeq import DEQ
from hamdeq.training.building import build

FOLDER = Path(__file__).parents[2] / "configs" / "mnist"


def configured(name: str) -> tuple[DEQ, torch.optim.Optimizer]:
    """The memory of a file, with new weights, and its optimiser."""
    path = FOLDER / f"{name}.yaml"
    model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--deq", type=DEQ)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    config = {key: model[key] for key in ("deq", "optimizer")}
    made = build(parser, config, trust=True, source=str(path))
    return made.deq, made.optimizer(made.deq.parameters())
