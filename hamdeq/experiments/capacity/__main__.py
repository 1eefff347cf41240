"""``python -m hamdeq.experiments.capacity``."""

from hamdeq.experiments.capacity.attention import main

if __name__ == "__main__":
    main()
