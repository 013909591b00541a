"""A search that learns from what has ended: Optuna's TPE proposes the settings of the next run.

Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from seal_fast.sweep import plan
from seal_fast.sweep.ledger import ENDED, Entry, Ledger
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.space import Axis, Space
from seal_fast.utils.errors import RunError, UsageError

_ATTEMPTS = 100


@dataclass
class Search:
    """Proposes trials until there are as many as asked for; each is kept on the disk before it runs.

    Attributes:
        space: of a single part; its seeds are not searched over.
        samples: trials in all.
        seed: of the proposals.
        trials: by name; grows.
        ledger: of the same trials; says what they came to, before this search was resumed too.
        keep: writes the trials to the disk.
    """

    space: Space
    samples: int
    seed: int
    trials: dict[str, Trial]
    ledger: Ledger
    keep: Callable[[], None]
    _asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        (self._part,) = self.space.parts
        self._distributions = {axis.name: _distribution(optuna, axis) for axis in self._part.axes}
        # the number of trials goes into the seed, so that a resumed search does not propose the same again
        sampler = optuna.samplers.TPESampler(seed=self.seed + len(self.trials))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._left = self.ledger.left()
        for name, entry in self.ledger.entries.items():
            if entry.state in ENDED:
                self._tell(name)

    def ask(self) -> Trial | None:
        """The next trial: one that was interrupted, else a new one; None when there are enough.

        Raises:
            RunError: nothing new that could run was proposed in a hundred attempts.
        """
        if self._left:
            return self.trials[self._left.pop(0)]
        if len(self.trials) >= self.samples:
            return None
        for name in [name for name in self._asked if self.ledger.entries[name].state in ENDED]:
            self._tell(name)
        known = {plan.training(trial.config) for trial in self.trials.values()}
        for _ in range(_ATTEMPTS):
            asked = self._study.ask(self._distributions)
            settings = self._part.fixed | asked.params
            try:
                (trial,) = plan.of_settings(
                    self.space, [settings], first=len(self.trials), named=self.space.axes
                ).trials
            except UsageError:  # values that exclude each other
                self._study.tell(asked, state=_optuna().trial.TrialState.FAIL)
                continue
            if plan.training(trial.config) in known:
                self._study.tell(asked, state=_optuna().trial.TrialState.FAIL)
                continue
            self.trials[trial.name] = trial
            self._asked[trial.name] = asked
            self.ledger.entries[trial.name] = Entry()
            self.keep()
            return trial
        raise RunError(f"{self.space.path}: Optuna proposed nothing new that could run in {_ATTEMPTS} attempts")

    def _tell(self, name: str) -> None:
        optuna, entry = _optuna(), self.ledger.entries[name]
        good = entry.state in ("finished", "stopped") and bool(entry.values)
        state = optuna.trial.TrialState.COMPLETE if good else optuna.trial.TrialState.FAIL
        value = entry.values[-1] if good else None
        if name in self._asked:
            self._study.tell(self._asked.pop(name), value, state)
        else:
            params = {axis: self.trials[name].settings[axis] for axis in self._distributions}
            self._study.add_trial(
                optuna.trial.create_trial(state=state, params=params, distributions=self._distributions, value=value)
            )


def check(space: Space, seeds: int | None) -> None:
    """Refuse what a learning search cannot do.

    Raises:
        UsageError: the space is a union, varies nothing or its seeds, or Optuna is missing.
    """
    if len(space.parts) > 1:
        raise UsageError(f"--search optuna: {space.path} is a union; it searches one space at a time")
    if not space.axes:
        raise UsageError(f"--search optuna: {space.path} lets nothing vary")
    if seeds is not None or "seed" in space.axes:
        raise UsageError("--search optuna: looks for settings with one seed; train the best ones with more in a grid")
    _optuna()


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.kind in ("grid", "choice"):
        return optuna.distributions.CategoricalDistribution(axis.values)
    low, high = axis.values
    if axis.kind == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=axis.kind == "loguniform")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("--search optuna: Optuna is not installed; pip install 'seal-fast[sweep]'") from None
    return optuna
