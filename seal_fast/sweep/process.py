"""One attempt of a trial: an ordinary run folder, trained in a process that may have trained others before.

It is not this process, so that a crash ends no more than one run, the number of threads is set before anything starts
them, and a checkpoint is written when the process that watches it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
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
from seal_fast.networks import code_flags
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import RunError, last_message
from seal_fast.utils.files import write_text

LOOK_SECONDS = 2.0  # between two looks at a trial's metrics
STOP_SECONDS = 120.0
# What speed and compiled graphs depend on, and what holds for a whole process
SHAPE = (
    "model stem width data image_size input batch_size accumulate amp amp_dtype dtype device kernels augmentation "
    "compile ema log_norms record_examples eval_batch_size on_bad_image deterministic"
).split()


def environment(shared: Path, threads: int) -> dict[str, str]:
    """Environment of a trial: where decoded images and compiled graphs are shared, and its threads."""
    places = {"SEAL_FAST_SHARED_IMAGES": str(shared / "images"), "TORCHINDUCTOR_CACHE_DIR": str(shared / "inductor")}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), str(threads))
    return places | dict(os.environ) | counts


class Server:
    """A process that trains run after run of one shape; see `serve.py`. A failed run ends it."""

    def __init__(self, shape: Any, threads: int, shared: Path, cwd: str | None, log: Path) -> None:
        """Start it; `log` takes what it says before its first run."""
        self.shape = shape
        command, pipe = [sys.executable, "-m", "seal_fast.sweep.serve"], subprocess.PIPE
        settings: dict[str, Any] = {"env": environment(shared, threads), "cwd": cwd, "bufsize": 0}
        with log.open("ab") as errors:
            # in a session of its own, as Ctrl-C is for the sweep, which then stops its trials
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True,
                preexec_fn=_terminate_with(os.getpid()), **settings,
            )  # fmt: skip

    def start(self, argv: list[str], log: Path) -> bool:
        """Have it train with these flags; False if it has ended."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin
            self.process.stdin.write(json.dumps({"argv": argv, "log": str(log)}).encode() + b"\n")
            return self.process.poll() is None
        return False

    def poll(self, seconds: float = 0.0) -> int | None:
        """The exit code of the run that was started, or None if it still trains after so many seconds."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return self.process.poll()
        answer = self.process.stdout.readline()
        return int(answer) if answer else self.process.wait()

    def end(self) -> None:
        """End it, at once if no run trains, else when that has written its checkpoint; kill it after two minutes."""
        assert self.process.stdin
        self.process.terminate()  # nothing if it has ended
        self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Process:
    """A trial that trains.

    Attributes:
        folder: its run folder; the trainer's output is in `output.log` there.
        server: the process that it trains in.
        ends: the metrics rows at which a generation ended, so far.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        threads: int,
        shared: Path,
        cwd: str | None = None,
        server: Server | None = None,
    ) -> None:
        """Start the trainer, which continues from the checkpoint; RunError if an earlier attempt still trains there.

        `server` is that of an earlier trial with the same threads; it is ended if the new one has another shape.
        """
        self.folder = RunFolder(path)
        line = timeline(config)
        self._last_epoch = [line.epochs(g) - 1 for g in range(len(line.generations))]
        self._code: int | None = None
        self.ends: list[dict[str, Any]] = []
        path.mkdir(parents=True, exist_ok=True)
        if not wait_until_free(path, STOP_SECONDS):  # it may be writing its checkpoint
            raise RunError(f"{path}: another process has been training there for two minutes")
        if not self.folder.config.exists():
            write_text(self.folder.config, dumps(replace(config, threads=threads)))
        log = path / "output.log"
        self._log_start = log.stat().st_size if log.exists() else 0
        flags = {"--out": path, "--threads": threads, "--generations": config.generations}
        job = [*(str(word) for pair in flags.items() for word in pair), *code_flags(config.model)], log
        shape = {name: getattr(config, name) for name in SHAPE}
        if not server or server.shape != shape or not server.start(*job):
            if server:
                server.end()
            server = Server(shape, threads, shared, cwd, log)
            server.start(*job)
        self.server = server

    @property
    def generations(self) -> int:
        """Number of generations of the whole run."""
        return len(self._last_epoch)

    def wait(self, generation: int) -> int | None:
        """Wait for the last row of a generation; the exit code if the run ends before it, else None."""
        while True:
            code = self._poll(0)
            self.ends = [row for row in self.folder.rows() if row["epoch"] == self._last_epoch[row["generation"]]]
            if code is not None or len(self.ends) > generation:
                return code if len(self.ends) <= generation else None
            self._poll(LOOK_SECONDS)

    def join(self) -> int:
        """Wait for the end of the run; its exit code."""
        while (code := self._poll(LOOK_SECONDS)) is None:
            pass
        return code

    def stop(self) -> Server | None:
        """Have it write its checkpoint and end, if it has not; the process, if that can train another run."""
        if self._poll(0) is None:
            self.server.process.terminate()
            if self._poll(STOP_SECONDS) == 128 + signal.SIGTERM and self.server.process.poll() is None:
                return self.server
            self.server.end()  # it was killed, or the signal came when its run had just ended
        return self.server if self.server.process.poll() is None else None

    def _poll(self, seconds: float) -> int | None:
        if self._code is None:
            self._code = self.server.poll(seconds)
        return self._code

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
