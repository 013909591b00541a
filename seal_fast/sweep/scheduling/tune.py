"""Which trial runs when and where.

Ray is told of the trials that the ledger has left over, and what it reports goes into the ledger at once; its own state
is thrown away. So a sweep that was killed, whatever part of it, goes on from the ledger and the run folders alone.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from seal_fast.config import to_dict
from seal_fast.sweep.ledger import Ledger, State
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.scheduling import news
from seal_fast.sweep.scheduling.connection import scratch
from seal_fast.sweep.scheduling.proposals import Proposals
from seal_fast.sweep.scheduling.rungs import Rungs
from seal_fast.sweep.scheduling.worker import METRIC, Attempts, Training
from seal_fast.sweep.suggest import Search
from seal_fast.utils.errors import RunError

_BUSY_SECONDS = 1.0  # after news, while a trial may be about to start, Tune does not pause


@dataclass(frozen=True)
class Job:
    """How a sweep is run.

    Attributes:
        folder: of the sweep; trials are run folders in `trials/`.
        concurrent: trials at a time.
        threads: CPU threads of each.
        gpu: share of a GPU that each takes; 0 without one.
        retries: how often a trial that failed starts again.
        rungs: (first rung in generations, reduction factor) of early stopping; None trains every trial to its end.
        cluster: whether Ray's processors are real ones, of several machines, rather than one for each trial.
    """

    folder: Path
    concurrent: int
    threads: int
    gpu: float = 0.0
    retries: int = 2
    rungs: tuple[int, int] | None = None
    cluster: bool = False


class _Told(tune.Callback):
    """Writes what Ray reports into the ledger, and lets the display follow."""

    def __init__(
        self, ledger: Ledger, tick: Callable[[], None], confirm: Callable[[], None], pipe: news.Pipe, idle: float
    ) -> None:
        self.ledger, self.tick, self.confirm = ledger, tick, confirm
        self._pipe, self._idle = pipe, idle
        self._latest = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it with a state that nobody reads again, and a live terminal cannot be pickled

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.tick()
        if time.monotonic() > self._latest + _BUSY_SECONDS and self._pipe.wait(self._idle):
            self._latest = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._record(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "failed" in result:
            self._failed(trial, "failed" if result["done"] else "running", result["failed"])
        elif "generation" in result:
            self._record(trial, "running", generation=result["generation"], value=result[METRIC])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.confirm()
        self._failed(trial, "running", _reason(str(trial.get_error())))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.confirm()
        self._failed(trial, "failed", _reason(str(trial.get_error())))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        if "failed" not in last:
            self._record(trial, "finished" if last.get("finished") else "stopped")

    def _failed(self, trial: Any, state: State, message: str) -> None:
        failures = self.ledger.entries[_name(trial)].failures + 1
        self._record(trial, state, failures=failures, message=message)

    def _record(self, trial: Any, state: State, **what: Any) -> None:
        self._latest = time.monotonic()
        self.ledger.record(_name(trial), state, **what)


def _reason(trace: str) -> str:
    """The sentence of the last exception in a traceback."""
    found = re.findall(r"^[\w.]*(?:Error|Exception)(?:\([\w.]+\))?: (.+)$", trace, re.MULTILINE)
    return found[-1].strip() if found else "the worker died"


def _describe(trial: Trial) -> dict[str, Any]:
    return {"name": trial.name, "config": to_dict(trial.config)}


def _name(trial: Any) -> str:
    return trial.config["trial"]["name"]


class Stopped(BaseException):
    """SIGTERM or SIGINT came."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(
    job: Job,
    trials: dict[str, Trial],
    ledger: Ledger,
    tick: Callable[[], None] = lambda: None,
    trainable: type[Attempts] = Training,
    search: Search | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Run what the ledger has left over and what a search proposes, while connected; the ledger holds the outcome.

    Before a run is said to have failed with its worker, `confirm` is asked (`connection.Session`).

    Raises:
        Stopped: a signal came; the trials in hand are left to be continued.
        RunError: Ray itself failed.
    """
    left = ledger.left()
    if not left and not search:
        return
    space: dict[str, Any] = {
        "folder": str(job.folder.absolute()),
        "cwd": os.getcwd(),
        "threads": job.threads,
        "retries": job.retries,
        "news": str(scratch(job.folder) / "news"),
    }
    scheduler, searcher, samples = FIFOScheduler(), None, 1
    if search:
        searcher, samples = Proposals(search.ask, _describe), search.samples
    else:
        space["trial"] = tune.grid_search([_describe(trials[name]) for name in left])
    if job.rungs:
        known = [trial.generations for trial in trials.values()] or [search.space.base.generations if search else 1]
        scheduler = Rungs(ledger, *job.rungs, max(known))
    resources = {"cpu": job.threads if job.cluster else 1, "gpu": job.gpu}
    idle = news.REMOTE_SECONDS if job.cluster else news.IDLE_SECONDS
    told = job.folder.absolute() / ".ray"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by the ledger
    try:
        with _signals() as came, news.listening(Path(space["news"])) as pipe:

            def alive() -> None:
                if not came:  # a signal may have come to Ray's processes too, and says more than their end
                    confirm()

            tune.Tuner(
                tune.with_resources(trainable, resources),
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    search_alg=searcher,
                    num_samples=samples,
                    max_concurrent_trials=job.concurrent,
                    reuse_actors=True,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(told),
                    verbose=0,
                    callbacks=[_Told(ledger, tick, alive, pipe, idle)],
                    failure_config=tune.FailureConfig(max_failures=job.retries),
                ),
            ).fit()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RunError(f"Ray Tune gave up ({reason.strip()}); continue with --resume") from error
    finally:
        shutil.rmtree(told, ignore_errors=True)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        came.append(number)
        raise Stopped(number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    except Exception:
        # The signal came to Ray's processes too, or in the midst of Ray's own code, which then failed in its own words.
        if came:
            raise Stopped(came[0]) from None
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
