"""From labelled members of archives to the files of one .tar."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seal_fast.data import headers
from seal_fast.data.layouts.common import HELD_OUT, is_image
from seal_fast.data.prepare.sources import Sources, matching
from seal_fast.data.split import draw_by_class
from seal_fast.utils.errors import RunError


class Label(NamedTuple):
    """An image of a list: the end of its path in the archives, its part of the split ("" for none) and its class."""

    member: str
    part: str
    name: str


def labelled(sources: Sources, labels: Iterable[Label], notes: list[str]) -> Iterator[tuple[str, bytes]]:
    """Path in the new .tar, PART/CLASS/FILE, and content of every listed image, in the order of the archives.

    Images without a part are divided: of each class a fixed draw of 20 % is test/, the rest train/. `notes` takes
    sentences about what was left out or assumed.

    Raises:
        RunError: an image is listed twice or missing, or two would have the same path.
    """
    wanted: dict[str, Label] = {}
    for label in labels:
        if wanted.setdefault(label.member, label) != label:
            first = wanted[label.member]
            raise RunError(
                f"{label.member} is listed twice, as {first.part}/{first.name} and as {label.part}/{label.name}"
            )
    if any(not label.part for label in wanted.values()):
        wanted = _divided(wanted)
        notes.append("there is no official split: of each class a fixed draw of a fifth is test/, the rest train/")
    paths: dict[str, str] = {}  # in the new tar, and where in the archives it came from
    unlisted, odd = 0, Counter()
    for member, content in sources.members():
        if not (end := matching(member, wanted)):
            unlisted += is_image(member)
            continue
        label = wanted[end]
        path = f"{label.part}/{_folder(label.name)}/{member.rpartition('/')[2]}"
        if path in paths:
            raise RunError(f"{member} and {paths[path]} would both become {path}")
        paths[path] = member
        data = content.read()
        if (kind := headers.kind(data)) not in headers.READ:
            odd[kind or "unknown"] += 1
        yield path, data
    if len(paths) < len(wanted):
        there = {matching(member, wanted) for member in paths.values()}
        missing = [member for member in wanted if member not in there]
        raise RunError(f"{len(missing)} listed images are missing in {sources}, {missing[0]} first")
    if unlisted:
        notes.append(f"left out {unlisted} images that no list names")
    if odd:
        kinds = ", ".join(f"{count} {kind}" for kind, count in odd.items())
        notes.append(f"content that is not read as an image ({kinds}): train with --on-bad-image skip")


def _divided(wanted: dict[str, Label]) -> dict[str, Label]:
    names = sorted(wanted)
    classes = sorted({label.name for label in wanted.values()})
    labels = np.array([classes.index(wanted[name].name) for name in names])
    test = draw_by_class(labels, 0, lambda count: round(HELD_OUT * count))
    return {
        name: wanted[name]._replace(part="test" if held else "train") for name, held in zip(names, test, strict=True)
    }


def _folder(name: str) -> str:
    """A class's name as the name of a folder: F/A-18 becomes F-A-18."""
    return re.sub(r"[/\\]|^\.+", "-", name.strip())


@contextlib.contextmanager
def packing(tar: Path, check: Callable[[Path], None]) -> Iterator[Callable[[str, bytes], None]]:
    """What adds a file, by name and content, to a new .tar, which gets its name when it is complete and checked."""
    part = tar.with_suffix(".tar.part")
    try:
        with open(part, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as target:

                def add(name: str, data: bytes) -> None:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    target.addfile(entry, io.BytesIO(data))

                yield add
            file.flush()
            os.fsync(file.fileno())
        check(part)
        part.rename(tar)
    finally:
        part.unlink(missing_ok=True)
