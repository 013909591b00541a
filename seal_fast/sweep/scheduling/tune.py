"""Runs trials by Ray Tune and records what becomes of them in the ledger.

Ray's own state is thrown away: an interrupted sweep continues from the ledger and the run folders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from seal_fast.config import to_dict
from seal_fast.sweep.ledger import Ledger, State
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.scheduling.connection import Session
from seal_fast.sweep.scheduling.worker import METRIC, Worker
from seal_fast.sweep.slots import Slots
from seal_fast.utils.errors import RunError

_CHECK_SECONDS = 10.0


class Stopped(BaseException):
    """SIGTERM, SIGINT or SIGHUP came."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Trials(Searcher):
    """Hands out the trials of an iterator. Results are read from the ledger, so nothing has to be reported here."""

    def __init__(self, trials: Iterator[Trial]) -> None:
        super().__init__()
        self._trials = trials

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles the searcher and never reads it again; an iterator cannot be pickled

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        trial = next(self._trials, None)
        return Searcher.FINISHED if trial is None else {"trial": {"name": trial.name, "config": to_dict(trial.config)}}

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    on_trial_complete = save = _nothing  # required by Ray


class _Recorder(tune.Callback):
    """Writes Ray's events into the ledger and refreshes the display."""

    def __init__(self, ledger: Ledger, tick: Callable[[], None], check_alive: Callable[[], None]) -> None:
        self.ledger, self.tick, self.check_alive = ledger, tick, check_alive
        self._checked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its callbacks and never reads them again

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tick()
        if time.monotonic() > self._checked + _CHECK_SECONDS:
            self.check_alive()
            self._checked = time.monotonic()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.ledger.record(_name(trial), "running")

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "failed" in result:
            self._failed(trial, "failed", result["failed"])
        else:
            self.ledger.record(_name(trial), "running", generation=result["generation"], value=result[METRIC])

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.check_alive()  # a worker that died with Ray is no failure of its trial
        self._failed(trial, "running", _reason(trial))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.check_alive()
        self._failed(trial, "failed", _reason(trial))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        if "failed" not in last:
            self.ledger.record(_name(trial), "finished" if last.get("finished") else "stopped")

    def _failed(self, trial: Any, state: State, message: str) -> None:
        failures = self.ledger.entries[_name(trial)].failures + 1
        self.ledger.record(_name(trial), state, failures=failures, message=message)


def _reason(trial: Any) -> str:
    """The sentence of the last exception that Ray has written of a trial."""
    written = trial.error_file and Path(trial.error_file).exists()
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if written else ""
    errors = re.findall(r"^[\w.]*(?:Error|Exception)(?:\([\w.]+\))?(?:: .+)?$", text, re.MULTILINE)
    return errors[-1].partition(": ")[2].strip() or errors[-1] if errors else "the worker died"


def _name(trial: Any) -> str:
    return trial.config["trial"]["name"]


def asha(ledger: Ledger, rungs: tuple[int, int], generations: int) -> ASHAScheduler:
    """Ray's asynchronous successive halving over generations, which knows the trials that have ended.

    `rungs` are the generations before the first decision, and how many trials there are for each that goes on;
    `generations` those of the longest trial.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
    """
    longest = max(generations, rungs[0])
    scheduler = ASHAScheduler("generation", METRIC, "max", longest, *rungs, stop_last_trials=False)
    for name, entry in ledger.entries.items():
        if entry.state in ("finished", "stopped"):
            trial: Any = SimpleNamespace(trial_id=name)
            scheduler.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
            for generation, value in enumerate(entry.values, 1):
                result = {"generation": generation, METRIC: value}
                scheduler.on_trial_result(None, trial, result)  # pyright: ignore[reportArgumentType]
    return scheduler


def run(
    folder: Path,
    trials: Iterator[Trial],
    ledger: Ledger,
    session: Session,
    slots: Slots,
    *,
    retries: int = 2,
    scheduler: ASHAScheduler | None = None,
    tick: Callable[[], None] = lambda: None,
    worker: type[Worker] = Worker,
) -> None:
    """Run trials to their end; the ledger holds the outcome.

    The next trial is taken when there is room for it. A failed one is started again up to `retries` times. `tick` is
    called several times a second.

    Raises:
        Stopped: a signal came; running trials can be continued.
        RunError: Ray itself failed.
    """
    storage = folder.absolute() / ".ray"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the ledger names failures
    tuner = tune.Tuner(
        tune.with_resources(worker, {"cpu": slots.cpus, "gpu": slots.gpu}),
        param_space={"folder": str(folder.absolute()), "cwd": os.getcwd(), "threads": slots.threads},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=_Trials(trials),
            num_samples=-1,
            max_concurrent_trials=slots.concurrent,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(storage),
            verbose=0,
            callbacks=[_Recorder(ledger, tick, session.check_alive)],
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    try:
        with _signals():
            tuner.fit()
    except RunError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RunError(f"Ray Tune gave up ({reason.strip()}); continue with --resume") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Raise Stopped when a signal comes; SIGHUP only where it is not ignored (nohup)."""
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        came.append(number)
        raise Stopped(number)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]
    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Exception:
        if came:  # Ray's processes got the signal too, or Ray caught it and raised an error of its own
            raise Stopped(came[0]) from None
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
