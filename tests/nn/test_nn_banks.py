"""Large banks of patterns: state patterns take turns, with the same results and bounded memory."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hamdeq import Anderson, Entmax, Picard, Sparsemax
from hamdeq.elimination import attention
from hamdeq.nn import Hopfield, HopfieldLayer, functional
from hamdeq.testing import normal

D, H, L, S = 4, 2, 5, 12
BETAS: dict[str, dict[str, Any]] = {
    "number": {"scaling": 1.3},
    "of each head": {"scaling": torch.tensor([0.7, 2.0], dtype=torch.float64)},
    "trained": {"scaling_as_trainable": True},
}


def masks(n: int) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    out = normal(n, S, seed=5) > 0.3
    out[-1] = True  # of one sample nothing is left
    where = normal(n * H, L, S, seed=6) > 0.2
    return {
        "none": (None, None),
        "padding": (out, None),
        "padding, added": (normal(n, S, seed=7).masked_fill(out, -torch.inf), None),
        "association": (None, where[0]),
        "association of each": (None, where),
        "association, added": (None, normal(L, S, seed=8)),
        "both": (out, normal(n * H, L, S, seed=8).masked_fill(where, -torch.inf)),
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a bank of few patterns and blocks of few state patterns, on request."""

    def blocks() -> None:
        monkeypatch.setattr(attention, "_BANK", 2)
        monkeypatch.setattr(attention, "_LIMIT", 3 * H * S)
        monkeypatch.setattr(attention, "_BLOCK", 3 * H * S)

    return blocks


def results(layer: Any, x: Tensor, given: Any, steps: Any = None) -> list[Tensor]:
    """Output, energy and the gradients of both, to everything."""
    x = x.clone().requires_grad_()
    masks = [None if m is None else m.clone() for m in given]
    leaves = [x, *layer.parameters()]
    for mask in masks:
        if mask is not None and mask.is_floating_point():
            leaves.append(mask.requires_grad_())
    output = layer(x, *masks)
    found = [output, layer.energy(x, *masks)]
    total = sum((each * normal(*each.shape, seed=k)).sum() for k, each in enumerate(found))
    return [*found, *torch.autograd.grad(total, leaves, materialize_grads=True)]


def build(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"num_heads": H, "dtype": torch.float64, "on_failure": "ignore"} | options
    layer = Hopfield(D, **options) if kind == "own" else HopfieldLayer(D, quantity=S, **options)
    for k, (name, p) in enumerate(layer.named_parameters()):
        if not name.endswith("log_beta"):
            p.data = normal(*p.shape, seed=k)
    return layer


# Each mask with each kind of β, shared and own patterns in turn.
MODES = [
    (("shared", "own")[k % 2], mask, beta)
    for k, (mask, beta) in enumerate(
        (mask, list(BETAS)[(k + shift) % 3]) for k, mask in enumerate(masks(1)) for shift in (0, 1)
    )
]


@pytest.mark.parametrize(("kind", "mask", "beta"), MODES)
def test_blocks_change_nothing(small, kind, mask, beta):
    layer = build(kind, update_steps_max=1, **BETAS[beta])
    n = 3
    given, x = masks(n)[mask], normal(n, L, D, seed=1)
    if kind == "own":
        stored = normal(n, S, D, seed=2)
        layer.register_parameter("stored", torch.nn.Parameter(stored))
        whole = layer
        layer = _Own(whole)
    expected = results(layer, x, given)
    small()
    for one, other in zip(results(layer, x, given), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


class _Own(torch.nn.Module):
    """A Hopfield with stored patterns of each sample."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *masks: Any) -> Tensor:
        return self.layer((self.layer.stored, x, self.layer.stored), *masks)

    def energy(self, x: Tensor, *masks: Any) -> Tensor:
        return self.layer.energy((self.layer.stored, x, self.layer.stored), *masks)


@pytest.mark.parametrize(
    "options",
    [
        {"lagrangian": Sparsemax(), "update_steps_max": 1},
        {"lagrangian": Entmax(1.5)},
        {"pattern_size": 3},
        {"update_steps_max": [0, 2], "concat_bias_pattern": True, "add_zero_association": True},
        {"update_steps_max": None, "solver": Anderson(tol=1e-12, max_steps=300)},
    ],
    ids=repr,
)
def test_blocks_change_nothing_for(small, options):
    layer, x = build("shared", **options), normal(3, L, D, seed=1)
    for mask in ("none", "both"):
        expected = results(layer, x, masks(3)[mask])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "_BANK", 2)
            patch.setattr(attention, "_LIMIT", 3 * H * S)
            patch.setattr(attention, "_BLOCK", 3 * H * S)
            for one, other in zip(results(layer, x, masks(3)[mask]), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_associations_that_dropout_left(small):
    small()
    layer = build("shared", dropout=0.5, input_bias=False, lookup_weights_as_separated=True)
    layer.hopfield.norm_pattern_projection = None  # the output is then linear in the targets
    output = layer(normal(1, 40, D, seed=1))
    output.sum().backward()
    torch.testing.assert_close(
        (layer.target_weights.grad * layer.target_weights).sum(), output.sum()
    )
    layer.eval()
    assert not torch.equal(layer(normal(1, 40, D, seed=1)), output)


@pytest.mark.parametrize("settles", [False, True])
def test_functions_of_shared_patterns_take_beta_and_masks_of_each(settles):
    state, stored = normal(3, L, D, seed=1), normal(S, D, seed=2)
    beta, mask = normal(3, L, 1, seed=3).exp(), normal(3, L, S, seed=4)
    solver = Picard(tol=1e-12, max_steps=2000)

    def run(x: Tensor, k: Tensor, b: Tensor, m: Tensor) -> Tensor:
        if settles:
            return functional.settle(x, k, b, mask=m, solver=solver).value
        return functional.retrieve(x, k, b, mask=m) + functional.energy(x, k, b, mask=m)[..., None]

    leaves = [t.requires_grad_() for t in (stored, beta, mask)]
    whole = run(state, *leaves)
    each = torch.stack(
        [
            torch.cat([run(state[n, [i]], stored, beta[n, i, 0], mask[n, [i]]) for i in range(L)])
            for n in range(3)
        ]
    )
    weight = normal(*whole.shape, seed=9)
    found, expected = (torch.autograd.grad((y * weight).sum(), leaves) for y in (whole, each))
    torch.testing.assert_close(whole, each, rtol=1e-9, atol=1e-9)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def peak(call: Any) -> float:
    """Bytes that PyTorch's allocator gives out at most."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


BANK = 5000
LOOKUPS: dict[str, tuple[dict[str, Any], bool]] = {
    "β of each head": ({"scaling": torch.tensor([0.2, 0.9])}, True),
    "trained β, mask with a gradient": ({"scaling_as_trainable": True}, True),
    "other values": ({"pattern_size": 3}, True),
    "dropout": ({"dropout": 0.1}, False),
    "sparse": ({"lagrangian": Sparsemax()}, True),
    "converged": ({"update_steps_max": None, "solver": Anderson(max_steps=3)}, False),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_memory_does_not_grow_with_the_queries(monkeypatch, name):
    options, padded = LOOKUPS[name]
    monkeypatch.setattr(attention, "_LIMIT", 16 * BANK)
    monkeypatch.setattr(attention, "_BLOCK", 16 * BANK)
    layer = HopfieldLayer(D, quantity=BANK, num_heads=H, on_failure="ignore", **options)
    padding = torch.rand(1, BANK) > 0.9
    if "gradient" in name:
        padding = torch.randn(1, BANK).requires_grad_()

    def step(queries: int) -> Any:
        x = torch.randn(1, queries, D, requires_grad=True)
        mask = padding if padded else None
        layer(x, mask).sum().backward()  # the gradients of the parameters are there
        return peak(lambda: layer(x, mask).sum().backward())

    few, many = step(16), step(128)
    # 112 more queries of 2 heads would make 4.5 MB of similarities, one of them 40 kB.
    assert many - few < 1e6, (few, many)


def test_memory_does_not_grow_with_the_samples(monkeypatch):
    monkeypatch.setattr(attention, "_LIMIT", 16 * BANK)
    monkeypatch.setattr(attention, "_BLOCK", 16 * BANK)
    layer = HopfieldLayer(D, quantity=BANK, num_heads=H)

    def step(samples: int) -> Any:
        x = torch.randn(samples, 1, D, requires_grad=True)
        association, padding = torch.rand(1, BANK) > 0.9, torch.rand(samples, BANK) > 0.9
        layer(x, padding, association).sum().backward()
        return peak(lambda: layer(x, padding, association).sum().backward())

    few, many = step(16), step(128)
    # Of each sample the padding is a mask of its own, 5 kB; gradients would be 160 kB.
    assert many - few < 3e6, (few, many)
