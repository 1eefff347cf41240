"""``python -m hamdeq.experiments``: which experiments there are."""

from __future__ import annotations

_EXPERIMENTS = {
    "convergence": "how fast memories converge, for any models, solvers and sizes",
    "convergence.factor": "how much faster even-odd steps are, by several ways of counting",
    "compare": "train several configurations with several seeds, and compare their results",
    "hyperparameters": "dense associative memories over learning rate and temperature",
    "hyperparameters.classification": "the same for classes of MNIST",
    "capacity": "how many patterns a modern Hopfield network stores",
    "capacity.binary": "how many patterns binary memories store",
    "cost": "time and memory of memories that grow",
}


def main() -> None:
    """Print the list."""
    print("usage: python -m hamdeq.experiments.NAME [options]; with --help it lists its options\n")
    width = max(map(len, _EXPERIMENTS))
    for name, what in _EXPERIMENTS.items():
        print(f"  {name:<{width}} {what}")


if __name__ == "__main__":
    main()
