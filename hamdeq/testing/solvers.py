"""The contract of solvers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hamdeq.elimination.colouring import two_colouring
from hamdeq.elimination.eliminate import eliminate
from hamdeq.energy.clamping import clamp
from hamdeq.energy.ham import HAM
from hamdeq.implicit import solve_state
from hamdeq.solvers import Solution, Solver, Status
from hamdeq.testing.contract import Contract, importable, normal

__all__ = ["Problem", "SolverContract"]

BATCH = 6


@dataclass
class Problem:
    """A map of which the fixed points are known by other means.

    Attributes:
        f: the map for some of the samples 0 … 5.
        x0: initial states: ``(6, n)``.
        solution: the fixed points: ``(6, n)``.
    """

    f: Callable[[Sequence[int]], Callable[[Tensor], Tensor]]
    x0: Tensor
    solution: Tensor

    def solve(self, solver: Solver, rows: Sequence[int] = range(BATCH)) -> Solution:
        """The solve of some of the samples."""
        return solver.solve(self.f(list(rows)), self.x0[list(rows)])


def _linear() -> Problem:
    basis = torch.linalg.qr(normal(8, 8))[0]
    a = basis @ torch.diag(torch.linspace(-0.6, 0.6, 8, dtype=torch.float64)) @ basis.T
    b = normal(BATCH, 8, seed=1)
    solution = torch.linalg.solve(torch.eye(8, dtype=torch.float64) - a, b.T).T
    return Problem(lambda rows: lambda x: x @ a + b[list(rows)], torch.zeros_like(b), solution)


def _cosine() -> Problem:
    x0 = torch.linspace(-1, 1, BATCH * 3, dtype=torch.float64).reshape(BATCH, 3)
    return Problem(lambda rows: torch.cos, x0, torch.full_like(x0, 0.7390851332151607))


def _root() -> Problem:
    """Heron's square roots, from one."""
    a = torch.linspace(0.5, 50.0, BATCH * 4, dtype=torch.float64).reshape(BATCH, 4)
    return Problem(
        lambda rows: lambda x: 0.5 * (x + a[list(rows)] / x), torch.ones_like(a), a.sqrt()
    )


class SolverContract(Contract):
    """Contract of a solver of x = f(x).

    It finds known fixed points; says of every sample the residual of the state that it returns,
    its steps and how it ended; and no sample changes the result of another.

    ``make()`` returns a :class:`~hamdeq.Solver`; ``tol`` and ``max_steps`` are replaced.

    Attributes:
        max_steps: evaluations that every problem may take.
    """

    max_steps: int = 600

    def problems(self) -> dict[str, Problem]:
        """The maps to be solved, by name: a linear one, cosines and square roots."""
        return {"linear": _linear(), "cosine": _cosine(), "root": _root()}

    def _solver(self, tol: float = 1e-6, max_steps: int | None = None) -> Solver:
        steps = self.max_steps if max_steps is None else max_steps
        return replace(self._made(), tol=tol, max_steps=steps)

    def _same(self, found: Solution, expected: Solution, rows: Sequence[int], text: str) -> None:
        rows = list(rows)
        self.close(found.value, expected.value[rows], text, rtol=1e-12, atol=1e-12)
        self.close(found.steps, expected.steps[rows], text)
        self.close(found.status, expected.status[rows], text)

    def test_finds_the_known_solutions(self) -> None:
        """Every sample converges, to the fixed point that is known by other means."""
        for name, problem in self.problems().items():
            result = problem.solve(self._solver(1e-11))
            self.claim(result.converged, f"every sample of the {name} map converges")
            self.claim(result.status == Status.CONVERGED, "samples that converge are CONVERGED")
            text = f"the solution of the {name} map is found"
            self.close(result.value, problem.solution, text, rtol=1e-9, atol=1e-9)

    def test_finds_the_equilibrium_of_an_energy_model(self) -> None:
        """Converges on a memory with weak weights, which has one, with its energy and without."""
        torch.manual_seed(0)
        ham = HAM.chain([7, 9, 8, 5], gain=0.5).double()
        clamped = clamp(ham, {"input": normal(BATCH, 7).sigmoid()})
        _, hidden = two_colouring(ham, clamped=["input"])
        model = eliminate(clamped, hidden)
        x0 = {name: normal(BATCH, *ham.layer(name).shape) for name in model.visible}
        with torch.no_grad():
            x = x0
            for _ in range(500):
                x = model.update(x)
            for f in (model, model.update):
                solver = replace(self._solver(1e-11), fallback_steps=0)
                result = solve_state(f, x0, solver)
                self.claim(result.converged, "every sample of a weakly coupled memory converges")
                text = "the equilibrium of the memory is found"
                self.close(result.value, x, text, rtol=1e-8, atol=1e-8)

    def test_residual_is_that_of_the_returned_value(self) -> None:
        """‖f(x) − x‖/‖f(x)‖ of the state that is returned, the best of those evaluated."""
        for problem in self.problems().values():
            for steps in (1, 2, 3, 5, self.max_steps):
                result = problem.solve(self._solver(1e-11, steps))
                fx = problem.f(range(BATCH))(result.value)
                residual = (fx - result.value).norm(dim=1) / fx.norm(dim=1)
                text = "the residual is that of the value"
                self.close(result.residual, residual, text, rtol=1e-12, atol=1e-300)
                for i, n in enumerate(result.steps.tolist()):
                    self.claim(
                        result.residual[i] == result.trace[:n, i].min(),
                        "the value is the best of the states that were evaluated",
                    )

    def test_steps_are_evaluations_until_the_residual_is_below_tol(self) -> None:
        """Each sample stops by itself, and the loop with the last of them."""
        for problem in self.problems().values():
            solver, calls = self._solver(1e-5), 0
            f = problem.f(range(BATCH))

            def counting(x: Tensor, f: Callable[[Tensor], Tensor] = f) -> Tensor:
                nonlocal calls
                calls += not torch.is_grad_enabled()  # with a graph it is for a derivative
                return f(x)

            result = solver.solve(counting, problem.x0)
            self.claim(
                result.n_evals == calls == len(result.trace) == int(result.steps.max()),
                f"n_evals counts the evaluations of f: {calls}, got {result.n_evals}",
            )
            for i, n in enumerate(result.steps.tolist()):
                below = result.trace[:n, i] < solver.tol
                self.claim(
                    below[-1] & ~below[:-1].any(),
                    "a sample stops at the first residual below tol",
                )

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """Value, steps and status are those that it has alone, or in another order."""
        for problem in self.problems().values():
            whole = problem.solve(self._solver())
            for rows in ([0], [1, 4], [5, 4, 3, 2, 1, 0], [2, 2, 0]):
                part = problem.solve(self._solver(), rows)
                self._same(part, whole, rows, "a sample's result does not depend on its batch")

    def test_bad_neighbours_do_no_harm(self) -> None:
        """Samples that are NaN, infinite or explode leave the others as they are."""
        for problem in self.problems().values():
            solver, one = self._solver(), torch.ones_like(problem.x0[:1])
            alone = problem.solve(solver)
            good = problem.f(range(BATCH))

            def f(x: Tensor, good: Callable[[Tensor], Tensor] = good) -> Tensor:
                nan, exploding, resting = x[BATCH:].split(1)
                return torch.cat([good(x[:BATCH]), nan * math.nan, exploding.exp() + 1, resting])

            result = solver.solve(f, torch.cat([problem.x0, one, one, one]))
            text = "bad neighbours leave a sample's result as it is"
            part = replace(
                result,
                value=result.value[:BATCH],
                steps=result.steps[:BATCH],
                status=result.status[:BATCH],
            )
            self._same(part, alone, range(BATCH), text)
            self.claim(result.status[BATCH] == Status.DIVERGED, "a sample of NaN is DIVERGED")
            self.claim(not bool(result.converged[BATCH + 1]), "what explodes does not converge")
            self.claim(result.value.isfinite(), "the best finite state is kept")
            resting = (result.steps[-1] == 1) & result.converged[-1] & (result.residual[-1] == 0)
            self.claim(resting, "a sample that begins at its fixed point takes one evaluation")

    def test_few_steps(self) -> None:
        """Zero or one evaluation leave the initial state, which is not written to."""
        for problem in self.problems().values():
            for steps in (0, 1):
                before = problem.x0.clone()
                result = problem.solve(self._solver(1e-11, steps))
                self.claim(torch.equal(problem.x0, before), "the initial state is left as it is")
                text = f"max_steps={steps} evaluations return the initial state"
                self.close(result.value, before, text, rtol=0, atol=0)
                self.claim(
                    (result.status == Status.MAX_STEPS) & (result.steps == steps),
                    "what runs out of steps is MAX_STEPS",
                )

    def test_an_empty_batch_has_an_empty_result(self) -> None:
        """A batch of no samples is solved."""
        for problem in self.problems().values():
            result = problem.solve(self._solver(), [])
            shapes = result.steps.shape, result.residual.shape, result.status.shape
            self.claim(
                shapes == ((0,),) * 3 and result.value.shape == problem.x0[:0].shape,
                "an empty batch has an empty result",
            )

    def test_keeps_the_dtype(self) -> None:
        """Takes half, single and double precision."""
        for dtype, tol in (
            (torch.bfloat16, 0.02),
            (torch.float16, 0.02),
            (torch.float32, 1e-5),
            (torch.float64, 1e-5),
        ):
            x0 = torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3)
            result = self._solver(tol).solve(torch.cos, x0)
            self.claim(result.value.dtype == result.residual.dtype == dtype, f"{dtype} is kept")
            self.claim(result.converged, f"cosines converge in {dtype}")
            close = (result.value - 0.7390851).abs() <= 2 * tol
            self.claim(close, f"the solution is found in {dtype}")

    def test_runs_without_a_graph(self) -> None:
        """No graph is built, whatever f requires."""
        weight = torch.tensor(0.5, requires_grad=True)
        result = self._solver().solve(lambda x: (weight * x).cos(), torch.zeros(2, 1))
        graph = result.value.requires_grad or result.residual.requires_grad
        self.claim(not graph, "a solution has no graph")

    def test_zero_may_be_the_solution(self) -> None:
        """A relative residual that is infinite because f(x) is zero is no divergence."""
        for size in (0.0, 10.0):
            result = self._solver().solve(torch.zeros_like, torch.full((2, 3), size))
            self.claim(result.status != Status.DIVERGED, "a solution of zero is no divergence")
        result = self._solver().solve(torch.zeros_like, torch.zeros(2, 3))
        self.claim(result.converged, "zeros that stay are converged")

    def test_is_a_value(self) -> None:
        """Equal options make equal solvers, which can be hashed and pickled."""
        solver = self._made()
        self.claim(solver == replace(solver), "solvers of equal options are equal")
        self.claim(hash(solver) == hash(replace(solver)), "equal solvers have equal hashes")
        self.claim(solver != replace(solver, tol=0.1234), "another tol makes another solver")
        if importable(type(solver)):
            self.claim(pickle.loads(pickle.dumps(solver)) == solver, "a solver can be pickled")
        self.claim(type(solver).__name__ in repr(solver), "repr() names the class")

    def test_refuses_bad_options(self) -> None:
        """``tol`` is a finite number > 0, ``max_steps`` an integer ≥ 0."""
        for option, value in (("tol", 0.0), ("tol", math.nan), ("max_steps", -1)):
            try:
                replace(self._made(), **{option: value})
            except ValueError:
                continue
            self.claim(False, f"{option}={value} is refused by a ValueError")
