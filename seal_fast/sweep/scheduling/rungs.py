"""Early stopping: Ray's asynchronous successive halving (ASHA), with its rungs at generation ends.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.scheduling.worker import METRIC


class Rungs(ASHAScheduler):
    """Ray's ASHA, with trials known by their names, so that a resumed sweep can tell it of those that have ended."""

    def __init__(self, ledger: Ledger, first: int, factor: int, generations: int) -> None:
        super().__init__("generation", METRIC, "max", max(generations, first), first, factor, stop_last_trials=False)
        for name, entry in ledger.entries.items():
            if entry.state in ("finished", "stopped"):
                trial = SimpleNamespace(config={"trial": {"name": name}})
                self.on_trial_add(None, trial)
                for generation, value in enumerate(entry.values, 1):
                    self.on_trial_result(None, trial, {"generation": generation, METRIC: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial that begins, or begins again."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after a generation."""
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial that has ended."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial that will not begin."""
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial"]["name"])
