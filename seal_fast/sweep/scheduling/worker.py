"""What runs on a Ray worker: one trial after another, each in as many attempts as it needs."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from ray import tune

from seal_fast.config import Config, override
from seal_fast.sweep.process import Process
from seal_fast.sweep.scheduling import news
from seal_fast.utils.errors import RunError, UsageError

METRIC = "val_top1"
_GRACE_SECONDS = 30.0


class Attempts(tune.Trainable):
    """A trial on a worker. What fails is begun again at once, on the same worker, until its attempts are used up.

    A worker that dies takes its trial with it; Ray then begins the trial anew on another worker, as often.
    """

    def begin(self) -> None:
        """Start, or continue from what an earlier attempt has left."""
        raise NotImplementedError

    def advance(self) -> dict[str, Any]:
        """The next generation's `generation` and `METRIC`; with the last one, `finished`.

        Raises:
            RunError: another attempt may cure it.
            UsageError: none will.
        """
        raise NotImplementedError

    def setup(self, config: dict[str, Any]) -> None:
        """Begin a trial."""
        self.name: str = config["trial"]["name"]
        self.sweep = Path(config["folder"])
        self.failures = 0
        self.begun = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial on the same worker."""
        self.cleanup()
        self.config = new_config
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for a generation's end, or for a failure."""
        try:
            return self._attempt()
        finally:
            news.tell(Path(self.config["news"]))

    def _attempt(self) -> dict[str, Any]:
        try:
            if not self.begun:
                self.begin()
                self.begun = True
            result = self.advance()
            return result | {"done": True} if result.get("finished") else result
        except (RunError, UsageError) as error:
            self.failures += 1
            self.begun = False
            self.cleanup()
            last = isinstance(error, UsageError) or self.failures > self.config["retries"]
            return {"failed": str(error), "done": last}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder is the checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `begin` continues the run folder."""


class Training(Attempts):
    """A trial that trains: watches the trainer's process and reports at the end of each generation."""

    process: Process | None = None

    def begin(self) -> None:
        """Start the trainer, which continues from its checkpoint if it has one."""
        settings = override(Config(), self.config["trial"]["config"], self.name)
        folder, shared = self.sweep / "trials" / self.name, self.sweep / "shared"
        self.process = Process(folder, settings, self.config["threads"], shared, self.config["cwd"])
        self.reported = 0

    def advance(self) -> dict[str, Any]:
        """Wait for the next generation's end.

        Raises:
            RunError: the trainer failed.
            UsageError: it refused its settings.
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
        if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
            time.sleep(_GRACE_SECONDS)  # whoever stopped it, such as Slurm, is about to stop this worker too
        words = self.process.last_words() or f"ended with exit code {code}"
        if code == UsageError.exit_code:
            raise UsageError(words)
        raise RunError(f"signal {signal.Signals(-code).name}: {words}" if code < 0 else words)

    def cleanup(self) -> None:
        """End the trainer, with a checkpoint if it is not at its end."""
        if self.process:
            self.process.stop()
            self.process = None
