"""The folder of a sweep: its plan, its ledger, its run folders and what they came to."""

from __future__ import annotations

import contextlib
import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from seal_fast.methods import timeline
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep import plan
from seal_fast.sweep.ledger import Entry, Ledger
from seal_fast.sweep.plan import Plan, Trial
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import locked


class SweepFolder:
    """Paths of a sweep.

    sweep.json (the plan), ledger.jsonl, trials/NAME (run folders), shared/ (decoded images and compiled graphs, while
    it runs), results.csv, results.json, tensorboard/ (HParams), report.html.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "sweep.json"
        self.ledger = path / "ledger.jsonl"
        self.trials = path / "trials"
        self.shared = path / "shared"
        self.csv = path / "results.csv"
        self.json = path / "results.json"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"

    def run(self, name: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.trials / name)

    def rows(self, name: str, entry: Entry) -> list[dict[str, Any]]:
        """The metrics of a trial; of one that was stopped early, those that the decision knew of."""
        rows = self.run(name).rows()
        if entry.state == "stopped":
            rows = [row for row in rows if row["generation"] < len(entry.values)]
        return rows

    def locked(self) -> AbstractContextManager[None]:
        """Make sure that no other process runs this sweep meanwhile.

        Raises:
            UsageError: another one does, or the folder cannot be made.
        """
        return locked(self.path, "this sweep is running already, in another process")

    def write_plan(self, made: Plan, **said: Any) -> None:
        """Write the plan and what the sweep was told."""
        plan.write(made, self.plan, **said)

    def read_plan(self) -> tuple[dict[str, Trial], dict[str, Any]]:
        """Trials by name, and what else the plan says.

        Raises:
            UsageError: there is no sweep here.
        """
        try:
            content = json.loads(self.plan.read_text())
        except (OSError, ValueError):
            raise UsageError(f"{self.path} holds no sweep (no readable sweep.json)") from None
        if content.get("format") != plan.FORMAT:
            raise UsageError(f"{self.plan} was written by another version of seal_fast")
        return {trial.name: trial for trial in plan.parse(content.pop("trials"), self.plan)}, content

    def open_ledger(self, trials: dict[str, Trial], *, settle: bool = True) -> Ledger:
        """The ledger; unless it is only looked at, runs that ended just before their sweep was killed are settled."""
        ledger = Ledger.open(self.ledger, trials, repair=settle)
        for name in ledger.left() if settle else ():
            summary = self.run(name).summary
            with contextlib.suppress(OSError, ValueError):
                if json.loads(summary.read_text()).get("finished"):
                    for generation, row in enumerate(self.ends(trials[name]), 1):
                        ledger.record(name, "running", generation=generation, value=row["val_top1"])
                    ledger.record(name, "finished")
        return ledger

    def ends(self, trial: Trial) -> list[dict[str, Any]]:
        """The rows of a trial at which a generation ended."""
        line = timeline(trial.config)
        return [r for r in self.run(trial.name).rows() if r["epoch"] == line.epochs(r["generation"]) - 1]

    def tidy(self) -> None:
        """Drop what running trials share."""
        shutil.rmtree(self.shared, ignore_errors=True)
