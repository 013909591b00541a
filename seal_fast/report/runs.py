"""The runs that a report is about, and the groups that differ by their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from seal_fast.config import EXECUTION, Config, load
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.folder import SweepFolder
from seal_fast.utils.errors import UsageError


@dataclass(frozen=True)
class Run:
    """A run: its name, what became of it ("" where no sweep says), its configuration, its metrics rows."""

    name: str
    state: str
    config: Config
    rows: list[dict[str, Any]]
    message: str = ""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone, and the settings by which groups differ."""

    settings: dict[str, Any]
    runs: list[Run]


def find(path: Path) -> list[Run]:
    """The runs of a sweep, or of a folder that holds run folders.

    Raises:
        UsageError: there is none.
    """
    sweep = SweepFolder(path)
    if sweep.plan.exists():
        trials, _ = sweep.read_plan()
        entries = sweep.open_ledger(trials, settle=False).entries
        found = []
        for name, trial in trials.items():
            entry = entries[name]
            found.append(Run(name, entry.state, trial.config, sweep.rows(name, entry), entry.message))
        return found
    folders = [RunFolder(place) for place in sorted(path.iterdir())] if path.is_dir() else []
    found = [Run(f.path.name, "", load(f.config, Config()), f.rows()) for f in folders if f.config.exists()]
    if not found:
        raise UsageError(f"report {path}: holds neither a sweep nor run folders")
    return found


def varied(runs: Sequence[Run]) -> list[str]:
    """Settings in which runs differ, those of execution and the seed apart."""
    names = [field.name for field in fields(Config) if field.name not in EXECUTION or field.name == "data"]
    return [n for n in names if n != "seed" and len({getattr(run.config, n) for run in runs}) > 1]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Runs by settings, in the order of their first members."""
    names = varied(runs)
    members: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(getattr(run.config, name) for name in names), []).append(run)
    return [Group(dict(zip(names, key, strict=True)), held) for key, held in members.items()]
