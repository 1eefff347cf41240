"""Real MNIST: a short training, and one equilibrium whatever the solver."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hamdeq import DEQ, HAM, Anderson, Broyden, Implicit, Madam, Picard

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from hamdeq.data import MNIST_FILES, MNISTDataModule

RAW = Path(os.environ.get("HAMDEQ_DATA", "")) / "MNIST/raw"
pytestmark = pytest.mark.skipif(
    not all((RAW / name).is_file() for name in MNIST_FILES),
    reason="set HAMDEQ_DATA to the folder that contains MNIST/raw",
)


@pytest.fixture(scope="module")
def data() -> MNISTDataModule:
    module = MNISTDataModule(download=False)
    module.setup()
    return module


@pytest.fixture(scope="module")
def trained(data) -> DEQ:
    """784-512-10 after 300 batches of 64."""
    torch.manual_seed(0)
    solver = Anderson(max_steps=40)
    deq = DEQ(
        HAM.chain([784, 512, 10], gain=[2.0, 0.3]),
        solver=solver,
        adjoint=Implicit(solver=Anderson(tol=1e-2)),
    )
    optimizer = Madam(deq.parameters(), lr=0.01)
    for count, (images, labels) in enumerate(data.train_dataloader()):
        if count == 300:
            break
        state = deq({"input": images}).value["output"]
        loss = F.mse_loss(state, F.one_hot(labels, 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return deq


def test_learns(trained, data):
    images, labels = data.split("test")
    with torch.no_grad():
        solution = trained({"input": images})
    accuracy = (solution.value["output"].argmax(1) == labels).double().mean()
    assert accuracy > 0.88
    assert solution.converged.all()
    assert solution.steps.double().mean() < 5


@pytest.mark.parametrize("splitting", ["even-odd", None])
@pytest.mark.parametrize("solver", [Picard, Anderson, Broyden])
def test_one_equilibrium(trained, data, solver, splitting):
    images = {"input": data.split("test")[0][:1000].double()}
    ham = HAM.chain([784, 512, 10]).double()
    ham.load_state_dict(trained.ham.state_dict())

    def settle(solver, splitting):
        deq = DEQ(ham, splitting=splitting, solver=solver, on_failure="raise")
        with torch.no_grad():
            return deq(images).value["output"]

    reference = settle(Picard(tol=1e-12, max_steps=1000), "even-odd")
    found = settle(solver(tol=1e-8, max_steps=1000), splitting)
    difference = (found - reference).norm(dim=1) / reference.norm(dim=1)
    assert difference.max() < 1e-5
