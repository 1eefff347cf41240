"""Pictures of memories: how they settle, what they hold (extra ``train``: matplotlib)."""

from hamdeq.plots.binary import binary_capacity
from hamdeq.plots.capacity import capacity_curves
from hamdeq.plots.cost import cost_curves, growth
from hamdeq.plots.descent import energy_descent
from hamdeq.plots.gallery import retrieval_gallery
from hamdeq.plots.heat import HeatMap, heat_maps
from hamdeq.plots.recall import recall_gallery
from hamdeq.plots.settling import residual_histogram
from hamdeq.plots.time import trajectory_curves

__all__ = [
    "HeatMap",
    "binary_capacity",
    "capacity_curves",
    "cost_curves",
    "energy_descent",
    "growth",
    "heat_maps",
    "recall_gallery",
    "residual_histogram",
    "retrieval_gallery",
    "trajectory_curves",
]
