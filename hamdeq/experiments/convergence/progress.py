"""A bar of all that there is to do, whoever does it: what is done is read off the folder."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import yaml

from hamdeq.experiments.convergence.configuration import epochs_of
from hamdeq.experiments.convergence.plan import Source
from hamdeq.training.progress import Progress as Bar

__all__ = ["Progress"]


class Progress:
    """Epochs of trainings and measurements, with the time left at the mean rate so far.

    Args:
        trainings: what is trained.
        measurements: the files of what is measured.
    """

    def __init__(self, trainings: list[Source], measurements: list[Path]) -> None:
        self._epochs = {source: _epochs(source) for source in trainings}
        self._measurements = set(measurements)
        self._done = 0
        total = sum(self._epochs.values()) + len(self._measurements)
        self._bar = Bar(total, done=self._count())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.close()

    @property
    def total(self) -> int:
        """Epochs and measurements."""
        return int(self._bar.total or 0)

    @property
    def done(self) -> int:
        """Of these, as of the last look."""
        return int(self._bar.done)

    def doing(self, what: str) -> None:
        """Say what is done now."""
        self.look()
        self._bar.describe(what)

    def look(self) -> None:
        """Move on to where the folder is."""
        self._bar.update(self._count())

    def _count(self) -> int:
        # What is finished stays so, and is not asked for again.
        for path in [path for path in self._measurements if path.exists()]:
            self._measurements.remove(path)
            self._done += 1
        running = 0
        for source, epochs in [*self._epochs.items()]:
            if source.folder is not None:
                self._done += self._epochs.pop(source)
            elif source.series is not None and source.seed is not None:
                running += min(source.series.epochs(source.seed), epochs)
        return self._done + running


def _epochs(source: Source) -> int:
    assert source.series is not None
    try:
        config = yaml.safe_load(source.series.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config = None  # its training will fail, and say why
    return epochs_of(config if isinstance(config, dict) else {}, source.series.options)
