"""Pictures of memories: how they converge, what they store (extra ``train``: matplotlib).

Each function returns a matplotlib ``Figure`` and takes a ``title``; one that draws a single panel
draws it into ``axes`` where they are given. Colours are told apart with any kind of colour vision,
and what has a colour has a mark, a dash or a number too.
"""

from hamdeq.plots.basins import basins
from hamdeq.plots.curves import (
    energy_descent,
    legendre_curves,
    residual_histogram,
    trajectory_curves,
)
from hamdeq.plots.images import retrieval_gallery, weight_images

__all__ = [
    "basins",
    "energy_descent",
    "legendre_curves",
    "residual_histogram",
    "retrieval_gallery",
    "trajectory_curves",
    "weight_images",
]
