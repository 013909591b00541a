"""The folder of a sweep: its plan, ledger, run folders and results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seal_fast.config import Config, override, to_dict
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.ledger import Entry
from seal_fast.sweep.plan import Plan, Trial
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import locked, write_json

_FORMAT = "seal_fast sweep 1"


class SweepFolder:
    """Paths of a sweep.

    sweep.json (the plan), ledger.jsonl, trials/NAME (run folders), shared/ (decoded images and compiled graphs, while
    it runs), results.csv, results.json, report.html.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "sweep.json"
        self.ledger = path / "ledger.jsonl"
        self.trials = path / "trials"
        self.shared = path / "shared"
        self.csv = path / "results.csv"
        self.json = path / "results.json"

    def run(self, name: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.trials / name)

    def rows(self, name: str, entry: Entry) -> list[dict[str, Any]]:
        """The metrics of a trial; of one that was stopped early, those up to the decision."""
        rows = self.run(name).rows()
        if entry.state == "stopped":
            rows = [row for row in rows if row["generation"] < len(entry.values)]
        return rows

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running this sweep; a sweep that was refused leaves no folder behind.

        Raises:
            UsageError: another process runs it, or the folder cannot be made.
        """
        new = [place for place in (self.path, *self.path.absolute().parents) if not place.exists()]
        try:
            with locked(self.path, "this sweep is running already, in another process"):
                yield
        finally:
            if new and not self.plan.exists():
                (self.path / ".lock").unlink(missing_ok=True)
                for place in new:
                    with contextlib.suppress(OSError):
                        place.rmdir()

    def write_plan(self, made: Plan, **metadata: Any) -> None:
        """Write the plan and the flags that `--resume` needs. Raises RunError if it cannot be written."""
        trials = [{"name": t.name, "settings": t.settings, "config": to_dict(t.config)} for t in made.trials]
        write_json(self.plan, {"format": _FORMAT, **metadata, "repeated": made.repeated, "trials": trials})

    def read_plan(self) -> tuple[dict[str, Trial], dict[str, Any]]:
        """Trials by name, and the other values of the plan; UsageError if there is none, or of another version."""
        try:
            content = json.loads(self.plan.read_bytes())
        except (OSError, ValueError):
            raise UsageError(f"{self.path} holds no sweep (no readable sweep.json)") from None
        if content.get("format") != _FORMAT:
            raise UsageError(f"{self.plan} was written by another version of seal_fast")
        trials = (
            Trial(item["name"], item["settings"], override(Config(), item["config"], str(self.plan)))
            for item in content.pop("trials")
        )
        return {trial.name: trial for trial in trials}, content
