"""Scheduling by Ray Tune: which trial runs where, retries, early stopping. The only file that imports Ray.

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
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before Ray is imported, which reads them then: no reports to its makers, no logs of its own per trial, no snapshots.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_AIR_NEW_OUTPUT="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000",
    TUNE_RESULT_BUFFER_LENGTH="0",
    TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="1000000",
)

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from seal_fast.config import Config, override, to_dict
from seal_fast.errors import RunError
from seal_fast.sweep.ledger import Ledger, State
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.process import Process

METRIC = "val_top1"
_OBJECT_STORE_BYTES = 80 * 2**20  # nothing of size passes through Ray


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


class Training(tune.Trainable):
    """A trial on a worker: watches the trainer's process and reports at the end of each generation."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the trainer, or continue where an earlier attempt stopped."""
        place = Path(config["folder"])
        settings = override(Config(), config["trial"]["config"], config["trial"]["name"])
        self.process: Process | None = Process(
            place / "trials" / config["trial"]["name"], settings, config["threads"], place / "shared"
        )
        self.reported = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial on the same worker."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next generation's end.

        Raises:
            RunError: the trainer failed in a way that another attempt may cure.
        """
        assert self.process
        code = self.process.wait(self.reported)
        if code is None:
            row = self.process.ends[self.reported]
            self.reported += 1
            result = {"generation": self.reported, METRIC: row[METRIC]}
            if self.reported < self.process.generations:
                return result
            code = self.process.join()  # summary and weights are written after the last row
            if code == 0:
                return result | {"finished": True, "done": True}
        words = self.process.last_words() or f"ended with exit code {code}"
        if code == 2:  # a wrong setting stays wrong
            return {"failed": words, "done": True}
        raise RunError(f"signal {signal.Signals(-code).name}: {words}" if code < 0 else words)

    def cleanup(self) -> None:
        """End the trainer, with a checkpoint if it is not at its end."""
        if self.process:
            self.process.stop()
            self.process = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder is the checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `setup` continues the run folder."""


class _Rungs(ASHAScheduler):
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
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial"]["name"])


class _Told(tune.Callback):
    """Writes what Ray reports into the ledger, and lets the display follow."""

    def __init__(self, ledger: Ledger, tick: Callable[[], None]) -> None:
        self.ledger, self.tick = ledger, tick

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ledger.record(_name(trial), "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "generation" in result:
            self.ledger.record(_name(trial), "running", generation=result["generation"], value=result[METRIC])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial, "running")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial, "failed")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        if "failed" in last:
            failures = self.ledger.entries[_name(trial)].failures + 1
            self.ledger.record(_name(trial), "failed", failures=failures, message=last["failed"])
        else:
            self.ledger.record(_name(trial), "finished" if last.get("finished") else "stopped")

    def _failed(self, trial: Any, state: State) -> None:
        failures = self.ledger.entries[_name(trial)].failures + 1
        self.ledger.record(_name(trial), state, failures=failures, message=_reason(str(trial.get_error())))


def _reason(trace: str) -> str:
    """The sentence of the last exception in a traceback."""
    found = re.findall(r"^[\w.]*(?:Error|Exception)(?:\([\w.]+\))?: (.+)$", trace, re.MULTILINE)
    return found[-1].strip() if found else "the worker died"


def _name(trial: Any) -> str:
    return trial.config["trial"]["name"]


class Stopped(BaseException):
    """SIGTERM or SIGINT came."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def connected(address: str | None, concurrent: int) -> Iterator[None]:
    """Ray as a part of the cluster at `address`, or else on this machine alone, for so many trials at a time.

    Raises:
        RunError: it cannot be started or reached.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    scratch = None
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            scratch = tempfile.mkdtemp(prefix="seal-ray-")
            # Ray's sockets lie there, and their paths are limited to 107 bytes.
            place = {"_temp_dir": scratch} if len(scratch) < 36 else {}
            ray.init(
                address="local",
                num_cpus=concurrent,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
                **place,
            )
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        what = f"reached at {address}" if address else "started"
        raise RunError(f"Ray could not be {what}: {reason[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def slots(per_gpu: int, concurrent: int | None, threads: int | None) -> tuple[int, int]:
    """Trials at a time and threads of each, on the cluster that is connected: what its smallest node has for each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [node for node in nodes if node.get("GPU")]
    if gpus:
        places = int(sum(node["GPU"] for node in gpus)) * per_gpu
        share = min(int(node["CPU"] // (node["GPU"] * per_gpu)) for node in gpus)
        return min(concurrent or places, places), max(1, min(threads or share, share))
    cores = int(sum(node.get("CPU", 0) for node in nodes))
    each = threads or max(1, cores // (concurrent or cores))
    return concurrent or max(1, cores // each), each


def run(
    job: Job,
    trials: dict[str, Trial],
    ledger: Ledger,
    tick: Callable[[], None] = lambda: None,
    trainable: type[tune.Trainable] = Training,
) -> None:
    """Run what the ledger has left over, within `connected`; the ledger holds the outcome.

    Raises:
        Stopped: a signal came; the trials in hand are left to be continued.
    """
    left = ledger.left()
    if not left:
        return
    scheduler = FIFOScheduler()
    if job.rungs:
        scheduler = _Rungs(ledger, *job.rungs, max(trial.generations for trial in trials.values()))
    space = {
        "trial": tune.grid_search([{"name": name, "config": to_dict(trials[name].config)} for name in left]),
        "folder": str(job.folder.absolute()),
        "threads": job.threads,
    }
    resources = {"cpu": job.threads if job.cluster else 1, "gpu": job.gpu}
    scratch = job.folder.absolute() / ".ray"
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with _signals():
            tune.Tuner(
                tune.with_resources(trainable, resources),
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    max_concurrent_trials=job.concurrent,
                    reuse_actors=True,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[_Told(ledger, tick)],
                    failure_config=tune.FailureConfig(max_failures=job.retries),
                ),
            ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    def stop(number: int, _frame: object) -> None:
        raise Stopped(number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
