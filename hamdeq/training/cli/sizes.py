"""Check that a memory fits the data, before anything is run, or written."""

from __future__ import annotations

import math
from collections.abc import Iterator

import lightning as L

from hamdeq._checks import require
from hamdeq.chn import CHNDEQ
from hamdeq.data import ArrayDataModule, TensorDataModule
from hamdeq.memories import FeedForward
from hamdeq.training.equilibrium import EquilibriumModule
from hamdeq.training.memory_classifier import MemoryClassifier

__all__ = ["check_sizes"]


def check_sizes(model: L.LightningModule, data: L.LightningDataModule) -> None:
    """Compare the neurons of inputs and classes with pixels and classes of the data.

    Modules and data of other kinds are let pass.

    Raises:
        ValueError: a number of neurons does not fit.
    """
    wanted: list[tuple[int, str]] = []
    if isinstance(data, ArrayDataModule):
        outputs = (data.n_targets, "target") if data.classes is None else (data.n_classes, "class")
        wanted = [(data.n_features, f"feature of the inputs {data.input_shape}"), outputs]
    elif isinstance(data, TensorDataModule) and hasattr(data, "image_shape"):
        wanted = [(math.prod(data.image_shape), f"pixel of the images {data.image_shape}")]
        wanted += [(data.n_classes, "class")] * hasattr(data, "n_classes")
    for (size, what), (got, where, of, option) in zip(wanted, _neurons(model), strict=False):
        expected = f"{size} neurons {of}, one for each {what} of {type(data).__name__}"
        require(got == size, where, expected, got, f"change --{option}, or the data")


def _neurons(model: L.LightningModule) -> Iterator[tuple[int, str, str, str]]:
    """Numbers of inputs and of classes; in what object, which of its neurons, set by what."""
    if isinstance(model, EquilibriumModule):
        where = "model.deq.chn" if isinstance(model.deq, CHNDEQ) else "model.deq.ham"
        layers = model.deq.ham.layers
        # What of a chain is set by its sizes is of any other graph set by its neurons.
        chain = ["input", *(f"hidden{i}" for i in range(1, len(layers) - 1)), "output"]
        option = f"{where}.sizes" if [*layers] == chain else f"{where}.neurons"
        for layer in (model.input, model.output):
            count = math.prod(model.deq.ham.layer(layer).shape)
            yield count, where, f"in the layer {layer!r}", option
    elif isinstance(model, MemoryClassifier):
        memory = model.memory
        where = "model.memory" + ".memory" * isinstance(memory, FeedForward)
        yield memory.inputs, where, "of inputs", f"{where}.size"
        yield memory.classes, where, "of classes", f"{where}.classes"
