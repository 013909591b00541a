"""The order in which Ray Tune gets the trials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray.tune.search import Searcher

from seal_fast.config import to_dict
from seal_fast.sweep.plan import Trial


class TrialSearcher(Searcher):
    """Hands out the trials of an iterator. Results are read from the ledger, so nothing has to be reported here."""

    def __init__(self, trials: Iterator[Trial]) -> None:
        super().__init__()
        self._trials = trials

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the searcher and never reads it again; an iterator cannot be pickled

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Accept any metric and space: neither is used."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial as a configuration of the worker."""
        trial = next(self._trials, None)
        return Searcher.FINISHED if trial is None else {"trial": {"name": trial.name, "config": to_dict(trial.config)}}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Required by Ray; does nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Required by Ray; does nothing."""
