"""From the value of --data to an ImageSet: names, labels and where the images lie; nothing is decoded."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from seal_fast.data import headers
from seal_fast.data.archive import Archive
from seal_fast.data.layouts import digits, read_layout, shards
from seal_fast.data.layouts.common import MAY_HAVE_16_BITS, Contents, Faults
from seal_fast.data.split import Split
from seal_fast.utils.errors import RunError
from seal_fast.utils.terminal import shown

_log = logging.getLogger("seal_fast")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(Contents):
    """A data set; a folder and a .tar of it give the same.

    Attributes:
        name: short, for the names of runs.
        source: what `open_images` takes to open it again: "digits", or an absolute path or pattern.
        layout: "tiny-imagenet", "image-folder", "idx", "digits", "webdataset" or "parquet".
        skipped: names of images left out because of `bad="skip"`.
        others: more splits to evaluate on, by name; see `seal_fast.data.select`.
    """

    name: str
    source: str
    layout: str
    skipped: tuple[str, ...] = ()
    others: Mapping[str, Split] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 that names the content: the same by whatever path, and for a folder and a .tar of it.

        It covers layout, classes, and of both splits names, labels, sizes in bytes and the bytes of 32 evenly spaced
        images (all pixels where they are in memory).
        """
        total = hashlib.sha256("\0".join((self.layout, *self.classes)).encode())
        total.update(self.train.digest())
        total.update(self.val.digest())
        return total.hexdigest()

    @cached_property
    def native_size(self) -> int | None:
        """Height and width in pixels if 32 images of each split, evenly spaced, are square and alike, else None."""
        size_of = headers.size if self.train.source.encoded else lambda pixels: pixels.shape[:2]
        sizes = {side for image in self.train.sample() + self.val.sample() for side in size_of(image) or ()}
        return sizes.pop() if len(sizes) == 1 else None


def open_images(data: str | Path = "auto", bad: str = "error", split_seed: int | None = None) -> ImageSet:
    """Open a data set by name or path.

    Args:
        data: "auto" (Tiny-ImageNet in $SEAL_FAST_DATA or ./data, else the digits, saying which), "digits", the path of
            a folder or an uncompressed .tar in one of the known layouts, or a pattern of shards or parquet files.
        bad: "error" or "skip": what to do with images that are empty or have no label.
        split_seed: splits class folders without train/ and val/; None refuses them.

    Raises:
        UsageError: no such path, unreadable, not a tar, or no known layout.
        RunError: the data are damaged: a truncated tar, a wrong label file, an empty class, no images.
    """
    faults = Faults(bad)
    if str(data) == "auto":
        data = _find_tiny_imagenet()
    if str(data) == "digits":
        return _checked("digits", "digits", digits.NAME, digits.read(), faults, ())
    notes, source = (), Path(data).absolute()
    if paths := shards.named(str(data)):
        layout, contents = shards.read(paths, faults, split_seed)
    else:
        archive = Archive(data)
        layout, contents = read_layout(archive, faults, split_seed)
        notes, source = archive.notes, archive.path.resolve()
    name = re.sub(r"[^\w.+-]+", "-", shown(re.sub(r"\.(tar|parquet)$", "", source.name))) or "data"
    return _checked(name, str(source), layout, contents, faults, notes)


def _checked(
    name: str, source: str, layout: str, contents: Contents, faults: Faults, notes: tuple[str, ...]
) -> ImageSet:
    """The last checks, the same for every layout: each split has images of every class."""
    for part, split in (("training", contents.train), ("validation", contents.val)):
        if not len(split):
            raise RunError(f"{shown(source)}: no {part} images")
        if split.labels.max() >= len(contents.classes):
            raise RunError(f"{shown(source)}: {part} label {split.labels.max()} is no class of the training images")
        absent = np.flatnonzero(np.bincount(split.labels, minlength=len(contents.classes)) == 0)
        if len(absent):
            names = shown(", ".join(contents.classes[label] for label in absent[:3]))
            raise RunError(
                f"{shown(source)}: {len(absent)} of {len(contents.classes)} classes have no {part} image ({names} "
                "first): accuracy would be measured on other classes than those learned"
            )
    notes += contents.notes
    if any(name.lower().endswith(MAY_HAVE_16_BITS) for name in contents.train.names + contents.val.names):
        sample = contents.train.sample() + contents.val.sample()
        if count := sum(map(headers.has_16_bits, sample)):
            notes += (
                f"{count} of {len(sample)} images looked at have 16 bits a sample: scaled so that 65535 is white; "
                "values of 12 bits or fewer come out almost black",
            )
    if faults.skipped:
        notes += (f"left out {len(faults.skipped)} bad images: " + "; ".join(list(faults.skipped.values())[:3]),)
    if contents.mean[0] == contents.mean[1]:
        notes += (
            f"grey: normalised by the training images' own mean {contents.mean[0]:.4f}, std {contents.std[0]:.4f}",
        )
    fields = vars(contents) | {"classes": tuple(map(shown, contents.classes)), "notes": notes}
    return ImageSet(name=name, source=source, layout=layout, **fields, skipped=tuple(faults.skipped))


def _find_tiny_imagenet() -> str | Path:
    """The first of the usual places that holds Tiny-ImageNet, or "digits"; says which in one line."""
    places = [Path(place) for place in (os.environ.get("SEAL_FAST_DATA"), "data") if place]
    for place in places:
        named = sorted(place.iterdir()) if place.is_dir() and os.access(place, os.R_OK) else []
        inside = [entry for entry in named if re.match(r"tiny[-_ ]?image[-_]?net", entry.name, re.IGNORECASE)]
        candidates = [place, *sorted(inside, key=Path.is_file)]  # folders first, then tars, by name
        for candidate in candidates:
            if (candidate / "wnids.txt").is_file() or candidate.suffix == ".tar" and candidate.is_file():
                _log.info("data: found %s", candidate)
                return candidate
    _log.info(
        "data: no Tiny-ImageNet in %s, so scikit-learn's digits are used; get it with "
        "`python -m seal_fast prepare tiny-imagenet`",
        " or ".join(map(str, places)),
    )
    return "digits"
