"""Steps that look at no number, as a compiler gets them, are the steps taken one by one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_memories import BOUNDED_KINDS, ROUNDING, TINY, Case, family, form_of, magnitude
from torch import Tensor

from hamdeq import Anderson, Broyden, Picard, Solution, Solver
from hamdeq.implicit import solve_state
from hamdeq.solvers.energy_map import EnergyMap, StateLayout
from hamdeq.solvers.run import Run

SOLVERS = {"picard": Picard(), "anderson": Anderson(), "broyden": Broyden()}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
splittings = pytest.mark.parametrize("splitting", ["even-odd", None])


@torch.no_grad()
def begun(solver: Solver, f: EnergyMap, x0: Tensor, steps: int) -> Run:
    """A solve whose first steps were taken as in a graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        run = Run(solver, f, x0)
        run.advance(f, steps)
    run.look()
    return run


def both(
    case: Case, splitting: str | None, solver: Solver, steps: int
) -> tuple[Solution, Solution]:
    """A solve begun so, and one that takes all steps one by one."""
    own = case.to(torch.float64)
    hidden = own.hidden(splitting)
    model, x0 = own.model(hidden), own.visible(hidden)
    layout = StateLayout(x0)
    run = begun(solver, EnergyMap(model, layout), layout.flatten(x0), steps)
    with torch.no_grad():
        return solve_state(model, x0, solver, run), solve_state(model, x0, solver)


@splittings
@solvers
@pytest.mark.slow
def test_thousands_of_samples_end_as_step_by_step(solver: Solver, splitting: str | None) -> None:
    solver = dataclasses.replace(solver, tol=1e-6, max_steps=30, fallback_steps=0)
    samples = others = 0
    for number, case in enumerate(family(kinds=BOUNDED_KINDS, batch=64, every=2)):
        here, there = both(case, splitting, solver, steps=(1, 3, 4, 8)[number % 4])
        same = here.steps == there.steps
        assert here.status[same].equal(there.status[same])
        samples, others = samples + len(same), others + int((~same).sum())
        for name, x in there.value.items():
            torch.testing.assert_close(here.value[name][same], x[same], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(here.residual[same], there.residual[same], rtol=0.1, atol=1e-7)
    assert samples > 1500
    assert others <= samples // 100  # where rounding decides


@splittings
@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=["anderson", "broyden"])
def test_no_step_raises_the_energy(solver: Solver, splitting: str | None) -> None:
    accepted = 0
    for case in family(kinds=BOUNDED_KINDS, batch=32, every=4):
        hidden = case.hidden(splitting)
        model, x0 = case.model(hidden), case.visible(hidden)
        layout = form_of(x0, case.batch)
        f, layered = EnergyMap(model, layout), case.layered()
        run = begun(dataclasses.replace(solver, tol=1e-9), f, layout.flatten(x0), 0)
        last = None
        for _ in range(12):
            with pytest.MonkeyPatch.context() as patch, torch.no_grad():
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                run.advance(f, 1)
                state = layout.unflatten(run.method.x)  # type: ignore[attr-defined]
            full = model.restore(state) if hidden else state  # type: ignore[attr-defined]
            energy, size = layered.energy(full), magnitude(layered, full).clamp_min(TINY)
            if last is not None:
                going = run.log.running
                slack = ROUNDING * torch.finfo(torch.float64).eps * size
                assert (energy - last <= slack)[going].all()
                accepted += int((energy < last - slack)[going].sum())
            last = energy
    assert accepted > 1000
