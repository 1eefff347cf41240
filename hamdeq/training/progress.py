"""Progress of long work: a bar on a terminal, lines of plain text everywhere else."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text
from typing_extensions import Self

__all__ = ["EpochProgress", "Progress", "is_terminal"]

_SECONDS_BETWEEN_LINES = 10.0


def is_terminal(file: TextIO) -> bool:
    """Return True for a terminal that can move its cursor."""
    return file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class Progress:
    """Progress of some work, with the times elapsed and remaining.

    On a terminal it is a bar that disappears when it is closed. Elsewhere it is a line of plain
    text for each new description, and at most one in ten seconds between them.

    Args:
        total: units of work; None where nobody knows.
        done: units that were done before, which say nothing about the speed.
        description: what is being done.
        counted: show units as ``done/total``, or else as a percentage.
        file: where to write, default standard error.
        steady: draw the bar between updates as well, which takes time of this process: not where
            that is measured.
    """

    def __init__(
        self,
        total: float | None,
        *,
        done: float = 0,
        description: str = "",
        counted: bool = True,
        file: TextIO | None = None,
        steady: bool = True,
    ) -> None:
        self.total = total
        self.done: float = done
        self.description: str = description
        self._before = done
        self._counted = counted
        self._file = sys.stderr if file is None else file
        self._began = self._told = time.monotonic()
        self._bar: RichProgress | None = None
        if is_terminal(self._file):
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(None, table_column=Column(ratio=1, min_width=4)),
                _TextOf(self._amount),
                _TextOf(self._times),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(file=self._file),
                transient=True,
                expand=True,
                auto_refresh=steady,
                refresh_per_second=2,
            )
            self._task = self._bar.add_task(description, total=total, note="")
            self._bar.update(self._task, completed=done)
            self._bar.start()
        elif description:
            self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def describe(self, description: str) -> None:
        """Say what is being done."""
        if description != self.description:
            self.description = description
            self._show()
            if self._bar is None:
                self._tell()

    def update(self, done: float, note: str = "") -> None:
        """Set the units that are done, and a note at the end of the bar."""
        self.done = done
        self._show(note)
        late = time.monotonic() - self._told > _SECONDS_BETWEEN_LINES
        if self._bar is None and late:
            self._tell()

    def advance(self, units: float = 1) -> None:
        """Add to the units that are done."""
        self.update(self.done + units)

    def print(self, text: str) -> None:
        """Write a line of text, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._file, flush=True)

    def _show(self, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, description=self.description, completed=self.done, note=note
            )
            if not self._bar.live.auto_refresh:
                self._bar.refresh()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self.print(f"{self.description}: {self._amount()}, {self._times()}")

    def _amount(self) -> str:
        if self.total is None:
            return f"{self.done:g}"
        if self._counted:
            return f"{self.done:g}/{self.total:g}"
        return f"{self.done / self.total if self.total else 1:.0%}"

    def _times(self) -> str:
        elapsed = time.monotonic() - self._began
        times = f"elapsed {_clock(elapsed)}"
        if self.total is None:
            return times
        done, left = self.done - self._before, self.total - self.done
        return f"{times}, remaining {_clock(elapsed * left / done) if done > 0 else '?'}"


class _TextOf(ProgressColumn):
    """A column of text that never wraps."""

    def __init__(self, text: Any) -> None:
        super().__init__(Column(no_wrap=True))
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class EpochProgress(LightningProgressBar):
    """A line for each epoch of a fit, and on a terminal a bar of the whole fit below them.

    The line has the training's loss and accuracy, and the validation's accuracy and iterations, or
    what else a module logs to the progress bar, and fits into 80 columns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._began = self._drawn = 0.0
        self._first = 0
        self._validated = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _start(self, description: str, total: float | None, done: float = 0) -> None:
        self._stop()
        if self._enabled and is_terminal(sys.stdout):
            self._progress = Progress(
                total, done=done, description=description, counted=False, file=sys.stdout
            )

    def _stop(self, *_: Any, **__: Any) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    # ------------------------------------------------------------------------------- a fit

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._began, self._first = time.monotonic(), trainer.current_epoch
        self._start("training", self._epochs(trainer), done=trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._validated = False
        if self._progress is not None:
            self._progress.describe(_epoch(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Reading metrics of every batch would wait for the device each time.
        if self._progress is not None and time.monotonic() - self._drawn > 0.25:
            self._drawn = time.monotonic()
            metrics = trainer.progress_bar_metrics
            live = [form.format(metrics[name]) for name, form in _LIVE.items() if name in metrics]
            part = (batch_idx + 1) / trainer.num_training_batches
            self._progress.update(trainer.current_epoch + part, "  ".join(live))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        done, line = trainer.current_epoch + 1, self._line(trainer)
        if self._progress is not None:
            self._progress.print(line)
            self._progress.update(done)
        elif self._enabled:
            elapsed = time.monotonic() - self._began
            line += f"  elapsed {_clock(elapsed)}"
            if (epochs := self._epochs(trainer)) is not None:
                remaining = elapsed * max(epochs - done, 0) / (done - self._first)
                line += f", remaining {_clock(remaining)}"
            print(line, flush=True)

    on_train_end = _stop

    @staticmethod
    def _epochs(trainer: L.Trainer) -> float | None:
        """Number of epochs of the fit, or the part of one; None if unlimited."""
        limits: list[float] = (
            [trainer.max_epochs] if trainer.max_epochs and trainer.max_epochs > 0 else []
        )
        if trainer.max_steps > 0:
            limits.append(trainer.max_steps / trainer.num_training_batches)
        return min(limits, default=None)

    def _line(self, trainer: L.Trainer) -> str:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [  # of the modules here
            form.format(metrics[name])
            for name, form in _SHOWN.items()
            if name in metrics and (self._validated or not name.startswith("val/"))
        ]
        parts += [  # of others
            f"{name} {value:.4g}"
            for name, value in trainer.progress_bar_metrics.items()
            if name not in _SHOWN and not (parts and name in _OF_BATCHES)
        ]
        return "  ".join([_epoch(trainer), *parts])

    # ------------------------------------------------------ validation, test and prediction

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._start("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, *_: Any, **__: Any
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._validated = True
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop()

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start("prediction", sum(trainer.num_predict_batches))

    def _advance(self, *_: Any, **__: Any) -> None:
        if self._progress is not None:
            self._progress.advance()

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance()

    def on_test_end(self, *_: Any, **__: Any) -> None:
        self._stop()

    def on_predict_end(self, *_: Any, **__: Any) -> None:
        self._stop()

    def on_exception(self, *_: Any, **__: Any) -> None:
        self._stop()

    def teardown(self, *_: Any, **__: Any) -> None:
        self._stop()


# What a line of an epoch says, in this order.
_SHOWN = {
    "train/loss": "loss {:.4g}",
    "train/accuracy": "train {:.1%}",
    "val/accuracy": "val {:.2%}",
    "val/auc": "AUC {:.3f}",
    "val/f1": "F1 {:.3f}",
    "val/mae": "MAE {:.4g}",
    "val/r2": "R² {:.3f}",
    "val/pixel_error": "pixels {:.4f}",
    "val/iterations": "{:.1f} iterations",
}
# What the modules here log of the last batch, and what a bar shows of that.
_OF_BATCHES = ("loss", "acc", "iter", "res")
_LIVE = {"acc": "acc {:.2f}", "iter": "iter {:.1f}"}


def _epoch(trainer: L.Trainer) -> str:
    """The running epoch, counted from 1."""
    number = trainer.current_epoch + 1
    if not trainer.max_epochs or trainer.max_epochs < 0:
        return f"epoch {number}"
    return f"epoch {number:>{len(str(trainer.max_epochs))}}/{trainer.max_epochs}"
