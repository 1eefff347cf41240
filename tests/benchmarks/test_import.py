"""What `import hamdeq` costs beyond that of torch.

    pytest tests/benchmarks/test_import.py --benchmark-only -s

The seconds that Python itself reports (`-X importtime`), in fresh processes that have imported
torch before, and whose bytecode is cached.
"""

import os
import re
import subprocess
import sys
from statistics import median

ROUNDS = 10


def seconds() -> float:
    """Of one import, with all that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import torch, hamdeq"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},  # empty: bytecode is written
    )
    found = re.search(r"\| +(\d+) \| hamdeq$", done.stderr, re.MULTILINE)
    assert found
    return int(found[1]) / 1e6


def test_import(benchmark):
    seconds()  # writes the bytecode
    times: list[float] = []
    benchmark.pedantic(lambda: times.append(seconds()), rounds=ROUNDS)
    benchmark.extra_info["import hamdeq, s"] = median(times)
    print(
        f"\nimport hamdeq: {median(times):.3f} s beyond torch, at most {max(times):.3f} s", end=""
    )
