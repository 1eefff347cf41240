"""Real MNIST: a short training, and one equilibrium whatever the solver."""

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hamdeq import (
    DEQ,
    HAM,
    Anderson,
    Broyden,
    ConjugateGradient,
    Implicit,
    Madam,
    Newton,
    Picard,
)

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from hamdeq.data import MNIST_FILES, MNISTDataModule

RAW = Path(os.environ.get("HAMDEQ_DATA", "")) / "MNIST/raw"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.skipif(
        not all((RAW / name).is_file() for name in MNIST_FILES),
        reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
    ),
]


@pytest.fixture(scope="module")
def data() -> MNISTDataModule:
    module = MNISTDataModule(download=False)
    module.setup()
    return module


@pytest.fixture(scope="module")
def trained(data) -> DEQ:
    """784-512-10 after half an epoch in batches of 64."""
    torch.manual_seed(0)
    deq = DEQ(
        HAM.chain([784, 512, 10], gain=[2.0, 0.3]),
        solver=Anderson(max_steps=40),
        adjoint=Implicit(solver=ConjugateGradient(tol=1e-2)),
    )
    optimizer = Madam(deq.parameters(), lr=0.01)
    for images, labels in itertools.islice(data.train_dataloader(), 430):
        state = deq({"input": images}).value["output"]
        loss = F.mse_loss(state, F.one_hot(labels, 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return deq


def test_a_memory_learns_mnist(trained, data):
    images, labels = data.split("test")
    with torch.no_grad():
        solution = trained({"input": images})
    accuracy = (solution.value["output"].argmax(1) == labels).double().mean()
    assert accuracy > 0.9
    assert solution.converged.all()


def steps(trained, data, solver) -> torch.Tensor:
    with torch.no_grad():
        deq = DEQ(trained.ham, solver=solver, on_failure="raise")
        return deq({"input": data.split("test")[0]}).steps.double()


@pytest.fixture(scope="module")
def plain_steps(trained, data) -> torch.Tensor:
    return steps(trained, data, Picard())


@pytest.mark.parametrize("solver", [Anderson, Broyden, Newton])
def test_every_solver_takes_fewer_steps_than_plain_iteration(trained, data, plain_steps, solver):
    """The published measure: iterations to 1e-4, over the 10,000 test images."""
    found = steps(trained, data, solver())
    assert found.mean() < plain_steps.mean()
    assert found.max() <= 6


@pytest.fixture(scope="module")
def doubled(trained, data) -> tuple[HAM, torch.Tensor, torch.Tensor]:
    """The memory in float64, all test images, and where even-odd Picard iteration ends."""
    ham = HAM.chain([784, 512, 10]).double()
    ham.load_state_dict(trained.ham.state_dict())
    images = data.split("test")[0].double()
    return ham, images, settle(ham, images, Picard(tol=1e-12, max_steps=1000), "even-odd")


def settle(ham: HAM, images: torch.Tensor, solver, splitting) -> torch.Tensor:
    deq = DEQ(ham, splitting=splitting, solver=solver, on_failure="raise")
    with torch.no_grad():
        return torch.cat([deq({"input": part}).value["output"] for part in images.split(2000)])


@pytest.mark.parametrize(
    ("solver", "splitting"),
    [
        (Anderson, "even-odd"),
        (Broyden, "even-odd"),
        (Newton, "even-odd"),
        (Picard, None),
        (Anderson, None),
        (Broyden, None),
    ],
)
def test_every_solver_finds_the_same_equilibrium(doubled, solver, splitting):
    ham, images, reference = doubled
    found = settle(ham, images, solver(tol=1e-8, max_steps=1000), splitting)
    difference = (found - reference).norm(dim=1) / reference.norm(dim=1)
    assert len(difference) == 10_000
    assert difference.max() < 1e-5
