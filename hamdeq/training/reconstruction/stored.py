"""A memory that begins with examples stored in it."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from hamdeq._checks import instance, require, wrong
from hamdeq.lagrangians import Identity
from hamdeq.synapses import Bias, Dense
from hamdeq.training.reconstruction.masks import generator
from hamdeq.training.reconstruction.reconstructor import HAMReconstructor

__all__ = ["StoredExamples"]


class StoredExamples(Callback):
    """Starts the training of a :class:`HAMReconstructor` from a memory of some training examples.

    Each neuron of a softmax layer gets one of them: the image x and the label y as its weights, and
    the bias −½‖x‖² − ½‖y‖². Its field is then highest for the example nearest to what is observed,
    and the answer is attention over examples. A run that is resumed keeps what it has learned.

    Args:
        layer: the layer's name. It is connected by `Dense` to layers of images and labels with
            `Identity` Lagrangians, and has a `Bias`.
    """

    def __init__(self, layer: str = "memories") -> None:
        self.layer = layer

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = instance("StoredExamples", pl_module, HAMReconstructor)
        if module.images_seen:
            return
        # Lightning sets the attribute without declaring it.
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not hasattr(data, "split"):
            expected = "a data module with split('train'), such as hamdeq.data.MNISTDataModule"
            got, remedy = type(data).__name__, "give it as datamodule="
            raise wrong("StoredExamples", expected, got, remedy, kind=TypeError)
        self.store(module, *data.split("train"))

    @torch.no_grad()
    def store(self, module: HAMReconstructor, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Store some of these examples, drawn with the module's seed.

        Raises:
            ValueError: no such layer, fewer examples than it has neurons, or connections of it
                that cannot hold an example.
        """
        ham = module.deq.ham
        ham.check_names([self.layer])
        n = math.prod(ham.layer(self.layer).shape)
        expected = f"at most {len(images)} neurons in {self.layer!r}, as many as training examples"
        require(n <= len(images), "StoredExamples", expected, n, "make the layer smaller")
        # Not a seed that masks are drawn with.
        chosen = torch.randperm(len(images), generator=generator(module.seed, 3, 0))[:n]
        chosen = chosen.to(images.device)
        examples, _ = module.ask(images[chosen], labels[chosen])
        biases = []
        for layers, synapse in ham.connections:
            if self.layer not in layers:
                continue
            (other,) = [name for name in layers if name != self.layer] or [None]
            if isinstance(synapse, Bias):
                biases.append(synapse.bias)
            elif (
                isinstance(synapse, Dense)
                and isinstance(synapse.weight, nn.Parameter)
                and other in examples
                and isinstance(ham.layer(other).lagrangian, Identity)
            ):
                x = examples[other].to(synapse.weight)
                synapse.weight.copy_(x if layers[0] == self.layer else x.T)
            else:
                expected = (
                    f"only a Bias on {self.layer!r}, and Dense to layers of {list(examples)} "
                    "whose neurons are Identity(), with plain weights"
                )
                raise wrong("StoredExamples", expected, f"{type(synapse).__name__} {layers}")
        remedy = f"connect (({self.layer!r},), Bias({n}))"
        expected = f"one Bias on {self.layer!r}"
        require(len(biases) == 1, "StoredExamples", expected, len(biases), remedy)
        biases[0].copy_(-0.5 * sum(x.square().sum(1) for x in examples.values()))
