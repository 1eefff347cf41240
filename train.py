"""Train a memory: ``python train.py fit --config digits``; the command ``hamdeq`` does the same."""

from hamdeq.__main__ import main

if __name__ == "__main__":
    main()
