"""How fast memories settle: the papers' tables, for any models, solvers, splittings and sizes.

    python -m hamdeq.experiments.convergence configs/mnist/ham*.yaml --seeds 3 --data.root FOLDER

Memories are trained, or taken from runs that there are, and their test images settle under every
setting asked for. `plan` says what is to be measured, `measure` measures it, `store` keeps each
result as soon as there is one, `report` and `pictures` show them.
"""

from hamdeq.experiments.convergence.measure import Measurement, measure
from hamdeq.experiments.convergence.plan import Plan, Setting, Source
from hamdeq.experiments.convergence.report import table

__all__ = ["Measurement", "Plan", "Setting", "Source", "measure", "table"]
