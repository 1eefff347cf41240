"""Corners of the layers: checkpoints, exports, compiled functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts import normal
from test_nn_reference import CLOSE, D
from torch import nn
from torch.export import Dim

from hamdeq import Entmax
from hamdeq.nn import Hopfield, HopfieldEncoderLayer, HopfieldLayer, HopfieldPooling, functional


def made(kind, **options):
    torch.manual_seed(0)
    options = {"num_heads": 2, "normalize_hopfield_space": True} | options
    return kind(6, **options).double()


class TestCheckpoints:
    """β of each head, not trained, is in no file."""

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("kind", [Hopfield, HopfieldPooling, HopfieldLayer])
    def test_of_a_layer_built_on_the_meta_device(self, kind, assign):
        options: dict[str, Any] = {"num_heads": 2, "scaling": torch.tensor([0.5, 2.0])}
        if kind is HopfieldLayer:
            options["quantity"] = 5
        given = kind(D, **options)
        other = kind(D, device="meta", **options)
        if not assign:
            other = other.to_empty(device="cpu")
        other.load_state_dict(given.state_dict(), assign=assign)
        x = normal(2, 4, D).float()
        assert torch.equal(other(x), given(x))

    def test_a_trained_beta_is_that_of_the_file(self):
        given = Hopfield(D, num_heads=2, scaling_as_trainable=True)
        torch.nn.init.constant_(given.association_core.memories.log_beta, 0.3)
        other = Hopfield(D, num_heads=2, scaling_as_trainable=True)
        other.load_state_dict(given.state_dict())
        assert torch.equal(other.scaling, given.scaling)


def test_an_export_with_padding_ties_no_sizes_together():
    layer = HopfieldLayer(D, quantity=4).eval()
    n, length = Dim("n"), Dim("length")
    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[1, 2] = True
    given = (normal(3, 6, D).float(), padding)
    program = torch.export.export(
        layer, given, dynamic_shapes=({0: n, 1: length}, {0: n}), strict=False
    )
    for count, size in ((2, 4), (5, 9)):
        other = (normal(count, size, D, seed=5).float(), padding[[1] * count])
        torch.testing.assert_close(program.module()(*other), layer(*other), **CLOSE)


def test_steep_entmax_is_compiled_in_one_graph():
    def read(x):
        return functional.metastability(Entmax(3.0).activation(x))

    x = normal(4, 6)
    torch.testing.assert_close(
        torch.compile(read, fullgraph=True, backend="eager")(x), read(x), **CLOSE
    )


def test_weights_need_not_sum_to_one():
    assert functional.metastability(torch.tensor([2.0, 2.0])) == pytest.approx(2.0)


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
