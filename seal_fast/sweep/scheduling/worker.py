"""Ray workers: each runs one trial after another."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from ray import tune

from seal_fast.config import Config, override
from seal_fast.sweep.process import Process, diverged
from seal_fast.utils.errors import RunError, UsageError

METRIC = "val_top1"
_GRACE_SECONDS = 30.0
_STOP_CODES = [128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


class Worker(tune.Trainable):
    """A trial as Ray Tune sees it: one step per generation. Ray starts a trial again whose step raises."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take over a trial."""
        self.name: str = config["trial"]["name"]
        self.sweep = Path(config["folder"])
        self.begun, self.process, self.server = False, None, None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over the next trial in the same process, with the same trainer if it lives."""
        server = self.process.stop() if self.process else self.server
        self.config = new_config
        self.setup(new_config)
        self.server = server
        return True

    def step(self) -> dict[str, Any]:
        """One generation."""
        if not self.begun:
            self.begin()
            self.begun = True
        result = self.advance()
        return result | {"done": "finished" in result or "failed" in result}

    def begin(self) -> None:
        """Start the trainer, which continues from its checkpoint if it has one."""
        settings = override(Config(), self.config["trial"]["config"], self.name)
        folder, shared = self.sweep / "trials" / self.name, self.sweep / "shared"
        threads, cwd = self.config["threads"], self.config["cwd"]
        self.process = Process(folder, settings, threads, shared, cwd, self.server)
        self.reported = 0

    def advance(self) -> dict[str, Any]:
        """Wait for the end of the next generation: `generation` (from 1) and `METRIC`, with `finished` after the last.

        Of a failed trial `failed`, a sentence, if another attempt would fail again; RunError if it may succeed.
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
                return result | {"finished": True}
        if code in _STOP_CODES:
            time.sleep(_GRACE_SECONDS)  # what stopped the trainer, such as Slurm, is about to stop this worker too
        message = self.process.message() or f"ended with exit code {code}"
        if code == UsageError.exit_code or diverged(message):
            return {"failed": message}
        raise RunError(f"signal {signal.Signals(-code).name}: {message}" if code < 0 else message)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Required by Ray; does nothing: the run folder is the checkpoint."""

    def cleanup(self) -> None:
        """End the trainer; it writes a checkpoint first."""
        if server := self.process.server if self.process else self.server:
            server.end()
        self.process = self.server = None
