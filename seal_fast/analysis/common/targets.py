"""What the commands that carry features to other images share: flags, subjects, target data sets."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from seal_fast.analysis.common import flags
from seal_fast.analysis.common.features import Extractor, cache_folder
from seal_fast.analysis.common.images import readable
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import left_out
from seal_fast.data import ImageSet, open_images
from seal_fast.utils.errors import UsageError

_log = logging.getLogger("seal_fast")


def add_flags(parser: argparse.ArgumentParser, data: str) -> None:
    """The flags that both commands take; `data` explains --data."""
    flags.add_flags(parser, batch_size=256)
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="T", help=data)
    add("--seed", type=int, default=0, help="of everything that is drawn; default: 0")
    add("--amp", action="store_true", help="run the network under bfloat16 autocast")
    add("--cache", type=Path, metavar="DIR", help="keep features there; default: $SEAL_FAST_CACHE or the user's cache")
    add("--no-cache", action="store_true", help="neither read nor keep features")


def cache_of(given: argparse.Namespace) -> Path | None:
    """Where features are kept, or None."""
    return None if given.no_cache else cache_folder(given.cache)


def subjects_of(given: argparse.Namespace) -> list[TrainedNetwork]:
    """The networks that the flags name, all to be asked at one image size.

    Raises:
        UsageError: there is no such network, two of them are the same file, or they differ in size and no --image-size
            decides.
    """
    flags.check(given, {"seed": 0})
    subjects = flags.subjects(given)
    files = [subject.weights.resolve() for subject in subjects]
    for place, file in enumerate(files):
        if file in files[:place]:
            raise UsageError(f"{subjects[place].weights} is named twice; name each RUN once")
    first = subjects[0]
    for other in subjects[1:]:
        if given.image_size is None and other.image_size != first.image_size:
            raise UsageError(
                f"{first.name} was trained on images of {first.image_size} pixels a side and {other.name} of "
                f"{other.image_size}: choose one size for both with --image-size"
            )
    return subjects


def open_targets(data: Sequence[str], image_size: int, on_bad_image: str = "error") -> dict[str, ImageSet]:
    """The target data sets by their names, to be shown to the networks at `image_size`.

    With `on_bad_image="skip"` they hold no image that cannot be read, and list those in `skipped`.

    Raises:
        UsageError: a target does not exist or has one class, or two have the same name.
        RunError: a target is damaged, or a class of it is empty.
    """
    targets: dict[str, ImageSet] = {}
    for source in data:
        images = open_images(source, on_bad_image)
        images = readable(images) if on_bad_image == "skip" else images
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


def closing(extract: Extractor, targets: Mapping[str, ImageSet], out: Path | None) -> str:
    """What stands below the tables: images left out, features from the cache, where results were written."""
    skipped = left_out({name: images.skipped for name, images in targets.items()}).strip()
    written = f"; written to {out}" if out else ""
    features = f"features: {extract.extracted} extracted, {extract.found} from the cache{written}"
    return "\n" + "\n".join(line for line in (skipped, features) if line)
