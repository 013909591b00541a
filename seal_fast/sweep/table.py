"""What a sweep shows while it runs: counts, best, time left, and what each running trial is at."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from seal_fast.runs.logger import clock
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import ENDED, Ledger
from seal_fast.sweep.plan import Trial

REFRESH_SECONDS = 1.0
_MOST_RUNNING = 24
_ORDER = ("running", "waiting", "finished", "stopped", "failed")


@dataclass
class Progress:
    """What is known of a sweep at a moment; reads the metrics of trials that run.

    Attributes:
        counts: trials by state.
        best: (top-1 in percent, trial) of the best evaluation so far.
        done: epochs trained, of trials that have ended all that they were to train.
        total: epochs of all trials.
    """

    counts: dict[str, int] = field(default_factory=dict)
    best: tuple[float, str] | None = None
    done: int = 0
    total: int = 0
    running: list[tuple[str, str, str, str]] = field(default_factory=list)


class Display:
    """A live table on a terminal; elsewhere a line for every trial that ends."""

    def __init__(self, folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger) -> None:
        self.folder, self.trials, self.ledger = folder, trials, ledger
        self._epochs: dict[str, int] = {}
        self._bests: dict[str, float] = {}
        self._told = {name for name, entry in ledger.entries.items() if entry.state in ENDED}
        self._last = 0.0
        self._begin, self._first = time.monotonic(), self.progress().done
        self._live: Any = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            # rich's shared console settles at its making whether it is interactive, which may have been long ago.
            self._live = Live(self._table(), console=Console(), auto_refresh=False)
            self._live.start()

    def tick(self) -> None:
        """Show what has changed, at most once a second."""
        if time.monotonic() - self._last < REFRESH_SECONDS:
            return
        self._last = time.monotonic()
        self.say()
        if self._live:
            self._live.update(self._table(), refresh=True)

    def say(self) -> None:
        """A line for every trial that has ended since."""
        for name, entry in self.ledger.entries.items():
            if entry.state in ENDED and name not in self._told:
                self._told.add(name)
                best = f"  best val top-1 {self._best(name):.2f} %" if self._best(name) >= 0 else ""
                text = f"{entry.state:<8} {name}{best}" + (f"  {entry.message}" if entry.state == "failed" else "")
                print(text, flush=True) if not self._live else self._live.console.print(
                    text, markup=False, highlight=False
                )

    def stop(self) -> None:
        """The last words, and the end of the display."""
        self.say()
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        print(self.headline(self.progress()), flush=True)

    def progress(self) -> Progress:
        """As the ledger and the run folders tell it now."""
        for name in self.trials.keys() - self._epochs.keys():  # a search adds trials as it goes
            self._epochs[name] = self.trials[name].epochs
        now = Progress(total=sum(self._epochs.values()))
        for name, entry in self.ledger.entries.items():
            now.counts[entry.state] = now.counts.get(entry.state, 0) + 1
            if entry.state in ENDED:
                now.done += self._epochs[name]
            elif entry.state == "running":
                rows = self.folder.run(name).rows()
                now.done += len(rows)
                if rows:
                    seen = [row["val_top1"] for row in rows if row["val_top1"] is not None]
                    at = rows[-1]
                    last = f"{seen[-1]:.2f} %" if seen else ""
                    place = f"g{at['generation']} e{at['epoch']} {at['phase']}"
                    now.running.append((name, place, f"{len(rows) / self._epochs[name]:.0%}", last))
                    self._bests[name] = max(seen, default=-1.0)
            if (best := self._best(name)) >= 0 and (now.best is None or best > now.best[0]):
                now.best = best, name
        return now

    def headline(self, now: Progress) -> str:
        """Counts, best and time left in one line."""
        counts = ", ".join(f"{now.counts[state]} {state}" for state in _ORDER if now.counts.get(state))
        best = f"; best val top-1 {now.best[0]:.2f} % ({now.best[1]})" if now.best else ""
        fresh, left = now.done - self._first, now.total - now.done
        time_left = f"; {clock((time.monotonic() - self._begin) / fresh * left)} left" if fresh > 0 and left else ""
        return f"{len(self.trials)} runs: {counts}{best}{time_left}"

    def _best(self, name: str) -> float:
        if name not in self._bests and self.ledger.entries[name].state in ENDED:
            rows = self.folder.run(name).rows()
            self._bests[name] = max((r["val_top1"] for r in rows if r["val_top1"] is not None), default=-1.0)
        return self._bests.get(name, -1.0)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        now = self.progress()
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("running", "at", "done", "val top-1"):
            table.add_column(column, justify="left" if column in ("running", "at") else "right")
        for row in now.running[:_MOST_RUNNING]:
            table.add_row(*row)
        if len(now.running) > _MOST_RUNNING:
            table.add_row(f"and {len(now.running) - _MOST_RUNNING} more", "", "", "")
        return Group(Text(self.headline(now)), table)
