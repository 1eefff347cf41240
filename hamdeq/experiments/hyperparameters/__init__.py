"""The papers' search for hyperparameters: ``python -m hamdeq.experiments.hyperparameters``.

A dense associative memory learns random states, with every learning rate and every inverse
temperature of a grid, in the original formulation and in the normalised one; measured is the
distance of the states from those that recall ends with.

Source: McAlister et al., "Improved Robustness and Hyperparameter Selection in the Dense Associative
Memory" (2024), section 5 and appendix A.
"""

from hamdeq.experiments.hyperparameters.protocol import Protocol, axes, papers_maps
from hamdeq.experiments.hyperparameters.results import Results, load, run

__all__ = ["Protocol", "Results", "axes", "load", "papers_maps", "run"]
