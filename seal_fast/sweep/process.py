"""One attempt of a trial: the trainer in a process of its own, with an ordinary run folder.

In a process of its own it leaves no memory, threads or crash behind, its number of threads is set before anything
starts them, and it writes its checkpoint and ends when the process that watches it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal_fast.config import Config, dumps
from seal_fast.methods import timeline
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import RunError, last_message
from seal_fast.utils.files import write_text

LOOK_SECONDS = 2.0  # between two looks at a trial's metrics
STOP_SECONDS = 120.0


def environment(shared: Path, threads: int) -> dict[str, str]:
    """Environment of a trial: where decoded images and compiled graphs are shared, and its threads."""
    places = {"SEAL_FAST_SHARED_IMAGES": str(shared / "images"), "TORCHINDUCTOR_CACHE_DIR": str(shared / "inductor")}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), str(threads))
    return places | dict(os.environ) | counts


class Process:
    """A trial that trains.

    Attributes:
        folder: its run folder; the trainer's output is in `output.log` there.
        ends: the metrics rows at which a generation ended, so far.
    """

    def __init__(self, path: Path, config: Config, threads: int, shared: Path, cwd: str | None = None) -> None:
        """Start the trainer, which continues from the checkpoint if there is one.

        Raises:
            RunError: an earlier attempt still trains in the folder.
        """
        self.folder = RunFolder(path)
        line = timeline(config)
        self._last_epoch = [line.epochs(g) - 1 for g in range(len(line.generations))]
        self.ends: list[dict[str, Any]] = []
        path.mkdir(parents=True, exist_ok=True)
        if not wait_until_free(path, STOP_SECONDS):  # it may be writing its checkpoint
            raise RunError(f"{path}: another process has been training there for two minutes")
        if not self.folder.config.exists():
            write_text(self.folder.config, dumps(replace(config, threads=threads)))
        command = [sys.executable, "-m", "seal_fast.train", "--out", str(path), "--threads", str(threads)]
        with (path / "output.log").open("ab") as log:
            self._log_start = log.tell()
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            settings: dict[str, Any] = {"env": environment(shared, threads), "cwd": cwd, **streams}
            # in a session of its own, as Ctrl-C is for the sweep, which then stops its trials
            self._process = subprocess.Popen(
                command, start_new_session=True, preexec_fn=_terminate_with(os.getpid()), **settings
            )

    @property
    def generations(self) -> int:
        """Number of generations of the whole run."""
        return len(self._last_epoch)

    def wait(self, generation: int) -> int | None:
        """Wait for the last row of a generation; the exit code if the process ends before it, else None."""
        while True:
            code = self._process.poll()
            self.ends = [row for row in self.folder.rows() if row["epoch"] == self._last_epoch[row["generation"]]]
            if code is not None or len(self.ends) > generation:
                return code if len(self.ends) <= generation else None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LOOK_SECONDS)

    def join(self) -> int:
        """Wait for the end of the process; its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Ask it to write its checkpoint and end; kill it after two minutes."""
        self._process.terminate()  # nothing if it has ended
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def message(self) -> str:
        """Why it ended."""
        return last_message(self.folder.path / "output.log", self._log_start)


def diverged(message: str) -> bool:
    """Whether an error sentence says that the loss or the weights are not finite: another attempt ends the same."""
    return re.search(r"\bNaN\b|\binfinite\b|\bnot finite\b", message) is not None


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Whether no process trains in a run folder; waits for that up to so many seconds."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), (folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if not (folder / ".lock").exists():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


def _terminate_with(parent: int) -> Callable[[], None]:
    """For a child before it starts: have the kernel send it SIGTERM when its parent dies."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask
