"""`python -m seal_fast study`: every analysis that applies to some runs, one after the other, then the report."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.study.plan import Measure, noted, plan, registered
from seal_fast.networks import code_flags
from seal_fast.runs.collection import open_runs
from seal_fast.runs.identity import read_object
from seal_fast.training.signals import stop_signals
from seal_fast.utils.errors import RunError, UsageError, last_message
from seal_fast.utils.files import locked, write_json
from seal_fast.utils.terminal import say, shown

LEDGER = "study.json"


def main(argv: Sequence[str]) -> int:
    """Make the measures and the page; returns the exit code: 1 if a measure failed.

    Each measure is a process of its own, so that none loses the others.

    Raises:
        UsageError: a flag or a run cannot be used, or another study writes to the same folder.
        RunError: a file cannot be written.
    """
    flags = _parser().parse_args(list(argv))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("study starts its own processes: start it without torchrun")
    if flags.images is not None and flags.images < 1:
        raise UsageError(f"--images {flags.images}: must be at least 1")
    named = {"only": flags.only or (), "skip": flags.skip, "flags": [" ".join(words[:1]) for words in flags.flags]}
    analyses = _chosen(flags.only, named)
    found = open_runs(flags.runs)
    left_out = [f"{name}: {why}" for name, why in found.left_out]
    left_out += [f"{shown(run.path)}: {run.state}" for run in found.kept if run.state != "finished"]
    if not (runs := [run for run in found.kept if run.state == "finished"]):
        raise UsageError(f"study: none of the runs is finished; {'; '.join(left_out)}")
    for run in runs:
        if code_flags(run.config.model) and run.config.model not in flags.model:
            what = f"is of {run.config.model}, which is code to import"
            raise UsageError(f"{shown(run.path)} {what}: name it with --model, if you trust it")
    out = flags.out or (flags.runs[0] if runs[0].path != flags.runs[0] else runs[0].path.parent) / "study"
    measures = [plan(analysis, runs, flags) for analysis in analyses]
    failed: list[str] = []
    if flags.dry_run:
        done = read_object(out / LEDGER)
        for measure in measures:
            state = "done already" if _is_done(measure, done, out) else f"{len(measure.runs)} runs"
            say(f"{measure.name}: {measure.why or state}")
            if not measure.why:
                say(f"  {shlex.join(_command(measure, out))}")
    else:
        with locked(out, "another study writes there; wait for it or choose another folder"):
            failed = _make(measures, out, flags.runs, flags.baseline)
    for line in [*left_out, *noted(measures)]:
        say(f"left out: {line}")
    for sentence in failed:
        say(f"error: {sentence}", "stderr")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast study",
        description="Make every analysis that applies to finished runs, one after the other, then the report page. "
        "What is done already with the same flags and files is not made again.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN|DIR", help="run folders, sweeps, or folders of run folders")
    add("--targets", nargs="+", metavar="DATA", help="other data sets, for the analyses that need them")
    add("--images", type=int, metavar="N", help="images of a split at most, where an analysis takes more")
    add("--per-generation", action="store_true", help="all weights kept of each run's generations and ascents")
    add("--only", nargs="+", metavar="ANALYSIS", help="these analyses alone")
    add("--skip", nargs="+", default=[], metavar="ANALYSIS", help="all analyses but these")
    help = "further flags of one analysis, in quotes; may be given several times"
    add("--flags", type=_words, action="append", default=[], metavar='"ANALYSIS --FLAG ..."', help=help)
    help = "a factory that runs were trained with, as their --model named it; may be given several times"
    add("--model", action="append", default=[], metavar="NAME", help=help)
    add("--amp", action="store_true", help="run networks under bfloat16 autocast, where an analysis can")
    add("--on-bad-image", choices=("error", "skip"), help="as in the analyses; default: error")
    add("--device", choices=("auto", "cpu", "cuda"), help="where to compute; default: auto")
    add("--threads", type=int, help="CPU threads; default: as many as the process may run on")
    add("--baseline", metavar="GROUP", help="as in report")
    add("--out", type=Path, metavar="DIR", help="results and page; default: study/ in DIR, or beside the first RUN")
    add("--dry-run", action="store_true", help="list the commands only")
    return parser


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--flags {text}: {error}") from None


def _chosen(only: Sequence[str] | None, named: Mapping[str, Sequence[str]]) -> list[type[Analysis]]:
    known = registered()
    for flag, names in named.items():
        for name in names:
            if name not in known:
                raise UsageError(f"--{flag} {name}: is no analysis; choose among {', '.join(known)}")
    return [known[name] for name in known if name not in named["skip"] and (only is None or name in only)]


def _is_done(measure: Measure, done: dict[str, Any], out: Path) -> bool:
    return done.get(measure.name) == measure.request() and (out / f"{measure.name}.json").exists()


def _command(measure: Measure, out: Path) -> list[str]:
    runs = [str(run.path) for run in measure.runs]
    return ["python", "-m", "seal_fast", measure.name, *runs, *measure.flags, "--out", str(out)]


def _make(measures: Sequence[Measure], out: Path, runs: Sequence[Path], baseline: str | None) -> list[str]:
    """Make the measures that are not done yet and the page; a sentence for each that failed.

    Raises:
        SystemExit: a signal came, which the measure in hand has obeyed.
    """
    done = read_object(out / LEDGER)
    failed = []
    for number, measure in enumerate(measures, 1):
        head = f"{measure.name} ({number} of {len(measures)})"
        if measure.why:
            say(f"{head}: {measure.why}")
        elif _is_done(measure, done, out):
            say(f"{head}: done already")
        else:
            began = time.perf_counter()
            why = launch(_command(measure, out), out / f"{measure.name}.txt")
            took = f"{time.perf_counter() - began:.0f} s"
            say(f"{head}: {len(measure.runs)} runs, {'failed after ' if why else ''}{took}")
            if why:
                failed.append(f"{measure.name}: {why}")
            else:
                done[measure.name] = measure.request()
                write_json(out / LEDGER, done)
    results = any((out / f"{name}.json").exists() for name in {*done, *(measure.name for measure in measures)})
    page = out / "report.html"
    command = ["python", "-m", "seal_fast", "report", *map(str, runs), "--out", str(page)]
    command += ["--baseline", baseline] * (baseline is not None)
    if why := launch(command + ["--results", str(out)] * results, out / "report.txt"):
        return [*failed, f"report: {why}"]
    say(f"written: {page}; tables: {out}/MEASURE.txt")
    return failed


def launch(command: Sequence[str], log: Path) -> str:
    """Run a command of this package with its output in `log`; why it failed, empty if it did not.

    Raises:
        SystemExit: a signal came; it was passed on, and the command has ended.
    """
    asked: list[int] = []
    children: list[subprocess.Popen[str]] = []

    def stop(number: int) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(number)

    try:
        with log.open("w") as output, stop_signals(stop):
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            # in a session of its own, as Ctrl-C is passed on
            child = subprocess.Popen([sys.executable, *command[1:]], start_new_session=True, text=True, **streams)
            children.append(child)
            for number in asked:  # before there was a child
                child.send_signal(number)
            try:
                code = child.wait()
            except KeyboardInterrupt:  # the second one
                child.kill()
                code = child.wait()
    except OSError as error:
        raise RunError(f"{log} could not be written ({error.strerror})") from None
    if asked:
        say(f"stopped; {log} holds the output so far. The same command continues", "stderr")
        raise SystemExit(128 + asked[0])
    if not code:
        return ""
    return last_message(log) or (f"ended by signal {-code}" if code < 0 else f"exit code {code}")
