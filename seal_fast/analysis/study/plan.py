"""What a study asks of each analysis: runs, flags, the files it reads, and what some runs lack for it."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seal_fast import __version__
from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.network import checkpoints
from seal_fast.methods import timeline
from seal_fast.networks import code_flags
from seal_fast.runs.collection import Run


@dataclass
class Measure:
    """One analysis as the study makes it.

    Attributes:
        name: of the command.
        flags: of the command, without the runs.
        runs: to measure.
        inputs: path, size and time of the files that it reads.
        notes: name of a run, and what it lacks for this measure.
        why: why it is not made at all; empty if it is.
    """

    name: str
    flags: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    inputs: list[list[Any]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    why: str = ""

    def request(self) -> dict[str, Any]:
        """What decides its results: the same request is not measured twice."""
        return {"seal_fast": __version__, "flags": self.flags, "inputs": self.inputs}


def registered() -> dict[str, type[Analysis]]:
    """The analyses among the commands, by name."""
    from seal_fast.__main__ import COMMANDS

    places = {name: place.partition(":") for name, (place, _) in COMMANDS.items() if isinstance(place, str)}
    return {
        name: getattr(importlib.import_module(f"seal_fast.{module}"), kind)
        for name, (module, _, kind) in places.items()
        if kind
    }


def plan(analysis: type[Analysis], runs: Sequence[Run], flags: argparse.Namespace) -> Measure:
    """What a measure is asked."""
    measure, parser = Measure(analysis.name), analysis().parser()
    takes = {option: action for action in parser._actions for option in action.option_strings}
    extra = [words[1:] for words in flags.flags if words[0] == analysis.name]
    if analysis.on_demand and not extra and analysis.name not in (flags.only or ()):
        measure.why = f"left out, {analysis.on_demand}: name it with --only or --flags"
        return measure
    if analysis.target_flag:
        if flags.targets:
            measure.flags += [analysis.target_flag, *flags.targets]
        elif takes[analysis.target_flag].required:
            measure.why = "left out, as it needs other images: name them with --targets"
            return measure
    generations, networks = flags.per_generation or analysis.every_generation, 0
    for run in runs:
        if lack := analysis.lacks(run.path, generations):
            measure.notes.append((run.name, lack))
            continue
        measure.runs.append(run)
        kept = [f"generation-{i}" for i in range(len(timeline(run.config).generations))] if generations else []
        networks += len(checkpoints(run.path)) if generations else 1
        if missing := set(kept) - set(checkpoints(run.path)):
            measure.notes.append((run.name, f"keeps no weights of {', '.join(sorted(missing))}"))
    if networks < analysis.networks_needed:
        measure.why = "left out, as it needs two networks" if measure.runs else "left out, as no run can be measured"
        return measure
    for name, must_exist in analysis.image_flags.items():
        option = f"--{name}"
        if option in takes:
            default = takes[option].default
            fewest = int(min(run.rows[-1]["images"] for run in measure.runs)) if must_exist else None
            limits = [n for n in (flags.images, default, fewest) if n is not None]
            if limits and min(limits) != (default or fewest):
                measure.flags += [option, str(min(limits))]
    for name in ("amp", "per_generation", "on_bad_image", "device", "threads"):
        option, value = f"--{name.replace('_', '-')}", getattr(flags, name)
        if value and option in takes:
            measure.flags += [option] if value is True else [option, str(value)]
    models = sorted({run.config.model for run in measure.runs})
    if any(map(code_flags, models)):
        measure.flags += [word for model in models for word in ("--model", model)]
    measure.flags += [word for words in extra for word in words]
    own = {run.config.data for run in measure.runs} if "--data" in takes else set()
    folders = [run.path / name for run in measure.runs for name in ("weights", "examples")]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    measure.inputs = [stamp(path) for path in [*files, *sorted(own), *(flags.targets or ())]]
    return measure


def noted(measures: Sequence[Measure]) -> list[str]:
    """A line for all measures that lack the same of the same runs."""
    lines: dict[tuple[str, str], list[str]] = {}
    for measure in measures:
        by_lack: dict[str, list[str]] = {}
        for run, lack in measure.notes:
            by_lack.setdefault(lack, []).append(run)
        for lack, runs in by_lack.items():
            lines.setdefault((", ".join(runs), lack), []).append(measure.name)
    return [f"{', '.join(names)} of a run that {lack}: {runs}" for (runs, lack), names in lines.items()]


def stamp(path: Path | str) -> list[Any]:
    """What changes with a file."""
    try:
        stat = os.stat(path)
    except OSError:  # the name of a data set that comes with a library
        return [str(path)]
    return [os.path.realpath(path), stat.st_size, stat.st_mtime_ns]
