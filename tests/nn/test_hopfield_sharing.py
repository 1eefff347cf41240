"""Patterns that all samples share, and padding that is not finite in associations with itself."""

import pytest
import torch
from contracts import normal
from torch import nn

from hamdeq import Sparsemax
from hamdeq.nn import Hopfield, HopfieldEncoderLayer, HopfieldLayer, HopfieldPooling

KINDS = {
    "no updates": {},
    "updates": {"update_steps_max": 2},
    "settled": {"update_steps_max": None},
    "by head": {"update_steps_max": [0, 3]},
    "β by head": {"update_steps_max": 1, "scaling": torch.tensor([0.5, 3.0])},
    "sparse": {"update_steps_max": 1, "lagrangian": Sparsemax()},
}


def made(kind, **options):
    torch.manual_seed(0)
    options = {"num_heads": 2, "normalize_hopfield_space": True} | options
    return kind(6, **options).double()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("batch_first", [True, False])
def test_shared_patterns_are_those_of_every_sample(options, batch_first):
    layer = made(Hopfield, batch_first=batch_first, **options)
    axis = 0 if batch_first else 1
    state, stored = normal(4, 3, 6), normal(1, 5, 6, seed=1)
    repeated = stored.expand(4, -1, -1).contiguous()
    if not batch_first:
        state, stored, repeated = (x.transpose(0, 1) for x in (state, stored, repeated))
    one, each = (stored, state, stored), (repeated, state, repeated)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(layer(one), layer(each), **close)
    for method in ("get_association_matrix", "get_projected_pattern_matrix", "energy"):
        found, expected = (getattr(layer, method)(x) for x in (one, each))
        torch.testing.assert_close(found, expected, **close)
    found, expected = layer.settle(one), layer.settle(each)
    torch.testing.assert_close(found.value, expected.value, **close)
    assert torch.equal(found.steps, expected.steps)
    assert found.trace.shape == expected.trace.shape
    assert found.steps.shape == (4, 2, 3)
    assert layer(one).shape[axis] == 4


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_shared_patterns_are_the_sums_over_samples(masked):
    layer = made(Hopfield, update_steps_max=1)
    state = normal(4, 3, 6)
    padding = None
    if masked:
        padding = torch.tensor([[False, False, True, False, False]] * 4)
        padding[1, 0] = True
    grads = []
    for copies in (1, 4):
        stored = normal(1, 5, 6, seed=1).requires_grad_()
        repeated = stored.expand(copies, -1, -1)
        layer((repeated, state, repeated), padding).square().sum().backward()
        grads.append(stored.grad)
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-14)


def test_learned_patterns_are_projected_once():
    """What grows with the number of samples must not grow with the memory."""
    layer = HopfieldLayer(6, quantity=50)
    rows = []
    layer.hopfield.norm_stored_pattern.register_forward_hook(
        lambda module, given, result: rows.append(result.shape[:2].numel())
    )
    layer(torch.randn(40, 1, 6))
    assert rows == [50]


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
def test_padding_that_is_not_finite_reaches_nothing(options, additive):
    layer = made(Hopfield, **options)
    padding = torch.tensor([[False, False, True, True], [False, False, False, True]])
    mask = torch.zeros(2, 4).masked_fill(padding, -torch.inf) if additive else padding
    results = []
    for rest in (0.0, torch.nan, torch.inf):
        x = normal(2, 4, 6).masked_fill(padding[..., None], rest)
        layer.zero_grad()
        output = layer(x, mask)[~padding]
        output.square().sum().backward()
        grads = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        results.append([output.detach(), *grads])
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_finite_padding_is_a_state_pattern_like_any_other():
    """As in attention: what it retrieves is in the output."""
    layer, x = made(Hopfield), normal(1, 4, 6)
    padding = torch.tensor([[False, False, True, True]])
    apart = layer((x[:, :2], x, x[:, :2]))
    torch.testing.assert_close(layer(x, padding), apart, rtol=1e-12, atol=1e-14)


def test_transformer_layers_take_the_dtype_of_their_association():
    layer = HopfieldEncoderLayer(Hopfield(6, dtype=torch.float64), 8)
    assert layer(normal(2, 3, 6)).dtype == torch.float64


def test_the_weights_of_an_encoder_are_those_of_its_masks():
    layer = HopfieldEncoderLayer(made(Hopfield), 8).double()
    x = normal(2, 4, 6)
    weights = layer.get_association_matrix(x, is_causal=True)
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4).double())
    padding = torch.tensor([[False, False, True, True]] * 2)
    stacked = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    given = x.masked_fill(padding[..., None], 0.0)
    torch.testing.assert_close(
        stacked(given, src_key_padding_mask=padding), layer.eval()(given, None, padding)
    )


def test_pooling_with_the_batch_second_gives_one_row_a_sample():
    pool = made(HopfieldPooling, quantity=3, batch_first=False)
    x = normal(5, 4, 6)
    assert pool(x).shape == (4, 18)
    torch.testing.assert_close(pool(x)[2], pool(x[:, 2]), rtol=1e-12, atol=1e-14)
