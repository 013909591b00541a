"""What a sweep prints while it runs."""

from __future__ import annotations

import time
from collections import Counter

from seal_fast.runs.logger import clock
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import ENDED, Ledger
from seal_fast.sweep.plan import Trial
from seal_fast.utils.table import table
from seal_fast.utils.terminal import say

_ORDER = ("running", "waiting", "finished", "stopped", "failed")


class Display:
    """A line for every trial that ends; counts, best, time left and the running trials once a minute, later rarer."""

    def __init__(self, folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger) -> None:
        self.folder, self.trials, self.ledger = folder, trials, ledger
        self._bests: dict[str, float | None] = {}  # of trials that have ended
        self._reported = {name for name, entry in ledger.entries.items() if entry.state in ENDED}
        self._begin = time.monotonic()
        self._due = self._begin + 60
        self._first: int | None = None  # epochs done before this sweep
        self.text()

    def tick(self) -> None:
        """Print what has changed."""
        for name, entry in self.ledger.entries.items():
            if entry.state in ENDED and name not in self._reported:
                self._reported.add(name)
                best = self._best(name)
                accuracy = "" if best is None else f"  best val top-1 {best:.2f} %"
                say(f"{entry.state:<8} {name}{accuracy}" + (f"  {entry.message}" if entry.state == "failed" else ""))
        if (now := time.monotonic()) > self._due:
            self._due = now + max(60, (now - self._begin) / 50)
            say(f"\n{self.text()}\n")

    def stop(self) -> None:
        """Print the trials that have ended, and the counts."""
        self.tick()
        say(self.text().splitlines()[0])

    def text(self) -> str:
        """Counts, best and time left in a line; then a table of the running trials."""
        counts = Counter(entry.state for entry in self.ledger.entries.values())
        running = [("running", "at", "done", "val top-1")]
        best, done = (-1.0, ""), 0
        for name, entry in self.ledger.entries.items():
            if entry.state in ENDED:  # nothing is left to do of it
                top1, epochs = self._best(name), self.trials[name].epochs
            else:
                rows = self.folder.rows(name, entry)
                epochs, seen = len(rows), [row["val_top1"] for row in rows if row["val_top1"] is not None]
                top1 = max(seen, default=None)
                if rows and entry.state == "running":
                    place = "g{generation} e{epoch} {phase}".format(**rows[-1])
                    share = f"{epochs / self.trials[name].epochs:.0%}"
                    running.append((name, place, share, f"{seen[-1]:.2f} %" if seen else ""))
            done += epochs
            best = best if top1 is None else max(best, (top1, name), key=lambda pair: pair[0])
        text = f"{len(self.trials)} runs: " + ", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state])
        text += f"; best val top-1 {best[0]:.2f} % ({best[1]})" if best[1] else ""
        self._first = done if self._first is None else self._first
        left = sum(trial.epochs for trial in self.trials.values()) - done
        if left and (fresh := done - self._first) > 0:
            text += f"; {clock((time.monotonic() - self._begin) / fresh * left)} left"
        return f"{text}\n{table(running, left=2)}" if len(running) > 1 else text

    def _best(self, name: str) -> float | None:
        """The best top-1 of a trial that has ended."""
        if name not in self._bests:
            rows = self.folder.rows(name, self.ledger.entries[name])
            self._bests[name] = max((row["val_top1"] for row in rows if row["val_top1"] is not None), default=None)
        return self._bests[name]
