"""The flags that all analyses share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from seal_fast.utils.errors import UsageError


def add_shared(parser: argparse.ArgumentParser, batch_size: int, file: str) -> None:
    """Add them; `file` is the result file in --out."""
    add = parser.add_argument_group("networks").add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders or .safetensors files")
    add(
        "--stage",
        default="last",
        help="weights of the run: last, best, generation-0, generation-1-ascent ...; default: last",
    )
    add("--per-generation", action="store_true", help="all weights kept of each RUN's generations and ascents")
    own = "of a bare weights file, as in training (default: resnet18), or of runs whose --model was a factory"
    add("--model", action="append", metavar="NAME", help=f"{own}; may be given several times")
    add("--width", type=float, help="of a bare weights file; default: 1")
    add("--stem", choices=("imagenet", "small"), help="of a bare weights file; default: imagenet")
    add("--image-size", type=int, help="pixels a side of the input; default: what the network was trained on")
    add = parser.add_argument_group("machine and output").add_argument
    bad = "an image that cannot be read ends the analysis (error) or is left out and listed (skip); default: error"
    add("--on-bad-image", choices=("error", "skip"), default="error", help=bad)
    add("--batch-size", type=int, default=batch_size, help=f"images a forward pass; default: {batch_size}")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute; default: auto, a GPU if there is one",
    )
    add("--threads", type=int, help="CPU threads; default: as many as the process may run on")
    add("--dist-timeout", type=float, default=300.0, help="seconds to wait for another process; default: 300")
    add("--out", type=Path, metavar="DIR", help=f"write {file} and plots there")
    add("--json", action="store_true", help="print JSON instead of the table")


def check_numbers(flags: argparse.Namespace, least: Mapping[str, float]) -> None:
    """Raise a UsageError for a number among the flags, or in a list, below the lowest that `least` names."""
    for name, lowest in ({"image_size": 1, "batch_size": 1, "threads": 1, "seed": 0} | dict(least)).items():
        given = getattr(flags, name, None)
        for value in given if isinstance(given, list | tuple) else (given,):
            if value is not None and not value >= lowest:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {lowest}")
