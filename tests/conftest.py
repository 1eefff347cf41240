"""Set-up shared by all tests."""

import os
import tempfile
from collections import Counter

import pytest
import torch

# The contracts are plain modules: without this their failures would show no values.
pytest.register_assert_rewrite("hamdeq.testing")

# What torch compiles is cached, whatever processor it was compiled for: one taken for another gives
# wrong numbers (PyTorch 2.14).
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    os.path.join(
        tempfile.gettempdir(), f"hamdeq-inductor-{torch.backends.cpu.get_cpu_capability()}"
    ),
)

# Processes that share the cores take one each; several threads for each of them get in the way.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed-shift",
        type=int,
        default=0,
        help="a number to add to every seed of torch: no test may hang on a lucky one",
    )


def pytest_configure(config: pytest.Config) -> None:
    shift = config.getoption("--seed-shift")
    if shift:
        seeded = torch.manual_seed
        torch.manual_seed = lambda seed: seeded(int(seed) + shift)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Benchmarks are not to share the machine with one another."""
    return 0 if config.getoption("benchmark_only", False) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as quick two cases of each test that has no cause to be slow: ``pytest -m quick``."""
    cases: Counter[str] = Counter()
    for item in items:
        if not any(item.get_closest_marker(cause) for cause in ("slow", "subprocess", "compile")):
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] <= 2:
                item.add_marker("quick")
