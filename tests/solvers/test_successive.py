"""The papers' count of iterations: the index of the first pair of successive outputs that agree."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor

from hamdeq import DEQ, HAM, Anderson, Broyden, Newton, Picard, Solution, Status
from hamdeq.solvers import SuccessiveOutputs, paper_iterations
from hamdeq.torchdeq_bridge import TorchDEQSolver

# Outputs f(x_0), f(x_1), …; a sample's index is that of the first pair closer than 1e-4 of the
# later one, counted from 0.
TRAJECTORIES = {
    "at once": ([3.0, 3.0, 9.0, 9.0], 0),
    "second pair": ([1.0, 2.0, 2.0001, 2.0002], 1),
    "fifth pair, by a hair": ([1.0, 2.0, 3.0, 4.0, 4.0005, 4.0006], 4),
    "relative to the later output": ([0.5, 1.0, 1.00010001, 5.0], 1),
    "not relative to the earlier one": ([0.5, 1.0, 0.999900005, 0.99989], 2),
    "away and back": ([1.0, 1.5, 1.0, 1.5, 1.5001], 3),
}


def scripted(*trajectories: list[float]):
    """A map that yields written outputs, wherever it is evaluated; two numbers a sample."""
    length = max(len(each) for each in trajectories)
    padded = [each + [each[-1]] * (length - len(each)) for each in trajectories]
    outputs = iter(torch.tensor(padded, dtype=torch.float64).T)

    def f(x: Tensor) -> Tensor:
        return next(outputs)[:, None] * torch.tensor([0.6, 0.8], dtype=torch.float64)

    return f, torch.zeros(len(trajectories), 2, dtype=torch.float64)


def index_by_definition(outputs: list[Tensor], tol: float = 1e-4) -> list[int]:
    """The count, written out: the number of all pairs where none agrees."""
    found = []
    for sample in zip(*outputs, strict=True):
        pairs = list(itertools.pairwise(sample))
        agree = [float((new - old).norm() / new.norm()) < tol for old, new in pairs]
        found.append(agree.index(True) if True in agree else len(pairs))
    return found


def small_memory(*sizes: int) -> HAM:
    torch.manual_seed(0)
    return HAM.chain([64, *(sizes or (32,)), 10]).double()


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()])
def test_the_count_of_a_trajectory_by_hand_is_the_index_of_the_first_pair(solver):
    for outputs, index in TRAJECTORIES.values():
        solution = SuccessiveOutputs(solver=solver).solve(*scripted(outputs))
        assert paper_iterations(solution).tolist() == [index]
        assert solution.steps.tolist() == [index + 2]
        later = torch.tensor([[0.6, 0.8]], dtype=torch.float64) * outputs[index + 1]
        assert torch.equal(solution.value, later)


def test_samples_of_a_batch_are_counted_each_by_itself():
    written, indices = zip(*TRAJECTORIES.values(), strict=True)
    solution = SuccessiveOutputs().solve(*scripted(*written))
    assert paper_iterations(solution).tolist() == [*indices]
    assert solution.n_evals == len(solution.trace) == max(indices) + 2
    assert solution.converged.all()
    # Before the first pair there is no difference; after a sample has stopped it is kept.
    assert solution.trace[0].eq(math.inf).all()
    assert torch.equal(solution.trace[1:, 0], torch.zeros(5, dtype=torch.float64))


def test_without_such_a_pair_the_count_is_that_of_all_pairs():
    written = [1.0, 2.0, 3.0, 4.0, 5.0]
    solution = SuccessiveOutputs(max_steps=5).solve(*scripted(written, [1.0, 1.0]))
    assert paper_iterations(solution).tolist() == [4, 0]
    assert solution.converged.tolist() == [False, True]
    assert solution.status.tolist() == [Status.MAX_STEPS, Status.CONVERGED]
    nothing = SuccessiveOutputs(max_steps=0).solve(*scripted(written))
    assert (paper_iterations(nothing).tolist(), nothing.n_evals) == ([0], 0)


def test_a_sample_that_diverges_does_not_count_as_converged():
    f, x0 = scripted([1.0, math.inf, math.inf, math.nan], [1.0, 2.0, 2.0])
    solution = SuccessiveOutputs(max_steps=4).solve(f, x0)
    assert solution.status.tolist() == [Status.DIVERGED, Status.CONVERGED]
    assert paper_iterations(solution).tolist() == [3, 1]
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("splitting", [None, "even-odd"])
def test_plain_iteration_takes_two_evaluations_more_than_the_papers_count(splitting):
    deq = DEQ(small_memory(), splitting=splitting, solver=Picard(), start="zeros")
    x = {"input": torch.rand(20, 64, dtype=torch.float64)}
    with torch.no_grad():
        ours, theirs = deq(x), deq(x, solver=SuccessiveOutputs())
    assert len(ours.steps.unique()) > 3  # samples stop at different steps
    assert torch.equal(paper_iterations(theirs), ours.steps - 2)


@pytest.mark.parametrize("solver", [Anderson(), Broyden(), Newton()])
@pytest.mark.parametrize("splitting", [None, "even-odd"])
def test_an_accelerated_count_is_that_of_the_outputs_it_has_seen(splitting, solver):
    deq = DEQ(small_memory(), splitting=splitting, start="zeros")
    x = torch.rand(12, 64, dtype=torch.float64)

    def count(x: Tensor) -> tuple[Solution, list[Tensor]]:
        outputs = []
        reduced = deq.reduced({"input": x})
        names = [name for name in deq.ham.layers if name not in ("input", *deq.hidden)]
        sizes = [deq.ham.layer(name).shape[0] for name in names]

        def f(rows: Tensor) -> Tensor:
            state = reduced.update(dict(zip(names, rows.split(sizes, 1), strict=True)))
            outputs.append(torch.cat([state[name] for name in names], 1))
            return outputs[-1]

        with torch.no_grad():
            start = torch.zeros(len(x), sum(sizes), dtype=x.dtype)
            return SuccessiveOutputs(solver=solver).solve(f, start), outputs

    # Newton's method evaluates the map for its derivatives, too.
    together, outputs = count(x)
    assert len(paper_iterations(together).unique()) > 1
    if not isinstance(solver, Newton):
        assert paper_iterations(together).tolist() == index_by_definition(outputs)
    alone = [paper_iterations(count(row[None])[0]).item() for row in x]
    assert paper_iterations(together).tolist() == alone


def test_an_accelerated_count_may_be_any_number_of_evaluations_apart():
    """Anderson's method itself moves between two outputs, so its residual is not their distance."""
    deq = DEQ(small_memory(), solver=Anderson(), splitting=None, start="zeros")
    x = {"input": torch.rand(100, 64, dtype=torch.float64)}
    with torch.no_grad():
        apart = deq(x).steps - paper_iterations(deq(x, solver=SuccessiveOutputs(solver=Anderson())))
    assert len(apart.unique()) > 1


def test_a_count_is_an_option_like_any_solver():
    counted = SuccessiveOutputs(solver=Anderson(history=3), tol=1e-6)
    assert pickle.loads(pickle.dumps(counted)) == counted
    with pytest.raises(TypeError, match="solver: expected a Solver, got str"):
        SuccessiveOutputs(solver="anderson")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="single steps"):
        SuccessiveOutputs(solver=TorchDEQSolver()).solve(*scripted([1.0, 2.0]))
