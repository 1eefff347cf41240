"""Bit patterns: bags of which half hide one of a few signals among random bits."""

from __future__ import annotations

import torch
from torch import Tensor

from hamdeq._checks import integer, require
from hamdeq.data import InMemoryDataModule
from hamdeq.data.modules import Split

__all__ = ["BitPatternDataModule"]


class BitPatternDataModule(InMemoryDataModule):
    """Bags of random bit patterns; a positive bag has one of the signal patterns in one place.

    The signals are drawn once. Everything else in a bag is drawn evenly from the patterns that
    are neither a signal nor all zeros. Half of each split is positive, each positive bag with one
    signal, in a place drawn evenly (the sizes of Ramsauer et al. 2021).

    Args:
        batch_size: Bags per training batch.
        eval_batch_size: Bags per batch of validation, test and prediction.
        train_size: Training bags.
        val_size: Bags of the validation split; 0 for no validation.
        test_size: Bags of the test split.
        n_instances: Patterns per bag.
        n_bits: Bits per pattern, at most 16.
        n_signals: Signal patterns, fewer than there are patterns that are not all zeros.
        seed: Seed of the signals, of the bags, and of the order of the training batches.

    Attributes:
        signals: The signal patterns `(n_signals, n_bits)`, as soon as the data is set up.

    Shape:
        inputs `(n, n_instances, n_bits)`, 0 or 1, floating; labels `(n,)`.
    """

    signals: Tensor

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        train_size: int = 1536,
        val_size: int = 512,
        test_size: int = 512,
        n_instances: int = 16,
        n_bits: int = 8,
        n_signals: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed)
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            integer(name, size, remedy="give a number of bags")
        integer("n_instances", n_instances, remedy="give a number of patterns")
        require(2 <= n_bits <= 16, "n_bits", "2 to 16", n_bits, "all patterns are listed")
        most = 2**n_bits - 2
        remedy = "leave a pattern for the background, or raise n_bits"
        require(1 <= n_signals <= most, "n_signals", f"1 to {most}", n_signals, remedy)
        self.train_size = train_size
        self.test_size = test_size
        self.n_instances = n_instances
        self.n_bits = n_bits
        self.n_signals = n_signals

    def make_splits(self) -> dict[str, Split]:
        """Draw the signals, then the bags."""
        generator = torch.Generator().manual_seed(self.seed)
        # A pattern is the number that its bits write; 0 is left out.
        order = 1 + torch.randperm(2**self.n_bits - 1, generator=generator)
        signals, others = order[: self.n_signals], order[self.n_signals :]
        self.signals = self._bits(signals)
        sizes = {"train": self.train_size, "val": self.val_size, "test": self.test_size}
        return {name: self._draw(n, signals, others, generator) for name, n in sizes.items()}

    def _draw(self, n: int, signals: Tensor, others: Tensor, generator: torch.Generator) -> Split:
        labels = (torch.arange(n) % 2)[torch.randperm(n, generator=generator)]
        bags = others[torch.randint(len(others), (n, self.n_instances), generator=generator)]
        place = torch.randint(self.n_instances, (n,), generator=generator)
        signal = signals[torch.randint(len(signals), (n,), generator=generator)]
        positive = labels.nonzero().flatten()
        bags[positive, place[positive]] = signal[positive]
        return self._bits(bags), labels

    def _bits(self, patterns: Tensor) -> Tensor:
        return (patterns[..., None] >> torch.arange(self.n_bits) & 1).float()


if __name__ == "__main__":
    from hamdeq.experiments.options import describe_data

    describe_data("bit_patterns", "Bags of random bits, half of which hide one of a few signals.")
