"""What the commands that carry features to other images share: flags, subjects, target data sets."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from seal_fast.analysis.features import cache_folder
from seal_fast.analysis.subject import Subject, follow, open_subject
from seal_fast.data import ImageSet, open_images
from seal_fast.errors import UsageError

_log = logging.getLogger("seal_fast")


def add_flags(parser: argparse.ArgumentParser, data: str) -> None:
    """The flags that both commands take; `data` explains --data."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders or .safetensors files")
    add("--data", nargs="+", required=True, metavar="T", help=data)
    add("--stage", default="last", help="weights of the run: last, best, generation-0, generation-1-ascent ...")
    add("--per-generation", action="store_true", help="every kept generation and ascent of each RUN, with the curve")
    add("--model", choices=("resnet18", "resnet34", "resnet50"), help="of a bare weights file; default: resnet18")
    add("--stem", choices=("imagenet", "small"), help="of a bare weights file; default: imagenet")
    add(
        "--image-size",
        type=int,
        help="pixels a side that images are scaled to; default: what the network was trained on",
    )
    add("--seed", type=int, default=0, help="of everything that is drawn; default: 0")
    add("--batch-size", type=int, default=256, help="images a forward pass; default: 256")
    add("--amp", action="store_true", help="run the network under bfloat16 autocast")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, help="CPU threads")
    add("--cache", type=Path, metavar="DIR", help="keep features there; default: $SEAL_FAST_CACHE or the user's cache")
    add("--no-cache", action="store_true", help="neither read nor keep features")
    add("--out", type=Path, metavar="DIR", help=f"write {parser.prog.rsplit(' ', 1)[-1]}.json and pictures there")
    add("--json", action="store_true", help="print JSON instead of the table")


def cache_of(flags: argparse.Namespace) -> Path | None:
    """Where features are kept, or None."""
    return None if flags.no_cache else cache_folder(flags.cache)


def subjects_of(flags: argparse.Namespace) -> list[Subject]:
    """The networks that the flags name, all to be asked at one image size.

    Raises:
        UsageError: there is no such network, two of them are the same file, or they differ in size and no --image-size
            decides.
    """
    for name in ("image_size", "batch_size", "threads"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if flags.seed < 0:
        raise UsageError(f"--seed {flags.seed}: must not be negative")
    if flags.per_generation:
        subjects = [subject for run in flags.runs for subject in follow(run)]
    else:
        said = {"model": flags.model, "stem": flags.stem, "image_size": flags.image_size}
        subjects = [open_subject(run, stage=flags.stage, **said) for run in flags.runs]
    files = [subject.weights.resolve() for subject in subjects]
    for place, file in enumerate(files):
        if file in files[:place]:
            raise UsageError(f"{subjects[place].weights} is named twice; name each RUN once")
    first = subjects[0]
    for other in subjects[1:]:
        if flags.image_size is None and other.image_size != first.image_size:
            raise UsageError(
                f"{first.name} was trained on images of {first.image_size} pixels a side and {other.name} of "
                f"{other.image_size}: choose one size for both with --image-size"
            )
    return subjects


def open_targets(data: Sequence[str], image_size: int) -> dict[str, ImageSet]:
    """The target data sets by their names, to be shown to the networks at `image_size`.

    Raises:
        UsageError: a target does not exist or has one class, or two have the same name.
        RunError: a target is damaged, or a class of it is empty.
    """
    targets: dict[str, ImageSet] = {}
    for source in data:
        images = open_images(source)
        if images.name in targets:
            raise UsageError(f"--data {source}: another target is called {images.name} too; rename one of them")
        if len(images.classes) < 2:
            only = ", ".join(images.classes)
            raise UsageError(f"--data {source} has one class ({only}): a classifier needs at least two")
        notes = list(images.notes)
        if images.native_size not in (None, image_size):
            notes.append(f"images of {images.native_size} pixels a side, scaled to the network's {image_size}")
        for note in notes:
            _log.warning("%s: %s", images.name, note)
        targets[images.name] = images
    return targets
