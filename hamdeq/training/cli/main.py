"""The command line: ``hamdeq fit --config digits``, or ``python train.py fit …``."""

from __future__ import annotations

import sys
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

from hamdeq._checks import wrong
from hamdeq.data import InMemoryDataModule
from hamdeq.training.building import innermost
from hamdeq.training.callbacks import ConvergenceMonitor, ResidualPicture
from hamdeq.training.checkpoint import CheckpointError, MovedCheckpoints, WholeCheckpointIO
from hamdeq.training.cli.configurations import names, with_files
from hamdeq.training.cli.hints import Parser, program, quiet, refusal, refuse
from hamdeq.training.cli.results import MetricsFile, add_results, list_files, table
from hamdeq.training.cli.run import (
    RunFolder,
    check_wandb,
    finish_wandb,
    is_first_process,
    named_checkpoint,
    wandb_logger,
)
from hamdeq.training.cli.sizes import check_sizes
from hamdeq.training.equilibrium import EquilibriumModule
from hamdeq.training.files import write_file
from hamdeq.training.prediction import Prediction, joined, write_predictions
from hamdeq.training.progress import EpochProgress
from hamdeq.training.reconstruction.recollection import RecallPictures
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor
from hamdeq.training.saving import Restorable, model_section

__all__ = ["HAMCLI", "Run", "main"]

_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
_COMMANDS = {
    "fit": "Train, and test the best epoch.",
    "validate": "Measure a checkpoint on the validation data.",
    "test": "Measure a checkpoint on the test data.",
    "predict": "Write what a checkpoint predicts for the test data to predictions.csv.",
}


@dataclass
class Run:
    """Record of a run: where and how it is kept.

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
        self._new: RunFolder | None = None
        try:
            if args is None:  # further processes are started with what stands there
                sys.argv[1:] = with_files(sys.argv[1:])
            else:
                args = with_files(args)
            self._run(args)
        except Exception as error:
            message = refusal(error)
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
                **{
                    name: {"usage": f"{program()} {name} [options]", "description": what}
                    for name, what in _COMMANDS.items()
                },
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
        return {name: every[name] | skip for name in _COMMANDS}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = (
                    "checkpoint to go on from, or to measure: a file, or last or best of the runs "
                    "below run.root"
                )
        return parser

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
            refuse(self.parser, " ".join(innermost(error).split()))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        check_sizes(self.model, self.datamodule)
        config = self._get_config()
        if config.run.wandb == "online" and not config.trainer.fast_dev_run and is_first_process():
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
        given = given if isinstance(given, list) else [given]
        own = any(isinstance(callback, LightningProgressBar) for callback in given)
        if trainer.enable_progress_bar is not False and not own:
            callbacks.append(EpochProgress())
        if self.folder is not None and trainer.enable_checkpointing is not False:
            validates = getattr(self.datamodule, "val_size", 0) and trainer.limit_val_batches != 0
            metric, mode = getattr(self.model, "monitor", ("val/accuracy", "max"))
            best = ModelCheckpoint(
                self.folder / "checkpoints",
                filename="best",
                # Without validation each epoch is taken for better than those before.
                monitor=metric if validates else None,
                mode=mode,
                save_last=not validates,
                enable_version_counter=False,
            )
            callbacks += [best, MovedCheckpoints()]
            if validates:
                # With a metric, Lightning's save_last is of the best epoch, not of the last. This
                # is saved after the other, whose state it contains.
                last = ModelCheckpoint(best.dirpath, filename="last", enable_version_counter=False)
                callbacks.append(last)
        return callbacks

    def _choose_folder(self, config: Any) -> int | None:
        """Set the run folder; return the step to resume a fit at, None where none is resumed."""
        # Read before anything is written: Lightning would read it too late, and fail with a riddle.
        path, checkpoint = named_checkpoint(config.ckpt_path, config.run.root)
        self.config_init[str(self.subcommand)]["ckpt_path"] = path
        if config.trainer.fast_dev_run:
            return None
        if path is not None and Path(path).parent.name == "checkpoints":
            self.folder = Path(path).parent.parent
            return checkpoint.get("global_step") if self.subcommand == "fit" else None
        self._new = RunFolder(config.run.root)
        self.folder = self._new.path
        return None

    def _discard(self) -> None:
        if self._new is not None:
            self._new.discard()

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
            got = f"{self.trainer.world_size}, each with a share of the data"
            raise wrong("predict", "one device", got, "give --trainer.devices=1")
        parts = [*(self.trainer.predict(**kwargs) or [])]
        if not parts or not all(isinstance(part, Prediction) for part in parts):
            expected = "a module whose predict_step gives a hamdeq.training.Prediction"
            raise wrong("predict", expected, type(self.model).__name__)
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
            print(table(results), list_files(self.folder), sep="", end="")

    def after_validate(self) -> None:
        """Print the result."""
        if self.trainer.is_global_zero:
            print(table(self._results("val/")), end="")

    def _results(self, prefix: str) -> dict[str, float]:
        metrics = self.trainer.callback_metrics.items()
        return {name: value.item() for name, value in metrics if name.startswith(prefix)}


def main(args: list[str] | None = None) -> None:
    """Run the command line; the arguments are the process's own by default."""
    quiet()
    with finish_wandb():
        HAMCLI(args)
