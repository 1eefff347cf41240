"""Pictures of memories: how they settle, what they hold (extra ``train``: matplotlib).

Each function returns a matplotlib ``Figure`` and takes a ``title``; one that draws a single panel
draws it into ``axes`` where they are given. Colours are told apart with any kind of colour vision,
and what has a colour has a mark, a dash or a number too.
"""

from hamdeq.plots.basins import basins
from hamdeq.plots.descent import energy_descent
from hamdeq.plots.gallery import retrieval_gallery
from hamdeq.plots.settling import residual_histogram
from hamdeq.plots.time import trajectory_curves
from hamdeq.plots.weights import weight_images

__all__ = [
    "basins",
    "energy_descent",
    "residual_histogram",
    "retrieval_gallery",
    "trajectory_curves",
    "weight_images",
]
