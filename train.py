"""Train a memory: ``python train.py fit --config configs/digits.yaml``."""

from hamdeq._torchvision import check_torchvision

if __name__ == "__main__":
    try:
        check_torchvision()  # before Lightning imports it, and fails with a riddle
    except ImportError as error:
        raise SystemExit(f"error: {error}") from None
    from hamdeq.training.cli import main

    main()
