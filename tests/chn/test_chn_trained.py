"""On trained weights a continuous Hopfield network and its HAM are the same in all they do."""

import pytest
import torch
import torch.nn.functional as F

from hamdeq import CHN, CHNDEQ, DEQ, Anderson, ConjugateGradient, Implicit

pytestmark = pytest.mark.slow

EXACT = {
    "solver": Anderson(tol=1e-13, max_steps=1000),
    "adjoint": Implicit(solver=ConjugateGradient(tol=1e-13, max_steps=1000)),
}


@pytest.fixture(scope="module")
def trained():
    """A network trained on half of the digits in float64, and the other half."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.as_tensor(data.data) / 16
    labels = torch.as_tensor(data.target)
    torch.manual_seed(0)
    chn = CHN.chain([64, 48, 10], gain=[2.0, 0.3]).double()
    deq = CHNDEQ(chn)
    optimizer = torch.optim.Adam(chn.parameters(), lr=0.01)
    for batch in torch.arange(900).repeat(3).split(60):
        loss = F.mse_loss(deq({"input": images[batch]}).value["output"], targets(labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return chn, images[900:1000], labels[900:1000]


def targets(labels):
    return F.one_hot(labels, 10).double()


def test_it_has_learned(trained):
    chn, images, labels = trained
    found = CHNDEQ(chn)({"input": images}).value["output"].argmax(1)
    assert (found == labels).double().mean() > 0.7  # by chance 0.1; seeds differ by a tenth


@pytest.mark.parametrize("splitting", ["even-odd", None])
def test_same_equilibrium_and_gradient(trained, splitting):
    """Those of the HAM, by even-odd steps on u, and those of the network, all of s at once."""
    chn, images, labels = trained
    ham = DEQ(chn.to_ham(), **EXACT)(chn.to_ham_state({"input": images}))
    settled = [
        CHNDEQ(chn, splitting=splitting, **EXACT)({"input": images}).value,
        chn.from_ham_state(ham.value),
    ]
    for name in ("hidden1", "output"):
        torch.testing.assert_close(settled[0][name], settled[1][name], rtol=0, atol=1e-8)
    parameters = [*chn.parameters()]
    gradients = []
    for value in settled:
        loss = F.mse_loss(value["output"], targets(labels))
        gradients.append(torch.autograd.grad(loss, parameters))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8 * float(one.abs().max()))
