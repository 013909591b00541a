"""The display of a sweep that runs: counts, best run, time left, and the progress of running trials."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from seal_fast.runs.logger import clock
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import ENDED, Ledger
from seal_fast.sweep.plan import Trial

_ORDER = ("running", "waiting", "finished", "stopped", "failed")


@dataclass
class Progress:
    """The state of a sweep at a moment.

    Attributes:
        counts: trials by state.
        best: (top-1 in percent, trial) of the best evaluation so far.
        done: epochs trained; a trial that has ended counts in full.
        total: epochs of all trials.
        running: name, position, share done and last top-1 of each running trial.
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
        self._bests: dict[str, float | None] = {}  # of trials that have ended
        self._reported = {name for name, entry in ledger.entries.items() if entry.state in ENDED}
        self._last = 0.0
        self._begin, self._first = time.monotonic(), self.progress().done
        self._live: Any = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            # a console of its own: rich's shared one decides when it is made whether it is interactive
            self._live = Live(self._table(), console=Console(), auto_refresh=False)
            self._live.start()

    def tick(self) -> None:
        """Refresh, at most once a second."""
        if time.monotonic() > self._last + 1:
            self._last = time.monotonic()
            self.report()

    def report(self) -> None:
        """Refresh the table and print a line for every trial that has ended since the last call."""
        for name, entry in self.ledger.entries.items():
            if entry.state in ENDED and name not in self._reported:
                self._reported.add(name)
                best = self._best(name)
                text = f"{entry.state:<8} {name}" + (f"  best val top-1 {best:.2f} %" if best is not None else "")
                text += f"  {entry.message}" if entry.state == "failed" else ""
                if self._live:
                    self._live.console.print(text, markup=False, highlight=False)
                else:
                    print(text, flush=True)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def stop(self) -> None:
        """End the display and print the counts."""
        self.report()
        if self._live:
            self._live.stop()
        print(self.headline(self.progress()), flush=True)

    def progress(self) -> Progress:
        """The state of the sweep, from the ledger and the run folders."""
        for name in self.trials.keys() - self._epochs.keys():  # Optuna adds trials as it goes
            self._epochs[name] = self.trials[name].epochs
        now = Progress(total=sum(self._epochs.values()))
        for name, entry in self.ledger.entries.items():
            now.counts[entry.state] = now.counts.get(entry.state, 0) + 1
            if entry.state in ENDED:
                now.done += self._epochs[name]
                best = self._best(name)
            else:
                rows = self.folder.rows(name, entry)
                now.done += len(rows)
                seen = [row["val_top1"] for row in rows if row["val_top1"] is not None]
                best = max(seen, default=None)
                if rows and entry.state == "running":
                    place = "g{generation} e{epoch} {phase}".format(**rows[-1])
                    share = f"{len(rows) / self._epochs[name]:.0%}"
                    now.running.append((name, place, share, f"{seen[-1]:.2f} %" if seen else ""))
            if best is not None and (now.best is None or best > now.best[0]):
                now.best = best, name
        return now

    def headline(self, now: Progress) -> str:
        """Counts, best and time left in one line."""
        counts = ", ".join(f"{now.counts[state]} {state}" for state in _ORDER if now.counts.get(state))
        best = f"; best val top-1 {now.best[0]:.2f} % ({now.best[1]})" if now.best else ""
        fresh, left = now.done - self._first, now.total - now.done
        time_left = f"; {clock((time.monotonic() - self._begin) / fresh * left)} left" if fresh > 0 and left else ""
        return f"{len(self.trials)} runs: {counts}{best}{time_left}"

    def _best(self, name: str) -> float | None:
        """The best top-1 of a trial that has ended."""
        if name not in self._bests:
            rows = self.folder.rows(name, self.ledger.entries[name])
            self._bests[name] = max((row["val_top1"] for row in rows if row["val_top1"] is not None), default=None)
        return self._bests[name]

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        now, most = self.progress(), 24
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("running", "at", "done", "val top-1"):
            table.add_column(column, justify="left" if column in ("running", "at") else "right")
        for row in now.running[:most]:
            table.add_row(*row)
        if len(now.running) > most:
            table.add_row(f"and {len(now.running) - most} more", "", "", "")
        return Group(Text(self.headline(now)), table)
