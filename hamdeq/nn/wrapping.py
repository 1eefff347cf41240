"""What the layers that bring learned patterns to a ``Hopfield`` of their own have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from hamdeq._recorded import Recorded
from hamdeq.nn.core import Patterns
from hamdeq.nn.getters import Getters
from hamdeq.nn.hopfield import Hopfield
from hamdeq.nn.layer import Associated
from hamdeq.solvers import Solution

__all__ = ["Wrapping"]


class Wrapping(Recorded, Getters, nn.Module):
    """A ``Hopfield`` some of whose inputs are learned.

    Attributes:
        hopfield: that layer.
        quantity: number of learned patterns.
    """

    hopfield: Hopfield
    quantity: int

    @abstractmethod
    def _input(self, input: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The three inputs of ``hopfield``."""

    def associate(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Associated:
        """See :meth:`Hopfield.associate`."""
        return self.hopfield.associate(
            self._input(input), stored_pattern_padding_mask, association_mask
        )

    def get_association_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Hopfield.get_association_matrix`."""
        return self.hopfield.get_association_matrix(
            self._input(input), stored_pattern_padding_mask, association_mask
        )

    def get_projected_pattern_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Hopfield.get_projected_pattern_matrix`."""
        return self.hopfield.get_projected_pattern_matrix(
            self._input(input), stored_pattern_padding_mask, association_mask
        )

    def project(self, input: Tensor | tuple[Tensor, Tensor]) -> Patterns:
        """See :meth:`Hopfield.project`."""
        return self.hopfield.project(self._input(input))

    def energy(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        steps: int = 0,
    ) -> Tensor:
        """See :meth:`Hopfield.energy`."""
        return self.hopfield.energy(
            self._input(input), stored_pattern_padding_mask, association_mask, steps=steps
        )

    def settle(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Solution:
        """See :meth:`Hopfield.settle`."""
        return self.hopfield.settle(
            self._input(input), stored_pattern_padding_mask, association_mask
        )

    def _learned(self, size: int, trainable: bool, factory: dict[str, Any]) -> nn.Parameter:
        """Learned patterns, one row each: ``(1, quantity, size)``, or with the batch second."""
        lead = (1, self.quantity) if self.batch_first else (self.quantity, 1)
        return nn.Parameter(torch.empty(*lead, size, **factory), requires_grad=trainable)

    def _for_all(self, weights: Tensor, like: Tensor) -> Tensor:
        """Learned patterns as an input beside ``like``: one for all samples, or without a batch."""
        return weights if like.dim() == 3 else weights.squeeze(0 if self.batch_first else 1)
