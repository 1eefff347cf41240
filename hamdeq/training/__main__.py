"""``python -m hamdeq.training``: the command line, where ``train.py`` is not at hand."""

from hamdeq.training.cli import main

if __name__ == "__main__":
    main()
