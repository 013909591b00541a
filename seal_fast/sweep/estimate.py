"""How long a sweep will take, from short runs of the trainer on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from seal_fast.config import Config, dumps
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.process import SHAPE, environment
from seal_fast.sweep.slots import Slots
from seal_fast.utils.errors import RunError, last_message
from seal_fast.utils.files import write_text

STEPS = 3
_EVALUATION = 1 / 3  # cost of an evaluated image relative to a trained one: the forward pass alone


class Speed(NamedTuple):
    """Of a short run: images trained per second, seconds to start, and seconds to compile the first time."""

    rate: float
    start: float
    compile: float


def estimate(trials: Iterable[tuple[Trial, int]], sizes: dict[str, tuple[int, int]], slots: Slots) -> str:
    """A sentence that predicts the hours of a sweep. How much packed trials slow each other down is not known.

    `trials` come with the epochs that each has left; `sizes` are each one's training and validation images. Raises
    RunError if a short run failed.
    """
    speeds: dict[tuple[object, ...], Speed] = {}
    started: Counter[tuple[object, ...]] = Counter()
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="seal-estimate-") as scratch:
        for trial, epochs in trials:
            config = trial.config
            train, val = sizes[trial.name]
            shape = tuple(getattr(config, name) for name in SHAPE)
            if shape not in speeds:
                speeds[shape] = measure(trial, train, slots.threads, Path(scratch) / str(len(speeds)))
            speed = speeds[shape]
            started[shape] += 1
            starting = started[shape] <= slots.concurrent  # later ones find a process that is warm
            compiling = started[shape] == 1  # the others find its graphs
            images = train + val / config.eval_every * _EVALUATION
            seconds.append(epochs * images / speed.rate + starting * speed.start + compiling * speed.compile)
    if not seconds:
        return "predicted: nothing is left to do"
    hours = max(sum(seconds) / min(slots.concurrent, len(seconds)), max(seconds)) / 3600
    rates = _range(round(speed.rate) for speed in speeds.values())
    starts = _range(round(speed.start + speed.compile) for speed in speeds.values())
    return (
        f"predicted: {hours:.2g} hours, from {rates} images/s and {starts} s to start, measured here "
        f"by a run of {STEPS} steps of each network, batch size and compute type"
    )


def _range(values: Iterable[int]) -> str:
    least, *_, most = sorted([*values] * 2)
    return f"{least}" if least == most else f"{least} to {most}"


def measure(trial: Trial, train: int, threads: int, scratch: Path) -> Speed:
    """Two epochs of `STEPS` steps, the second one timed, and one evaluation; twice where the step is compiled.

    Of the trial only the settings of `SHAPE` count; `train` is the number of images, `scratch` a folder to be made.
    Raises RunError if the run failed.
    """
    settings: dict[str, Any] = {name: getattr(trial.config, name) for name in SHAPE}
    settings |= {"method": "restart", "generations": 1, "epochs": 2, "ascent_epochs": 0, "warmup_epochs": 0}
    settings |= {"limit_train": min(trial.config.batch_size * STEPS, train), "eval_every": 2, "checkpoint_seconds": 1e9}
    config = Config(lr=0.0, keep="none", **settings)
    whole: list[float] = []
    for number in range(1 + config.compile):
        folder = RunFolder(scratch / str(number))
        write_text(folder.config, dumps(config))
        command = [sys.executable, "-m", "seal_fast.train", "--out", str(folder.path), "--threads", str(threads)]
        begin = time.time()
        with (folder.path / "output.log").open("wb") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            code = subprocess.run(command, **streams, env=environment(scratch, threads)).returncode
        whole.append(time.time() - begin)
        rows = folder.rows()
        if code or len(rows) < 2:
            raise RunError(
                f"{trial.name}: a short run to measure its speed failed: {last_message(folder.path / 'output.log')}"
            )
    start = folder.config.stat().st_mtime - begin  # the trainer writes config.toml before its first step
    start += sum(row["compile_seconds"] for row in rows)
    return Speed(rows[1]["images"] / max(rows[1]["seconds"], 1e-9), start, max(whole[0] - whole[-1], 0.0))
