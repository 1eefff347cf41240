"""The folder of a run, its newest checkpoint, and what wandb records there.

<root>/version_0/config.yaml, metrics.csv, checkpoints/, results.json, residuals.png, wandb/
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from hamdeq._checks import wrong
from hamdeq.training.checkpoint import read_checkpoint

__all__ = [
    "RunFolder",
    "check_wandb",
    "finish_wandb",
    "is_first_process",
    "named_checkpoint",
    "new_folder",
    "newest_checkpoint",
    "wandb_logger",
]


def new_folder(root: str | Path) -> Path:
    """A new folder ``version_N`` under root, N counting up.

    Raises:
        OSError: root cannot be written to.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"expected a folder that can be written, got {error.strerror!r}; give --run.root"
        raise OSError(error.errno, remedy, str(root)) from None
    taken = [int(p.name[8:]) for p in root.glob("version_*") if p.name[8:].isdigit()]
    number = max(taken, default=-1) + 1
    while True:
        folder = root / f"version_{number}"
        try:  # Another run may take the number first.
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def newest_checkpoint(root: str | Path, name: str = "last") -> Path:
    """The newest ``last.ckpt`` of the runs under root, or ``best.ckpt``.

    Raises:
        FileNotFoundError: no run under root has one.
    """
    found = Path(root).glob(f"version_*/checkpoints/{name}.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise FileNotFoundError(
            f"no checkpoint: expected {Path(root)}/version_*/checkpoints/{name}.ckpt; "
            "a run writes it at the end of its first epoch; give another folder with --run.root"
        )
    return newest


def named_checkpoint(path: str | None, root: str | Path) -> tuple[str | None, dict[str, Any]]:
    """The file of a checkpoint given by its path, as ``last`` or ``best``; and what it holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a file of bare weights, or damaged.
    """
    if path is None:
        return None, {}
    if path in ("last", "best"):
        path = str(newest_checkpoint(root, path))
    if not Path(path).is_file():
        expected = "a checkpoint file, 'last' or 'best'"
        raise wrong("--ckpt_path", expected, path, kind=FileNotFoundError)
    if Path(path).suffix == ".safetensors":
        remedy = "read it by load_from_checkpoint, and go on in Python"
        got = f"{path}, which holds weights alone"
        raise wrong("--ckpt_path", "a checkpoint of Lightning", got, remedy)
    return path, read_checkpoint(path)


def is_first_process() -> bool:
    """Return True where no other process has the run folder in its care."""
    return not int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


class RunFolder:
    """The folder of a new run, which goes again if the run is refused before it has any result."""

    def __init__(self, root: str | Path) -> None:
        self._made: list[Path] = []
        # Further processes write nothing. Those that Lightning starts know the first one's folder;
        # those that torchrun or a cluster starts are told of its checkpoints by Lightning.
        if not is_first_process():
            self.path: Path = Path(os.environ.get("HAMDEQ_RUN_FOLDER", str(root)))
            return
        root = Path(root)
        self._made = [path for path in (root, *root.parents) if not path.exists()]
        self.path = new_folder(root)
        os.environ["HAMDEQ_RUN_FOLDER"] = str(self.path)

    def discard(self) -> None:
        """Remove the folder, and those made for it, unless it holds a result."""
        if not is_first_process() or not self.path.is_dir():
            return
        found = {path.name for path in self.path.iterdir()}
        if not found <= {"config.yaml", "wandb"}:
            return
        if "wandb" in found:
            import wandb

            wandb.finish(exit_code=1)
        shutil.rmtree(self.path)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # another run is there
                return


def wandb_logger(folder: Path, *, project: str, online: bool) -> WandbLogger:
    """wandb's logger in the run folder; a resumed run keeps its id."""
    runs = sorted(folder.glob("wandb/*run-*"))
    run_id = runs[-1].name.rsplit("-", 1)[-1].removesuffix(".wandb") if runs else None
    if not online:
        # The run's own last lines say where its files are and how to upload them.
        os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        name=f"{folder.parent.name}/{folder.name}",
        # Absolute: the process that writes may have been started in another folder.
        save_dir=folder.resolve(),
        project=project,
        id=run_id,
        offline=not online,
        resume="allow" if run_id and online else None,
    )
    # Lightning always hands over this argument, of which wandb always warns.
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)
    return logger


@contextmanager
def finish_wandb() -> Iterator[None]:
    """Finish wandb's run of the block, which a later run of this process would go on with."""

    def present() -> Any:
        return getattr(sys.modules.get("wandb"), "run", None)

    before, failed = present(), True
    try:
        yield
        failed = False
    finally:
        if (run := present()) is not None and run is not before:
            run.finish(exit_code=int(failed))


def check_wandb() -> None:
    """Log in to wandb; on a terminal it asks for the key where there is none.

    Raises:
        ValueError: there is no key, and nobody to ask.
    """
    import wandb
    from wandb.errors import Error

    try:
        wandb.login()
    except Error as error:
        said = " ".join(str(error).split())
        remedy = f"run `wandb login`, or set WANDB_API_KEY, or record offline ({said})"
        raise wrong("wandb online", "an API key of wandb", "none", remedy) from None
