"""``python -m hamdeq.experiments.cost``."""

from hamdeq.experiments.cost.measure import main

if __name__ == "__main__":
    main()
