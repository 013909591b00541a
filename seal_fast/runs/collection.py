"""Reading run folders, one by one, of a sweep, or of any folder of runs, and grouping them by what they trained.

What cannot be read, and what must not count twice, is left out and named. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seal_fast.config import Config, load
from seal_fast.methods import timeline
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.identity import Training, labels, read_object, read_provenance, varied_settings
from seal_fast.runs.summary import summarise
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import to_json
from seal_fast.utils.terminal import shown
from seal_fast.validation import check

_OUTCOMES = {"best": "val_top1", "last": "val_top1", "test": "test_top1"}
_COLUMNS = ("phase", "val_loss", "val_top1", "val_top5")
_NUMBERS = ("seconds", "images", "compile_seconds", "input_wait_seconds")


@dataclass(frozen=True, eq=False)
class Run(Training):
    """A run folder as it is now.

    Attributes:
        path: the folder.
        rows: its metrics, one an epoch; numbers that are not finite are None.
        state: "finished" where all its epochs are trained, else "stopped early" or "failed", as the sweep's ledger
            says, or "unfinished".
        message: why it failed.
    """

    path: Path = Path()
    rows: list[dict[str, Any]] = field(default_factory=list)
    state: str = "unfinished"
    message: str = ""

    @property
    def name(self) -> str:
        """The folder's name, safe to print."""
        return shown(self.path.name)

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.config.seed

    @cached_property
    def top1(self) -> dict[str, float]:
        """Validation top-1 in percent of the best and the last evaluated epoch; empty if none was evaluated.

        With held-out training images also `test`, see `summarise`.
        """
        found = summarise(self.rows)
        return {which: found[which][name] for which, name in _OUTCOMES.items() if found.get(which)}

    @cached_property
    def ends(self) -> dict[int, dict[str, Any]]:
        """The last evaluated row of each generation."""
        return {row["generation"]: row for row in self.rows if row["val_top1"] is not None}

    @property
    def slope(self) -> float | None:
        """Points of top-1 a generation at the generations' ends: least squares from generation 1 on, None below two.

        Generation 0 is plain training in every method and is not part of it.
        """
        later = [generation for generation in self.ends if generation]
        values = [self.ends[generation]["val_top1"] for generation in later]
        return float(np.polyfit(later, values, 1)[0]) if len(later) > 1 else None

    def excluded(self) -> str:
        """Why the run counts in no mean; empty if it does."""
        if self.state != "finished":
            epochs = f"{self.state} after {len(self.rows)} of {timeline(self.config).total_epochs()} epochs"
            return f"{epochs}: {self.message}" if self.message else epochs
        return "" if self.top1 else "never evaluated to a finite accuracy"


class Runs(NamedTuple):
    """What `open_runs` found: the runs, and what was left out with the reason."""

    kept: list[Run]
    left_out: list[tuple[str, str]]


@dataclass(frozen=True)
class Group:
    """Runs of one training.

    Attributes:
        label: names the group among the others.
        settings: in which it differs from others, those without effect on it left out.
        runs: the finished runs, one for each seed.
        left_out: its other runs, and why they do not count.
        first: a run of the group, for what all share.
    """

    label: str
    settings: dict[str, Any]
    runs: dict[int, Run]
    left_out: list[tuple[Run, str]]
    first: Run


def open_runs(paths: Iterable[Path]) -> Runs:
    """The runs of run folders, sweeps and folders of run folders; UsageError if one of the paths holds none."""
    _trials.cache_clear()
    kept: list[Run] = []
    left_out: list[tuple[str, str]] = []
    seen: dict[Path, Path] = {}
    for path in paths:
        for folder in _folders(path):
            place = folder.resolve()
            if place in seen:
                left_out.append((shown(folder), f"the same folder as {shown(seen[place])}"))
                continue
            seen[place] = folder
            try:
                kept.append(open_run(folder))
            except UsageError as error:
                left_out.append((shown(folder), str(error)))
        try:
            for name, (state, message) in _trials(path).items():
                if not (path / "trials" / name / "config.toml").exists():
                    left_out.append((shown(path / "trials" / name), f"{state}: {message}" if message else state))
        except UsageError as error:
            left_out.append((shown(path), str(error)))
    return Runs(kept, left_out)


def open_run(path: Path) -> Run:
    """One run folder; UsageError, naming the line, if a file is damaged or was written by another version."""
    folder = RunFolder(path)
    config = check(load(folder.config, Config()))
    rows = _rows(folder.metrics, config)
    place = path.resolve()
    trials = _trials(place.parent.parent) if place.parent.name == "trials" else {}
    state, message = trials.get(place.name, ("", ""))
    if len(rows) == timeline(config).total_epochs():
        state, message = "finished", ""
    elif state not in ("stopped early", "failed"):
        state = "unfinished"
    skipped = tuple(sorted(map(str, read_object(folder.summary).get("skipped_images") or ())))
    return Run(config, read_provenance(path), skipped, path, rows, state, message)


def group_by_training(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs that differ by their seed alone, in the order of their first members; one run for each seed."""
    members: dict[Hashable, list[Run]] = {}
    for run in runs:
        members.setdefault(run.key, []).append(run)
    groups = []
    firsts = [held[0] for held in members.values()]
    varied = varied_settings(firsts)
    for label, settings, held in zip(labels(firsts, varied), varied, members.values(), strict=True):
        counted: dict[int, Run] = {}
        left_out: list[tuple[Run, str]] = []
        for run in held:
            if why := run.excluded():
                left_out.append((run, why))
            elif run.seed in counted:
                left_out.append((run, f"the same training and seed as {shown(counted[run.seed].path)}"))
            else:
                counted[run.seed] = run
        groups.append(Group(label, settings, counted, left_out, held[0]))
    return groups


def _folders(path: Path) -> list[Path]:
    if (path / "config.toml").exists():
        return [path]
    try:
        inner = path / "trials" if (path / "sweep.json").exists() else path
        found = sorted(place for place in inner.iterdir() if (place / "config.toml").exists()) if inner.is_dir() else []
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read ({error.strerror})") from None
    if not found and not (path / "sweep.json").exists():
        raise UsageError(f"{shown(path)} holds neither a sweep nor run folders")
    return found


@lru_cache(maxsize=8)
def _trials(sweep: Path) -> dict[str, tuple[str, str]]:
    """State and message by trial, from whole lines of the ledger of a sweep; UsageError if its plan is damaged."""
    plan = read_object(sweep / "sweep.json")
    states = {str(trial.get("name")): ("not started", "") for trial in plan.get("trials", ())}
    try:
        lines = (sweep / "ledger.jsonl").read_bytes().splitlines()
    except OSError:
        lines = []
    said = {"stopped": "stopped early", "waiting": "not started", "running": "unfinished"}
    for line in lines:
        try:
            event = json.loads(line)
            state = said.get(event["state"], event["state"])
            states[event["trial"]] = (str(state), str(event.get("message", "")) if state == "failed" else "")
        except (ValueError, KeyError, TypeError):
            continue
    return states


def _rows(path: Path, config: Config) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that are written to their end; UsageError if one is damaged or does not come next."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read ({error.strerror})") from None
    rows: list[dict[str, Any]] = []
    epochs = timeline(config).walk()
    for number, line in enumerate(lines, 1):
        try:
            row = to_json(json.loads(line))
            if why := _fault(row, next(epochs, None)):
                raise ValueError(why)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {number} of {path.name} is damaged ({error})") from None
        rows.append(row)
    return rows


def _fault(row: Any, expected: tuple[int, int] | None) -> str:
    if not isinstance(row, dict):
        return "not an object"
    for name in (*_COLUMNS, *_NUMBERS):
        if name not in row:
            return f"no {name}"
        if name in _NUMBERS and not isinstance(row[name], int | float):
            return f"{name} is no number"
    if not isinstance(row["val_top1"], int | float | None):
        return "val_top1 is no number"
    if (row.get("generation"), row.get("epoch")) != expected:
        return f"generation {row.get('generation')}, epoch {row.get('epoch')} does not come next"
    return ""
