"""The command line: ``python train.py fit --config configs/digits.yaml``."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.trainer.states import TrainerStatus
from torch.optim import Optimizer

from hamdeq.data import TensorDataModule
from hamdeq.deq import DEQ
from hamdeq.ham import HAM
from hamdeq.implicit import Adjoint
from hamdeq.lagrangians import Lagrangian
from hamdeq.solvers import Solver
from hamdeq.training.callbacks import ConvergenceMonitor, ProgressBar, ResidualPicture
from hamdeq.training.classifier import HAMClassifier
from hamdeq.training.run import (
    MetricsFile,
    checkpoint_step,
    last_checkpoint,
    new_folder,
    wandb_logger,
)

__all__ = ["Run", "main"]


@dataclass
class Run:
    """Where and how a run is recorded.

    Args:
        root: folder of the runs of this configuration; each gets a ``version_N`` in it.
        wandb: whether wandb records it, and where to.
        project: wandb project.
    """

    root: str = "runs/hamdeq"
    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "hamdeq"


class _Parser(LightningArgumentParser):
    """Errors name the nearest key that exists."""

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        super().error(_with_near_match(message, self), *args, **kwargs)


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration as config.yaml, and in wandb."""

    def save_config(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.config.as_dict())


class HAMCLI(LightningCLI):
    """LightningCLI with a run folder, resume by ``--ckpt_path last``, and a test after fit."""

    folder: Path

    def __init__(self, args: list[str] | None = None) -> None:
        self._timer = Timer()
        super().__init__(
            HAMClassifier,
            TensorDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"allow_abbrev": False},
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Run, "run")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            self.parser.error(_innermost(error))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get_config()
        run = Run(**config.run.as_dict())
        resume_step = self._choose_folder(config, run)
        best = "val/accuracy" if getattr(self.datamodule, "val_size", 0) else None
        self.trainer_defaults["callbacks"] = [
            ConvergenceMonitor(),
            ResidualPicture(self.folder),
            self._timer,
            *(
                [ProgressBar(refresh_rate=20)]
                if config.trainer.enable_progress_bar in (None, True)
                else []
            ),
            ModelCheckpoint(
                self.folder / "checkpoints",
                filename="best" if best else "{epoch}",
                monitor=best,
                mode="max",
                save_last=True,
                enable_version_counter=False,
            ),
        ]
        if config.trainer.logger is None:
            loggers: list[Logger] = [MetricsFile(self.folder, resume_step=resume_step)]
            if run.wandb != "disabled" and not config.trainer.fast_dev_run:
                online = run.wandb == "online"
                loggers.append(wandb_logger(self.folder, project=run.project, online=online))
            kwargs["logger"] = loggers
        return super().instantiate_trainer(**kwargs)

    def _get_config(self) -> Any:
        return self.config[str(self.subcommand)]

    def _choose_folder(self, config: Any, run: Run) -> int | None:
        """Set the run folder; return the step to resume at, None for a new run."""
        path = config.get("ckpt_path")
        if path == "last":
            path = self.config_init[str(self.subcommand)]["ckpt_path"] = str(
                last_checkpoint(run.root)
            )
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(
                f"--ckpt_path: expected a checkpoint file or 'last', got {path}"
            )
        if path is not None and Path(path).parent.name == "checkpoints":
            self.folder = Path(path).parent.parent
            return checkpoint_step(path)
        # The processes that Lightning starts for further devices share the first one's folder.
        if int(os.environ.get("LOCAL_RANK", 0)) and "HAMDEQ_RUN_FOLDER" in os.environ:
            self.folder = Path(os.environ["HAMDEQ_RUN_FOLDER"])
        else:
            self.folder = new_folder(run.root)
            os.environ["HAMDEQ_RUN_FOLDER"] = str(self.folder)
        return None

    def fit(self, **kwargs: Any) -> None:
        """Train; an interruption from the keyboard ends with how to go on."""
        try:
            self.trainer.fit(**kwargs)
        except SystemExit:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            raise SystemExit(
                f"interrupted in epoch {self.trainer.current_epoch}; to go on from the last "
                "finished epoch, give the same command with --ckpt_path last"
            ) from None

    def after_fit(self) -> None:
        """Test the best checkpoint."""
        if not self._get_config().trainer.fast_dev_run:
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path="best", verbose=False
            )
            self.after_test()

    def after_test(self) -> None:
        """Print and write the result."""
        results = {
            name: value.item()
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        if self.subcommand == "fit":
            results["fit_seconds"] = self._timer.time_elapsed("train")
        if self.trainer.is_global_zero:
            (self.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
            print(_table(results, self.folder))


def _table(results: dict[str, float], folder: Path) -> str:
    formats = {
        "test/accuracy": ("test accuracy", "{:.2%}"),
        "test/loss": ("test loss", "{:.4g}"),
        "test/iterations": ("mean iterations", "{:.2f}"),
        "test/not_converged": ("not converged", "{:.2%}"),
        "test/residual": ("mean residual", "{:.1e}"),
        "test/energy": ("mean energy", "{:.4g}"),
        "fit_seconds": ("time of the fit", "{:.1f} s"),
    }
    rows = [
        (label, form.format(results[key]))
        for key, (label, form) in formats.items()
        if key in results
    ]
    wide = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{wide}}  {value:>10}" for label, value in rows]
    rule = "  " + "─" * (wide + 12)
    where = [f"  {folder}: residuals.png, metrics.csv, config.yaml, checkpoints/"]
    if any(folder.glob("wandb/offline-run-*")):
        where.append(f"  wandb, offline; to upload: wandb sync {folder}/wandb/offline-run-*")
    return "\n".join(["", rule, *lines, rule, *where])


def _innermost(error: BaseException) -> str:
    """The message at the root of a chain of errors, where the value itself was refused."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error)


def _with_near_match(message: str, parser: LightningArgumentParser) -> str:
    """Add the nearest known key to a message about an unknown one."""
    if "Did you mean" in message:  # a nested key, already answered
        return message
    match = re.search(
        r"(?:[Kk]ey|[Oo]ption) ['\"]([\w.]+)['\"] is not|[Uu]nrecognized arguments: --([\w.]+)",
        message,
    )
    if match is None:
        return message
    wrong = (match[1] or match[2]).rpartition(".")[2]
    near = difflib.get_close_matches(wrong, sorted(_known_keys(parser)), n=1, cutoff=0.6)
    return f"{message}\nDid you mean '{near[0]}' instead of '{wrong}'?" if near else message


def _known_keys(parser: LightningArgumentParser) -> set[str]:
    """Last names of all options: of the parser, and of the library's own classes."""
    keys = {part for action in parser._actions for part in action.dest.split(".")}
    bases = (HAM, DEQ, Solver, Adjoint, Lagrangian, Optimizer, TensorDataModule)
    for thing in (*bases, HAM.chain, *(kind for base in bases for kind in _subclasses(base))):
        keys |= set(inspect.signature(thing).parameters)
    return keys


def _subclasses(base: type) -> set[type]:
    return {base}.union(*(_subclasses(kind) for kind in type.__subclasses__(base)))


def main(args: list[str] | None = None) -> None:
    """Run the command line; the arguments are the process's own by default."""
    _quiet()
    try:
        HAMCLI(args)
    except (FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from None


def _quiet() -> None:
    """Leave out what Lightning tells of itself, and warnings that only its authors can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for text in (
        r"(?s).*instantiate_classes.*was deprecated",
        r"(?s).*one JsonargparseDeprecationWarning per type",
        r"Checkpoint directory .* exists and is not empty",  # of the run that goes on
        r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    ):
        warnings.filterwarnings("ignore", message=text)
