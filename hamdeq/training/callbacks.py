"""Callbacks that watch how a memory converges, and keep it within one equilibrium."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from hamdeq._checks import instance, integer, number
from hamdeq.energy.contraction import contract_
from hamdeq.plots import residual_histogram
from hamdeq.solvers import Solution, Solver, Status, SuccessiveOutputs, paper_iterations
from hamdeq.training.equilibrium import EquilibriumModule
from hamdeq.training.files import save_figure

__all__ = ["Contraction", "ConvergenceMonitor", "PictureCallback", "ResidualPicture"]


class _Means:
    """Running means of values given sample by sample, kept on their device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, values: Tensor) -> None:
        total = values.sum(dtype=torch.float64 if values.device.type != "mps" else None)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + values.numel()

    def compute(self, strategy: Strategy) -> dict[str, Tensor]:
        """The means over all processes, of what any of them has values of."""
        sums = torch.stack([*self.sums.values()])
        both = torch.stack([sums, sums.new_tensor([*self.counts.values()])])
        sums, counts = strategy.reduce(both, reduce_op="sum")
        found = zip(self.sums, sums / counts, counts.tolist(), strict=True)
        return {name: mean.float() for name, mean, count in found if count}


class ConvergenceMonitor(Callback):
    """Logs how the samples of each epoch converged, for train, val and test.

    - ``iterations``: mean over samples of the first iteration whose relative residual is below
      the solver's ``tol``; of samples that never get there, of their iterations: ``max_steps``,
      or fewer where they were given up (``DIVERGED``, ``INVALID``);
    - ``paper_iterations``, of a test alone: the same as the papers count it, the index, from 0, of
      the first pair of successive outputs of the map that differ by less than ``tol``. It takes one
      more solve; of torchdeq's solvers, which take no single steps, there is none;
    - ``not_converged``: share of samples that did not converge;
    - ``residual``: mean relative residual of the returned states;
    - ``energy``: mean energy of the returned states (in training of one batch in every
      ``log_every_n_steps``, as it costs another product with the input weights);
    - ``backward_iterations``, ``backward_not_converged``, ``backward_residual``: the same of the
      gradient's linear system, in training.
    """

    def __init__(self) -> None:
        self._means: dict[str, _Means] = {}

    def _observe(self, stage: str, module: EquilibriumModule, energy: bool) -> None:
        solution = module.solution
        if solution is None:
            return
        means = self._means.setdefault(stage, _Means())
        self._add(means, "", solution)
        for backward in solution.adjoint:
            self._add(means, "backward_", backward)
        if energy:
            with torch.no_grad():
                means.add("energy", module.deq.energy(solution.value)[solution.residual.isfinite()])

    @staticmethod
    def _add(means: _Means, prefix: str, solution: Solution) -> None:
        means.add(f"{prefix}iterations", solution.steps)
        means.add(f"{prefix}not_converged", ~solution.converged)
        means.add(f"{prefix}residual", solution.residual[solution.residual.isfinite()])

    def _report(self, stage: str, module: EquilibriumModule) -> None:
        means = self._means.pop(stage, None)
        for name, value in (means.compute(module.trainer.strategy) if means else {}).items():
            shown = stage == "val" and name == "iterations"
            module.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning sets the attribute without declaring it.
        every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        now = batch_idx % every == 0
        self._observe("train", pl_module, energy=now)
        if now:
            solution = pl_module.solution
            live = {} if pl_module.accuracy is None else {"acc": pl_module.accuracy}
            live |= {
                "iter": solution.steps.float().mean(),
                "res": solution.residual.mean(),
            }
            pl_module.log_dict(live, prog_bar=True, logger=False, batch_size=len(batch[1]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._report("train", pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, *_: Any, **__: Any
    ) -> None:
        self._observe("val", pl_module, energy=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._report("val", pl_module)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._observe("test", pl_module, energy=True)
        solver = pl_module.deq.solver
        # A solver with a loop of its own takes no single steps.
        if "test" in self._means and type(solver).solve is Solver.solve:
            how = SuccessiveOutputs(solver=solver, tol=solver.tol, max_steps=solver.max_steps)
            with torch.no_grad():
                solution = pl_module(batch[0], solver=how, on_failure="ignore")
            valid = solution.status != Status.INVALID
            self._means["test"].add("paper_iterations", paper_iterations(solution)[valid])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._report("test", pl_module)


class PictureCallback(Callback):
    """Base of the callbacks that draw after a test, from what they keep of its batches.

    Pictures go to ``<folder>/<name>.png``, and to wandb where that logs.

    Args:
        folder: where to write; default the trainer's log folder.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = folder

    @abstractmethod
    def clear(self) -> None:
        """Forget the test before."""

    @abstractmethod
    def keep(self, module: Any, inputs: Tensor, labels: Tensor) -> None:
        """Keep what is to be drawn of a batch."""

    @abstractmethod
    def figures(self, module: Any) -> dict[str, Any]:
        """Figures by the names of their files; none where nothing was kept."""

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.clear()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        self.keep(pl_module, *batch)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        for name, figure in self.figures(pl_module).items():
            path = folder / f"{name}.png"
            save_figure(figure, path)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(name, [str(path)])


class ResidualPicture(PictureCallback):
    """Draws, after a test, the histogram of log residual against iteration: ``residuals.png``.

    The samples are solved once more, for ``steps`` iterations whatever their residual.

    Args:
        folder: where to write; default the trainer's log folder.
        steps: iterations to show.
    """

    def __init__(self, folder: str | Path | None = None, steps: int = 40) -> None:
        super().__init__(folder)
        self.steps: int = integer("steps", steps)
        self._traces: list[Tensor] = []

    def clear(self) -> None:
        self._traces = []

    def keep(self, module: Any, inputs: Tensor, labels: Tensor) -> None:
        # No residual is below the smallest positive number: all iterations are run.
        tiny = torch.finfo(inputs.dtype).tiny
        solver = replace(module.deq.solver, tol=tiny, max_steps=self.steps)
        with torch.no_grad():
            solution = module(inputs, solver=solver, on_failure="ignore")
        # torchdeq's solvers measure the residual of their result in one more evaluation.
        trace = solution.trace[: self.steps].cpu()
        # A batch may end earlier, when every residual is zero.
        missing = self.steps - len(trace)
        self._traces.append(torch.cat([trace, trace.new_zeros(missing, trace.shape[1])]))

    def figures(self, module: Any) -> dict[str, Any]:
        if not self._traces:
            return {}
        traces = torch.cat(self._traces, dim=1)
        return {"residuals": residual_histogram(traces, tol=module.deq.solver.tol)}


class Contraction(Callback):
    """Keeps a memory within one equilibrium while it learns: a projected gradient method.

    Every few steps, and before a validation, the weights between free layers are weakened where
    they have grown too strong (:func:`~hamdeq.contract_`), so that an update always contracts.

    Args:
        rate: the bound to keep on the contraction of a synchronous step, in (0, 1).
        every: optimiser steps from one projection to the next, ≥ 1; it costs the eigenvalues of a
            matrix for each synapse, and weights move little in a few steps.
    """

    def __init__(self, rate: float = 0.99, every: int = 10) -> None:
        self.rate: float = number("rate", rate, above=0, below=1)
        self.every: int = integer("every", every)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._project(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or trainer.global_step % self.every == 0:
            self._project(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # In the middle of an epoch: what is validated is what a checkpoint keeps. At its end that
        # has been done.
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and not trainer.is_last_batch:
            self._project(pl_module)

    def _project(self, module: L.LightningModule) -> None:
        expected = "a HAMClassifier or HAMReconstructor"
        module = instance("Contraction", module, EquilibriumModule, expected)
        contract_(module.deq.ham, clamped=module.clamped, rate=self.rate)
