"""Madam against its rule, written out once more in float64."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hamdeq.optim import Madam


def reference(w, grads, lr=0.01, p_scale=1024.0, g_bound=10.0, decay=0.999):
    """The weights after each gradient, operation by operation in float64."""
    w = w.detach().double().clone()
    bound = p_scale * w.square().mean().sqrt()
    v = torch.zeros_like(w)
    path = []
    for t, g in enumerate(grads, start=1):
        g = g.double()
        v = decay * v + (1 - decay) * g**2
        v_hat = v / (1 - decay**t)
        ratio = torch.where(v_hat > 0, g / torch.where(v_hat > 0, v_hat, 1.0).sqrt(), 0.0)
        w = w * torch.exp(-lr * torch.sign(w) * torch.clamp(ratio, -g_bound, g_bound))
        w = torch.clamp(w, -bound, bound)
        path.append(w)
    return path


def parameter(*shape, seed=0, std=0.1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((std * torch.randn(*shape, generator=generator)).to(dtype))


def gradients(p, steps, seed=1, std=1e-3):
    generator = torch.Generator().manual_seed(seed)
    return [(std * torch.randn(p.shape, generator=generator)).to(p.dtype) for _ in range(steps)]


def run(optimizer, p, grads):
    for g in grads:
        p.grad = g.clone()
        optimizer.step()


# 100 × 200 elements are updated in place, the others through copies; 2**19 + 3 in two blocks.
SHAPES = [(1,), (2, 3, 4), (100, 200), (2**19 + 3,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_steps_follow_the_rule(shape, dtype, rtol):
    p = parameter(*shape, dtype=dtype)
    grads = gradients(p, 3)
    path = reference(p, grads)
    optimizer = Madam([p])
    for g, expected in zip(grads, path, strict=True):
        run(optimizer, p, [g])
        torch.testing.assert_close(p.detach().double(), expected, rtol=rtol, atol=0)


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 40),
    steps=st.integers(1, 150),
    seed=st.integers(0, 2**31),
    log_gradient=st.integers(-9, 6),
    lr=st.sampled_from([1e-3, 0.01, 0.1]),
    p_scale=st.sampled_from([0.5, 2.0, 1024.0]),
    g_bound=st.sampled_from([0.3, 1.0, 10.0]),
    decay=st.sampled_from([0.0, 0.9, 0.999]),
    zeros=st.floats(0.0, 0.9),
)
def test_many_steps_follow_the_rule(
    size, steps, seed, log_gradient, lr, p_scale, g_bound, decay, zeros
):
    p = parameter(size, seed=seed, dtype=torch.float64)
    grads = gradients(p, steps, seed=seed + 1, std=10.0**log_gradient)
    generator = torch.Generator().manual_seed(seed)
    grads = [g * (torch.rand(size, generator=generator) >= zeros) for g in grads]
    hyper = {"lr": lr, "p_scale": p_scale, "g_bound": g_bound, "decay": decay}
    expected = reference(p, grads, **hyper)[-1]
    run(Madam([p], **hyper), p, grads)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=0)


def test_bound_is_reached_and_never_exceeded_and_signs_stay():
    p = parameter(50)
    start = p.detach().clone()
    rms = start.square().mean().sqrt().item()
    optimizer = Madam([p], lr=0.1, p_scale=2.0)
    for g in gradients(p, 300):
        run(optimizer, p, [g - 1e-3 * start.sign()])
        assert p.abs().max().item() <= 2.0 * rms * (1 + 1e-6)
        assert torch.equal(p.sign(), start.sign())
    assert p.abs().max().item() == pytest.approx(2.0 * rms, rel=1e-6)
    # The bound belongs to the initial value, not to what the weights have become.
    assert optimizer.state[p]["bound"] == pytest.approx(2.0 * rms, rel=1e-6)


def test_g_bound_limits_one_step():
    p = parameter(50)
    optimizer = Madam([p], lr=0.01, g_bound=2.0)
    run(optimizer, p, gradients(p, 200))
    before = p.detach().clone()
    run(optimizer, p, gradients(p, 1, std=10.0))
    change = (p.detach() / before).log().abs()
    assert change.max().item() == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("factor", [1e-8, 3.0, 1e12])
def test_scale_of_the_gradient_does_not_matter(factor):
    p, q = parameter(30), parameter(30)
    grads = gradients(p, 100)
    run(Madam([p]), p, grads)
    run(Madam([q]), q, [factor * g for g in grads])
    torch.testing.assert_close(p, q, rtol=2e-5, atol=0)


@pytest.mark.parametrize("shape", [(4, 3), (1,), ()])
def test_zero_tensor_is_refused_at_the_first_step(shape):
    other, zero = parameter(5), nn.Parameter(torch.zeros(shape))
    optimizer = Madam([other, zero])
    other.grad, zero.grad = torch.ones(5), torch.ones(shape)
    before = other.detach().clone()
    with pytest.raises(ValueError, match=r"not all zero, got .* 0\.0 .*normal_.*other optimiser"):
        optimizer.step()
    assert torch.equal(other, before)
    nn.init.normal_(zero, std=0.01)  # the remedy works on the same optimiser
    optimizer.step()
    assert not torch.equal(other, before)


def test_non_finite_initial_value_is_refused():
    p = nn.Parameter(torch.tensor([1.0, math.nan]))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match="finite entries"):
        Madam([p]).step()


def test_zero_at_construction_is_fine_when_the_value_comes_later():
    p = nn.Parameter(torch.zeros(3))
    optimizer = Madam([p])
    nn.init.constant_(p, 0.5)
    run(optimizer, p, [torch.ones(3)])
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.5 * math.exp(-0.01)))


def test_zero_elements_stay_zero():
    p = parameter(20)
    p.data[::3] = 0.0
    run(Madam([p]), p, gradients(p, 10))
    assert (p[::3] == 0).all()
    assert (p[1::3] != 0).all()


def test_zero_gradient_changes_nothing_and_gives_no_nan():
    p = parameter(20)
    before = p.detach().clone()
    optimizer = Madam([p])
    run(optimizer, p, [torch.zeros(20)] * 5)
    assert torch.equal(p, before)
    run(optimizer, p, gradients(p, 5))
    assert p.isfinite().all()
    assert not torch.equal(p, before)


@pytest.mark.parametrize("size", [1e-45, 1e-20, 1e18])
def test_extreme_gradients_stay_within_the_rule(size):
    p = parameter(20)
    before = p.detach().clone()
    run(Madam([p]), p, [torch.full((20,), size)] * 5)
    ratio = (p.detach() / before).log().abs()
    assert ratio.max().item() <= 5 * 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_non_finite_gradient_raises_before_anything_changes(bad):
    p, q = parameter(5), parameter(6)
    optimizer = Madam([p, q])
    run(optimizer, p, gradients(p, 1))
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
    p.grad, q.grad = torch.ones(5), torch.full((6,), bad)
    with pytest.raises(ValueError, match="finite gradient, got norm"):
        optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.state_dict()["state"][0]["step"] == state["state"][0]["step"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_where_it_is_not_looked_for_a_non_finite_gradient_shows(bad, monkeypatch):
    monkeypatch.setattr("hamdeq.optim.madam._check_gradient", lambda g: None)  # as on a GPU
    p = parameter(3)
    run(Madam([p]), p, [torch.tensor([1.0, bad, 1.0])])
    assert p.isnan().tolist() == [False, True, False]


def through_state_dict(model, optimizer):
    other = copy.deepcopy(model)
    resumed = Madam(other.parameters())
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    return other, resumed


def through_deepcopy(model, optimizer):
    return copy.deepcopy((model, optimizer))


def through_pickle(model, optimizer):
    return pickle.loads(pickle.dumps((model, optimizer)))


@pytest.mark.parametrize("copied", [through_state_dict, through_deepcopy, through_pickle])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_is_bit_identical(copied, dtype):
    torch.manual_seed(0)
    model = nn.Linear(200, 100).to(dtype)
    optimizer = Madam(model.parameters(), lr=0.05)
    steps = [[torch.randn_like(p) for p in model.parameters()] for _ in range(20)]

    def advance(model, optimizer, grads):
        for step in grads:
            for p, g in zip(model.parameters(), step, strict=True):
                p.grad = g.clone()
            optimizer.step()

    advance(model, optimizer, steps[:10])
    other, resumed = copied(model, optimizer)
    advance(model, optimizer, steps[10:])
    advance(other, resumed, steps[10:])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p]["bound"] == resumed.state[q]["bound"]
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], resumed.state[q]["exp_avg_sq"])
        assert resumed.state[q]["exp_avg_sq"].dtype == optimizer.state[p]["exp_avg_sq"].dtype


def test_resuming_shares_no_memory_with_the_state_dict():
    p = parameter(5, dtype=torch.bfloat16)
    optimizer = Madam([p])
    run(optimizer, p, gradients(p, 2))
    saved = optimizer.state_dict()
    before = saved["state"][0]["exp_avg_sq"].clone()
    q = nn.Parameter(p.detach().clone())
    resumed = Madam([q])
    resumed.load_state_dict(saved)
    run(resumed, q, gradients(q, 2))
    assert torch.equal(saved["state"][0]["exp_avg_sq"], before)


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)], ids=["float", "tensor"])
def test_learning_rate_schedule(lr):
    p = parameter(10)
    optimizer = Madam([p], lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: [1.0, 0.5, 0.0][epoch])
    for expected in (0.02, 0.01, 0.0):
        before = p.detach().clone()
        run(optimizer, p, [before.sign()])  # constant: the normalised gradient is ±1
        change = -(p.detach() / before).log()
        torch.testing.assert_close(change, torch.full((10,), expected), rtol=1e-4, atol=1e-7)
        if expected:
            scheduler.step()


def test_groups_have_their_own_hyperparameters():
    p, q = parameter(10), parameter(10)
    optimizer = Madam([{"params": [p], "lr": 0.1}, {"params": [q], "g_bound": 0.5}])
    p.grad, q.grad = p.detach().sign(), q.detach().sign()
    start = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach(), start * math.exp(-0.1))
    torch.testing.assert_close(q.detach(), start * math.exp(-0.005))


def test_small_tensors_of_different_age_and_bound_keep_apart():
    ps = [parameter(3, seed=i, std=10.0 ** -(i % 20)) for i in range(70)]
    alone = copy.deepcopy(ps)
    together, grads = Madam(ps, p_scale=0.5), gradients(ps[0], 4)
    for t, g in enumerate(grads):
        for i, p in enumerate(ps):
            p.grad = None if (i + t) % 3 == 0 else g.clone()
        together.step()
    for i, q in enumerate(alone[:30]):
        run(Madam([q], p_scale=0.5), q, [g for t, g in enumerate(grads) if (i + t) % 3])
        torch.testing.assert_close(ps[i], q, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sizes", [(0, 64), (2**18, 64), (2**18, 2**22)])
def test_sizes_of_blocks_and_buckets_do_not_matter(sizes, monkeypatch):
    monkeypatch.setattr("hamdeq.optim.madam._sizes", lambda device: sizes)
    ps = [parameter(*shape) for shape in [(100, 20), (30,), (1,), (2, 3, 4)]]
    expected = [reference(p, gradients(p, 3))[-1] for p in ps]
    optimizer = Madam(ps)
    for grads in zip(*(gradients(p, 3) for p in ps), strict=True):
        for p, g in zip(ps, grads, strict=True):
            p.grad = g
        optimizer.step()
    for p, w in zip(ps, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [lambda x: x.t(), lambda x: x[:, ::2]], ids=["transposed", "step"])
@pytest.mark.parametrize("shape", [(6, 8), (150, 240)])
def test_non_contiguous_parameters(make, shape):
    p = nn.Parameter(make(parameter(*shape).detach()))
    assert not p.is_contiguous()
    grads = gradients(p, 5)
    expected = reference(p, grads)[-1]
    run(Madam([p]), p, grads)
    torch.testing.assert_close(p.detach().double(), expected, rtol=2e-6, atol=0)


def test_non_contiguous_gradient():
    p = parameter(150, 240)
    grads = [g.t().contiguous().t() for g in gradients(p, 5)]
    expected = reference(p, grads)[-1]
    optimizer = Madam([p])
    for g in grads:
        p.grad = g
        optimizer.step()
    torch.testing.assert_close(p.detach().double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_with_full_precision_moments(dtype):
    p = parameter(150, 240, dtype=dtype)
    grads = gradients(p, 5)
    expected = reference(p, grads, lr=0.1)[-1]
    optimizer = Madam([p], lr=0.1)
    run(optimizer, p, grads)
    assert p.dtype == dtype
    assert optimizer.state[p]["exp_avg_sq"].dtype == torch.float32
    # Five roundings of the weight.
    rtol = 5 * torch.finfo(dtype).eps
    torch.testing.assert_close(p.detach().double(), expected, rtol=rtol, atol=1e-6)


def test_parameters_without_gradient_or_elements_are_skipped():
    p, frozen, empty = parameter(3), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(0))
    optimizer = Madam([p, frozen, empty])
    p.grad, empty.grad = torch.ones(3), torch.zeros(0)
    optimizer.step()
    assert len(optimizer.state_dict()["state"]) == 1


def test_closure():
    p = parameter(3)
    optimizer = Madam([p])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert optimizer.step() is None


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"lr": -0.1}, r"lr: expected a finite number ≥ 0, got -0\.1; 0.01 is a good first value"),
        ({"lr": math.nan}, "lr: expected a finite number ≥ 0, got nan"),
        ({"lr": torch.ones(2)}, r"lr: .*one element, got shape \(2,\)"),
        ({"p_scale": 0.0}, r"p_scale: expected a finite number > 0, got 0\.0; 1024 is usual"),
        ({"g_bound": math.inf}, "g_bound: expected a finite number > 0, got inf"),
        ({"decay": 1.0}, r"decay: expected a finite number ≥ 0 and < 1, got 1\.0"),
        ({"decay": -0.1}, r"decay: expected a finite number ≥ 0 and < 1, got -0\.1"),
    ],
)
def test_bad_hyperparameters(hyper, message):
    with pytest.raises(ValueError, match=message):
        Madam([parameter(3)], **hyper)
    with pytest.raises(ValueError, match=message):
        Madam([parameter(3)]).add_param_group({"params": [parameter(3)], **hyper})


def test_unknown_hyperparameter():
    with pytest.raises(TypeError, match="weight_decay"):
        Madam([parameter(3)], weight_decay=0.1)


def test_complex_parameter_is_refused():
    optimizer = Madam([parameter(3)])
    with pytest.raises(TypeError, match=r"real floating-point parameters, got torch\.complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, dtype=torch.cfloat))]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradient_is_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"dense gradients, got layout torch\.sparse_coo"):
        Madam(embedding.parameters()).step()


def test_autograd_notices_the_update():
    p = parameter(150, 240)
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    Madam([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.slow
def test_learns_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(labels)[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    for name, p in model.named_parameters():
        nn.init.xavier_uniform_(p) if "weight" in name else nn.init.normal_(p, std=0.01)
    optimizer = Madam(model.parameters())
    for _ in range(10):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    accuracy = (model(x[1400:]).argmax(-1) == y[1400:]).float().mean().item()
    assert accuracy > 0.9
