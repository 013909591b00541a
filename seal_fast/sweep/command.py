"""`python -m seal_fast sweep`: many runs over a space of settings."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal_fast.errors import RunError, UsageError
from seal_fast.files import write_text
from seal_fast.sweep import plan as plans
from seal_fast.sweep import space as spaces
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.plan import Plan, Trial
from seal_fast.table import table

_MOST_ON_A_CPU = 8
_MOST_SHOWN = 40


def main(argv: Sequence[str]) -> int:
    """Run, resume or only plan a sweep; returns the exit code: 1 where trials have failed.

    Raises:
        UsageError: a flag, the space, or a run in it is wrong; nothing has been started.
        RunError: the sweep cannot go on.
    """
    flags = _parser().parse_args(list(argv))
    _check(flags)
    folder = SweepFolder(flags.out)
    made = _planned(flags)
    if flags.dry_run:
        return _dry_run(flags, made or Plan(tuple(folder.read_plan()[0].values())))
    with folder.locked():
        if flags.resume:
            trials, said = folder.read_plan()
            _same(flags, made, trials)
        else:
            assert made
            if folder.plan.exists():
                raise UsageError(
                    f"--out {flags.out} holds a sweep already; continue it with --resume, or choose another"
                )
            trials, said = {trial.name: trial for trial in made.trials}, {}
        return _run(flags, folder, trials, made, said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast sweep",
        description="Train every run of a space of settings, some at a time, by Ray Tune. Each is an ordinary run "
        "folder in DIR/trials. See docs/sweeps.md for the space file, clusters and Slurm.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("space", nargs="?", type=Path, metavar="SPACE.toml", help="the space; not needed with --resume")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the sweep")
    add(
        "--search",
        choices=("grid", "random"),
        help="list the space, or draw from it; default: grid if it can be listed",
    )
    add("--samples", type=int, default=10, metavar="N", help="draws, where the space is drawn from (10)")
    add("--search-seed", type=int, default=0, metavar="S", help="decides the draws (0)")
    add("--seeds", type=int, metavar="K", help="train each combination with the seeds 0 to K-1")
    add(
        "--concurrent",
        type=int,
        metavar="M",
        help="runs at a time; default: --per-gpu for each GPU, without one the cores, 8 at most",
    )
    add("--per-gpu", type=int, default=1, metavar="R", help="runs that share a GPU (1)")
    add(
        "--threads",
        type=int,
        metavar="T",
        help="CPU threads of a run; default: the cores divided by the runs at a time",
    )
    add("--address", metavar="HOST:PORT", help="a Ray cluster to run on, or auto; default: Ray on this machine alone")
    add("--stop-early", action="store_true", help="stop what falls behind at the end of a generation (ASHA)")
    add(
        "--first-rung",
        type=int,
        default=2,
        metavar="G",
        help="generations before the first decision (2; the first is the same for every method)",
    )
    add("--reduction", type=int, default=3, metavar="F", help="keep about one in F at each decision (3)")
    add(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="how often a run that failed starts again from its checkpoint (2)",
    )
    add("--resume", action="store_true", help="continue the sweep in DIR")
    add("--retry-failed", action="store_true", help="with --resume: try failed runs again")
    add(
        "--dry-run", action="store_true", help="print the runs, their number and the predicted hours, and start nothing"
    )
    return parser


def _check(flags: argparse.Namespace) -> None:
    lowest = {"retries": 0, "reduction": 2}
    for name in ("samples", "seeds", "concurrent", "per_gpu", "threads", "retries", "first_rung", "reduction"):
        value = getattr(flags, name)
        if value is not None and value < lowest.get(name, 1):
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {lowest.get(name, 1)}")
    if flags.space is None and not flags.resume:
        raise UsageError("name the space file: python -m seal_fast sweep SPACE.toml --out DIR")
    if flags.retry_failed and not flags.resume:
        raise UsageError("--retry-failed: only with --resume")


def _planned(flags: argparse.Namespace) -> Plan | None:
    if flags.space is None:
        return None
    space = spaces.read(flags.space)
    search = flags.search or ("random" if space.drawn else "grid")
    return plans.make(space, search=search, samples=flags.samples, seeds=flags.seeds, search_seed=flags.search_seed)


def _same(flags: argparse.Namespace, made: Plan | None, trials: dict[str, Trial]) -> None:
    if made and {t.name: t.config for t in made.trials} != {n: t.config for n, t in trials.items()}:
        raise UsageError(
            f"{flags.space}: makes other runs than the sweep in {flags.out}; drop it from the command to continue that "
            "sweep, or choose another --out"
        )


def _run(
    flags: argparse.Namespace, folder: SweepFolder, trials: dict[str, Trial], made: Plan | None, said: dict[str, Any]
) -> int:
    tune = _ray()
    from seal_fast.sweep import results
    from seal_fast.sweep.checks import check_trials
    from seal_fast.sweep.table import Display

    ledger = folder.open_ledger(trials)
    if flags.retry_failed:
        ledger.forgive()
    left = ledger.left()
    check_trials((trials[name] for name in left), here=flags.address is None)
    concurrent, threads, gpu = _resources(flags, trials)
    threads = flags.threads or said.get("threads") or threads
    if not flags.resume:
        assert made
        folder.write_plan(made, threads=threads)
        write_text(folder.path / "space.toml", flags.space.read_text())
    with tune.connected(flags.address, concurrent):
        if flags.address:
            use_gpus = any(trial.config.device != "cpu" for trial in trials.values())
            asked = flags.threads or said.get("threads")
            concurrent, threads, gpu = tune.slots(flags.per_gpu, flags.concurrent, asked, use_gpus)
        rungs = (flags.first_rung, flags.reduction) if flags.stop_early else None
        job = tune.Job(folder.path, concurrent, threads, gpu, flags.retries, rungs, flags.address is not None)
        print(
            f"{len(left)} of {len(trials)} runs to do, {concurrent} at a time, {threads} threads each; {folder.path}",
            flush=True,
        )
        display = Display(folder, trials, ledger)
        stopped = None
        try:
            tune.run(job, trials, ledger, display.tick)
        except tune.Stopped as stop:
            stopped = stop.number
        finally:
            display.stop()
    rows = results.write(folder, trials, ledger)
    results.write_hparams(folder, trials, rows)
    if stopped is not None:
        _wait_for(folder, ledger.names("running"))
        name = signal.Signals(stopped).name
        print(
            f"stopped by {name}; continue with: python -m seal_fast sweep --out {folder.path} --resume", file=sys.stderr
        )
        return 128 + stopped
    folder.tidy()
    failed = ledger.names("failed")
    for name in failed:
        print(
            f"failed after {ledger.entries[name].failures} attempts: {name}: {ledger.entries[name].message}",
            file=sys.stderr,
        )
    print(
        f"written to {folder.path}: results.csv, results.json; python -m seal_fast report {folder.path} draws the page"
    )
    return 1 if failed else 0


def _wait_for(folder: SweepFolder, names: Sequence[str]) -> None:
    """Runs in hand write their checkpoints now that nothing watches them any more."""
    from seal_fast.sweep.process import STOP_SECONDS, wait_until_free

    for name in names:
        wait_until_free(folder.run(name).path, STOP_SECONDS)


def _resources(flags: argparse.Namespace, trials: dict[str, Trial]) -> tuple[int, int, float]:
    """Runs at a time, threads of each, and the share of a GPU that each takes."""
    import torch

    on_gpu = any(trial.config.device != "cpu" for trial in trials.values())
    gpus = torch.cuda.device_count() if on_gpu else 0
    cores = len(os.sched_getaffinity(0))
    concurrent = flags.concurrent or (gpus * flags.per_gpu if gpus else min(cores, _MOST_ON_A_CPU))
    return concurrent, max(1, cores // concurrent), 1 / flags.per_gpu if gpus else 0.0


def _dry_run(flags: argparse.Namespace, made: Plan) -> int:
    from seal_fast.sweep.checks import check_trials
    from seal_fast.sweep.estimate import estimate

    trials = {trial.name: trial for trial in made.trials}
    images = check_trials(made.trials, here=flags.address is None)
    names = made.varied
    rows = [("run", *(name.replace("_", "-") for name in names), "epochs")]
    rows += [(t.name, *(_cell(t.settings.get(n)) for n in names), str(t.epochs)) for t in made.trials[:_MOST_SHOWN]]
    print(table(rows))
    if len(made.trials) > _MOST_SHOWN:
        print(f"... and {len(made.trials) - _MOST_SHOWN} more")
    repeated = f" ({made.repeated} combinations left out: another trains the same)" if made.repeated else ""
    concurrent, threads, _ = _resources(flags, trials)
    threads = flags.threads or threads
    epochs = sum(trial.epochs for trial in made.trials)
    print(f"\n{len(made.trials)} runs, {epochs} epochs{repeated}; {concurrent} at a time, {threads} threads each")
    print(estimate(made.trials, images, concurrent=concurrent, threads=threads))
    return 0


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ray() -> Any:
    try:
        from seal_fast.sweep.scheduling import tune
    except ImportError as error:
        raise RunError(
            f"sweeps need Ray Tune ({error.name or error} is missing); pip install 'seal-fast[sweep]'"
        ) from None
    return tune
