"""torchvision, if it is there and fits torch; free of lightning, so as to be asked before it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torchvision.datasets import MNIST


def check_torchvision() -> str | None:
    """Import torchvision and say in one line what to do when it does not fit torch.

    torchvision registers its operators with torch when it is imported, so a version built for
    another torch fails there, and takes with it every package that imports it (lightning does).

    Returns:
        torchvision's version, or `None` when it is not installed.

    Raises:
        ImportError: torchvision is installed but cannot be used with this torch.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise  # one of torchvision's own dependencies, which the message already names
        return None
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        try:
            installed = version("torchvision")
        except PackageNotFoundError:
            installed = "(unknown version)"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportError(
            f"torchvision {installed} cannot be used with torch {torch.__version__}: install a "
            f"matching pair, e.g. pip install --upgrade torch torchvision ({reason})"
        ) from None
    return torchvision.__version__


def mnist_dataset() -> type[MNIST]:
    """torchvision's reader of MNIST.

    Raises:
        ImportError: torchvision is not installed, or cannot be used with this torch.
    """
    if check_torchvision() is None:
        raise ImportError("expected torchvision to read MNIST, got none: pip install torchvision")
    from torchvision.datasets import MNIST

    return MNIST
