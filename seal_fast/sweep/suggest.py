"""A search that learns: Optuna's TPE proposes the next trial from the results of those that have ended.

Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from seal_fast.sweep import plan
from seal_fast.sweep.ledger import ENDED, Entry, Ledger
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.space import Axis, Space
from seal_fast.utils.errors import RunError, UsageError

_ATTEMPTS = 100


def proposals(
    space: Space, samples: int, seed: int, trials: dict[str, Trial], ledger: Ledger, save: Callable[[], None]
) -> Iterator[Trial]:
    """The interrupted trials, then new ones until there are `samples` in all.

    The space is of a single part; its seeds are not searched over. `trials`, by name, and the ledger's entries grow;
    `save` writes them to the disk, before a new one is handed out. The ledger holds results of before too. Raises
    RunError if none of a hundred proposals was new and valid.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = optuna.trial.TrialState
    distributions = {axis.name: _distribution(optuna, axis) for axis in space.parts[0].axes}
    # the number of trials is in the seed, or a resumed search would propose the same again
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    told: set[str] = set()

    def propose() -> Trial:
        for name, entry in ledger.entries.items():
            if entry.state in ENDED and name not in told:
                told.add(name)
                good = entry.state != "failed" and bool(entry.values)
                result: dict[str, Any] = (
                    {"state": states.COMPLETE, "value": entry.values[-1]} if good else {"state": states.FAIL}
                )
                result |= {"params": trials[name].settings, "distributions": distributions}
                study.add_trial(optuna.trial.create_trial(**result))
        known = {plan.training(trial.config) for trial in trials.values()}
        for _ in range(_ATTEMPTS):
            ask = study.ask(distributions)
            study.tell(ask, state=states.FAIL)  # its result is told as a trial of its own
            try:
                config = plan.resolve(space, space.parts[0].fixed | ask.params)
            except UsageError:  # values that exclude each other
                continue
            if plan.training(config) not in known:
                return Trial(plan.trial_name(len(trials), ask.params), ask.params, config)
        raise RunError(f"{space.path}: Optuna proposed nothing new that could run in {_ATTEMPTS} attempts")

    for name in ledger.left():
        yield trials[name]
    while len(trials) < samples:
        trial = propose()
        trials[trial.name] = trial
        ledger.entries[trial.name] = Entry()
        save()
        yield trial


def check(space: Space, seeds: int | None) -> None:
    """Refuse, by a UsageError, a union, a space in which nothing or the seed varies, and a missing Optuna."""
    if len(space.parts) > 1:
        raise UsageError(f"--search optuna: {space.path} is a union; it searches one space at a time")
    if not space.axes:
        raise UsageError(f"--search optuna: nothing varies in {space.path}")
    if seeds is not None or "seed" in space.axes:
        raise UsageError("--search optuna: looks for settings with one seed; train the best ones with more in a grid")
    _optuna()


def _distribution(optuna: Any, axis: Axis) -> Any:
    if axis.kind in ("grid", "choice"):
        return optuna.distributions.CategoricalDistribution(axis.values)
    kind = optuna.distributions.IntDistribution if axis.kind == "int" else optuna.distributions.FloatDistribution
    return kind(*axis.values, log=axis.kind == "loguniform")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("--search optuna: Optuna is not installed; pip install 'seal-fast[sweep]'") from None
    return optuna
