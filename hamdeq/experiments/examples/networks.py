"""Networks of the examples: a layer that pools instances, and a linear read-out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hamdeq._checks import wrong

__all__ = ["DigitEncoder", "GatedAttention", "LastState", "MeanPooling", "Readout"]


class Readout(nn.Module):
    """One logit from a set or sequence of instances: w · vec(layer(encoder(x), padding)) + b.

    Args:
        layer: from instances `(batch, instances, k)`, and a mask that is True for padding where
            the data has one, to features `(batch, ...)`: a layer of `hamdeq.nn`, or one of this
            module.
        features: Numbers that the layer gives for each sample.
        encoder: From instances `(n, ...)`, each by itself, to `(n, k)`; default none. Padding is
            not encoded.
        average: Read the mean of the layer's output over the instances, so that their order does
            not matter, instead of all of it.

    Shape:
        instances `(batch, instances, ...)`; padding `(batch, instances)`, bool; logits `(batch,)`.

    Raises:
        ValueError: the layer gives another number of features.
    """

    def __init__(
        self,
        layer: nn.Module,
        features: int,
        encoder: nn.Module | None = None,
        average: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = layer
        self.mean: MeanPooling | None = MeanPooling() if average else None
        self.linear: nn.Linear = nn.Linear(features, 1)

    def forward(self, instances: Tensor, padding: Tensor | None = None) -> Tensor:
        if self.encoder is not None:
            instances = self._encode(self.encoder, instances, padding)
        features = self.layer(instances, padding) if padding is not None else self.layer(instances)
        if self.mean is not None:
            features = self.mean(features, padding)
        features = features.flatten(1)
        if features.shape[1] != self.linear.in_features:
            got, layer = features.shape[1], type(self.layer).__name__
            expected = f"{self.linear.in_features} numbers a sample"
            raise wrong("features", expected, f"{got} from {layer}", f"give features={got}")
        return self.linear(features).squeeze(1)

    @staticmethod
    def _encode(encoder: nn.Module, instances: Tensor, padding: Tensor | None) -> Tensor:
        if padding is None:
            return encoder(instances.flatten(0, 1)).unflatten(0, instances.shape[:2])
        encoded = encoder(instances[~padding])
        full = encoded.new_zeros(*padding.shape, encoded.shape[1])
        return full.masked_scatter(~padding[..., None], encoded)


class DigitEncoder(nn.Module):
    """Convolutional features of 28 × 28 images, as in LeNet: convolve and pool twice, then linear.

    Args:
        output_size: Features per image.
        channels: Channels of the two convolutions.
        dropout: Probability of setting a feature of the convolutions to zero, in training.
        shift: Pixels by which each image is moved at most, down or up and right or left, in
            training.

    Shape:
        images `(n, 28, 28)`; features `(n, output_size)`, at least 0.
    """

    def __init__(
        self,
        output_size: int,
        channels: tuple[int, int] = (20, 50),
        dropout: float = 0.0,
        shift: int = 0,
    ) -> None:
        super().__init__()
        first, second = channels
        self.shift = shift
        self.layers: nn.Sequential = nn.Sequential(
            nn.Conv2d(1, first, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(second * 4 * 4, output_size),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.shift:
            images = self._moved(images)
        return self.layers(images[:, None])

    def _moved(self, images: Tensor) -> Tensor:
        n, most = len(images), self.shift
        padded = nn.functional.pad(images, (most,) * 4)
        windows = padded.unfold(1, images.shape[1], 1).unfold(2, images.shape[2], 1)
        down, right = torch.randint(2 * most + 1, (2, n), device=images.device)
        return windows[torch.arange(n, device=images.device), down, right]


class MeanPooling(nn.Module):
    """The mean of the instances: z = Σ h_k / K.

    Shape:
        instances `(batch, K, k)`; padding `(batch, K)`, True for what to leave out; z `(batch, k)`.
    """

    def forward(self, instances: Tensor, padding: Tensor | None = None) -> Tensor:
        if padding is None:
            return instances.mean(1)
        weights = (~padding).to(instances.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("bk,bki->bi", weights, instances)


class GatedAttention(nn.Module):
    """Pooling by gated attention (Ilse et al. 2018, equation 9).

        z = Σ a_k h_k,    a = softmax_k(w · (tanh(V h_k) ⊙ σ(U h_k)))

    Args:
        input_size: Features per instance.
        hidden_size: Rows of V and U.

    Shape:
        instances `(batch, K, input_size)`; padding `(batch, K)`, True for what to leave out, not
        all of a sample; z `(batch, input_size)`.
    """

    def __init__(self, input_size: int, hidden_size: int = 128) -> None:
        super().__init__()
        self.content: nn.Linear = nn.Linear(input_size, hidden_size)
        self.gate: nn.Linear = nn.Linear(input_size, hidden_size)
        self.score: nn.Linear = nn.Linear(hidden_size, 1, bias=False)  # softmax ignores a bias

    def forward(self, instances: Tensor, padding: Tensor | None = None) -> Tensor:
        hidden = self.content(instances).tanh() * self.gate(instances).sigmoid()
        scores = self.score(hidden).squeeze(2)
        if padding is not None:
            scores = scores.masked_fill(padding, -torch.inf)
        return torch.einsum("bk,bki->bi", scores.softmax(1), instances)


class LastState(nn.Module):
    """The hidden state of a one-layer LSTM after the last of a sequence.

    Args:
        input_size: Features per step.
        hidden_size: Features of the state.

    Shape:
        sequence `(batch, steps, input_size)`; state `(batch, hidden_size)`.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.lstm: nn.LSTM = nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.lstm(sequence)[1][0][-1]
