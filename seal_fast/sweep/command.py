"""`python -m seal_fast sweep`: many runs over a space of settings."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal_fast.sweep import arguments, suggest
from seal_fast.sweep import plan as plans
from seal_fast.sweep import space as spaces
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.plan import Plan, Trial
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.table import table

_MOST_ON_A_CPU = 8
_MOST_SHOWN = 40


def main(argv: Sequence[str]) -> int:
    """Run, resume or only plan a sweep; returns the exit code: 1 where trials have failed.

    Raises:
        UsageError: a flag, the space, or a run in it is wrong; nothing has been started.
        RunError: the sweep cannot go on.
    """
    flags = arguments.parser().parse_args(list(argv))
    arguments.check(flags)
    folder = SweepFolder(flags.out)
    said = {"search": flags.search, "samples": flags.samples, "search_seed": flags.search_seed}
    made = None
    if flags.space:
        said["space"] = str(flags.space.absolute())
        made = _planned(flags, said)
    if flags.dry_run:
        return _dry_run(flags, made or Plan(tuple(folder.read_plan()[0].values())), said["search"])
    with folder.locked():
        if not flags.resume:
            assert made
            if folder.plan.exists():
                raise UsageError(
                    f"--out {flags.out} holds a sweep already; continue it with --resume, or use another --out"
                )
            return _run(flags, folder, made, said)
        trials, said = folder.read_plan()
        if made and said["search"] != "optuna" and {t.name: t.config for t in made.trials} != _configs(trials):
            raise UsageError(
                f"{flags.space}: makes other runs than the sweep in {flags.out}; drop it from the command to continue "
                "that sweep, or choose another --out"
            )
        return _run(flags, folder, Plan(tuple(trials.values()), said["repeated"]), said)


def _configs(trials: dict[str, Trial]) -> dict[str, Any]:
    return {name: trial.config for name, trial in trials.items()}


def _planned(flags: argparse.Namespace, said: dict[str, Any]) -> Plan:
    """The runs; of a learning search, draws that stand for them."""
    space = spaces.read(flags.space)
    said["search"] = flags.search or ("random" if space.drawn else "grid")
    if said["search"] == "optuna":
        suggest.check(space, flags.seeds)
    search = "grid" if said["search"] == "grid" else "random"
    if said["search"] == "optuna":  # nothing is listed: a grid's values are drawn from, too
        space = spaces.all_drawn(space)
    return plans.make(space, search=search, samples=flags.samples, seeds=flags.seeds, search_seed=flags.search_seed)


def _run(flags: argparse.Namespace, folder: SweepFolder, made: Plan, said: dict[str, Any]) -> int:
    connection, tune = _ray()
    from seal_fast.sweep.checks import check_trials
    from seal_fast.sweep.table import Display

    learning = said["search"] == "optuna"
    known = made.trials if flags.resume or not learning else ()
    trials = {trial.name: trial for trial in known}
    ledger = folder.open_ledger(trials)
    if flags.retry_failed:
        ledger.forgive()
    check_trials((t for t in made.trials if t.name not in trials or t.name in ledger.left()), here=not flags.address)
    concurrent, threads, gpu = _resources(flags, made.trials)
    threads = flags.threads or said.get("threads") or threads
    with connection.connected(folder.path, flags.address, concurrent) as session:
        if flags.address:
            use_gpus = any(trial.config.device != "cpu" for trial in made.trials)
            asked = flags.threads or said.get("threads")
            concurrent, threads, gpu = connection.slots(flags.per_gpu, flags.concurrent, asked, use_gpus)
        rungs = [flags.first_rung, flags.reduction] if flags.stop_early else said.get("rungs")
        said = said | {"threads": threads, "rungs": rungs}

        def keep() -> None:
            folder.write_plan(Plan(tuple(trials.values()), made.repeated), **said)

        keep()
        search = _search(said, trials, ledger, keep) if learning else None
        stops = (rungs[0], rungs[1]) if rungs else None
        job = tune.Job(folder.path, concurrent, threads, gpu, flags.retries, stops, flags.address is not None)
        count = said["samples"] if learning else len(trials)
        ended = len(trials) - len(ledger.left())
        print(f"{count - ended} of {count} runs to do, {_pace(concurrent, threads)}; {folder.path}", flush=True)
        display = Display(folder, trials, ledger)
        session.quiet = display.stop
        stopped = None
        try:
            tune.run(job, trials, ledger, display.tick, search=search, confirm=session.confirm)
        except tune.Stopped as stop:
            stopped = stop.number
        finally:
            display.stop()
        session.exit_code = _conclude(folder, trials, ledger, stopped)
    if stopped is not None:
        _wait_for(folder, ledger.names("running"))
    return session.exit_code


def _search(said: dict[str, Any], trials: dict[str, Trial], ledger: Ledger, keep: Any) -> suggest.Search:
    space = spaces.read(Path(said["space"]))
    return suggest.Search(space, said["samples"], said["search_seed"], trials, ledger, keep)


def _conclude(folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger, stopped: int | None) -> int:
    """Write and say what came of it, before Ray is left; the exit code."""
    from seal_fast.sweep import results

    rows = results.write(folder, trials, ledger)
    if stopped is not None:
        again = f"python -m seal_fast sweep --out {folder.path} --resume"
        print(f"stopped by {signal.Signals(stopped).name}; continue with: {again}", file=sys.stderr, flush=True)
        return 128 + stopped
    results.write_hparams(folder, trials, rows)
    folder.tidy()
    failed = ledger.names("failed")
    for name in failed:
        entry = ledger.entries[name]
        print(f"failed after {entry.failures} attempts: {name}: {entry.message}", file=sys.stderr)
    print(f"written: results.csv, results.json in {folder.path}; see it with: python -m seal_fast report {folder.path}")
    return 1 if failed else 0


def _wait_for(folder: SweepFolder, names: Sequence[str]) -> None:
    """Runs in hand write their checkpoints now that nothing watches them any more."""
    from seal_fast.sweep.process import STOP_SECONDS, wait_until_free

    for name in names:
        wait_until_free(folder.run(name).path, STOP_SECONDS)


def _resources(flags: argparse.Namespace, trials: Sequence[Trial]) -> tuple[int, int, float]:
    """Runs at a time, threads of each, and the share of a GPU that each takes."""
    import torch

    on_gpu = any(trial.config.device != "cpu" for trial in trials)
    gpus = torch.cuda.device_count() if on_gpu else 0
    if flags.per_gpu > 1 and not gpus and not flags.address:
        why = "this machine has no GPU that torch sees" if on_gpu else "every run has device = cpu"
        raise UsageError(f"--per-gpu {flags.per_gpu}: {why}; say --concurrent {flags.per_gpu} instead")
    cores = len(os.sched_getaffinity(0))
    concurrent = flags.concurrent or (gpus * flags.per_gpu if gpus else min(cores, _MOST_ON_A_CPU))
    return concurrent, max(1, cores // concurrent), 1 / flags.per_gpu if gpus else 0.0


def _dry_run(flags: argparse.Namespace, made: Plan, search: str) -> int:
    from seal_fast.sweep.checks import check_trials
    from seal_fast.sweep.estimate import estimate

    images = check_trials(made.trials, here=flags.address is None)
    names = made.varied
    rows = [("run", *(name.replace("_", "-") for name in names), "epochs")]
    rows += [(t.name, *(_cell(t.settings.get(n)) for n in names), str(t.epochs)) for t in made.trials[:_MOST_SHOWN]]
    print(table(rows))
    if search == "optuna":
        print("(random draws in place of what Optuna will propose)")
    if len(made.trials) > _MOST_SHOWN:
        print(f"... and {len(made.trials) - _MOST_SHOWN} more")
    repeated = f" ({made.repeated} combinations left out: another trains the same)" if made.repeated else ""
    concurrent, threads, _ = _resources(flags, made.trials)
    threads = flags.threads or threads
    epochs = sum(trial.epochs for trial in made.trials)
    print(f"\n{len(made.trials)} runs, {epochs} epochs{repeated}; {_pace(concurrent, threads)}")
    print(estimate(made.trials, images, concurrent=concurrent, threads=threads))
    return 0


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ray() -> tuple[Any, Any]:
    try:
        from seal_fast.sweep.scheduling import connection, tune
    except ImportError as error:
        raise RunError(
            f"sweeps need Ray Tune ({error.name or error} is missing); pip install 'seal-fast[sweep]'"
        ) from None
    return connection, tune


def _pace(concurrent: int, threads: int) -> str:
    return f"{concurrent} at a time, {threads} {'thread' if threads == 1 else 'threads'} each"
