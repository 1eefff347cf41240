"""What eliminate returns of a query and its memories, against attention written by hand.

    pytest tests/benchmarks/test_attention_speed.py --benchmark-only -s

By hand means ``scaled_dot_product_attention`` of the same patterns, as a function of the query. The
generic form is that of any other layers, in which the similarities are made. All take turns within
one run, on one thread; printed are the medians, and the quartiles of each turn's ratio to the time
by hand. The energy is prepared, as a solver does once for all of its steps; ``--benchmark-only`` at
64 queries also prints what that takes.
"""

import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from hamdeq import HAM, Dense, Identity, Neurons, Softmax, eliminate
from hamdeq.elimination import Reduced

SIZES = [(64, 64, 16), (256, 256, 32), (256, 1024, 64), (1024, 4096, 64)]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_time(benchmark, size, backward):
    queries, stored, dim = size
    torch.manual_seed(0)
    beta = dim**-0.5
    layers = {"query": Neurons(dim, Identity()), "memories": Neurons(stored, Softmax(beta))}
    ham = HAM(layers, [(("query", "memories"), Dense(dim, stored))])
    reduced = eliminate(ham, ["memories"])
    fused, generic = reduced.prepared(), Reduced(ham, ["memories"]).prepared()
    patterns = ham.synapses[0].weight.detach().mT.contiguous().requires_grad_()
    query = torch.randn(queries, dim, requires_grad=backward)
    slope = torch.randn(queries, dim)

    def by_hand(x):
        k = patterns[None, None]
        return F.scaled_dot_product_attention(x[None, None], k, k, scale=beta)[0, 0]

    sides = {
        "by hand": by_hand,
        "fused": lambda x: fused.update({"query": x})["query"],
        "generic": lambda x: generic.update({"query": x})["query"],
        "fused, prepared anew": lambda x: reduced.update({"query": x})["query"],
    }
    for side in sides.values():
        torch.testing.assert_close(side(query), by_hand(query))
    times: dict[str, list[float]] = {name: [] for name in sides}

    def turn():
        for name, side in sides.items():
            start = time.perf_counter()
            with torch.set_grad_enabled(backward):
                result = side(query)
                if backward:
                    result.backward(slope)
            times[name].append(time.perf_counter() - start)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        benchmark.pedantic(turn, rounds=max(12, min(400, 10**10 // (8 * queries * stored * dim))))
    finally:
        torch.set_num_threads(threads)
    print()
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["by hand"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        line = f"{name:20}  {1e6 * statistics.median(own):9.1f} us, best {1e6 * min(own):9.1f} us"
        print(f"{line}; ratio {middle:.2f} ({low:.2f} to {high:.2f})")
