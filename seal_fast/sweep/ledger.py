"""What has become of every trial, on the disk: the truth that `--resume` goes by, whatever Ray remembers.

An append-only file of one JSON object a line, each flushed to the disk before the sweep goes on. The last word on a
trial counts; a last line that a crash cut short counts as never written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seal_fast.utils.errors import RunError

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED = frozenset({"finished", "stopped", "failed"})


@dataclass
class Entry:
    """The last word on a trial.

    Attributes:
        state: "running" is of a sweep that goes on, or was killed meanwhile.
        values: what early stopping goes by, at the end of each generation that the sweep has been told of.
        failures: attempts that ended badly, over all sweeps.
        message: why the last one did.
    """

    state: State = "waiting"
    values: list[float] = field(default_factory=list)
    failures: int = 0
    message: str = ""


@dataclass
class Ledger:
    """The file and, in memory, the entries by trial."""

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, trials: Iterable[str], repair: bool = True) -> Ledger:
        """The ledger of these trials as the file tells it; lines about others are left alone.

        A torn last line is cut off, so that the next one is not glued to it, unless the file is only looked at.

        Raises:
            RunError: the file cannot be read.
        """
        ledger = cls(path, {name: Entry() for name in trials})
        try:
            text = path.read_text() if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if whole != text and repair:
                os.truncate(path, len(whole.encode()))
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read ({error})") from None
        for line in whole.splitlines():
            ledger._apply(json.loads(line))
        return ledger

    def record(self, trial: str, state: State, **said: Any) -> None:
        """Say what became of a trial, and have it on the disk before returning.

        Raises:
            RunError: the disk is full; what was said before is intact.
        """
        event = {"trial": trial, "state": state, **said}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.path} could not be written ({error.strerror}); free space, then continue with --resume"
            ) from None
        self._apply(event)

    def names(self, *states: State) -> list[str]:
        """Trials in these states, in order."""
        return [name for name, entry in self.entries.items() if entry.state in states]

    def left(self) -> list[str]:
        """Trials to run: those neither finished, stopped nor failed; what was interrupted comes first."""
        running = self.names("running")
        return running + self.names("waiting")

    def forgive(self) -> None:
        """Let failed trials wait again, with all their attempts."""
        for name in self.names("failed"):
            self.record(name, "waiting", failures=0)

    def _apply(self, event: dict[str, Any]) -> None:
        entry = self.entries.get(event["trial"])
        if entry is None:
            return
        entry.state = event["state"]
        if "generation" in event:  # a resumed trial says again what it has said before
            entry.values[event["generation"] - 1 :] = [event["value"]]
        entry.failures = event.get("failures", entry.failures)
        entry.message = event.get("message", entry.message)
