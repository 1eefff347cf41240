"""Pictures of memories: how they settle, what they hold (extra ``train``: matplotlib)."""

from hamdeq.plots.binary import binary_capacity
from hamdeq.plots.capacity import capacity_curves
from hamdeq.plots.gallery import retrieval_gallery
from hamdeq.plots.heat import HeatMap, heat_maps
from hamdeq.plots.settling import residual_histogram

__all__ = [
    "HeatMap",
    "binary_capacity",
    "capacity_curves",
    "heat_maps",
    "residual_histogram",
    "retrieval_gallery",
]
