"""Speed of convergence: the papers' tables, for any models, solvers, splittings and sizes.

    python -m hamdeq.experiments.convergence configs/mnist/ham*.yaml --seeds 3 --data.root FOLDER

Memories are trained, or taken from runs that exist, and their test images converge under every
setting asked for. `plan` lists the measurements, `measure` takes one, `store` keeps each as soon as
it is taken, `report` makes tables and pictures.
"""

from hamdeq.experiments.convergence.measure import Measurement, measure
from hamdeq.experiments.convergence.plan import Setting, Source, plan
from hamdeq.experiments.convergence.report import table

__all__ = ["Measurement", "Setting", "Source", "measure", "plan", "table"]
