"""`python -m seal_fast sweep`: many runs over a space of settings."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal_fast.methods import timeline
from seal_fast.networks import code_flags
from seal_fast.runs.identity import short
from seal_fast.sweep import arguments, mps, results, suggest
from seal_fast.sweep import plan as plans
from seal_fast.sweep import space as spaces
from seal_fast.sweep.checks import check_trials
from seal_fast.sweep.display import Display
from seal_fast.sweep.estimate import estimate
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.plan import Plan, Trial
from seal_fast.sweep.process import STOP_SECONDS, wait_until_free
from seal_fast.sweep.slots import Slots, slots
from seal_fast.utils.cpus import cpu_count
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.table import table
from seal_fast.utils.terminal import say

_MOST_SHOWN = 40


def main(argv: Sequence[str]) -> int:
    """Run, resume or only plan a sweep; the exit code, which is 1 where trials have failed.

    Raises:
        UsageError: a flag, the space or a run in it is wrong; nothing has been started.
        RunError: the sweep cannot go on.
    """
    flags = arguments.parse(argv)
    folder = SweepFolder(flags.out)
    made, metadata = _plan(flags) if flags.space else (None, {})
    if flags.dry_run:
        return (
            _dry_run(flags, made, metadata["search"]) if made and not flags.resume else _dry_resume(flags, folder, made)
        )
    with folder.locked():
        if made and not flags.resume:
            if folder.plan.exists():
                cure = "continue it with --resume, or use another --out"
                raise UsageError(f"--out {flags.out} holds a sweep already; {cure}")
            return _run(flags, folder, made, metadata)
        trials, metadata, grown = _read(flags, folder, made)
        return _run(flags, folder, Plan(tuple(trials.values()), metadata["repeated"]), metadata, grown)


def _read(
    flags: argparse.Namespace, folder: SweepFolder, made: Plan | None
) -> tuple[dict[str, Trial], dict[str, Any], list[str]]:
    """The trials and the other values of the sweep to continue, and the names of those that train longer than it said.

    Only a space file that is named again may name code, and ask for more generations.
    """
    trials, metadata = folder.read_plan()
    code = [trial.config.model for trial in trials.values() if code_flags(trial.config.model)]
    if code and not made:
        raise UsageError(
            f"--out {flags.out} holds a sweep of {code[0]}, which is code to import: to continue it, name its space "
            f"file too ({metadata['space']}), if you trust it"
        )
    if not made or metadata["search"] == "optuna":
        return trials, metadata, []
    new, grown = {trial.name: trial for trial in made.trials}, []
    for name in new.keys() | trials.keys():
        before, after = (found[name].config if name in found else None for found in (trials, new))
        if before == after:
            continue
        if not before or not after or replace(before, generations=max(before.generations, after.generations)) != after:
            cure = "drop it from the command to continue that sweep, or choose another --out"
            raise UsageError(f"{flags.space}: makes other runs than the sweep in {flags.out}; {cure}")
        if not timeline(after).extends(timeline(before)):
            what = f"{flags.space}: generations = {after.generations} changes what {name} has trained already"
            raise UsageError(f"{what}; choose another --out for it")
        grown.append(name)
    return new, metadata, grown


def _plan(flags: argparse.Namespace) -> tuple[Plan, dict[str, Any]]:
    """The trials and what `--resume` needs; for Optuna, random draws that stand for its proposals."""
    space = spaces.read(flags.space)
    search = flags.search or ("random" if space.drawn else "grid")
    metadata = {"search": search, "samples": flags.samples, "search_seed": flags.search_seed}
    if search == "optuna":
        suggest.check(space, flags.seeds)
        space, search = spaces.all_drawn(space), "random"
    made = plans.make(space, search=search, samples=flags.samples, seeds=flags.seeds, search_seed=flags.search_seed)
    return made, metadata | {"space": str(flags.space.absolute())}


def _run(
    flags: argparse.Namespace, folder: SweepFolder, made: Plan, metadata: dict[str, Any], grown: Sequence[str] = ()
) -> int:
    try:
        from seal_fast.sweep.scheduling import connection, tune
    except ImportError as error:
        missing = f"{error.name or error} is missing"
        raise RunError(f"sweeps need Ray Tune ({missing}); pip install 'seal-fast[sweep]'") from None

    learning = metadata["search"] == "optuna"
    trials = {trial.name: trial for trial in (made.trials if flags.resume or not learning else ())}
    ledger = _open_ledger(folder, trials)
    for name in set(grown) & set(ledger.names("finished")):
        ledger.record(name, "waiting")
    if flags.retry_failed:
        ledger.retry()
    left = set(ledger.left())
    check_trials((t for t in made.trials if t.name not in trials or t.name in left), here=not flags.address)
    flags.threads = flags.threads or metadata.get("threads")
    place = _slots(flags, made.trials)
    with mps.running() if _shares_gpus(flags, place) else contextlib.nullcontext():
        with connection.connected(folder.path, flags.address, place.concurrent) as session:
            if flags.address:
                place = _slots(flags, made.trials, session.nodes)
            rungs = (flags.first_rung, flags.reduction) if flags.stop_early else metadata.get("rungs")
            metadata = metadata | {"threads": place.threads, "rungs": rungs}

            def save() -> None:
                folder.write_plan(Plan(tuple(trials.values()), made.repeated), **metadata)

            save()
            count = len(trials)
            order = (trials[name] for name in ledger.left())
            if learning:
                count, space = metadata["samples"], spaces.read(Path(metadata["space"]))
                order = suggest.proposals(space, count, metadata["search_seed"], trials, ledger, save)
            scheduler = tune.asha(ledger, rungs, max(trial.generations for trial in made.trials)) if rungs else None
            say(f"{count - len(trials) + len(left)} of {count} runs to do, {place}; {folder.path}")
            display = Display(folder, trials, ledger)
            stopped = error = None
            try:
                job = folder.path, order, ledger, session, place
                tune.run(*job, retries=flags.retries, scheduler=scheduler, tick=display.tick)
            except tune.Stopped as stop:
                stopped = stop.number
            except RunError as failure:  # printed here, as leaving a Ray that is lost may end this program
                error = failure
            finally:
                display.stop()
            results.write(folder, trials, ledger)
            if stopped is not None:
                code = any(code_flags(trial.config.model) for trial in trials.values())
                named = [metadata["space"]] if code else []
                again = shlex.join(
                    ["python", "-m", "seal_fast", "sweep", *named, "--out", str(folder.path), "--resume", *flags.again]
                )
                say(f"stopped by {signal.Signals(stopped).name}; continue with: {again}", "stderr")
                session.exit_code = 128 + stopped
            elif error is not None:
                say(f"error: {error}", "stderr")
            else:
                shutil.rmtree(folder.shared, ignore_errors=True)
                session.exit_code = _conclude(folder, ledger)
        if stopped is not None:
            for name in ledger.names("running"):  # they write their checkpoints now that their workers are gone
                wait_until_free(folder.run(name).path, STOP_SECONDS)
    return session.exit_code


def _conclude(folder: SweepFolder, ledger: Ledger) -> int:
    """Name the failed trials and the written files; the exit code."""
    failed = ledger.names("failed")
    for name in failed:
        entry = ledger.entries[name]
        say(f"failed after {entry.failures} attempts: {name}: {entry.message}", "stderr")
    report = shlex.join(["python", "-m", "seal_fast", "report", str(folder.path)])
    say(f"written: results.csv, results.json in {folder.path}; see it with: {report}")
    return 1 if failed else 0


def _open_ledger(folder: SweepFolder, trials: dict[str, Trial], repair: bool = True) -> Ledger:
    ledger = Ledger.open(folder.ledger, trials, repair)
    for note in ledger.notes:
        say(f"note: {note}", "stderr")
    return ledger


def _slots(flags: argparse.Namespace, trials: Sequence[Trial], nodes: Any = None) -> Slots:
    """The slots on these nodes, or else on this machine."""
    import torch

    use_gpus = any(trial.config.device != "cpu" for trial in trials)
    here = {"CPU": cpu_count(), "GPU": torch.cuda.device_count() if use_gpus else 0}
    if flags.per_gpu > 1 and not here["GPU"] and not flags.address:
        why = "this machine has no GPU that torch sees" if use_gpus else "every run has device = cpu"
        raise UsageError(f"--per-gpu {flags.per_gpu}: {why}; say --concurrent {flags.per_gpu} instead")
    return slots(flags, nodes or [here], use_gpus)


def _shares_gpus(flags: argparse.Namespace, place: Slots) -> bool:
    """Whether runs share a GPU of this machine; on a cluster MPS is its users' to start."""
    return 0 < place.gpu < 1 and not flags.address


def _dry_resume(flags: argparse.Namespace, folder: SweepFolder, made: Plan | None) -> int:
    """Print what `--resume` would run."""
    trials, metadata, grown = _read(flags, folder, made)
    ledger = _open_ledger(folder, trials, repair=False)
    names = [*ledger.left(), *(name for name in ledger.names("finished") if name in grown)]
    left = [trials[name] for name in names + (ledger.names("failed") if flags.retry_failed else [])]
    missing = metadata["samples"] - len(trials)
    if metadata["search"] == "optuna" and missing > 0:
        space = spaces.all_drawn(spaces.read(Path(metadata["space"])))
        drawn = plans.make(space, search="random", samples=missing, seeds=None, search_seed=len(trials)).trials
        left += [replace(trial, name=f"{len(trials) + i:04d}") for i, trial in enumerate(drawn)]
    flags.threads = flags.threads or metadata.get("threads")
    trained = {trial.name: len(folder.run(trial.name).rows()) for trial in left}
    return _dry_run(flags, Plan(tuple(left)), metadata["search"], trained)


def _dry_run(flags: argparse.Namespace, made: Plan, search: str, trained: dict[str, int] | None = None) -> int:
    """Print the runs and the predicted hours; `trained` holds epochs that are done already."""
    sizes = check_trials(made.trials, here=flags.address is None)
    names = made.varied
    left = [(trial, max(trial.epochs - (trained or {}).get(trial.name, 0), 0)) for trial in made.trials]
    rows = [("run", *(name.replace("_", "-") for name in names), "epochs")]
    rows += [(t.name, *(short(t.settings.get(n, "")) for n in names), str(epochs)) for t, epochs in left[:_MOST_SHOWN]]
    say(table(rows))
    if search == "optuna":
        say("(random draws in place of what Optuna will propose)")
    if len(left) > _MOST_SHOWN:
        say(f"... and {len(left) - _MOST_SHOWN} more")
    repeated = f" ({made.repeated} combinations left out: another trains the same)" if made.repeated else ""
    place, what = _slots(flags, made.trials), "runs" if trained is None else "runs left"
    say(f"\n{len(left)} {what}, {sum(e for _, e in left)} epochs{repeated}; {place}")
    if _shares_gpus(flags, place):
        say(mps.plan()[1])
    say(estimate(left, sizes, place))
    return 0
