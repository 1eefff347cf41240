"""The latch task: a class that is told once, at the beginning of a long sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hamdeq._checks import integer
from hamdeq.data import InMemoryDataModule
from hamdeq.data.modules import Split

__all__ = ["LatchDataModule"]


class LatchDataModule(InMemoryDataModule):
    """Sequences of one-hot symbols whose first symbol, 0 or 1, is their class.

    All other symbols are drawn evenly from those that name no class, so that nothing else in a
    sequence tells its class (Hochreiter and Mozer 2001; Ramsauer et al. 2021 with these sizes).

    Args:
        batch_size: Sequences per training batch.
        eval_batch_size: Sequences per batch of validation, test and prediction.
        train_size: Training sequences.
        val_size: Sequences of the validation split; 0 for no validation.
        test_size: Sequences of the test split.
        length: Symbols per sequence.
        n_symbols: Symbols to draw from, the two that name a class among them.
        seed: Seed of the sequences and of the order of the training batches.

    Shape:
        inputs `(n, length, n_symbols)`; labels `(n,)`.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 1024,
        train_size: int = 3072,
        val_size: int = 1024,
        test_size: int = 1024,
        length: int = 32,
        n_symbols: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, seed)
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            integer(name, size, remedy="give a number of sequences")
        integer("length", length, remedy="give a number of symbols")
        integer("n_symbols", n_symbols, least=3, remedy="two name a class, others fill")
        self.train_size = train_size
        self.test_size = test_size
        self.length = length
        self.n_symbols = n_symbols

    def make_splits(self) -> dict[str, Split]:
        """Draw the sequences."""
        generator = torch.Generator().manual_seed(self.seed)
        sizes = [self.train_size, self.val_size, self.test_size]
        n = sum(sizes)
        labels = torch.randint(2, (n,), generator=generator)
        symbols = torch.randint(2, self.n_symbols, (n, self.length), generator=generator)
        symbols[:, 0] = labels
        inputs = F.one_hot(symbols, self.n_symbols).float()
        parts = zip(inputs.split(sizes), labels.split(sizes), strict=True)
        return dict(zip(("train", "val", "test"), parts, strict=True))


if __name__ == "__main__":
    from hamdeq.experiments.options import describe_data

    describe_data(
        "latch", "Sequences whose first symbol is their class, for layers that remember it."
    )
