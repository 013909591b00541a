"""A learning search as Ray asks it: a Searcher that hands out what `suggest.Search` proposes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from seal_fast.sweep.plan import Trial


class Proposals(Searcher):
    """Trials as they are asked for. What they come to the search learns from the ledger, not from Ray."""

    def __init__(self, ask: Callable[[], Trial | None], describe: Callable[[Trial], dict[str, Any]]) -> None:
        super().__init__()
        self.ask, self.describe = ask, describe

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Nothing: the space is the search's own."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration."""
        trial = self.ask()
        return Searcher.FINISHED if trial is None else {"trial": self.describe(trial)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: it stands in the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the plan and the ledger are on the disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""
