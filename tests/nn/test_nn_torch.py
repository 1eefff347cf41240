"""Hopfield layers under what PyTorch does to modules: compile, export, autocast, func, copies."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import start_method
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from hamdeq import Anderson, Entmax, Picard, Separation, Sparsemax, Unrolled
from hamdeq.nn import (
    Hopfield,
    HopfieldDecoderLayer,
    HopfieldEncoderLayer,
    HopfieldLayer,
    HopfieldPooling,
    functional,
)
from hamdeq.nn.inputs import causal_mask
from hamdeq.testing import normal

# Dynamo looks for a .grad on all tensors it meets, also on the patterns of a converged layer. It
# hides the warning from users, but not from those to whom warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
STEPS = [0, 3, None]
TIGHT = Anderson(tol=1e-6, max_steps=200)


def wide(module: nn.Module) -> nn.Module:
    """With weights that are large enough for the layer to be far from linear, and dull."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.dim() > 1 and not name.endswith("log_beta"):
                value.copy_(0.5 * noise)
            elif not name.endswith("log_beta"):
                value.add_(0.1 * noise.to(value.dtype))
    return module


def layer(kind: str, steps: Any = 3, **options: Any) -> nn.Module:
    """One of size 8, with two heads and by default a trained β for each."""
    options = {"scaling": torch.tensor([0.4, 0.8]), "scaling_as_trainable": True} | options
    options |= {"num_heads": 2, "update_steps_max": steps}
    torch.manual_seed(0)  # for what ``wide`` only adds to
    factory = {name: options[name] for name in ("device", "dtype") if name in options}
    if kind == "Hopfield":
        made = Hopfield(8, **options)
    elif kind == "HopfieldPooling":
        made = HopfieldPooling(8, quantity=2, **options)
    elif kind == "HopfieldLayer":
        made = HopfieldLayer(8, quantity=5, lookup_weights_as_separated=True, **options)
    elif kind == "encoder":
        made = HopfieldEncoderLayer(Hopfield(8, **options), 16, dropout=0.0).to(**factory)
    else:
        associations = [Hopfield(8, **options) for _ in range(2)]
        made = HopfieldDecoderLayer(*associations, dim_feedforward=16, dropout=0.0).to(**factory)
    return wide(made)


CORE = ["Hopfield", "HopfieldPooling", "HopfieldLayer"]
LAYERS = [*CORE, "encoder", "decoder"]
all_layers = pytest.mark.parametrize("kind", LAYERS)
# Each kind of layer with one of the numbers of updates; these with one kind of layer at least.
kinds_and_steps = pytest.mark.parametrize(
    ("kind", "steps"), [(kind, STEPS[k % 3]) for k, kind in enumerate(LAYERS)]
)
kinds_and_fixed_steps = pytest.mark.parametrize(
    ("kind", "steps"), [(kind, 3 if k % 2 else 0) for k, kind in enumerate(LAYERS)]
)


def inputs(module: nn.Module, *lead: int, seed: int = 1, **options: Any) -> tuple[Tensor, ...]:
    """What the layer takes, by default a batch of four sequences of six."""
    generator = torch.Generator().manual_seed(seed)
    lead = lead or (4, 6)
    count = 2 if isinstance(module, HopfieldDecoderLayer) else 1
    return tuple(torch.randn(*lead, 8, generator=generator).to(**options) for _ in range(count))


def gradients(y: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Of a sum with random factors, lest errors of opposite sign cancel."""
    factors = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    module.zero_grad()
    (y * factors).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    assert all(g is not None for g in found.values()), found
    return {name: g.clone() for name, g in found.items() if g is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert max(g.abs().max() for g in expected.values()) > 0.1
    for name, g in expected.items():
        torch.testing.assert_close(
            found[name], g, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


class Counting:
    """A backend that leaves the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def _forgets_earlier_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("torch._dynamo"), "propagate", False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


PADDING = torch.zeros(4, 6, dtype=torch.bool)
PADDING[1, 4:], PADDING[2] = True, True  # of one sample a part, of another all
MASK = torch.linspace(-1, 1, 36).view(6, 6).masked_fill(causal_mask(6, torch.device("cpu")), -9.0)


def masked(kind: str) -> dict[str, Tensor]:
    return {
        "Hopfield": {"stored_pattern_padding_mask": PADDING, "association_mask": MASK},
        "HopfieldPooling": {"stored_pattern_padding_mask": PADDING},
        "HopfieldLayer": {"association_mask": MASK[:, :5]},
        "encoder": {"src_mask": MASK > 0, "src_key_padding_mask": PADDING},
        "decoder": {"tgt_mask": MASK, "memory_key_padding_mask": PADDING},
    }[kind]


@pytest.mark.compile
@pytest.mark.usefixtures("_forgets_earlier_graphs")
class TestCompile:
    @pytest.mark.parametrize("kind", ["Hopfield", "encoder"])
    def test_it_is_one_graph_with_the_same_gradients(self, kind: str) -> None:
        module = layer(kind, 1)
        given, masks = inputs(module), masked(kind)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        result, expected = compiled(*given, **masks), module(*given, **masks)
        torch.testing.assert_close(result, expected, **CLOSE)
        assert_same_gradients(gradients(result, module), gradients(expected, module))

    @pytest.mark.parametrize(
        "options",
        [
            {"update_steps_max": [0, 2], "concat_bias_pattern": True, "add_zero_association": True},
            {"stored_pattern_size": 5, "pattern_projection_size": 4, "batch_first": False},
            {"lagrangian": Sparsemax(), "update_steps_max": 1},
            {"lagrangian": Entmax(1.3)},
        ],
        ids=["steps of each head, patterns appended", "batch second", "sparsemax", "entmax"],
    )
    def test_three_inputs_are_one_graph(self, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        module = wide(Hopfield(8, num_heads=2, scaling=0.5, scaling_as_trainable=True, **options))
        sizes = [
            options.get("stored_pattern_size", 8),
            8,
            options.get("pattern_projection_size", 8),
        ]
        given = tuple(torch.randn(4, 4, size) for size in sizes)
        compiled = torch.compile(module, fullgraph=True, backend=Counting())
        result, expected = compiled(given), module(given)
        torch.testing.assert_close(result, expected, **CLOSE)
        assert_same_gradients(gradients(result, module), gradients(expected, module))

    @pytest.mark.parametrize("kind", ["HopfieldPooling", "HopfieldLayer"])
    def test_a_new_batch_size_needs_no_new_graph(self, kind: str) -> None:
        # One graph of the first size, one of all, one of a single sample. Nor for each tensor.
        module, count = layer(kind, 1), Counting()
        compiled = torch.compile(module, fullgraph=True, backend=count)
        for n, s in ((4, 6), (7, 6), (3, 5), (1, 6)):
            given = inputs(module, n, s, seed=n)
            torch.testing.assert_close(compiled(*given), module(*given), **CLOSE)
        assert count.graphs <= 4

    def test_it_is_compiled_once_for_sizes_marked_as_dynamic(self) -> None:
        module, count = layer("Hopfield", 1), Counting()
        compiled = torch.compile(module, fullgraph=True, backend=count)
        for n, s in ((4, 6), (7, 5)):
            (given,) = inputs(module, n, s)
            torch._dynamo.mark_dynamic(given, 0)
            torch._dynamo.mark_dynamic(given, 1)
            compiled(given)
        assert count.graphs == 1

    def test_the_converged_mode_is_right_and_not_compiled_for_each_step(self) -> None:
        # What comes before and what comes after, of one size and of all. Traced, each step of the
        # solver would break into graphs for each number of state patterns that are left.
        module, count = layer("Hopfield", None, solver=TIGHT), Counting()
        compiled = torch.compile(module, backend=count)
        for n in (4, 7):
            given = inputs(module, n, 6)
            result, expected = compiled(*given), module(*given)
            torch.testing.assert_close(result, expected, **CLOSE)
        assert_same_gradients(gradients(result, module), gradients(expected, module))
        assert count.graphs <= 9

    @pytest.mark.parametrize("trained", [False, True])
    def test_a_new_beta_needs_no_new_graph(self, trained: bool) -> None:
        module, count = Hopfield(8, num_heads=2, scaling_as_trainable=trained), Counting()
        (x,) = inputs(module)
        compiled = torch.compile(module, fullgraph=True, backend=count)
        compiled(x)
        for beta in (0.5, 2.0, torch.tensor([3.0, 4.0])):
            module.scaling = beta
            torch.testing.assert_close(compiled(x), module(x))
        assert count.graphs <= 2 - trained

    def test_steep_entmax_is_one_graph(self) -> None:
        def read(x: Tensor) -> Tensor:
            return functional.metastability(Entmax(3.0).activation(x))

        x = normal(4, 6)
        compiled = torch.compile(read, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), read(x), **CLOSE)


@pytest.mark.compile
class TestExport:
    @pytest.mark.parametrize(("kind", "strict"), [("HopfieldPooling", True), ("encoder", False)])
    def test_a_program_takes_any_batch_and_length(self, kind: str, strict: bool) -> None:
        module = layer(kind, 1).eval()
        given = inputs(module)
        sizes = {0: Dim("batch"), 1: Dim("length")}
        program = torch.export.export(
            module, given, dynamic_shapes=(sizes,) * len(given), strict=strict
        )
        for n, s in ((4, 6), (3, 9), (2, 2)):
            other = inputs(module, n, s, seed=3)
            torch.testing.assert_close(program.module()(*other), module(*other), **CLOSE)

    def test_a_program_with_a_mask_goes_through_a_file(self) -> None:
        module = layer("Hopfield", 1, concat_bias_pattern=True, add_zero_association=True).eval()
        sizes = {0: Dim("batch"), 1: Dim("length")}
        shapes = {"input": sizes, "stored_pattern_padding_mask": sizes, "association_mask": None}
        program = torch.export.export(
            module, (*inputs(module), PADDING, None), dynamic_shapes=shapes, strict=False
        )
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        (x,), padding = inputs(module, 3, 9), torch.rand(3, 9) > 0.6
        torch.testing.assert_close(loaded(x, padding, None), module(x, padding), **CLOSE)

    def test_a_program_with_padding_ties_no_sizes_together(self) -> None:
        module = layer("HopfieldLayer", 0).eval()
        padding = torch.zeros(4, 5, dtype=torch.bool)
        padding[1, 2] = True
        shapes = ({0: Dim("n"), 1: Dim("length")}, {0: Dim("n")})
        given = (*inputs(module), padding)
        program = torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
        for count, size in ((2, 4), (5, 9)):
            other = (*inputs(module, count, size, seed=5), padding[[1] * count])
            torch.testing.assert_close(program.module()(*other), module(*other), **CLOSE)


def distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


# Where patterns are told apart sharply, rounding may lead to another equilibrium.
MILD = {"scaling": torch.tensor([0.1, 0.2]), "solver": Anderson(tol=1e-5, max_steps=200)}


class TestPrecision:
    @kinds_and_steps
    def test_autocast(self, kind: str, steps: int | None) -> None:
        module = layer(kind, steps, **MILD)
        given = inputs(module)
        expected = module(*given)
        with torch.autocast("cpu", torch.bfloat16):
            found = module(*given)
        # Transformer layers end in a layer norm, which is taken in float32.
        dtype = torch.float32 if kind in ("encoder", "decoder") else torch.bfloat16
        assert found.dtype == dtype
        assert distance(found, expected) < 0.05
        for name, g in gradients(found, module).items():
            assert g.dtype == torch.float32, name
            assert g.isfinite().all(), name

    @pytest.mark.parametrize(
        ("kind", "steps", "dtype"),
        [
            (kind, STEPS[(k + n) % 3], dtype)
            for k, kind in enumerate(LAYERS)
            for n, dtype in enumerate((torch.float16, torch.bfloat16))
        ],
    )
    def test_weights_of_half_precision(
        self, kind: str, steps: int | None, dtype: torch.dtype
    ) -> None:
        close = 0.005 if dtype == torch.float16 else 0.05
        module = layer(kind, steps, **MILD).to(dtype)
        exact = copy.deepcopy(module).double()  # whose weights are rounded, too
        given = inputs(module, dtype=dtype)
        found, expected = module(*given), exact(*(x.double() for x in given))
        assert found.dtype == dtype
        assert expected.dtype == torch.float64
        assert distance(found, expected) < close
        for name, g in gradients(found, module).items():
            assert g.dtype == dtype, name
            assert g.isfinite().all(), name

    @pytest.mark.parametrize(
        ("dtype", "trained"), [(torch.bfloat16, True), (torch.float64, False)], ids=str
    )
    @all_layers
    def test_a_dtype_given_at_construction(
        self, kind: str, dtype: torch.dtype, trained: bool
    ) -> None:
        module = layer(kind, dtype=dtype, scaling_as_trainable=trained)
        tensors = (*module.parameters(), *module.buffers())
        assert {value.dtype for value in tensors} == {dtype}
        assert module(*inputs(module, dtype=dtype)).dtype == dtype

    def test_a_tolerance_that_half_precision_could_not_resolve(self) -> None:
        module = layer("Hopfield", None, solver=Picard(tol=1e-5, max_steps=500)).half()
        solution = module.settle(*inputs(module, dtype=torch.float16))  # pyright: ignore
        assert solution.converged.all()


def math_kernel() -> AbstractContextManager[Any]:
    """The only kernel of scaled_dot_product_attention on the CPU that has a batching rule, and a
    second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


class TestFunctionTransforms:
    @kinds_and_fixed_steps
    def test_vmap_over_samples(self, kind: str, steps: int) -> None:
        module = layer(kind, steps)
        given = inputs(module)
        expected = module(*given)
        with math_kernel():
            torch.testing.assert_close(vmap(module)(*given), expected, **CLOSE)

    def test_vmap_over_masks(self) -> None:
        module = layer("HopfieldPooling")
        (x,) = inputs(module)
        expected = module(x, PADDING)
        with math_kernel():
            torch.testing.assert_close(vmap(module)(x, PADDING), expected, **CLOSE)

    @pytest.mark.parametrize(
        ("memory", "steps"), [(Sparsemax(), 3), (Entmax(1.5), 0), (Entmax(1.3), 1)], ids=repr
    )
    def test_sparse_retrieval_sample_by_sample(self, steps: int, memory: Separation) -> None:
        module = layer("Hopfield", steps, lagrangian=memory).double()
        (x,) = inputs(module, dtype=torch.float64)
        weights = dict(module.named_parameters())

        def loss(weights: dict[str, Tensor], x: Tensor, padding: Tensor) -> Tensor:
            return functional_call(module, weights, (x, padding)).square().sum()

        assert vmap(module)(x, PADDING).equal(module(x, PADDING))
        found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, PADDING)
        for i in range(4):
            expected = torch.autograd.grad(loss(weights, x[i], PADDING[i]), list(weights.values()))
            for name, g in zip(weights, expected, strict=True):
                torch.testing.assert_close(found[name][i], g, rtol=1e-10, atol=1e-10)

    def test_without_that_kernel_vmap_warns_and_is_right(self) -> None:
        module = layer("Hopfield")
        (x,) = inputs(module)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            torch.testing.assert_close(vmap(module)(x), module(x), **CLOSE)

    @kinds_and_fixed_steps
    def test_gradients_of_each_sample(self, kind: str, steps: int) -> None:
        module = layer(kind, steps).double()
        given = inputs(module, dtype=torch.float64)
        weights = dict(module.named_parameters())

        def loss(weights: dict[str, Tensor], *sample: Tensor) -> Tensor:
            return functional_call(module, weights, sample).square().sum()

        with math_kernel():
            axes = (None, *(0 for _ in given))
            found = vmap(grad(loss), in_dims=axes)(weights, *given)
        for i in range(4):
            module.zero_grad()
            module(*(x[i] for x in given)).square().sum().backward()
            for name, p in module.named_parameters():
                torch.testing.assert_close(found[name][i], p.grad, rtol=1e-10, atol=1e-10)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of PyTorch's own
    @pytest.mark.parametrize("kind", ["HopfieldPooling", "HopfieldLayer", "decoder"])
    def test_jacobians(self, kind: str) -> None:
        module = layer(kind)
        given = inputs(module, 3)
        tangents = inputs(module, 3, seed=5)
        with math_kernel():
            reverse, forward = jacrev(module)(*given), jacfwd(module)(*given)
            torch.testing.assert_close(reverse, forward, rtol=1e-4, atol=1e-5)
            value, tangent = jvp(lambda x: module(x, *given[1:]), given[:1], tangents[:1])
        torch.testing.assert_close(value, module(*given), **CLOSE)
        expected = torch.einsum("...ld,ld->...", reverse, tangents[0])
        torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)

    @kinds_and_fixed_steps
    def test_second_derivatives(self, kind: str, steps: int) -> None:
        module = layer(kind, steps).double()
        given = [x.requires_grad_() for x in inputs(module, 2, 3, dtype=torch.float64)]
        with math_kernel():
            assert torch.autograd.gradgradcheck(module, given, fast_mode=True)

    def test_second_derivatives_through_unrolled_updates(self) -> None:
        module = layer("encoder", None, adjoint=Unrolled(3)).double()
        (x,) = (x.requires_grad_() for x in inputs(module, 2, 3, dtype=torch.float64))
        # Numerical derivatives would need the equilibrium to more digits than it is worth.
        with math_kernel():
            (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
            first.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())

    def test_implicit_gradient_has_none(self) -> None:
        module = layer("Hopfield", None)
        (x,) = (x.requires_grad_() for x in inputs(module))
        with pytest.raises(RuntimeError, match="no second derivative"), math_kernel():
            torch.autograd.grad(module(x).sum(), x, create_graph=True)


def cubed(x: Tensor) -> Tensor:
    return x**3


OPTIONS: list[dict[str, Any]] = [
    {"association_activation": "gelu"},
    {"association_activation": cubed, "update_steps_max": None},
    {"association_activation": torch.tanh, "scaling_as_trainable": False},
    {"update_steps_max": [1, -1], "lagrangian": Sparsemax()},
    {"scaling": 0.3, "scaling_as_trainable": False, "update_steps_max": torch.tensor([0, 2])},
]


class TestCopies:
    @pytest.mark.parametrize(
        ("kind", "options", "how"),
        [
            (kind, OPTIONS[(k + n) % len(OPTIONS)], how)
            for k, kind in enumerate(LAYERS)
            for n, how in enumerate(("deepcopy", "torch.save"))
        ],
    )
    def test_are_equal_and_apart(self, kind: str, options: dict[str, Any], how: str) -> None:
        if "lagrangian" in options:
            pytest.importorskip("entmax")
        options = dict(options)
        module = layer(kind, options.pop("update_steps_max", 3), **options)
        given = inputs(module)
        expected = module(*given)
        expected.sum().backward()
        if how == "deepcopy":
            made = copy.deepcopy(module)
        else:
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            made = torch.load(file, weights_only=False)
        assert torch.equal(made(*given), expected)
        places = [{p.data_ptr() for p in (*m.parameters(), *m.buffers())} for m in (module, made)]
        assert not places[0] & places[1]
        assert repr(made) == repr(module)

    @pytest.mark.parametrize("trained", [True, False])
    @all_layers
    def test_state_dict(self, kind: str, trained: bool) -> None:
        module = layer(kind, scaling_as_trainable=trained)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        torch.manual_seed(1)
        other = layer(kind, scaling=torch.tensor([0.4, 0.8]), scaling_as_trainable=trained)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1.0)
        other.load_state_dict(torch.load(file, weights_only=True))
        given = inputs(module)
        assert torch.equal(other(*given), module(*given))

    @kinds_and_steps
    def test_frozen(self, kind: str, steps: int | None) -> None:
        module = layer(kind, steps).requires_grad_(False)
        given = inputs(module)
        assert not module(*given).requires_grad
        x = given[0].requires_grad_()
        module(*given).square().sum().backward()
        assert x.grad is not None
        assert all(p.grad is None for p in module.parameters())


BETAS: list[dict[str, Any]] = [
    {"scaling": torch.tensor([0.1, 0.7]), "scaling_as_trainable": True},
    {"scaling": torch.tensor([0.1, 0.7])},
    {"scaling": 0.3},
    {"scaling": 0.3, "scaling_as_trainable": True},
    {},
]


class TestMeta:
    @kinds_and_fixed_steps
    def test_shapes_without_values(self, kind: str, steps: int) -> None:
        module = layer(kind, steps)
        expected = module(*inputs(module))
        module.to("meta")
        found = module(*inputs(module, device="meta"))
        assert found.is_meta
        assert found.shape == expected.shape

    @pytest.mark.parametrize(("kind", "beta"), list(zip(LAYERS, BETAS, strict=True)))
    def test_parameters_drawn_after_construction(self, kind: str, beta: dict[str, Any]) -> None:
        def build() -> nn.Module:
            core = {"concat_bias_pattern": True, "normalize_hopfield_space": True} | beta
            core |= {"num_heads": 2, "normalize_hopfield_space_affine": True}
            if kind == "HopfieldPooling":
                return HopfieldPooling(64, quantity=9, **core)
            if kind == "HopfieldLayer":
                return HopfieldLayer(64, quantity=9, lookup_weights_as_separated=True, **core)
            association = Hopfield(64, **core)
            if kind == "Hopfield":
                return association
            if kind == "encoder":
                return HopfieldEncoderLayer(association, 32)
            return HopfieldDecoderLayer(association, association, 32)

        torch.manual_seed(0)
        fresh = build()
        with torch.device("meta"):
            made = build()
        assert all(value.is_meta for value in (*made.parameters(), *made.buffers()))
        made.to_empty(device="cpu")
        with torch.no_grad():
            for value in (*made.parameters(), *made.buffers()):
                value.fill_(torch.nan)
        made.reset_parameters()  # pyright: ignore
        for (name, a), b in zip(fresh.named_parameters(), made.parameters(), strict=True):
            assert a.dtype == b.dtype
            if a.std(correction=0) == 0 or name.endswith("log_beta"):
                torch.testing.assert_close(a, b, msg=name)
            elif a.numel() > 500:
                torch.testing.assert_close(a.std(), b.std(), rtol=0.15, atol=0.0, msg=name)
                assert abs(b.mean()) < 0.2 * b.std(), name
            assert b.isfinite().all(), name
        layers = [[m for m in net.modules() if isinstance(m, Hopfield)] for net in (fresh, made)]
        for a, b in zip(*layers, strict=True):
            torch.testing.assert_close(torch.as_tensor(b.scaling), torch.as_tensor(a.scaling))


DISTRIBUTED: dict[str, tuple[str, Any]] = {
    "Hopfield, steps of each head": ("Hopfield", [1, -1]),
    "HopfieldPooling, converged": ("HopfieldPooling", None),
    "HopfieldLayer, 3 steps": ("HopfieldLayer", 3),
    "decoder, converged": ("decoder", None),
}


def of_doubles(kind: str, steps: Any) -> nn.Module:
    return layer(kind, steps, solver=Anderson(tol=1e-12, max_steps=500)).double()


def shared(module: nn.Module, samples: slice) -> list[Tensor]:
    """The gradients of the mean loss of some of eight samples; all parameters have one."""
    base = getattr(module, "module", module)  # within DistributedDataParallel
    given = inputs(base, 8, 6, dtype=torch.float64)
    y = module(*(x[samples] for x in given))
    module.zero_grad()
    y.square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())
    return [p.grad for p in module.parameters()]  # pyright: ignore


def work(rank: int, folder: Path) -> None:
    """One of two processes, each with half of the batch."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # for the other, when one has failed
    )
    half, found = slice(rank * 4, (rank + 1) * 4), {}
    for name, (kind, steps) in DISTRIBUTED.items():
        module = DistributedDataParallel(of_doubles(kind, steps))
        # Twice, because the second pass finds out what the first one has left undone.
        found[name] = [[g.clone() for g in shared(module, half)] for _ in range(2)]
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    from torch.distributed.fsdp import fully_shard

    # Of torch 2.14, about the view that any module ends with whose last step is a reshape.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    module = of_doubles("encoder", None)
    fully_shard(module.hopfield_association, mesh=mesh)  # pyright: ignore
    fully_shard(module, mesh=mesh)
    found["sharded"] = [[g.full_tensor() for g in shared(module, half)]]  # pyright: ignore
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes found, in one start of these for all cases."""
    folder = tmp_path_factory.mktemp("processes")
    mp.start_processes(work, (folder,), nprocs=2, start_method=start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.subprocess
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch without gloo"
)
class TestDistributed:
    @pytest.mark.parametrize("name", DISTRIBUTED)
    def test_both_have_the_gradient_of_the_whole_batch(
        self, name: str, processes: list[dict[str, Any]]
    ) -> None:
        expected = shared(of_doubles(*DISTRIBUTED[name]), slice(None))
        assert max(g.abs().max() for g in expected) > 1e-3
        for found in processes:
            for grads in found[name]:
                torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-9)

    def test_sharded_parameters_have_the_gradient_of_the_whole_batch(
        self, processes: list[dict[str, Any]]
    ) -> None:
        expected = shared(of_doubles("encoder", None), slice(None))
        for found in processes:
            (grads,) = found["sharded"]
            torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-9)


def lagrangian(name: str) -> Separation | None:
    if name == "sparsemax":
        pytest.importorskip("entmax")
        return Sparsemax()
    return None


class TestNothing:
    @pytest.mark.parametrize(
        ("kind", "lead", "steps", "separation"),
        [
            (kind, lead, STEPS[(k + n) % 3], ("softmax", "sparsemax")[(k + n) % 2])
            for k, kind in enumerate(LAYERS)
            for n, lead in enumerate(((0, 5), (4, 0), (0,)))
        ],
    )
    def test_no_samples_or_patterns(
        self, kind: str, steps: int | None, separation: str, lead: tuple[int, ...]
    ) -> None:
        module = layer(kind, steps, lagrangian=lagrangian(separation), dropout=0.1)
        given = [x.requires_grad_() for x in inputs(module, *lead)]
        y = module(*given)
        y.sum().backward()
        assert y.isfinite().all()
        for value in (*given, *module.parameters()):
            assert value.grad is not None
            assert value.grad.isfinite().all()

    @pytest.mark.parametrize(
        ("steps", "separation"), [(0, "softmax"), (3, "sparsemax"), (None, "softmax")]
    )
    def test_states_without_stored_patterns(self, steps: int | None, separation: str) -> None:
        module = layer("Hopfield", steps, lagrangian=lagrangian(separation))
        stored = torch.randn(4, 0, 8, requires_grad=True)
        states = torch.randn(4, 3, 8, requires_grad=True)
        given = (stored, states, stored)
        y = module(given, torch.zeros(4, 0, dtype=torch.bool), torch.zeros(3, 0))
        out = module.association_core.out_proj  # pyright: ignore
        torch.testing.assert_close(y, out.bias.expand(4, 3, 8))  # pyright: ignore
        y.sum().backward()
        for value in (stored, states, *module.parameters()):
            assert value.grad is not None
            assert value.grad.isfinite().all()
        assert module.get_association_matrix(given).shape == (4, 2, 3, 0)  # pyright: ignore
        assert module.energy(given).shape == (4, 2, 3)  # pyright: ignore
        assert module.settle(given).converged.all()  # pyright: ignore

    @kinds_and_steps
    def test_without_a_batch(self, kind: str, steps: int | None) -> None:
        module = layer(kind, steps)
        given = inputs(module)
        expected = module(*given)
        for i in range(4):
            found = module(*(x[i] for x in given))
            torch.testing.assert_close(found, expected[i], rtol=1e-4, atol=1e-4)
