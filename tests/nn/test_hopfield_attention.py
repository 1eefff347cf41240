"""Hopfield layers as attention, in the layouts of attention, and with its dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts import normal
from test_nn_reference import CLOSE, UNNORMED, D, L, N, S, make, padding_mask, patterns
from torch import Tensor, nn

from hamdeq import Entmax, Softmax, Sparsemax
from hamdeq.nn import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
)


class TestAttention:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("sizes", [{}, {"kdim": 5, "vdim": 6}, {"bias": False}])
    @pytest.mark.parametrize(
        "appended", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "add_bias_kv": True}]
    )
    @pytest.mark.parametrize("heads", [1, 2, 4])
    def test_it_takes_the_weights_of_multihead_attention(
        self, heads: int, appended: Any, sizes: Any, masked: bool, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(
            D, heads, batch_first=True, dtype=dtype, **appended, **sizes
        )
        layer = Hopfield(
            D,
            num_heads=heads,
            stored_pattern_size=sizes.get("kdim"),
            pattern_projection_size=sizes.get("vdim"),
            input_bias=sizes.get("bias", True),
            concat_bias_pattern=appended.get("add_bias_kv", False),
            add_zero_association=appended.get("add_zero_attn", False),
            dtype=dtype,
            **UNNORMED,
        )
        with torch.no_grad():
            for p in attention.parameters():
                p.add_(0.3 * torch.randn_like(p))
        layer.association_core.load_state_dict(attention.state_dict())
        q, k = normal(N, L, D, dtype=dtype), normal(N, S, sizes.get("kdim", D), seed=1, dtype=dtype)
        v = normal(N, S, sizes.get("vdim", D), seed=2, dtype=dtype)
        masks: list[Any] = [None, None]
        if masked:
            masks = [padding_mask("bool"), normal(N * heads, L, S, seed=4) > 0.9]
        expected, weights = attention(
            q, k, v, key_padding_mask=masks[0], attn_mask=masks[1], average_attn_weights=False
        )
        close = {"rtol": 0, "atol": 1e-6} if dtype == torch.float32 else CLOSE
        torch.testing.assert_close(layer((k, q, v), *masks), expected, **close)
        got = layer.get_association_matrix((k, q, v), *masks)
        torch.testing.assert_close(got, weights.detach(), **close)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("decoder", [False, True])
    def test_the_transformer_layers_are_those_of_torch(
        self, decoder: bool, batch_first: bool, causal: bool
    ) -> None:
        torch.manual_seed(0)
        options: Any = {"dropout": 0.5, "dim_feedforward": 6, "activation": "gelu"}
        kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
        theirs = kind(D, 2, **options, batch_first=batch_first, dtype=torch.float64).eval()
        own = Hopfield(D, num_heads=2, batch_first=batch_first, **UNNORMED)
        if decoder:
            ours: Any = HopfieldDecoderLayer(own, own, **options).double().eval()
        else:
            ours = HopfieldEncoderLayer(own, **options).double().eval()
        with torch.no_grad():
            for p in theirs.parameters():
                p.add_(0.3 * torch.randn_like(p))
        names = {
            "self_attn.": "hopfield_association_self." if decoder else "hopfield_association.",
            "multihead_attn.": "hopfield_association_cross.",
            "linear1.": "linear_residual.",
            "linear2.": "linear_output.",
            "norm1.": "norm_residual_self." if decoder else "norm_residual.",
            "norm2.": "norm_residual_cross." if decoder else "norm_output.",
            "norm3.": "norm_output.",
        }
        state = {}
        for name, value in theirs.state_dict().items():
            head = name.partition(".")[0] + "."
            core = "association_core." * head.endswith("attn.")
            state[names[head] + core + name.removeprefix(head)] = value
        ours.load_state_dict(state)

        x, memory = normal(N, S, D, seed=1), normal(N, 6, D, seed=2)
        if not batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
        padding, other = padding_mask("bool"), normal(N, 6, seed=3) > 0.7
        padding[:, 0] = False  # a causal row must have something left
        if decoder:
            more = {"memory_key_padding_mask": other, "memory_mask": normal(S, 6, seed=4) > 1.5}
            first = {"tgt_key_padding_mask": padding.double().masked_fill(padding, -torch.inf)}
            plain = {"tgt_mask": mask} if causal else {}
            ours_mask = {"tgt_is_causal": True} if causal else {}
            expected = theirs(x, memory, **plain, **first, **more)
            got = ours(x, memory, **ours_mask, **first, **more)
        else:
            first = {"src_key_padding_mask": padding.double().masked_fill(padding, -torch.inf)}
            expected = theirs(x, **({"src_mask": mask} if causal else {}), **first)
            got = ours(x, **({"is_causal": True} if causal else {}), **first)
        torch.testing.assert_close(got, expected, **CLOSE)

    def test_stacks_in_torch_s_own_containers(self) -> None:
        torch.manual_seed(0)
        own = Hopfield(D, num_heads=2, update_steps_max=1)
        layer = HopfieldEncoderLayer(own, 6, dropout=0.0)
        stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
        x = normal(N, S, D)
        mask = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
        expected = stack.layers[1](stack.layers[0](x, mask), mask)
        torch.testing.assert_close(stack(x, mask, is_causal=True), expected, **CLOSE)


class TestLayouts:
    """One result, whatever the order of the axes."""

    KINDS = [Hopfield, HopfieldPooling, HopfieldLayer]

    def pair(self, kind: Any) -> tuple[Any, Any, Any]:
        """The same layer with the batch first and second, and an input with the batch first."""
        options = {"input_size": D, "num_heads": 2, "update_steps_max": 1}
        if kind is not Hopfield:
            options["quantity"] = 3
        if kind is HopfieldLayer:
            options["lookup_weights_as_separated"] = True
        first, second = make(kind, **options), make(kind, **options, batch_first=False)
        state = first.state_dict()
        for name in ("pooling_weights", "lookup_weights", "target_weights"):
            if name in state:
                state[name] = state[name].transpose(0, 1)
        second.load_state_dict(state)
        given = patterns({"input_size": D})
        return first, second, {Hopfield: given, HopfieldPooling: given[::2]}.get(kind, given[1])

    @pytest.mark.parametrize("kind", KINDS)
    def test_batch_second(self, kind: Any) -> None:
        first, second, given = self.pair(kind)
        turned = over(given, lambda x: x.transpose(0, 1))
        masks = () if kind is HopfieldLayer else (padding_mask("bool"),)
        expected = first(given, *masks)
        expected = expected if kind is HopfieldPooling else expected.transpose(0, 1)
        torch.testing.assert_close(second(turned, *masks), expected, **CLOSE)
        for method in ("get_association_matrix", "get_projected_pattern_matrix", "energy"):
            one, other = getattr(first, method), getattr(second, method)
            torch.testing.assert_close(other(turned, *masks), one(given, *masks), **CLOSE)

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    def test_without_a_batch(self, kind: Any, batch_first: bool) -> None:
        first, second, given = self.pair(kind)
        layer = first if batch_first else second
        padding = None if kind is HopfieldLayer else padding_mask("bool")
        association = normal(N * 2, 3, 3 if kind is HopfieldLayer else S, seed=7)
        for n in range(N):
            alone = over(given, lambda x, n=n: x[n])
            masks = (None if padding is None else padding[n], association[2 * n : 2 * n + 2])
            everything = (padding, association)
            assert torch.isfinite(layer(alone, *masks)).all()
            for method in (
                "forward",
                "get_association_matrix",
                "get_projected_pattern_matrix",
                "energy",
            ):
                expected = getattr(first, method)(given, *everything)[n]
                torch.testing.assert_close(getattr(layer, method)(alone, *masks), expected, **CLOSE)
            torch.testing.assert_close(layer.settle(alone).steps, first.settle(given).steps[n])
            for one, whole in zip(layer.project(alone), first.project(given), strict=True):
                torch.testing.assert_close(one, whole[n], **CLOSE)

    def test_inputs_are_not_written_to(self) -> None:
        layer = make(input_size=D, update_steps_max=1, association_activation="relu")
        given, mask = patterns({"input_size": D}), padding_mask("float")
        before = [x.clone() for x in (*given, mask)]
        layer(given, mask), layer.energy(given, mask), layer.settle(given, mask)
        assert all(torch.equal(a, b) for a, b in zip((*given, mask), before, strict=True))


def over(given: Any, turn: Any) -> Any:
    return turn(given) if isinstance(given, Tensor) else tuple(turn(x) for x in given)


class TestDropout:
    @pytest.mark.parametrize("memory", [Softmax(), Sparsemax(), Entmax(1.5)])
    @pytest.mark.parametrize("steps", [0, 2, None, [0, 3]])
    def test_of_the_read_out_in_training_alone(self, steps: Any, memory: Any) -> None:
        # Read out of the unit vectors, the output is the weights themselves.
        n, s, rate = 40, 12, 0.25
        options: dict[str, Any] = {
            "pattern_projection_as_static": True,
            "pattern_size": s,
            "disable_out_projection": True,
            **UNNORMED,
        }
        layer = make(
            input_size=D,
            num_heads=2,
            update_steps_max=steps,
            dropout=rate,
            lagrangian=memory,
            scaling=0.1,
            **options,
        )
        y, r = normal(n, s, D, seed=1), normal(n, L, D, seed=2)
        unit = torch.eye(s, dtype=torch.float64).expand(n, -1, -1)
        torch.manual_seed(0)
        weights = layer.get_association_matrix((y, r, unit))
        torch.testing.assert_close(layer.get_association_matrix((y, r, unit)), weights, **CLOSE)
        found = layer((y, r, unit)).unflatten(-1, (2, s)).transpose(1, 2)
        present = weights > 1e-6
        kept = found != 0
        torch.testing.assert_close(found[kept], weights[kept] / (1 - rate), **CLOSE)
        count = int(present.sum())
        share = float((present & ~kept).sum()) / count
        # Five standard deviations of a binomial share.
        assert abs(share - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
        calm = layer.eval()((y, r, unit)).unflatten(-1, (2, s)).transpose(1, 2)
        torch.testing.assert_close(calm, weights, **CLOSE)

    @pytest.mark.parametrize("memory", [Softmax(), Sparsemax()])
    def test_of_everything(self, memory: Any) -> None:
        layer = make(input_size=D, dropout=1.0, lagrangian=memory)
        bias = layer.association_core.out_proj.bias
        assert torch.equal(layer(patterns({"input_size": D})), bias.expand(N, L, D))


class TestInterface:
    def test_properties(self) -> None:
        layer = HopfieldPooling(
            D,
            3,
            4,
            5,
            2,
            0.5,
            7,
            1e-3,
            stored_pattern_size=6,
            pattern_projection_size=9,
            batch_first=False,
            pattern_projection_as_static=True,
            normalize_pattern_projection=False,
            normalize_stored_pattern_affine=False,
            normalize_hopfield_space=True,
        )
        wanted = {
            "input_size": D,
            "hidden_size": 3,
            "output_size": 4,
            "pattern_size": 5,
            "num_heads": 2,
            "scaling": 0.5,
            "update_steps_max": 7,
            "update_steps_eps": 1e-3,
            "state_pattern_dim": D,
            "stored_pattern_dim": 6,
            "pattern_projection_dim": 9,
            "quantity": 1,
            "batch_first": False,
            "stored_pattern_as_static": False,
            "state_pattern_as_static": False,
            "pattern_projection_as_static": True,
            "normalize_stored_pattern": True,
            "normalize_stored_pattern_affine": False,
            "normalize_state_pattern": True,
            "normalize_state_pattern_affine": True,
            "normalize_pattern_projection": False,
            "normalize_pattern_projection_affine": False,
            "normalize_hopfield_space": True,
            "normalize_hopfield_space_affine": False,
        }
        for name, value in wanted.items():
            assert getattr(layer, name) == getattr(layer.hopfield, name, value) == value, name
        assert layer.hopfield.solver.tol == 1e-3

    def test_defaults(self) -> None:
        layer = Hopfield(12, num_heads=3)
        assert (layer.hidden_size, layer.pattern_size, layer.output_size) == (4, 4, 12)
        assert layer.scaling == 0.5  # 1/√4
        assert Hopfield(12, 9, num_heads=3).scaling == 1 / 3
        bare = dict.fromkeys(
            ("stored_pattern_as_static", "state_pattern_as_static", "pattern_projection_as_static"),
            True,
        )
        bare = Hopfield(disable_out_projection=True, **bare, **UNNORMED)
        assert bare.scaling == 1.0
        assert not list(bare.parameters())
        x = normal(N, S, 5)
        torch.testing.assert_close(bare(x), torch.softmax(x @ x.mT, -1) @ x, **CLOSE)

    def test_weights_are_distributions(self) -> None:
        for memory in (Softmax(), Sparsemax(), Entmax(1.5)):
            layer = make(input_size=D, num_heads=2, lagrangian=memory, add_zero_association=True)
            weights = layer.get_association_matrix(patterns({"input_size": D}))
            assert weights.shape == (N, 2, L, S + 1)
            assert not weights.requires_grad
            torch.testing.assert_close(weights.sum(-1), torch.ones(N, 2, L).double(), **CLOSE)
            assert (weights >= 0).all()
            assert bool((weights == 0).any()) == (not isinstance(memory, Softmax))

    @pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh, nn.Softplus(beta=3.0)])
    def test_activation_of_the_output(self, activation: Any) -> None:
        plain, given = make(input_size=D), patterns({"input_size": D})
        layer = make(input_size=D, association_activation=activation)
        named = getattr(nn.functional, activation) if isinstance(activation, str) else activation
        assert torch.equal(layer(given), named(plain(given)))

    def test_initial_values(self) -> None:
        torch.manual_seed(0)
        layer = HopfieldPooling(64, num_heads=2, quantity=50, concat_bias_pattern=True)
        for name, p in layer.named_parameters():
            if name.endswith(("weight", "weights", "bias_k", "bias_v")) and "norm" not in name:
                # Of normal numbers, within five standard errors.
                assert abs(p.std().item() / 0.02 - 1) < 5 / (2 * p.numel()) ** 0.5, name
            else:
                assert (p == (1.0 if name.endswith("weight") else 0.0)).all(), name

    def test_every_parameter_takes_part(self) -> None:
        layer = make(input_size=D, normalize_hopfield_space_affine=True, concat_bias_pattern=True)
        layer(patterns({"input_size": D})).square().sum().backward()
        assert all(p.grad is not None and (p.grad != 0).any() for p in layer.parameters())
