"""The command ``hamdeq``, also as ``python -m hamdeq``: ``hamdeq fit --config digits``."""

from hamdeq._torchvision import check_torchvision


def main() -> None:
    """Run the command line; say in one line which packages it lacks."""
    try:
        check_torchvision()  # before Lightning imports it, and fails with a riddle
        from hamdeq.training.cli.main import main as command_line
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"error: expected the packages of the extra 'train', got no {error.name}; "
            "pip install 'hamdeq[train]'"
        ) from None
    except ImportError as error:
        raise SystemExit(f"error: {error}") from None
    command_line()


if __name__ == "__main__":
    main()
