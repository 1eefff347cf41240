"""The command line of the search."""

from hamdeq.experiments.hyperparameters.cli import main

if __name__ == "__main__":
    main()
