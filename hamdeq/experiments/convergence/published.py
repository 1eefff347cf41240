"""What Goemaere et al. have published of these models on MNIST: iterations and accuracy.

Sources: "Accelerating Hierarchical Associative Memory: A Deep Equilibrium Approach" (2023), table
1, for 784-512-10, five runs; their later comparison with continuous Hopfield networks and deeper
memories for the others.
"""

from __future__ import annotations

from hamdeq.experiments.convergence.measure import Measurement

__all__ = ["model_of", "published"]

# Iterations and accuracy in percent, by model and sizes; with ± over five runs, where it is given.
_SMALL, _WIDE = "784-512-10", "784-1990-10"
_FIVE, _SEVEN = "784-1280-510-200-10", "784-1024-512-256-128-70-10"
_PUBLISHED = {
    ("HAM", _SMALL): ("8.2 ± 0.3", "96.9 ± 0.2"),
    ("HAM-DEQ", _SMALL): ("6.2 ± 0.4", "96.7 ± 0.3"),
    ("HAM-EO", _SMALL): ("5.1 ± 0.3", "97.2 ± 0.1"),
    ("HAM-EO-DEQ", _SMALL): ("4.5 ± 0.3", "96.7 ± 0.3"),
    ("HAM", _WIDE): ("11.9", "97.9"),
    ("HAM-DEQ", _WIDE): ("9.9", "97.9"),
    ("HAM-EO", _WIDE): ("8.0", "97.9"),
    ("HAM-EO-DEQ", _WIDE): ("6.6", "97.9"),
    ("HAM", _FIVE): ("36.0", "97.1"),
    ("HAM-DEQ", _FIVE): ("33.0", "97.1"),
    ("HAM-EO", _FIVE): ("18.3", "97.1"),
    ("HAM-EO-DEQ", _FIVE): ("17.7", "97.1"),
    ("HAM", _SEVEN): ("67.1", "95.6"),
    ("HAM-DEQ", _SEVEN): ("56.0", "95.6"),
    ("HAM-EO", _SEVEN): ("32.2", "95.5"),
    ("HAM-EO-DEQ", _SEVEN): ("31.0", "95.5"),
    ("CHN", _WIDE): ("75.5", "97.9"),
    ("CHN-DEQ", _WIDE): ("20.6", "97.1"),
    ("CHN-EO", _WIDE): ("16.8", "97.1"),
    ("CHN-EO-DEQ", _WIDE): ("16.2", "97.1"),
}


def model_of(measured: Measurement) -> str | None:
    """The papers' name of a model, such as ``HAM-EO-DEQ``; None where they have none."""
    name = measured.model
    if measured.splitting == "sweep" or measured.solver not in ("Picard", "Anderson"):
        return None
    if measured.splitting == "even-odd":
        name += "-EO"
    return name + ("-DEQ" if measured.solver == "Anderson" else "")


def published(measured: Measurement) -> tuple[str, str] | None:
    """Published iterations and accuracy in percent of a model of these sizes, on the same data.

    Other choices of a configuration, such as its activation or where it starts, may differ.
    """
    model = model_of(measured)
    if model is None or measured.data != "MNISTDataModule" or measured.tol != 1e-4:
        return None
    return _PUBLISHED.get((model, "-".join(map(str, measured.sizes))))
