"""One attempt of a trial: the ordinary trainer in a process of its own, into an ordinary run folder.

A process of its own because nothing then outlives it (device memory, threads, a crash), because its threads can be set
before anything starts them, and because a kill of what watches it ends it politely: it writes its checkpoint and goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from seal_fast.config import Config, dumps
from seal_fast.methods import timeline
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import RunError
from seal_fast.utils.files import write_text

POLL_SECONDS = 0.1
LOOK_SECONDS = 2.0  # between two looks at a trial's metrics; its end is seen at once
STOP_SECONDS = 120.0
# What a compiled step depends on besides the data set; every other setting is a number on the device.
_SHAPE = (
    "model stem data image_size batch_size eval_batch_size accumulate amp amp_dtype dtype label_smoothing limit_train"
).split()


def environment(shared: Path, threads: int) -> dict[str, str]:
    """What trials on one node have in common: decoded images and compiled graphs; and threads, per trial."""
    count = str(threads)
    common = {
        "SEAL_FAST_SHARED_IMAGES": str(shared / "images"),
        "TORCHINDUCTOR_CACHE_DIR": str(shared / "inductor"),
    }
    own = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TORCHINDUCTOR_COMPILE_THREADS": count}
    return dict(os.environ) | {k: os.environ.get(k, v) for k, v in common.items()} | own


class Process:
    """A trial that trains.

    Attributes:
        folder: its run folder, an absolute path; the trainer's output is in `output.log` there.
        ends: the metrics rows at which a generation ended, so far.
    """

    def __init__(self, path: Path, config: Config, threads: int, shared: Path, cwd: str | None = None) -> None:
        self.folder, self.config = RunFolder(path), config
        line = timeline(config)
        self._last_epoch = [line.epochs(g) - 1 for g in range(len(line.generations))]
        self._size = -1
        self.ends: list[dict[str, Any]] = []
        self._wait_for_predecessor()
        if not self.folder.config.exists():
            write_text(self.folder.config, dumps(replace(config, threads=threads)))
        self._gate = _Gate(config, shared) if config.compile else None
        command = [sys.executable, "-m", "seal_fast.train", "--out", str(path), "--threads", str(threads)]
        with (path / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(shared, threads),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is for the sweep, which then stops its trials
                preexec_fn=_die_with(os.getpid()),
            )

    @property
    def generations(self) -> int:
        """Of the whole run."""
        return len(self._last_epoch)

    def wait(self, generation: int) -> int | None:
        """Wait until a generation's row is there; the exit code if the process ended before it, else None."""
        while True:
            code = self._process.poll()
            self._read()
            if len(self.ends) > generation:
                return None
            if code is not None:
                self._open_gate(False)
                return code
            self._pause()

    def _pause(self) -> None:
        """Until the process ends, or for a while."""
        try:
            ended = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):  # not Linux, or before 5.3
            time.sleep(POLL_SECONDS)
            return
        try:
            select.select([ended], [], [], LOOK_SECONDS)
        finally:
            os.close(ended)

    def join(self) -> int:
        """Wait for the end of the process; its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Ask it to write its checkpoint and go; after two minutes, make it go."""
        self._open_gate(False)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def last_words(self) -> str:
        """Why it ended: its error sentence, or else the last line it wrote."""
        return last_words(self.folder.path)

    def _read(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            size = self.folder.metrics.stat().st_size
            if size != self._size:
                rows = self.folder.rows()
                self.ends = [row for row in rows if row["epoch"] == self._last_epoch[row["generation"]]]
                self._size = size
                self._open_gate(bool(rows))

    def _open_gate(self, warm: bool) -> None:
        if self._gate:
            self._gate.open(warm)

    def _wait_for_predecessor(self) -> None:
        """An earlier attempt whose watcher was killed may still be writing its checkpoint.

        Raises:
            RunError: it does not end.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        if not wait_until_free(self.folder.path, STOP_SECONDS):
            raise RunError(f"{self.folder.path}: another process has been training there for two minutes")


def last_words(folder: Path) -> str:
    """The last error sentence in a trial's output, or else its last line."""
    try:
        lines = [line for line in (folder / "output.log").read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].strip()


def wait_until_free(folder: Path, seconds: float) -> bool:
    """Whether no process trains into a run folder, waiting for that at most so long."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if not (folder / ".lock").exists():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)


class _Gate:
    """Lets one trial of a shape compile while others of that shape wait; later ones find its graphs in the cache."""

    def __init__(self, config: Config, shared: Path) -> None:
        shape = repr([getattr(config, name) for name in _SHAPE]).encode()
        place = shared / "compiled" / hashlib.sha256(shape).hexdigest()[:16]
        place.parent.mkdir(parents=True, exist_ok=True)
        self._marker = place.with_suffix(".warm")
        self._lock: IO[str] | None = place.with_suffix(".lock").open("w")
        while not self._marker.exists():
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(POLL_SECONDS)

    def open(self, warm: bool) -> None:
        """Let the others through; `warm` says that this trial has compiled both graphs."""
        if self._lock is not None:
            if warm:
                self._marker.touch()
            self._lock.close()
            self._lock = None


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does first: have the kernel send it SIGTERM when the process that watches it dies."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask
