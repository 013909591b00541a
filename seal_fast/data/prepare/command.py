"""`python -m seal_fast prepare NAME [ARCHIVE...]`."""

from __future__ import annotations

import argparse
import errno
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seal_fast.data.archive import Archive
from seal_fast.data.prepare import download
from seal_fast.data.prepare.catalogue import OFFICIAL, Official
from seal_fast.data.prepare.download import DOWNLOADS, Download, progress
from seal_fast.data.prepare.images import packing
from seal_fast.data.prepare.sources import DAMAGE, Sources
from seal_fast.utils.errors import RunError, UsageError


def prepare(
    name: str,
    archives: Sequence[str | Path] = (),
    folder: str | Path = "data",
    *,
    _official: Download | Official | None = None,
) -> Path:
    """Make a .tar in `folder`, ready for --data; if it exists, only verify it.

    Tiny-ImageNet is downloaded; a download that breaks off is resumed by the next call, and a .zip that is in the
    folder already is used and kept. All others are made from `archives`, in whatever order.

    Args:
        archives: what `Official.files` lists, as downloaded.
        folder: where to put the .tar; made if it is not there.

    Returns:
        The path of the .tar.

    Raises:
        UsageError: an unknown name, archives that are not there or of another kind, or a folder that cannot be written.
        RunError: damaged archives, labels and images that do not fit each other, wrong counts, no connection, or a full
            disk.
    """
    official = _official or {**DOWNLOADS, **OFFICIAL}.get(name)
    if not official:
        raise UsageError(f"cannot prepare {name!r}: known data sets are {', '.join((*DOWNLOADS, *OFFICIAL))}")
    folder = Path(folder)
    tar = folder / f"{official.folder if isinstance(official, Download) else name}.tar"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(official, Download):
            if not tar.exists():
                download.make(official, tar)
            download.check(official, tar)
        elif tar.exists():
            _check(official, tar)
        else:
            _make(name, official, [Path(archive) for archive in archives], tar)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"{folder}: disk full; free some space and run this again") from None
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return tar


def _make(name: str, official: Official, archives: Sequence[Path], tar: Path) -> None:
    if not archives:
        raise UsageError(
            f"{name} is made from {official.files}: download them from {official.url} and name them after {name}"
        )
    notes: list[str] = []
    sources = Sources(archives)
    try:
        with packing(tar, lambda part: _check(official, part)) as add, progress(f"packing {tar.name}") as update:
            for path, data in official.read(sources, notes):
                add(path, data)
                update(advance=len(data))
    except DAMAGE as error:
        raise RunError(f"{sources.path} is truncated or damaged ({error}): download it again") from None
    for note in notes:
        print(f"{tar}: {note}")


def _check(official: Official, tar: Path) -> None:
    """Refuse numbers of classes and images that are not the official ones; all that differ are named."""
    found, classes = Counter(), Counter()
    for file in Archive(tar).files:
        part, name, *_ = *file.split("/"), ""
        found[part] += 1
        classes[part, name] += 1
    whole = "" in official.images  # no official split
    found = Counter({"": found.total()}) if whole else found
    pairs = [(count, found[part], f"{part} images".strip()) for part, count in official.images.items()]
    parts = sorted({part for part, _ in classes})
    pairs += [(official.classes, sum(p == part for p, _ in classes), f"{part} classes") for part in parts]
    if wrong := [f"{there} {what} instead of {count}" for count, there, what in pairs if there != count]:
        raise RunError(f"{tar.name.removesuffix('.part')}: {', '.join(wrong)}: the archives are not the official ones")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast prepare",
        description="Make one checked .tar of a data set, for --data. tiny-imagenet is downloaded; the others are made "
        "from their official archives, which you download:",
        epilog="\n".join(f"{name}: {one.files}\n    {one.url}" for name, one in OFFICIAL.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted((*DOWNLOADS, *OFFICIAL)), help="the data set")
    parser.add_argument("archives", nargs="*", metavar="ARCHIVE", help="its archives and files of labels")
    parser.add_argument("--folder", default="data", help="where to put it; default: data, where --data auto looks")
    flags = parser.parse_args(list(argv))
    tar = prepare(flags.name, flags.archives, flags.folder)
    print(f"{tar} is complete: train on it with --data {tar}; the archives are no longer needed")
    return 0
