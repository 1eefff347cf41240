"""MNIST, from its original files."""

from __future__ import annotations

import math
import os
import socket
import struct
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

from hamdeq._checks import require, wrong
from hamdeq._torchvision import mnist_dataset
from hamdeq.data.modules import TensorDataModule

__all__ = ["MNIST_FILES", "MNISTDataModule"]

MNIST_FILES = tuple(
    f"{split}-{part}-ubyte"
    for split in ("train", "t10k")
    for part in ("images-idx3", "labels-idx1")
)


class MNISTDataModule(TensorDataModule):
    """MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels, read by torchvision.

    Args:
        root: folder that contains `MNIST/raw`; `None` takes the environment variable
            `HAMDEQ_DATA`, or `data` where it is not set.
        download: download missing files.
        batch_size, eval_batch_size, val_size, seed, shuffle: as of :class:`TensorDataModule`.
    """

    image_shape: tuple[int, int] = (28, 28)
    n_classes = 10

    def __init__(
        self,
        root: str | Path | None = None,
        download: bool = True,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_size: int = 5000,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed, shuffle)
        self.root: Path = Path(root or os.environ.get("HAMDEQ_DATA") or "data").expanduser()
        self.raw: Path = self.root / "MNIST" / "raw"
        self.download = download

    def prepare_data(self) -> None:
        """Download the files if some are missing, and check them.

        Raises:
            FileNotFoundError: files are missing and cannot be downloaded.
            ValueError: a file is truncated or not of its format.
        """
        reason = "download=False"
        if self.download and self._missing():
            made = [path for path in (self.raw, *self.raw.parents) if not path.exists()]
            timeout = socket.getdefaulttimeout()
            # Without a limit, urlopen waits minutes for a server that does not answer.
            socket.setdefaulttimeout(10.0)
            try:
                mnist_dataset()(self.root, download=True)
            except (RuntimeError, OSError, HTTPException) as error:
                reason = f"download failed: {(str(error).splitlines() or [''])[-1]}"
                _remove_empty(made)
            finally:
                socket.setdefaulttimeout(timeout)
        self._check_files(reason)

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read the files; bytes 0..255 become [0, 1]. Raises as `prepare_data` does."""
        self._check_files("not downloaded by load(): call prepare_data()")
        train, test = (mnist_dataset()(self.root, train=train) for train in (True, False))
        images = (split.data.flatten(1).float().div_(255) for split in (train, test))
        return next(images), train.targets, next(images), test.targets

    def _missing(self) -> list[str]:
        return [name for name in MNIST_FILES if not (self.raw / name).is_file()]

    def _check_files(self, reason: str) -> None:
        if missing := self._missing():
            raise wrong(
                "MNIST",
                f"its files in {self.raw.absolute()}",
                f"no {', '.join(missing)} ({reason})",
                f"put {', '.join(MNIST_FILES)} there (with download=True also as .gz), or set "
                "HAMDEQ_DATA to the folder that contains MNIST/raw, or run on the embedded digits "
                "instead: python train.py fit --config configs/digits.yaml",
                kind=FileNotFoundError,
            )
        for name in MNIST_FILES:
            _check_idx(self.raw / name)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for nothing, from the innermost on."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it was not made, or has something in it
            return


def _check_idx(path: Path) -> None:
    """Compare header and size of an IDX file, where torchvision would fail on an assertion."""

    def check(holds: bool, expected: str, got: object) -> None:
        remedy = "replace it by an intact copy, or delete it to have it downloaded again"
        require(holds, str(path), expected, got, remedy)

    magic, n_dims = (2051, 3) if "idx3" in path.name else (2049, 1)
    header_size, size = 4 * (1 + n_dims), path.stat().st_size
    with path.open("rb") as file:
        header = file.read(header_size)
    check(len(header) == header_size, f"an IDX header of {header_size} bytes", f"{size} bytes")
    found, *shape = struct.unpack(f">{1 + n_dims}I", header)
    check(found == magic, f"the IDX magic number {magic}", found)
    wanted = header_size + math.prod(shape)
    check(size == wanted, f"{wanted} bytes, for {shape} values", size)
    check(0 not in shape, "at least one sample", shape)
