"""Without updates and norms Hopfield layers are PyTorch's attention and transformer layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from test_nn_reference import CLOSE, UNNORMED, D, L, N, S, make, padding_mask
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from hamdeq.nn import Hopfield, HopfieldDecoderLayer, HopfieldEncoderLayer, HopfieldLayer
from hamdeq.nn.inputs import causal_mask
from hamdeq.testing import normal

F64 = torch.float64


# Sizes, appended patterns, masks and heads, each with each kind of another at least once.
@pytest.mark.parametrize(
    ("heads", "appended", "sizes", "masked", "dtype"),
    [
        (1, {}, {}, False, F64),
        (2, {}, {}, True, torch.float32),
        (4, {}, {"kdim": 5, "vdim": 6}, True, F64),
        (2, {"add_bias_kv": True}, {"bias": False}, False, F64),
        (4, {"add_bias_kv": True}, {}, True, F64),
        (
            2,
            {"add_bias_kv": True, "add_zero_attn": True},
            {"kdim": 5, "vdim": 6},
            True,
            torch.float64,
        ),
        (1, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}, True, torch.float32),
        (4, {"add_bias_kv": True, "add_zero_attn": True}, {}, False, F64),
    ],
    ids=str,
)
def test_a_layer_is_multihead_attention_with_its_weights(
    heads: int, appended: Any, sizes: Any, masked: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, heads, batch_first=True, dtype=dtype, **appended, **sizes)
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
    decoder: bool, batch_first: bool, causal: bool
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


def layer(kind: str, **options: Any) -> Any:
    """A transformer layer of size 8, with a trained β for each of two heads."""
    options = {"scaling": torch.tensor([0.4, 0.8]), "scaling_as_trainable": True} | options
    own = [Hopfield(8, num_heads=2, **options) for _ in range(2)]
    torch.manual_seed(0)
    if kind == "encoder":
        made: Any = HopfieldEncoderLayer(own[0], 16, dropout=0.0)
    else:
        made = HopfieldDecoderLayer(*own, dim_feedforward=16, dropout=0.0)
    for k, (name, p) in enumerate(made.named_parameters()):
        if not name.endswith("log_beta"):
            p.data = (0.5 if p.dim() > 1 else 1.0) * normal(*p.shape, seed=k).to(p)
    return made.double()


def stacks(**options: Any) -> tuple[nn.TransformerEncoder, nn.TransformerDecoder]:
    return (
        nn.TransformerEncoder(layer("encoder", **options), 2, enable_nested_tensor=False),
        nn.TransformerDecoder(layer("decoder", **options), 2),
    )


PADDING = torch.zeros(4, 6, dtype=torch.bool)
PADDING[1, 4:], PADDING[2] = True, True  # of one sample a part, of another all
CAUSAL = causal_mask(6, torch.device("cpu"))


@pytest.mark.parametrize("steps", [0, 3, None])
def test_layers_stack_in_torch_s_containers(steps: int | None) -> None:
    encoder, decoder = stacks(update_steps_max=steps)
    x, y = normal(4, 6, D, seed=1), normal(4, 5, D, seed=2)
    memory = encoder(x, mask=CAUSAL, src_key_padding_mask=PADDING)
    expected = x
    for each in encoder.layers:
        expected = each(expected, CAUSAL, PADDING)
    torch.testing.assert_close(memory, expected, **CLOSE)
    causal = causal_mask(5, y.device)
    result = decoder(
        y, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=PADDING
    )
    for each in decoder.layers:
        y = each(y, memory, tgt_mask=causal, memory_key_padding_mask=PADDING)
    torch.testing.assert_close(result, y, **CLOSE)
    result.square().sum().backward()
    for value in (*encoder.parameters(), *decoder.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()


@torch.no_grad()
def test_a_stack_with_the_batch_second_gives_the_same() -> None:
    x, y = normal(4, 6, D, seed=1), normal(4, 5, D, seed=2)
    results = []
    for batch_first in (True, False):
        encoder, decoder = stacks(batch_first=batch_first)
        turn = Tensor.clone if batch_first else (lambda x: x.transpose(0, 1))
        memory = encoder(turn(x), src_key_padding_mask=PADDING)
        mask = causal_mask(5, x.device)
        result = decoder(turn(y), memory, tgt_mask=mask, memory_key_padding_mask=PADDING)
        results.append(turn(result))
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_a_causal_layer_makes_its_mask_and_sees_nothing_later(batch_first: bool) -> None:
    encoder, decoder = stacks(batch_first=batch_first)
    x = normal(4, 6, D, seed=3) if batch_first else normal(6, 4, D, seed=3)
    expected = encoder(x, mask=CAUSAL)
    torch.testing.assert_close(encoder(x, mask=CAUSAL, is_causal=True), expected, **CLOSE)
    # A layer on its own makes the mask itself; without a batch as well.
    first: Any = encoder.layers[0]
    torch.testing.assert_close(first(x, is_causal=True), first(x, CAUSAL), **CLOSE)
    sample = x[0] if batch_first else x[:, 0]
    torch.testing.assert_close(first(sample, is_causal=True), first(sample, CAUSAL), **CLOSE)
    weights = first.get_association_matrix(x, is_causal=True)
    assert not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 6).double())
    step: Any = decoder.layers[0]
    torch.testing.assert_close(
        step(x, expected, tgt_is_causal=True), step(x, expected, tgt_mask=CAUSAL), **CLOSE
    )
    later = x.clone()
    last = later[:, 4:] if batch_first else later[4:]
    last.copy_(last.flip(-1))
    moved = (encoder(later, mask=CAUSAL) - expected).abs()
    before, after = (moved[:, :4], moved[:, 4:]) if batch_first else (moved[:4], moved[4:])
    assert before.max() < 1e-12
    assert after.max() > 0.1


@pytest.mark.parametrize("activation", ["gelu", torch.tanh], ids=["gelu", "tanh"])
@torch.no_grad()
def test_an_encoder_is_its_formula(activation: Any) -> None:
    lookup = HopfieldLayer(D, quantity=3, num_heads=2, update_steps_max=1)
    for association in (Hopfield(D, num_heads=2), lookup):
        made = HopfieldEncoderLayer(association, 16, dropout=0.0, activation=activation)
        function = nn.functional.gelu if activation == "gelu" else activation
        x = normal(N, S, D).float()
        y = made.norm_residual(x + association(x))
        y = made.norm_output(y + made.linear_output(function(made.linear_residual(y))))
        torch.testing.assert_close(made(x), y)
    assert made.get_association_matrix(x).shape == (N, 2, S, 3)
    assert made.input_size == made.output_size == D
    decoder = HopfieldDecoderLayer(lookup, Hopfield(D), 16)
    assert decoder(x, normal(N, 5, D).float()).shape == x.shape


@torch.no_grad()
def test_a_decoder_is_its_formula() -> None:
    made = layer("decoder")
    x, memory = normal(4, 6, D, seed=1), normal(4, 5, D, seed=2)
    y = made.norm_residual_self(x + made.hopfield_association_self(x))
    y = made.norm_residual_cross(y + made.hopfield_association_cross((memory, y, memory)))
    inner = made.linear_output(made.linear_residual(y).relu())
    torch.testing.assert_close(made(x, memory), made.norm_output(y + inner), **CLOSE)
    assert made.get_association_matrix_self(x).shape == (4, 2, 6, 6)
    assert made.get_association_matrix_cross((memory, x, memory)).shape == (4, 2, 6, 5)


def test_an_association_is_copied_with_its_weights_and_dtype() -> None:
    given: Any = Hopfield(D, num_heads=2, dtype=torch.float64)
    encoder = HopfieldEncoderLayer(given, 8)
    assert encoder(normal(2, 3, D)).dtype == torch.float64
    for made in (
        encoder.hopfield_association,
        HopfieldDecoderLayer(given, given).hopfield_association_self,
        HopfieldDecoderLayer(given, given).hopfield_association_cross,
    ):
        for a, b in zip(made.parameters(), given.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a.data_ptr() != b.data_ptr()


def test_parameters_are_drawn_anew() -> None:
    lookup = HopfieldEncoderLayer(HopfieldLayer(D, quantity=3), 8)
    for made in (layer("encoder"), layer("decoder"), lookup):
        norms = [m for m in made.modules() if isinstance(m, nn.LayerNorm)]
        before = {name: p.clone() for name, p in made.named_parameters()}
        made.reset_parameters()
        for name, p in made.named_parameters():
            if p.dim() > 1 and not name.endswith("log_beta"):
                assert not torch.equal(p, before[name]), name
        assert all((norm.weight == 1).all() for norm in norms)
        for module in made.modules():
            if isinstance(module, Hopfield) and module.num_heads == 2:
                torch.testing.assert_close(module.scaling, torch.tensor([0.4, 0.8]).double())


def test_dropout_is_of_training_alone() -> None:
    made = HopfieldEncoderLayer(Hopfield(D, num_heads=2, dropout=0.5), 16, dropout=0.5)
    x = normal(N, S, D).float()
    assert not torch.equal(made(x), made(x))
    made.eval()
    assert torch.equal(made(x), made(x))


def legacy(f: Any) -> Callable[[nn.Module, str], Any]:
    def apply(module: nn.Module, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            f(module, name)

    return apply


DERIVED: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "parametrization": lambda m, name: parametrize.register_parametrization(m, name, nn.Tanh()),
    "weight norm by a hook": legacy(nn.utils.weight_norm),
    "pruning": lambda m, name: prune.l1_unstructured(m, name, 0.4),
}


def assert_gradients(layer: Any, x: Tensor, weight: Tensor) -> None:
    """One directional derivative of the loss by all parameters."""
    parameters = [p for p in layer.parameters() if p.grad is not None]
    assert len(parameters) >= 4
    steps = [normal(*p.shape, seed=k) for k, p in enumerate(parameters)]
    slope = sum((p.grad * s).sum() for p, s in zip(parameters, steps, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1e-6, -2e-6, 1e-6):
            for p, step in zip(parameters, steps, strict=True):
                p += sign * step
            values.append((layer(x) * weight).sum())
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-6)


# As of a layer whose weights are those numbers, and as of PyTorch's own attention.
@pytest.mark.parametrize("how", DERIVED)
@pytest.mark.parametrize("separate", [False, True])
def test_derived_weights_are_honoured_in_every_step_and_every_getter(how, separate):
    """As of a layer whose weights are those numbers, and as of PyTorch's own attention."""
    options: dict[str, Any] = {"input_size": D, "num_heads": 2, **UNNORMED}
    options |= {"pattern_size": 4} if separate else {}
    layer, plain = make(**options), make(**options)
    names = ["q_proj_weight", "v_proj_weight"] if separate else ["in_proj_weight"]
    torch.manual_seed(0)
    for name in names:
        DERIVED[how](layer.association_core, name)
    DERIVED[how](layer.association_core.out_proj, "weight")
    attention = nn.MultiheadAttention(D, 2, batch_first=True, dtype=torch.float64)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, weight = normal(N, S, D, seed=1), normal(N, S, D, seed=2)
    for _ in range(3):
        optimiser.zero_grad()
        output = layer(x)
        (output * weight).sum().backward()
        with torch.no_grad():
            for name, p in plain.named_parameters():
                p.copy_(attrgetter(name)(layer))
        torch.testing.assert_close(output, plain(x), **CLOSE)
        if not separate:
            attention.load_state_dict(
                {k.removeprefix("association_core."): v for k, v in plain.state_dict().items()}
            )
            torch.testing.assert_close(output, attention(x, x, x)[0], **CLOSE)
        assert_gradients(layer, x, weight)
        optimiser.step()
        fresh = copy.deepcopy(layer.get_association_matrix(x))
        layer(x)  # by which a weight that is derived in a hook is up to date
        assert torch.equal(layer.get_association_matrix(x), fresh)
