"""Set-up shared by all tests."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator

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


@pytest.fixture(scope="session")
def one_parser() -> Iterator[None]:
    """Build the parser of the training command line once for all calls that a process makes.

    A call spends a third of a second on it, and the parser does not change.
    """
    pytest.importorskip("lightning")
    from hamdeq.training.cli.main import HAMCLI

    setup, built = HAMCLI.setup_parser, {}

    def setup_parser(self: HAMCLI, add_subcommands: bool, main: dict, sub: dict) -> None:
        program = main["prog"]
        if program in built:
            vars(self).update(built[program])
            return
        before = set(vars(self))
        setup(self, add_subcommands, main, sub)
        built[program] = {name: x for name, x in vars(self).items() if name not in before}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HAMCLI, "setup_parser", setup_parser)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as quick two cases of each test that has no cause to be slow: ``pytest -m quick``."""
    cases: Counter[str] = Counter()
    for item in items:
        if not any(item.get_closest_marker(cause) for cause in ("slow", "subprocess", "compile")):
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] <= 2:
                item.add_marker("quick")
