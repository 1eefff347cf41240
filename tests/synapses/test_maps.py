"""Synapses that are maps: convolution, pooling, composition; their adjoints and shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from hamdeq import (
    DEQ,
    HAM,
    AvgPool2d,
    Bias,
    Composed,
    Conv2d,
    Dense,
    Flatten,
    FunctionSynapse,
    Identity,
    Implicit,
    Map,
    MaxPool2d,
    Neurons,
    Picard,
    Sigmoid,
    Softmax,
    Status,
    Tanh,
    Unrolled,
    clamp,
    eliminate,
    fixed_point,
    two_colouring,
)
from hamdeq.testing import MapContract, inner, normal
from hamdeq.testing.contract import CLOSE


class Shift(Map):
    """A user's map, with nothing but what it must have: each number to the next place."""

    def forward(self, g):
        return g.roll(1, -1)

    def output_shape(self, shape):
        return tuple(shape)


class Square(Map):
    """A user's map that is not linear, and has a parameter."""

    linear = False

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, g):
        return self.scale * g**2

    def output_shape(self, shape):
        return tuple(shape)


# What makes the synapse, and the shape of the first layer.
KINDS = {
    "Dense": (lambda: Dense(4, 3), (4,)),
    "Conv2d": (lambda: Conv2d(1, 2, 3), (1, 5, 5)),
    "Conv2d, one pixel": (lambda: Conv2d(2, 3, 1), (2, 1, 1)),
    "Conv2d, strided": (lambda: Conv2d(2, 4, (3, 2), stride=2, padding=1, groups=2), (2, 6, 5)),
    "Conv2d, dilated": (lambda: Conv2d(1, 2, 2, stride=3, dilation=(2, 1), gain=2.0), (1, 8, 7)),
    "AvgPool2d": (lambda: AvgPool2d(2), (2, 4, 5)),
    "AvgPool2d, overlapping": (lambda: AvgPool2d((3, 2), stride=(1, 2), padding=1), (1, 5, 4)),
    "AvgPool2d, with gaps": (lambda: AvgPool2d(2, stride=3), (2, 9, 6)),
    "MaxPool2d": (lambda: MaxPool2d(2), (2, 4, 5)),
    "MaxPool2d, overlapping": (lambda: MaxPool2d(3, stride=(1, 2), padding=1), (1, 5, 4)),
    "Flatten": (lambda: Flatten(), (2, 3, 1)),
    "Composed": (
        lambda: Composed(Conv2d(1, 2, 2), AvgPool2d(2), Flatten(), Dense(8, 3)),
        (1, 6, 5),
    ),
    "Composed, of one": (lambda: Composed(Dense(4, 3)), (4,)),
    "Composed, with a maximum": (
        lambda: Composed(Conv2d(1, 2, 2), MaxPool2d(2), Flatten(), Dense(8, 3)),
        (1, 6, 5),
    ),
    "Shift": (Shift, (2, 3)),
    "Square": (Square, (3,)),
    "Composed, of a user's": (lambda: Composed(Square(), Shift(), Square(), Dense(3, 2)), (3,)),
}


class TestContract(MapContract):
    @pytest.fixture(autouse=True, params=KINDS.values(), ids=KINDS.keys())
    def kind(self, request):
        self.make, first = request.param
        self.shapes = (first, self.make().output_shape(first))


# ------------------------------------------------------------------------- the exact adjoint


@st.composite
def windows(draw):
    """A window and an image that it fits in, each axis by its own numbers."""
    axes = []
    for _ in range(2):
        kernel, stride, dilation = (draw(st.integers(1, 4)) for _ in range(3))
        padding = draw(st.integers(0, kernel // 2))
        span = dilation * (kernel - 1) + 1
        least = max(1, span - 2 * padding)
        axes.append((kernel, stride, padding, dilation, draw(st.integers(least, least + 7))))
    return tuple(zip(*axes, strict=True))


@settings(max_examples=80, deadline=None)
@given(windows(), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 99))
def test_adjoint_of_convolutions_of_every_size(window, inside, outside, groups, seed):
    kernel, stride, padding, dilation, size = window
    conv = Conv2d(
        inside * groups,
        outside * groups,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    ).double()
    x = normal(2, inside * groups, *size, seed=seed)
    image = conv(x)
    assert tuple(image.shape[1:]) == conv.output_shape(x.shape[1:])
    y = normal(*image.shape, seed=seed + 1)
    back = conv.adjoint(y, x)
    assert back.shape == x.shape
    torch.testing.assert_close(inner(image, y), inner(x, back), **CLOSE)
    by_torch = nn.grad.conv2d_input(  # type: ignore[attr-defined]
        x.shape, conv.weight, y, stride, padding, dilation, groups
    )
    torch.testing.assert_close(back, by_torch, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(windows(), st.integers(0, 99))
def test_adjoint_of_pooling_of_every_size(window, seed):
    kernel, stride, padding, _, size = window
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, kernel, strict=True)))
    x = normal(2, 2, *size, seed=seed)
    for pool in (
        AvgPool2d(kernel, stride=stride, padding=padding),
        MaxPool2d(kernel, stride=stride, padding=padding),
    ):
        image = pool(x)
        assert tuple(image.shape[1:]) == pool.output_shape(x.shape[1:])
        y = normal(*image.shape, seed=seed + 1)
        back = pool.adjoint(y, x)
        assert back.shape == x.shape
        torch.testing.assert_close(back, Map.adjoint(pool, y, x), **CLOSE)
        # The maximum too is linear but for the places where it jumps.
        torch.testing.assert_close(inner(image, y), inner(x, back), **CLOSE)


def test_fields_by_hand():
    conv = Conv2d(1, 1, 2).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    x = torch.tensor([[[[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]]], dtype=torch.float64)
    y = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    assert conv.field(1, x, y).tolist() == [[[[11.0, 1.0]]]]
    assert conv.field(0, x, y).tolist() == [[[[1.0, 1.0, -2.0], [3.0, 1.0, -4.0]]]]
    assert conv.energy(x, y).tolist() == [-10.0]
    x = torch.tensor([[[[1.0, 5.0, 9.0], [2.0, 4.0, 9.0]]]], dtype=torch.float64)
    y = torch.tensor([[[[8.0]]]], dtype=torch.float64)
    assert AvgPool2d(2).field(1, x, y).tolist() == [[[[3.0]]]]
    assert AvgPool2d(2).field(0, x, y).tolist() == [[[[2.0, 2.0, 0.0], [2.0, 2.0, 0.0]]]]
    assert MaxPool2d(2).field(1, x, y).tolist() == [[[[5.0]]]]
    assert MaxPool2d(2).field(0, x, y).tolist() == [[[[0.0, 8.0, 0.0], [0.0, 0.0, 0.0]]]]


def test_a_pixel_that_is_the_maximum_of_several_windows_hears_all_of_them():
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    x[0, 0, 1, 1] = 1.0
    y = normal(1, 1, 2, 2)
    field = MaxPool2d(2, stride=1).field(0, x, y)
    torch.testing.assert_close(field[0, 0, 1, 1], y.sum(), **CLOSE)
    assert field.count_nonzero() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adjoint_in_low_precision(dtype):
    torch.manual_seed(0)
    conv, pool = Conv2d(2, 3, 3, stride=2), AvgPool2d(2)
    for synapse, shape in ((conv, (2, 8, 8)), (pool, (2, 5, 5))):
        y = normal(2, *synapse.output_shape(shape), seed=1)
        expected = synapse.double().adjoint(y, normal(2, *shape))
        low = synapse.to(dtype).adjoint(y.to(dtype), normal(2, *shape, dtype=dtype))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(low.double(), expected, rtol=16 * eps, atol=16 * eps)


# ----------------------------------------------------------------------------- initial values


@pytest.mark.parametrize(("stride", "groups", "gain"), [(1, 1, 1.0), (2, 1, 0.5), (1, 4, 1.0)])
def test_a_convolution_starts_with_the_fans_of_its_two_fields(stride, groups, gain):
    torch.manual_seed(0)
    conv = Conv2d(32, 64, 5, stride=stride, groups=groups, gain=gain)
    bound = gain * math.sqrt(6 / (25 * 32 / groups + 25 * 64 / groups / stride**2))
    weight = conv.weight.detach().double()
    assert weight.abs().max() <= bound * (1 + 1e-6)  # drawn in float32
    assert weight.abs().max() >= bound * (1 - 10 / weight.numel())
    assert abs(weight.mean()) < 5 * bound / math.sqrt(3 * weight.numel())


def test_a_convolution_of_patches_starts_as_dense_weights_of_a_patch():
    """A kernel as large as the stride: to each patch its own neurons."""
    torch.manual_seed(0)
    conv, dense = Conv2d(3, 48, 4, stride=4), Dense(48, 48)
    conv_bound, dense_bound = (s.weight.detach().abs().max() for s in (conv, dense))
    torch.testing.assert_close(conv_bound, dense_bound, rtol=1e-2, atol=0)


# --------------------------------------------------------------------------------- in a HAM


def convolutional(pooling, seed=0):
    """image – (conv, pool) – hidden1 – conv – hidden2 – dense – output."""
    torch.manual_seed(seed)
    first, second = Composed(Conv2d(1, 3, 3), pooling), Conv2d(3, 4, 2, stride=2, gain=0.5)
    shape = first.output_shape((1, 9, 8))
    return HAM(
        {
            "input": Neurons((1, 9, 8), Sigmoid(4.0, 0.5)),
            "hidden1": Neurons(shape, Tanh()),
            "hidden2": Neurons(second.output_shape(shape), Sigmoid(4.0, 0.5)),
            "output": Neurons(5, Softmax()),
        },
        [
            (("input", "hidden1"), first),
            (("hidden1", "hidden2"), second),
            (("hidden2", "output"), Composed(Flatten(), Dense(4, 5))),
            (("hidden1",), Bias(shape)),
            (("output",), Bias(5)),
        ],
    ).double()


def gradients(deq, x):
    value = deq({"input": x}).value
    loss = sum((v * normal(*v.shape, seed=i)).sum() for i, v in enumerate(value.values()))
    return value, torch.autograd.grad(loss, [*deq.parameters(), x])  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", [AvgPool2d(2), MaxPool2d(2)], ids=["mean", "maximum"])
def test_convolutional_memories_converge_by_halves_as_all_at_once(pooling):
    """The maximum too: even-odd splitting needs it to be linear in the free layer alone."""
    ham = convolutional(pooling)
    assert two_colouring(ham, clamped=("input",)) == (("hidden2",), ("hidden1", "output"))
    x = normal(3, 1, 9, 8).requires_grad_()
    solver = Picard(tol=1e-13, max_steps=2000)
    halves = DEQ(ham, solver=solver, adjoint=Implicit())
    whole = DEQ(ham, splitting=None, solver=solver, adjoint=Implicit())
    unrolled = DEQ(ham, solver=solver, adjoint=Unrolled(150))
    value, grad = gradients(halves, x)
    for other in (whole, unrolled):
        other_value, other_grad = gradients(other, x)
        for name in ham.layers:
            torch.testing.assert_close(other_value[name], value[name], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other_grad, grad, rtol=1e-7, atol=1e-8)
    solution = halves({"input": x})
    assert (solution.status == Status.CONVERGED).all()
    fixed = ham.update(solution.value, clamped=("input",))
    for name in ham.layers:
        torch.testing.assert_close(fixed[name], value[name], rtol=1e-9, atol=1e-9)


def test_energy_of_a_convolutional_memory_never_rises_by_halves():
    ham = convolutional(AvgPool2d(2), seed=1)
    clamped = clamp(ham, {"input": normal(4, 1, 9, 8)})
    _, hidden = two_colouring(ham, clamped=("input",))
    model = eliminate(clamped, hidden)
    x = {"hidden2": 3 * normal(4, *ham.layer("hidden2").shape, seed=3)}
    energies = [model.energy(x)]
    for _ in range(30):
        x = model.update(x)
        energies.append(model.energy(x))
    rises = torch.stack(energies).diff(dim=0)
    assert rises.max() < 1e-13
    torch.testing.assert_close(ham.energy(clamped.full(model.restore(x))), energies[-1], **CLOSE)


def pooled(lagrangian, seed=0):
    """A free layer of images under a maximum, and dense weights on top."""
    torch.manual_seed(seed)
    return HAM(
        {
            "image": Neurons((2, 4, 4), Identity()),
            "pool": Neurons((2, 2, 2), lagrangian),
            "input": Neurons((2, 4, 4), Identity()),
        },
        [
            (("image", "pool"), MaxPool2d(2)),
            (("input", "image"), FunctionSynapse(product, linear_in=(0, 1))),
            (("pool",), Bias((2, 2, 2))),
        ],
    ).double()


def product(a, b):
    return -inner(a, b)


def test_what_a_maximum_allows():
    ham = pooled(Sigmoid())
    with pytest.raises(ValueError, match=r"'image' acts on itself through MaxPool2d .*splitting="):
        two_colouring(ham, clamped=("input",))
    clamped = clamp(ham, {"input": normal(3, 2, 4, 4)})
    with pytest.raises(ValueError, match=r"MaxPool2d .* is not linear in 'image'"):
        eliminate(clamped, ("image",))
    model = eliminate(clamped, ("pool",))
    assert not model.descends
    solution = fixed_point(
        model, {"image": torch.zeros(3, 2, 4, 4).double()}, solver=Picard(tol=1e-10)
    )
    assert solution.converged.all()
    # With activations that are not negative the full update falls, from wherever it begins.
    x = {"image": 5 * normal(3, 2, 4, 4, seed=5)}
    for _ in range(20):
        after = model.update(x)
        assert (model.energy(after) <= model.energy(x) + 1e-13).all()
        x = after


def test_printed_forms():
    assert repr(Conv2d(1, 32, 5)) == "Conv2d(1, 32, kernel_size=(5, 5), stride=(1, 1))"
    assert repr(Conv2d(2, 2, 3, padding=1, dilation=2, groups=2)).endswith(
        "padding=(1, 1), dilation=(2, 2), groups=2)"
    )
    assert repr(AvgPool2d(2)) == "AvgPool2d(kernel_size=(2, 2), stride=(2, 2))"
    assert "Conv2d" in repr(Composed(Conv2d(1, 1, 2)))


def test_agrees_with_torch():
    torch.manual_seed(0)
    x = normal(2, 3, 7, 6)
    conv = Conv2d(3, 4, 3, stride=2, padding=1).double()
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, stride=2, padding=1))
    twin = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).double()
    twin.load_state_dict(conv.state_dict())
    torch.testing.assert_close(conv(x), twin(x))


def test_composed_of_a_list_is_composed_of_its_maps():
    conv, pool = Conv2d(1, 2, 3), AvgPool2d(2)
    listed = Composed.of([conv, pool])
    g = torch.randn(2, 1, 8, 8)
    assert torch.equal(listed(g), Composed(conv, pool)(g))
