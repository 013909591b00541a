"""The flags that every analysis of networks takes, what they must hold, and the networks they name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from seal_fast.analysis.common.network import TrainedNetwork, follow, open_network
from seal_fast.utils.errors import UsageError


def add_flags(parser: argparse.ArgumentParser, *, batch_size: int, picture: str = "pictures") -> None:
    """Which networks, on which machine, with what output; `--amp`, `--data` and `--seed` mean not the same everywhere.

    Args:
        parser: of a command; its prog ends in the command's name.
        batch_size: default of --batch-size.
        picture: what else --out writes beside the JSON.
    """
    command = parser.prog.rsplit(" ", 1)[-1]
    add = parser.add_argument_group("networks").add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders or .safetensors files")
    add("--stage", default="last", help="weights of the run: last, best, generation-0, generation-1-ascent ...")
    add("--per-generation", action="store_true", help="every kept generation and ascent of each RUN, with the curve")
    add("--model", choices=("resnet18", "resnet34", "resnet50"), help="of a bare weights file; default: resnet18")
    add("--stem", choices=("imagenet", "small"), help="of a bare weights file; default: imagenet")
    add(
        "--image-size",
        type=int,
        help="pixels a side that images are scaled to; default: what the network was trained on",
    )
    add = parser.add_argument_group("machine and output").add_argument
    add(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="what to do with an image that cannot be read; skip leaves it out, counted and listed; default: error",
    )
    add("--batch-size", type=int, default=batch_size, help=f"images a forward pass; default: {batch_size}")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, help="CPU threads")
    add(
        "--dist-timeout",
        type=float,
        default=300.0,
        help="under torchrun, seconds to wait for another process before giving up; default: 300",
    )
    add("--out", type=Path, metavar="DIR", help=f"write {command}.json and {picture} there")
    add("--json", action="store_true", help="print JSON instead of the table")


def check(flags: argparse.Namespace, least: Mapping[str, float] | None = None) -> None:
    """Numbers must not be below what is sensible: the shared flags' as well as those in `least`, by name.

    Raises:
        UsageError: one of them is.
    """
    shared = {"image_size": 1, "batch_size": 1, "threads": 1}
    for name, lowest in (shared | dict(least or {})).items():
        given = getattr(flags, name)
        for value in given if isinstance(given, list | tuple) else (given,):
            if value is not None and not value >= lowest:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {lowest}")


def subjects(flags: argparse.Namespace) -> list[TrainedNetwork]:
    """The networks that the flags name; with --per-generation every kept stage of each run.

    Raises:
        UsageError: there is no such network, or a setting contradicts what a file says of itself.
    """
    said = {"model": flags.model, "stem": flags.stem, "image_size": flags.image_size}
    if flags.per_generation:
        return [subject for run in flags.runs for subject in follow(run, **said)]
    return [open_network(run, stage=flags.stage, **said) for run in flags.runs]
