"""The flags of `python -m seal_fast sweep`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from seal_fast.config import flag
from seal_fast.utils.errors import UsageError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; UsageError, naming the flag, for values out of range and flags that need another one."""
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast sweep",
        description="Train every run of a space of settings, some at a time, by Ray Tune. Each is an ordinary run "
        "folder in DIR/trials. See docs/sweeps.md for the format of the space, clusters and Slurm.",
        allow_abbrev=False,
    )
    add = parser.add_argument

    def number(name: str, letter: str, text: str, default: int | None = None) -> None:
        shown = "" if default is None else f"; default: {default}"
        add(name, type=int, metavar=letter, default=default, help=text + shown)

    add("space", nargs="?", type=Path, metavar="SPACE.toml", help="the space; not needed with --resume")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the sweep")
    how = "every combination, draws, or proposals by Optuna's TPE; default: grid, or random where there is a range"
    add("--search", choices=("grid", "random", "optuna"), help=how)
    number("--samples", "N", "draws of a random or Optuna search", 10)
    number("--search-seed", "S", "seed of the draws", 0)
    number("--seeds", "K", "train each combination with the seeds 0 to K-1")
    number("--concurrent", "M", "runs at a time; default: --per-gpu for each GPU, else cores / T, up to 8")
    number("--per-gpu", "R", "runs that share a GPU", 1)
    number("--threads", "T", "CPU threads of a run; default: the cores divided by the runs at a time")
    add("--address", metavar="HOST:PORT", help="a Ray cluster to run on, or auto; default: Ray on this machine alone")
    add("--stop-early", action="store_true", help="stop runs that fall behind at the end of a generation (ASHA)")
    number("--first-rung", "G", "generations before the first decision; generation 0 is the same for every method", 2)
    number("--reduction", "F", "keep about one run in F at each decision", 3)
    number("--retries", "N", "how often a failed run starts again from its checkpoint", 2)
    add("--resume", action="store_true", help="continue the sweep in DIR")
    add("--retry-failed", action="store_true", help="with --resume: try failed runs again")
    add("--dry-run", action="store_true", help="print the runs (with --resume those left) and predicted hours only")
    flags = parser.parse_args(list(argv))
    lowest = {"retries": 0, "reduction": 2}
    for name in ("samples", "seeds", "concurrent", "per_gpu", "threads", "retries", "first_rung", "reduction"):
        value = getattr(flags, name)
        if value is not None and value < lowest.get(name, 1):
            raise UsageError(f"{flag(name)} {value}: must be at least {lowest.get(name, 1)}")
    if flags.space is None and not flags.resume:
        raise UsageError("name the space file: python -m seal_fast sweep SPACE.toml --out DIR")
    if flags.retry_failed and not flags.resume:
        raise UsageError("--retry-failed: only with --resume")
    flags.again = []  # what sweep.json does not hold and --resume needs
    for name in ("concurrent", "per_gpu", "address", "retries"):
        if (value := getattr(flags, name)) != parser.get_default(name):
            flags.again += [flag(name), str(value)]
    return flags
