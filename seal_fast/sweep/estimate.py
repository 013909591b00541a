"""How long a sweep will take, from short runs of the trainer on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seal_fast.config import Config, dumps
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.process import environment, last_message
from seal_fast.utils.errors import RunError

STEPS = 3
_EVALUATION = 1 / 3  # cost of an evaluated image relative to a trained one: the forward pass alone
_SHAPE = "model stem data image_size input batch_size amp amp_dtype dtype device kernels augmentation compile".split()


@dataclass(frozen=True)
class Speed:
    """Of a short run: images trained per second, seconds to start, and seconds to compile the first time."""

    rate: float
    start: float
    compile: float


def estimate(
    trials: Iterable[tuple[Trial, int]], sizes: dict[str, tuple[int, int]], *, concurrent: int, threads: int
) -> str:
    """A sentence that predicts the hours of a sweep. How much packed trials slow each other down is not known.

    Args:
        trials: with the epochs that each has left.
        sizes: numbers of training and validation images by the value of --data.
        concurrent: trials at a time.
        threads: CPU threads of each.

    Raises:
        RunError: a short run failed.
    """
    speeds: dict[tuple[object, ...], Speed] = {}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="seal-estimate-") as scratch:
        for trial, epochs in trials:
            config = trial.config
            train, val = sizes[config.data]
            shape = tuple(getattr(config, name) for name in _SHAPE)
            compiling = shape not in speeds  # the others find its graphs
            if compiling:
                speeds[shape] = _measure(trial, train, threads, Path(scratch), len(speeds))
            speed = speeds[shape]
            images = min(config.limit_train or train, train) + val / config.eval_every * _EVALUATION
            seconds.append(epochs * images / speed.rate + speed.start + compiling * speed.compile)
    if not seconds:
        return "predicted: nothing is left to do"
    hours = max(sum(seconds) / min(concurrent, len(seconds)), max(seconds)) / 3600
    rates = sorted(round(speed.rate) for speed in speeds.values())
    starts = sorted(round(speed.start + speed.compile) for speed in speeds.values())
    return (
        f"predicted: {hours:.2g} hours, from {_range(rates)} images/s and {_range(starts)} s to start, measured here "
        f"by a run of {STEPS} steps of each network, batch size and compute type"
    )


def _range(values: list[int]) -> str:
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _measure(trial: Trial, train: int, threads: int, scratch: Path, number: int) -> Speed:
    """Two epochs of `STEPS` steps, the second one timed, and one evaluation; twice where the step is compiled."""
    config: Config = replace(
        trial.config,
        method="restart",
        generations=1,
        epochs=2,
        ascent_epochs=0,
        warmup_epochs=0,
        lr=0.0,
        eval_every=2,
        limit_train=min(trial.config.batch_size * STEPS, train),
        keep="none",
        checkpoint_seconds=1e9,
        hessian_every=0,
        init_weights=None,
        profile=False,
        wandb=False,
    )
    cold, start, rows = _train(trial.name, config, threads, scratch, f"{number}")
    warm = cold
    if config.compile:
        warm, start, rows = _train(trial.name, config, threads, scratch, f"{number}-warm")
    rate = rows[1]["images"] / max(rows[1]["seconds"], 1e-9)
    return Speed(rate, start + sum(row["compile_seconds"] for row in rows), max(cold - warm, 0.0))


def _train(
    name: str, config: Config, threads: int, scratch: Path, run: str
) -> tuple[float, float, list[dict[str, Any]]]:
    """Seconds that a run takes to its end, and to its first step, and its metrics."""
    folder = RunFolder(scratch / run)
    folder.path.mkdir()
    folder.config.write_text(dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "seal_fast.train", "--out", str(folder.path), "--threads", str(threads)]
    begin = time.time()
    with (folder.path / "output.log").open("wb") as log:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(scratch, threads)
        ).returncode
    seconds, rows = time.time() - begin, folder.rows()
    if code or len(rows) < 2:
        raise RunError(f"{name}: a short run to measure its speed failed: {last_message(folder.path)}")
    return seconds, folder.config.stat().st_mtime - begin, rows  # the trainer writes config.toml before its first step
