"""The command line: ``hamdeq fit --config digits``, or ``python train.py fit …``."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerStatus

from hamdeq.data import InMemoryDataModule
from hamdeq.training.callbacks import ConvergenceMonitor, ResidualPicture
from hamdeq.training.checkpoint import CheckpointError, read_checkpoint
from hamdeq.training.checkpoint_io import MovedCheckpoints, WholeCheckpointIO
from hamdeq.training.cli.configurations import names, with_files
from hamdeq.training.cli.hints import Parser, innermost, program, refuse
from hamdeq.training.cli.results import add_results, table, where
from hamdeq.training.cli.run import (
    MetricsFile,
    check_wandb,
    new_folder,
    newest_checkpoint,
    wandb_logger,
)
from hamdeq.training.cli.sizes import check_sizes
from hamdeq.training.equilibrium import EquilibriumModule
from hamdeq.training.files import write_file
from hamdeq.training.module import OtherArchitectureError
from hamdeq.training.prediction import Prediction, joined, write_predictions
from hamdeq.training.progress import EpochProgress
from hamdeq.training.reconstruction.recollection import RecallPictures
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor
from hamdeq.training.saving import Restorable, model_section
from hamdeq.training.trainer import Trainer

__all__ = ["HAMCLI", "Run", "main"]

_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


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


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration as config.yaml in the folder of a new run, and in wandb."""

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        super().__init__(*args, save_to_log_dir=False, **kwargs)
        self.folder = folder

    def save_config(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        # Where the weights came from is no part of a configuration to train with.
        config = self.config.clone()
        config.pop("ckpt_path", None)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(config.as_dict())
        path = self.folder / "config.yaml"
        if stage == "fit" and not path.exists():
            write_file(path, self.parser.dump(config, skip_none=False))


class HAMCLI(LightningCLI):
    """LightningCLI with a run folder, resume by ``--ckpt_path last``, and a test after fit.

    It trains any Lightning module, named by ``model.class_path``;
    :class:`~hamdeq.training.HAMClassifier` where none is. The best checkpoint is that of the metric
    that the module names as its ``monitor``; of ``val/accuracy`` where it names none.

    Attributes:
        folder: the run folder; None with ``--trainer.fast_dev_run``, which leaves nothing behind.
    """

    folder: Path | None = None

    def __init__(self, args: list[str] | None = None) -> None:
        self._timer = Timer()
        self._made: list[Path] = []
        try:
            if args is None:  # further processes are started with what stands there
                sys.argv[1:] = with_files(sys.argv[1:])
            else:
                args = with_files(args)
            self._run(args)
        except Exception as error:
            message = _refusal(error)
            if message is None:
                raise
            self._discard()
            raise SystemExit(f"error: {message}") from None

    def _run(self, args: list[str] | None) -> None:
        super().__init__(
            L.LightningModule,
            InMemoryDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": program(),
                "description": "Train a memory, test it, and predict with it. The commands hamdeq, "
                "python -m hamdeq, python -m hamdeq.training and python train.py are the same. "
                "--config takes a file, or the name of a configuration that comes with hamdeq: "
                f"{', '.join(names())}.",
                # All options once, below, are enough.
                **{name: {"usage": f"{program()} {name} [options]"} for name in self.subcommands()},
            },
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
            save_config_callback=_SaveConfig,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        every = LightningCLI.subcommands()
        # Not an option: the result is printed once, and not by Lightning.
        skip = {"verbose", "return_predictions"}
        return {name: every[name] | skip for name in ("fit", "validate", "test", "predict")}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a command without anything to train is told what to give."""
        given = [str(arg) for arg in (sys.argv[1:] if args is None else args)]
        command = next((arg for arg in given if arg in self.subcommands()), None)
        told = ("-c", "--config", "--model", "--data", "-h", "--help", "--print")
        if command and not any(arg.startswith(told) or ".help" in arg for arg in given):
            example = (
                "configs/digits.yaml"
                if command == "fit"
                else "RUN/config.yaml, of the run whose checkpoint it is"
            )
            refuse(
                parser,
                f"{command}: expected a configuration, got none; give --config FILE, such as "
                f"--config {example}",
            )
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Run, "run")
        # Of a configuration that names no class, ``model`` holds this one's arguments.
        parser.set_defaults({"model": {"class_path": "hamdeq.training.HAMClassifier"}})

    def _parse_ckpt_path(self) -> None:
        """Leave out what Lightning does: let a checkpoint name the classes to import."""

    def before_instantiate_classes(self) -> None:
        if self.subcommand != "fit" and self._get_config().ckpt_path is None:
            expected = "expected --ckpt_path FILE, last or best, got none"
            refuse(self.parser, f"{self.subcommand}: {expected}")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            if isinstance(self.model, Restorable):
                self.model.configured = model_section(self.config_dump).get("init_args", {})
        except CheckpointError:
            raise  # not about an option
        except (ValueError, TypeError, MisconfigurationException) as error:
            self._discard()
            refuse(self.parser, _one_line(innermost(error)))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        check_sizes(self.model, self.datamodule)
        config = self._get_config()
        if config.run.wandb == "online" and not config.trainer.fast_dev_run and _is_first_process():
            check_wandb()
        resume_step = self._choose_folder(config)
        self.trainer_defaults["callbacks"] = self._callbacks(config.trainer)
        self.save_config_kwargs["folder"] = self.folder
        if config.trainer.logger is None:
            kwargs["logger"] = self._loggers(config.run, resume_step)
        trainer = super().instantiate_trainer(**kwargs)
        # Not one that the configuration names, nor that of a device with a way of its own.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer

    def _get_config(self) -> Any:
        return self.config[str(self.subcommand)]

    def _loggers(self, run: Run, resume_step: int | None) -> list[Logger]:
        if self.folder is None or self.subcommand == "predict":
            return []
        loggers: list[Logger] = [MetricsFile(self.folder, resume_step=resume_step)]
        if run.wandb != "disabled":
            online = run.wandb == "online"
            loggers.append(wandb_logger(self.folder, project=run.project, online=online))
        return loggers

    def _callbacks(self, trainer: Any) -> list[Callback]:
        callbacks: list[Callback] = [self._timer]
        if isinstance(self.model, EquilibriumModule):
            callbacks.append(ConvergenceMonitor())
            if self.folder is not None:
                callbacks.append(ResidualPicture(self.folder))
        if isinstance(self.model, HAMReconstructor) and self.folder is not None:
            callbacks.append(RecallPictures(self.folder))
        given = self._get(self.config_init, "trainer").callbacks or []
        own = any(isinstance(x, LightningProgressBar) for x in [given, *_listed(given)])
        if trainer.enable_progress_bar is not False and not own:
            callbacks.append(EpochProgress())
        if self.folder is not None and trainer.enable_checkpointing is not False:
            validates = getattr(self.datamodule, "val_size", 0) and trainer.limit_val_batches != 0
            metric, mode = getattr(self.model, "monitor", ("val/accuracy", "max"))
            checkpoint = ModelCheckpoint(
                self.folder / "checkpoints",
                filename="best",
                # Without validation each epoch is taken for better than those before.
                monitor=metric if validates else None,
                mode=mode,
                save_last=True,
                enable_version_counter=False,
            )
            callbacks += [checkpoint, MovedCheckpoints()]
        return callbacks

    def _choose_folder(self, config: Any) -> int | None:
        """Set the run folder; return the step to resume a fit at, None where none is resumed."""
        path = config.ckpt_path
        if path in ("last", "best"):
            path = str(newest_checkpoint(config.run.root, path))
            self.config_init[str(self.subcommand)]["ckpt_path"] = path
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(
                f"--ckpt_path: expected a checkpoint file, 'last' or 'best', got {path}"
            )
        if path is not None and Path(path).suffix == ".safetensors":
            raise ValueError(
                f"--ckpt_path: expected a checkpoint of Lightning, got {path}, which holds weights "
                "alone; read it by load_from_checkpoint, and go on in Python"
            )
        # Read before anything is written: Lightning would read it too late, and fail with a riddle.
        step = None if path is None else read_checkpoint(path).get("global_step")
        if config.trainer.fast_dev_run:
            return None
        if path is not None and Path(path).parent.name == "checkpoints":
            self.folder = Path(path).parent.parent
            return step if self.subcommand == "fit" else None
        # Further processes write nothing. Those that Lightning starts know the first one's folder;
        # those that torchrun or a cluster starts are told of its checkpoints by Lightning.
        if not _is_first_process():
            self.folder = Path(os.environ.get("HAMDEQ_RUN_FOLDER", str(config.run.root)))
        else:
            root = Path(config.run.root)
            self._made = [path for path in (root, *root.parents) if not path.exists()]
            self.folder = new_folder(root)
            self._made.insert(0, self.folder)
            os.environ["HAMDEQ_RUN_FOLDER"] = str(self.folder)
        return None

    def _discard(self) -> None:
        """Remove the folder of a run that was refused before it had any result."""
        if not self._made or not self.folder or not self.folder.is_dir():
            return
        found = {path.name for path in self.folder.iterdir()}
        if not found <= {"config.yaml", "wandb"}:
            return
        if "wandb" in found:
            import wandb

            wandb.finish(exit_code=1)
        shutil.rmtree(self.folder)
        for folder in self._made[1:]:
            try:
                folder.rmdir()
            except OSError:  # another run is there
                return

    def fit(self, **kwargs: Any) -> None:
        """Train; an interruption from the keyboard ends with how to go on."""
        try:
            self.trainer.fit(**kwargs)
        except SystemExit:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            message = f"interrupted in epoch {self.trainer.current_epoch + 1}"
            if self.folder is not None and (self.folder / "checkpoints/last.ckpt").exists():
                message += (
                    "; to go on from the last finished epoch, give the same command with "
                    "--ckpt_path last"
                )
            print(f"\n{message}", file=sys.stderr)  # below the progress bar
            raise SystemExit(_INTERRUPTED) from None

    def after_fit(self) -> None:
        """Test the best checkpoint, or the weights as they are where none was written."""
        if self.folder is None:
            return
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "") or None
        # Asked before the test: a checkpoint brings the timer's own time along, and adds it.
        seconds = self._timer.time_elapsed("train")
        self.test(model=self.model, datamodule=self.datamodule, ckpt_path=best)
        self._report(self._results("test/") | {"fit_seconds": seconds})

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(**kwargs, verbose=False)

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**kwargs, verbose=False)

    def predict(self, **kwargs: Any) -> None:
        """Write what the module tells of the test data to predictions.csv."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"predict: expected one device, got {self.trainer.world_size}, each with a share "
                "of the data; give --trainer.devices=1"
            )
        parts = [*(self.trainer.predict(**kwargs) or [])]
        if not parts or not all(isinstance(part, Prediction) for part in parts):
            raise ValueError(
                "predict: expected a module whose predict_step gives a hamdeq.training.Prediction, "
                f"got {type(self.model).__name__}"
            )
        if self.folder is not None:
            prediction = joined(parts)  # pyright: ignore[reportArgumentType]
            encoding = getattr(self.model, "encoding", None)
            path = self.folder / "predictions.csv"
            write_predictions(path, prediction, encoding and encoding.classes)
            print(f"  {path}: {len(prediction.value)} predictions")

    def after_test(self) -> None:
        """Print and write the result."""
        self._report(self._results("test/"))

    def _report(self, results: dict[str, float]) -> None:
        if self.trainer.is_global_zero:
            if self.folder is not None:
                add_results(self.folder, results)
            print(table(results), where(self.folder), sep="", end="")

    def after_validate(self) -> None:
        """Print the result."""
        if self.trainer.is_global_zero:
            print(table(self._results("val/")), end="")

    def _results(self, prefix: str) -> dict[str, float]:
        metrics = self.trainer.callback_metrics.items()
        return {name: value.item() for name, value in metrics if name.startswith(prefix)}


def _is_first_process() -> bool:
    """Whether no other process has the run folder in its care, before there is a trainer to ask."""
    return not int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def main(args: list[str] | None = None) -> None:
    """Run the command line; the arguments are the process's own by default."""
    _quiet()
    HAMCLI(args)


def _refusal(error: Exception) -> str | None:
    """What to tell of an error that the user can mend; None of any other, which is a fault."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        # One that is not about a file is a fault of something else.
        return f"{error.filename}: {error.strerror}" if error.filename is not None else None
    if isinstance(
        error, FileNotFoundError | ImportError | OtherArchitectureError | CheckpointError
    ):
        return str(error)
    of_wandb = type(error).__module__.startswith("wandb.")
    if isinstance(error, MisconfigurationException) or of_wandb:
        return _one_line(str(error))
    if isinstance(error, ValueError | TypeError | AttributeError | RuntimeError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        ours = package == "hamdeq" and re.search(r"(^|: )expected ", str(error))
        # Lightning says so of a metric that is not there, or of a module without a learning rate.
        theirs = package == "lightning" and type(error) in (AttributeError, RuntimeError)
        return _one_line(str(error)) if ours or theirs else None
    return None


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _quiet() -> None:
    """Leave out what Lightning tells of itself, and warnings that only its authors can act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for text in (
        r"(?s).*was deprecated in v[\d.]+ and will be removed in v",  # jsonargparse, to Lightning
        r"(?s).*one JsonargparseDeprecationWarning per type",
        r"Checkpoint directory .* exists and is not empty",  # of the run that goes on
        r".*isinstance\(treespec, LeafSpec\).* is deprecated",
    ):
        warnings.filterwarnings("ignore", message=text)
