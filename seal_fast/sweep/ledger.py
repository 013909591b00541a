"""The state of every trial, on the disk. `--resume` goes by it.

An append-only file with one JSON object per line, flushed to the disk before the sweep goes on. The last line about a
trial counts. A last line without its end was never written; any other damaged line makes its trial a failed one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from seal_fast.utils.errors import RunError

State = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED = frozenset({"finished", "stopped", "failed"})


@dataclass
class Entry:
    """The state of a trial.

    Attributes:
        state: a trial that is "running" while no sweep is was interrupted.
        values: validation top-1 in percent at the end of each generation.
        failures: attempts that failed, over all sweeps.
        message: why the last one did.
    """

    state: State = "waiting"
    values: list[float] = field(default_factory=list)
    failures: int = 0
    message: str = ""


@dataclass
class Ledger:
    """The file, the entries by trial, and a note for each damaged line."""

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, trials: Iterable[str], repair: bool = True) -> Ledger:
        """The ledger of these trials; lines about others are ignored. Raises RunError if the file cannot be read.

        `repair` cuts off a last line without its end, so that the next one starts on a line of its own.
        """
        ledger = cls(path, {name: Entry() for name in trials})
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content and repair:
                os.truncate(path, len(whole))
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        damaged: dict[str, str] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                event = json.loads(line)
                ledger._apply(event)
                if event["state"] == "waiting":  # tried anew since
                    damaged.pop(event["trial"], None)
            except (ValueError, KeyError, TypeError):
                named = re.search(r'"trial": ("([\w.,=+-]|\\u[0-9a-f]{4})*")', line.decode(errors="replace"))
                damaged[json.loads(named[1]) if named else ""] = f"line {number} of {path} is damaged"
        for name, message in damaged.items():
            if name in ledger.entries:
                ledger.entries[name] = Entry("failed", message=f"{message}; --resume --retry-failed continues the run")
            ledger.notes.append(f"{message}; {name or 'a trial that it does not name'} is left out")
        return ledger

    def record(self, trial: str, state: State, **values: Any) -> None:
        """Append an event and flush it to the disk; RunError if that fails, and earlier lines are intact."""
        event = {"trial": trial, "state": state, **values}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(event).encode() + b"\n")
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
        """Trials to run, in order: the interrupted ones, then the waiting ones."""
        return self.names("running") + self.names("waiting")

    def retry(self) -> None:
        """Let failed trials wait again, with all their attempts."""
        for name in self.names("failed"):
            self.record(name, "waiting", failures=0)

    def _apply(self, event: dict[str, Any]) -> None:
        name, state = event["trial"], event["state"]
        if state not in get_args(State):
            raise ValueError(f"{state} is no state")
        if (entry := self.entries.get(name)) is None:
            return
        entry.state = state
        if state == "waiting":
            entry.values.clear()
        if "generation" in event:  # a resumed trial repeats what it has reported
            entry.values[event["generation"] - 1 :] = [event["value"]]
        entry.failures = event.get("failures", entry.failures)
        entry.message = event.get("message", entry.message)
