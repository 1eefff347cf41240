"""``python -m hamdeq.training``: the same as the command ``hamdeq``."""

from hamdeq.__main__ import main

if __name__ == "__main__":
    main()
