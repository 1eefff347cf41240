"""A Solution, or a Trajectory, goes through whatever takes a dict of tensors."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hamdeq import DEQ, HAM, Picard, Solution, fixed_point, trajectory


@pytest.fixture
def solution() -> Solution:
    torch.manual_seed(0)
    return DEQ(HAM.chain([4, 3, 2]))({"input": torch.rand(5, 4)})


def tensors(x: Any) -> Iterator[Tensor]:
    """Every tensor in it, however deep, but for those of backward passes."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        for value in x.values():
            yield from tensors(value)
    elif hasattr(x, "__dataclass_fields__"):
        for field in fields(x):
            if field.name != "adjoint":
                yield from tensors(getattr(x, field.name))


def same(a: Any, b: Any) -> bool:
    assert type(a) is type(b)
    assert a.n_evals == b.n_evals
    return all(map(torch.equal, tensors(a), tensors(b)))


def saved(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_its_leaves_are_its_tensors(solution: Solution) -> None:
    leaves, spec = pytree.tree_flatten(solution)
    assert [id(x) for x in leaves] == [id(x) for x in tensors(solution)]
    assert len(leaves) == 8  # three layers and five numbers a sample
    back = pytree.tree_unflatten(leaves, spec)
    assert same(back, solution)
    assert back.adjoint is solution.adjoint  # a backward pass that comes later is reported
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(solution)[0]]
    assert paths[0] == ".value['input']"
    assert ".residual" in paths


def test_a_trajectory_is_a_container_too() -> None:
    ham = HAM.chain([3, 2])
    path = trajectory(ham, ham.zero_state(torch.zeros(2, 1)), [0.0, 1.0])
    twice = pytree.tree_map(lambda x: 2 * x, path)
    assert torch.equal(twice.final["output"], 2 * path.final["output"])
    assert twice.n_evals == path.n_evals
    assert same(path.to("cpu"), path)


def test_functions_of_torch_func_return_it() -> None:
    def settle(scale: Tensor) -> Solution:
        return fixed_point(
            lambda x: scale * x.cos(), torch.zeros(2, 3), solver=Picard(tol=1e-3, max_steps=5),
            on_failure="ignore",
        )  # fmt: skip

    with torch.no_grad():
        alone = settle(torch.tensor(0.1))
    _, aux = torch.func.grad(lambda s: (s.square(), alone), has_aux=True)(torch.tensor(0.1))
    assert same(aux, alone)
    together = torch.func.vmap(lambda s: pytree.tree_map(lambda x: x * s, alone))(torch.ones(4))
    assert together.value.shape == (4, 2, 3)


@pytest.mark.parametrize(
    "way",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), saved],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_copies_hold_the_same(way: Callable[[Any], Any], solution: Solution) -> None:
    solution = solution.detach()
    solution.adjoint.append(solution)  # what refers to itself is copied too
    assert same(way(solution), solution)
    assert len(way(solution).adjoint) == 1


def test_detached_it_has_no_graph_and_still_hears_of_backward_passes(solution: Solution) -> None:
    detached = solution.detach()
    assert same(detached, solution)
    assert solution.value["output"].requires_grad
    assert not any(x.requires_grad for x in tensors(detached))
    solution.value["output"].sum().backward()
    assert len(detached.adjoint) == 1


def test_moved_it_is_on_that_device_with_its_backward_passes(solution: Solution) -> None:
    early = solution.to("cpu")
    solution.value["output"].sum().backward()
    assert len(early.adjoint) == 1
    moved = solution.to("meta")
    assert all(x.is_meta for x in tensors(moved))
    (backward,) = moved.adjoint
    assert backward.residual.is_meta
    assert not solution.adjoint[0].residual.is_meta
    with pytest.raises(TypeError, match=r"expected a device, got torch\.float64"):
        solution.to(torch.float64)  # type: ignore[arg-type]


def test_lightning_maps_and_moves_it(solution: Solution) -> None:
    pytest.importorskip("lightning")
    from lightning.fabric.utilities.apply_func import move_data_to_device
    from lightning_utilities.core.apply_func import apply_to_collection

    batch = {"loss": torch.zeros(()), "solution": solution}
    detached = apply_to_collection(batch, Tensor, Tensor.detach)["solution"]
    assert same(detached, solution)
    assert not any(x.requires_grad for x in tensors(detached))
    assert solution.value["output"].requires_grad
    moved = move_data_to_device([solution], torch.device("meta"))[0]
    assert all(x.is_meta for x in tensors(moved))
