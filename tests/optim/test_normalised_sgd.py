"""NormalisedSGD against its rule, row by row in Python numbers."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from hamdeq.optim import NormalisedSGD
from hamdeq.testing import normal


def by_hand(rows, gradients, lr, momentum=0.0, bound=1.0, free=0, floor=0.0):
    """The rows after the steps, ``[[…], …]``: one number at a time."""
    rows = [list(row) for row in rows]
    velocity = [[0.0] * len(row) for row in rows]
    for gradient in gradients:
        for w, v, g in zip(rows, velocity, gradient, strict=True):
            v[:] = [momentum * a + b for a, b in zip(v, g, strict=True)]
            largest = max([floor, *map(abs, v)])
            for i, a in enumerate(v):
                w[i] -= lr * a / largest if largest else 0.0
                if bound is not None and i < len(w) - free:
                    w[i] = min(max(w[i], -bound), bound)
    return torch.tensor(rows, dtype=torch.float64)


def run(optimizer, w, gradients):
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    return w.detach().clone()


def rows(seed=0):
    return nn.Parameter(0.9 * normal(4, 7, seed=seed).clamp(-1, 1))


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize(
    ("bound", "free", "floor"), [(1.0, 0, 0.0), (0.5, 2, 0.0), (None, 3, 0.0), (1.0, 0, 1.5)]
)
def test_steps_follow_the_rule(momentum, bound, free, floor):
    w, gradients = rows(), [normal(4, 7, seed=s) for s in range(1, 30)]
    gradients[3][1] = 0.0
    options = {"lr": 0.3, "momentum": momentum, "bound": bound, "free": free, "floor": floor}
    start = w.detach().tolist()
    expected = by_hand(start, [g.tolist() for g in gradients], **options)
    result = run(NormalisedSGD([w], **options), w, gradients)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-14)
    if bound is not None:
        assert result[:, : 7 - free].abs().max() == bound
    if free:
        assert result[:, 7 - free :].abs().max() > 1
    if floor:
        without = by_hand(start, [g.tolist() for g in gradients], **options | {"floor": 0.0})
        assert (result - without).abs().max() > 0.1


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-300, 1.0, 1e300])
def test_gradients_of_any_size_move_as_far(size):
    w = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    gradient = size * torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    after = run(NormalisedSGD([w], lr=0.125), w, [gradient])
    assert after.tolist() == [[-0.125, 0.125, 0.0], [0.0, 0.0, -0.125]]


def test_rows_of_zeros_stay():
    w = rows()
    before, gradient = w.detach().clone(), normal(4, 7, seed=1)
    gradient[2] = 0.0
    after = run(NormalisedSGD([w]), w, [gradient])
    assert torch.equal(after[2], before[2])
    assert not (after[[0, 1, 3]] == before[[0, 1, 3]]).all(1).any()
    # With momentum it goes on in the old direction.
    optimizer = NormalisedSGD([w], lr=0.01, momentum=0.5, bound=None)
    first = run(optimizer, w, [gradient])
    second = run(optimizer, w, [torch.zeros(4, 7, dtype=torch.float64)])
    expected = 2 * first - after
    torch.testing.assert_close(second[0], expected[0], rtol=1e-12, atol=1e-13)
    assert torch.equal(second[2], before[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_are_not_hidden(bad):
    w, gradient = rows(), normal(4, 7, seed=1)
    gradient[2, 3] = bad
    after = run(NormalisedSGD([w]), w, [gradient])
    assert after[2, 3].isnan()
    assert after[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0, 3), (2, 0)])
def test_a_row_is_all_but_the_first_axis(shape):
    start = normal(*shape).clamp(-1, 1)
    w, gradient = nn.Parameter(start.clone()), normal(*shape, seed=1)
    after = run(NormalisedSGD([w], lr=0.1, bound=None), w, [gradient])
    expected = start.clone()
    for i in range(shape[0] if len(shape) > 1 else 0):
        if gradient[i].numel():
            expected[i] -= 0.1 * gradient[i] / gradient[i].abs().max()
    if len(shape) < 2:  # a number is a row of its own
        expected -= 0.1 * gradient.sign()
    torch.testing.assert_close(after, expected, rtol=1e-14, atol=1e-15)
    assert after.shape == shape


def test_a_state_dict_goes_on_where_it_was():
    gradients = [normal(4, 7, seed=s) for s in range(8)]
    w = rows()
    optimizer = NormalisedSGD([w], lr=0.1, momentum=0.9)
    run(optimizer, w, gradients[:4])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = nn.Parameter(w.detach().clone())
    other = NormalisedSGD([twin], lr=3.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(optimizer)
    expected = run(optimizer, w, gradients[4:])
    assert torch.equal(run(other, twin, gradients[4:]), expected)
    (inside,) = copied.param_groups[0]["params"]
    assert torch.equal(run(copied, inside, gradients[4:]), expected)
    # Without the velocity it would be elsewhere.
    fresh = nn.Parameter(rows().detach())
    forgotten = NormalisedSGD([fresh], lr=0.1, momentum=0.9)
    run(forgotten, fresh, gradients[:4])
    forgotten.state.clear()
    assert not torch.equal(run(forgotten, fresh, gradients[4:]), expected)


def test_groups_closures_schedules_and_parameters_without_a_gradient():
    a, b, c = (nn.Parameter(torch.zeros(1, 2)) for _ in range(3))
    optimizer = NormalisedSGD([{"params": [a, c]}, {"params": [b], "lr": 0.25}], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = a.sum() - 2 * b.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 0.0
    schedule.step()
    assert optimizer.step(closure).item() == -2.0
    assert [a.tolist(), b.tolist()] == [[[-0.75] * 2], [[0.375] * 2]]
    assert c.tolist() == [[0.0, 0.0]]
    assert c.grad is None


def test_gradients_are_not_written_to():
    w, gradient = rows(), normal(4, 7, seed=1)
    w.grad = gradient.clone()
    for momentum in (0.0, 0.5):
        optimizer = NormalisedSGD([w], momentum=momentum)
        optimizer.step()
        optimizer.step()
        assert torch.equal(w.grad, gradient)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -0.1}, r"lr: expected a finite number ≥ 0, got -0\.1"),
        ({"lr": math.nan}, "lr: expected"),
        ({"lr": math.inf}, "lr: expected"),
        ({"momentum": 1.0}, "momentum: expected a finite number ≥ 0 and < 1, got 1"),
        ({"momentum": -0.1}, "momentum: expected"),
        ({"momentum": math.nan}, "momentum: expected"),
        ({"bound": 0.0}, "bound: expected a finite number > 0, got 0.*None for no bounds"),
        ({"bound": -1.0}, "bound: expected"),
        ({"bound": math.nan}, "bound: expected"),
        ({"floor": -1e-30}, "floor: expected a finite number ≥ 0, got -1e-30"),
        ({"free": -1}, "free: expected an integer ≥ 0, got -1"),
        ({"free": 1.0}, r"free: expected an integer ≥ 0, got 1\.0"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NormalisedSGD([rows()], **arguments)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = NormalisedSGD(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="expected a dense gradient, got a sparse one"):
        optimizer.step()
