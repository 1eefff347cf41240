"""What users of hflayers and of PyTorch's attention rely on, beside the numbers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from contracts import normal
from test_nn_reference import CLOSE, UNNORMED, D, L, N, S, make, padding_mask
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from hamdeq import Sparsemax
from hamdeq.nn import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
    functional,
)

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (Hopfield, {}),
    (HopfieldPooling, {"quantity": 2}),
    (HopfieldLayer, {"quantity": 5}),
]
all_kinds = pytest.mark.parametrize(
    ("kind", "options"), KINDS, ids=lambda x: getattr(x, "__name__", "")
)


class TestOutputAndWeightsOfOnePass:
    @all_kinds
    @pytest.mark.parametrize("memory", [None, Sparsemax()], ids=repr)
    @pytest.mark.parametrize("steps", [0, [2, 0], None], ids=str)
    def test_are_those_of_two(self, kind, options, memory, steps):
        layer = make(
            kind, input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory, **options
        )
        x = normal(N, S, D, seed=1)
        masks = (padding_mask("bool"), None) if kind is not HopfieldLayer else (None, None)
        output, weights = layer.associate(x, *masks)
        torch.testing.assert_close(output, layer(x, *masks), **CLOSE)
        torch.testing.assert_close(weights, layer.get_association_matrix(x, *masks), **CLOSE)
        alone = layer.associate(x[0])
        assert alone.output.shape == output.shape[1:]
        assert alone.weights.shape == weights.shape[1:]

    def test_are_both_differentiable(self):
        layer = make(input_size=D, num_heads=2, update_steps_max=1, association_activation="tanh")
        x = normal(N, S, D, seed=1).requires_grad_()
        mask = normal(S, S, seed=2)

        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(layer.associate(x, None, mask))  # type: ignore[return-value]

        assert torch.autograd.gradcheck(both, x, fast_mode=True)

    def test_weights_are_those_before_dropout(self):
        layer = make(input_size=D, num_heads=2, dropout=0.5)
        x = normal(N, S, D, seed=1)
        torch.manual_seed(0)
        output, weights = layer.associate(x)
        assert not torch.allclose(output, layer.eval()(x))
        torch.testing.assert_close(weights, layer.get_association_matrix(x), **CLOSE)


class TestBetaOfABuiltLayer:
    @all_kinds
    @pytest.mark.parametrize(
        "given",
        [{}, {"scaling": torch.tensor([0.5, 2.0])}, {"scaling_as_trainable": True}],
        ids=str,
    )
    @pytest.mark.parametrize("beta", [3.0, torch.tensor([0.7, 3.0])], ids=str)
    def test_is_as_of_one_built_with_it(self, kind, options, given, beta):
        options = {"input_size": D, "num_heads": 2, "update_steps_max": 1} | options
        layer, x = make(kind, **options, **given), normal(N, S, D, seed=1)
        expected = make(kind, **options, scaling=beta)
        for name, p in expected.named_parameters():
            p.data = layer.get_parameter(name).data
        before = layer(x)
        layer.scaling = beta
        torch.testing.assert_close(layer(x), expected(x), rtol=1e-6, atol=1e-7)
        assert (layer(x) - before).abs().max() > 1e-3
        torch.testing.assert_close(
            torch.as_tensor(layer.scaling).double().expand(2),
            torch.as_tensor(beta).double().expand(2),
        )
        assert copy.deepcopy(layer)(x).equal(layer(x))

    @pytest.mark.parametrize("given", [{}, {"scaling": torch.tensor([0.5, 2.0])}], ids=str)
    def test_is_in_the_state_dict_from_then_on(self, given):
        build = lambda: make(HopfieldLayer, input_size=D, num_heads=2, quantity=5, **given)  # noqa: E731
        layer, x = build(), normal(N, S, D)
        names = set(layer.state_dict())
        assert not any("beta" in name for name in names)
        layer.scaling = torch.tensor([1.5, 3.0])
        state = layer.state_dict()
        assert set(state) - names == {"hopfield.association_core.beta"}
        for device in ("cpu", "meta"):
            other = HopfieldLayer(D, num_heads=2, quantity=5, device=device, dtype=torch.float64)
            other.load_state_dict(state, assign=device == "meta")
            assert torch.equal(other(x), layer(x))
            assert torch.equal(other.scaling, layer.scaling)
        trained = HopfieldLayer(D, num_heads=2, quantity=5, scaling_as_trainable=True).double()
        trained.load_state_dict(state)
        torch.testing.assert_close(trained(x), layer(x), rtol=1e-6, atol=1e-6)
        # A file without it is one of weights alone.
        layer.load_state_dict(build().state_dict())
        assert layer.scaling.tolist() == [1.5, 3.0]
        layer.reset_parameters()
        assert set(layer.state_dict()) == names

    @pytest.mark.parametrize("trained", [False, True])
    def test_needs_no_new_graph_for_each_value(self, trained):
        layer, x = Hopfield(D, num_heads=2, scaling_as_trainable=trained), normal(N, S, D).float()
        graphs = []

        def backend(graph: Any, _: Any) -> Callable[..., Any]:
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        compiled(x)
        for beta in (0.5, 1.0, 2.0, torch.tensor([3.0, 4.0])):
            layer.scaling = beta
            torch.testing.assert_close(compiled(x), layer(x))
        assert len(graphs) <= 2 - trained
        torch._dynamo.reset()


class TestHooks:
    @all_kinds
    def test_of_the_core_see_each_pass(self, kind, options):
        layer, x = make(kind, input_size=D, num_heads=2, **options), normal(N, S, D, seed=1)
        core = getattr(layer, "hopfield", layer).association_core
        seen: list[Any] = []
        core.register_forward_pre_hook(lambda _, args: seen.append([a.shape for a in args]))
        core.register_forward_hook(lambda _, args, out: seen.append(out))
        core.out_proj.register_forward_hook(lambda _, args, out: seen.append("out_proj"))
        output = layer(x)
        assert len(seen) == 3
        assert seen[1] == "out_proj"
        assert len(seen[0]) == 3
        assert torch.equal(seen[2].reshape(output.shape), output)
        for call in (layer.get_association_matrix, layer.energy, layer.settle, layer.project):
            seen.clear()
            call(x)
            assert len(seen) == 2, call

    def test_may_change_what_goes_in_and_what_comes_out(self):
        layer, x = make(input_size=D), normal(N, S, D, seed=1)
        plain = layer(x)
        layer.association_core.register_forward_hook(lambda _, args, out: 2 * out)
        torch.testing.assert_close(layer(x), 2 * plain, **CLOSE)
        layer.association_core.register_forward_pre_hook(lambda _, args: tuple(0 * a for a in args))
        assert not torch.allclose(layer(x), 2 * plain)
        gradients: list[Any] = []
        layer.association_core.register_full_backward_hook(lambda *_: gradients.append(1))
        layer(x.requires_grad_()).sum().backward()
        assert gradients


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


class TestDerivedWeights:
    @pytest.mark.parametrize("how", DERIVED)
    @pytest.mark.parametrize("separate", [False, True])
    def test_are_honoured_in_every_step_and_every_getter(self, how, separate):
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
            self.assert_gradients(layer, x, weight)
            optimiser.step()
            fresh = copy.deepcopy(layer.get_association_matrix(x))
            layer(x)  # by which a weight that is derived in a hook is up to date
            assert torch.equal(layer.get_association_matrix(x), fresh)

    def assert_gradients(self, layer: Any, x: Tensor, weight: Tensor) -> None:
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


class TestTransformer:
    def test_of_a_look_up(self):
        lookup = HopfieldLayer(D, quantity=3, num_heads=2, update_steps_max=1)
        encoder = HopfieldEncoderLayer(lookup, 16, dropout=0.0)
        x = normal(N, S, D).float()
        assert encoder(x).shape == x.shape
        expected = encoder.norm_residual(x + lookup(x))
        inner = encoder.linear_output(encoder.linear_residual(expected).relu())
        torch.testing.assert_close(encoder(x), encoder.norm_output(expected + inner))
        assert encoder.get_association_matrix(x).shape == (N, 2, S, 3)
        assert encoder.input_size == encoder.output_size == D
        stack = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        assert stack(x).shape == x.shape
        decoder = HopfieldDecoderLayer(lookup, Hopfield(D), 16)
        assert decoder(x, normal(N, 5, D).float()).shape == x.shape
        before = encoder.hopfield_association.lookup_weights.clone()
        encoder.reset_parameters()
        assert not torch.equal(encoder.hopfield_association.lookup_weights, before)


CORE: dict[str, Any] = {
    "embed_dim": 8,
    "kdim": 5,
    "vdim": 6,
    "num_heads": 2,
    "head_dim": 3,
    "pattern_dim": 7,
    "virtual_hopfield_dim": 6,
    "virtual_pattern_dim": 14,
    "out_dim": 10,
    "dropout": 0.25,
    "query_as_static": False,
    "key_as_static": False,
    "value_as_static": False,
    "value_as_connected": False,
    "disable_out_projection": False,
    "static_execution": False,
    "normalize_pattern": True,
    "add_zero_attn": True,
}


def test_the_core_tells_its_sizes():
    layer = Hopfield(
        8,
        3,
        10,
        7,
        2,
        stored_pattern_size=5,
        pattern_projection_size=6,
        dropout=0.25,
        normalize_hopfield_space=True,
        add_zero_association=True,
    )
    for name, expected in CORE.items():
        assert getattr(layer.association_core, name) == expected, name
    layer.association_core.dropout = 0.5
    assert layer.dropout == 0.5


@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_static_targets_are_read_out_in_their_own_size(heads, separated):
    layer = HopfieldLayer(
        24,
        hidden_size=5,
        num_heads=heads,
        quantity=3,
        pattern_projection_as_static=True,
        disable_out_projection=True,
        lookup_weights_as_separated=separated,
    )
    state = {name: tuple(x.shape) for name, x in layer.state_dict().items()}
    core = "hopfield.association_core"
    assert state == {
        "lookup_weights": (1, 3, 24),
        **({"target_weights": (1, 3, 24)} if separated else {}),
        f"{core}.in_proj_weight": (2 * 5 * heads, 24),
        f"{core}.in_proj_bias": (3 * 5 * heads,),
        **{
            f"hopfield.norm_{name}.{part}": (24,)
            for name in ("stored_pattern", "state_pattern", "pattern_projection")
            for part in ("weight", "bias")
        },
    }
    assert layer(torch.randn(2, 4, 24)).shape == (2, 4, heads * 24)
    assert layer.output_size == heads * 24
    if heads == 1:
        assert HopfieldEncoderLayer(layer, 16)(torch.randn(2, 4, 24)).shape == (2, 4, 24)


class TestMasks:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    @pytest.mark.parametrize("memory", [None, Sparsemax()], ids=repr)
    @pytest.mark.parametrize("steps", [1, None])
    def test_the_lowest_number_leaves_out(self, steps, memory, dtype):
        layer = make(input_size=D, num_heads=2, update_steps_max=steps, lagrangian=memory)
        layer = layer.float() if dtype == torch.float32 else layer
        x = normal(N, S, D, seed=1).to(next(layer.parameters()))
        out = torch.tensor([[False, False, True, False], [True] * S])
        lowest = torch.zeros(N, S, dtype=dtype).masked_fill(out, torch.finfo(dtype).min)
        state, results = normal(N, L, D, seed=2).to(x), []
        for mask in (out, lowest):
            stored = x.masked_fill(out[..., None], torch.nan).requires_grad_()
            output = layer((stored, state, stored), mask)
            leaves = [stored, *layer.parameters()]
            results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        for one, other in zip(*results, strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, other)
        # Both masks together, each with its lowest number.
        association = torch.zeros(L, S, dtype=dtype)
        association[:, 2] = torch.finfo(dtype).min
        output = layer((stored, state, stored), lowest, association)
        torch.testing.assert_close(output, results[0][0])


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("memory", [None, Sparsemax()], ids=repr)
    def test_similarities_may_leave_its_range(self, dtype, memory):
        layer = Hopfield(
            D, input_bias=False, scaling=1.0, lagrangian=memory, **UNNORMED, dtype=dtype
        )
        with torch.no_grad():
            layer.association_core.in_proj_weight.copy_(torch.eye(D).repeat(3, 1))
        x = 200 * normal(N, S, D, seed=1).to(dtype)
        assert float(x.double().square().sum(-1).max()) > torch.finfo(torch.float16).max
        weights = layer.get_association_matrix(x)
        output, own = layer.associate(x)
        assert weights.dtype == own.dtype == dtype
        wide = copy.deepcopy(layer).double()
        torch.testing.assert_close(weights.double(), wide.get_association_matrix(x.double()))
        assert torch.equal(own, weights)
        assert torch.equal(output, layer(x))
        assert layer(x).isfinite().all()
        energy = wide.energy(x.double())
        fits = energy.abs() < torch.finfo(dtype).max
        assert not layer.energy(x).isnan().any()
        torch.testing.assert_close(
            layer.energy(x)[fits].double(),
            energy[fits],
            rtol=1e-2,
            atol=1e-2 * float(x.abs().max()),
        )

    def test_functions_of_what_is_large(self):
        x = (200 * normal(S, D)).half()
        assert not functional.pattern_separation(x).isnan().any()
        assert not functional.energy(x, x).isnan().any()
        assert not functional.error_bound(x).isnan().any()
