"""The flags of `python -m seal_fast sweep`."""

from __future__ import annotations

import argparse
from pathlib import Path

from seal_fast.utils.errors import UsageError


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m seal_fast sweep`."""
    made = argparse.ArgumentParser(
        prog="python -m seal_fast sweep",
        description="Train every run of a space of settings, some at a time, by Ray Tune. Each is an ordinary run "
        "folder in DIR/trials. See docs/sweeps.md for the space file, clusters and Slurm.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("space", nargs="?", type=Path, metavar="SPACE.toml", help="the space; not needed with --resume")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the sweep")
    add(
        "--search",
        choices=("grid", "random", "optuna"),
        help="list the space, draw from it, or learn where to look (Optuna's TPE); default: grid if it can be listed",
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
    return made


def check(flags: argparse.Namespace) -> None:
    """Refuse values out of range and flags that lack each other.

    Raises:
        UsageError: naming the flag.
    """
    lowest = {"retries": 0, "reduction": 2}
    for name in ("samples", "seeds", "concurrent", "per_gpu", "threads", "retries", "first_rung", "reduction"):
        value = getattr(flags, name)
        if value is not None and value < lowest.get(name, 1):
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {lowest.get(name, 1)}")
    if flags.space is None and not flags.resume:
        raise UsageError("name the space file: python -m seal_fast sweep SPACE.toml --out DIR")
    if flags.retry_failed and not flags.resume:
        raise UsageError("--retry-failed: only with --resume")
