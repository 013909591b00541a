"""Tiny-ImageNet: downloaded, resumed where it broke off, verified, and packed as it is."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from seal_fast.data.dataset import open_images
from seal_fast.data.prepare.images import packing
from seal_fast.utils.errors import RunError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 5

Update = Callable[..., None]


class Download(NamedTuple):
    """An official .zip (its md5 hexadecimal, its single folder) and its numbers of classes and of images a class."""

    url: str
    md5: str
    folder: str
    classes: int
    train_each: int
    val_each: int


DOWNLOADS = {
    "tiny-imagenet": Download(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
        classes=200,
        train_each=500,
        val_each=50,
    )
}


def make(archive: Download, tar: Path) -> None:
    """Make the .tar from the .zip beside it, which is downloaded if it is not there.

    Raises:
        RunError: no connection, a wrong checksum, or wrong counts.
    """
    packed = tar.with_suffix(".zip")
    if not packed.exists():
        _download(archive, packed)
    _pack(archive, packed, tar)


def _download(archive: Download, target: Path) -> None:
    part = target.with_suffix(".zip.part")
    with progress(f"downloading {target.name}") as update:
        for _ in range(_ATTEMPTS):
            have = part.stat().st_size if part.exists() else 0
            try:
                if _fetch(archive.url, part, have, update):
                    part.rename(target)
                    return
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = getattr(error, "reason", None) or error
                if not part.exists() or part.stat().st_size == have:  # nothing came
                    raise RunError(
                        f"cannot download {archive.url} ({reason}): fetch it where there is a network, put it at "
                        f"{target} and run this again"
                    ) from None
    raise RunError(f"the download of {archive.url} keeps breaking off: run this again, it resumes at {part}")


def _fetch(url: str, part: Path, have: int, update: Update) -> bool:
    """Append to what there is; returns whether the file is complete."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: complete, or another file, which the checksum tells
            return True
        raise
    with response:
        resumed = response.status == 206
        start = have if resumed else 0
        expected = start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        update(completed=start, total=expected)
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                update(advance=len(chunk))
        return expected is None or part.stat().st_size == expected


def _pack(archive: Download, packed: Path, tar: Path) -> None:
    """Check the .zip and copy its files into a .tar."""
    with open(packed, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        broken = packed.with_suffix(".zip.broken")
        packed.rename(broken)
        raise RunError(
            f"{packed} has md5 {found}, not {archive.md5}, and was moved to {broken.name}: run this again for a new "
            "download"
        )
    try:
        with (
            zipfile.ZipFile(packed) as source,
            packing(tar, lambda part: check(archive, part)) as add,
            progress(f"packing {tar.name}") as update,
        ):
            members = [member for member in source.infolist() if not member.is_dir()]
            update(total=sum(member.file_size for member in members))
            for member in members:
                path = PurePosixPath(member.filename)
                if path.parts[0] != archive.folder or ".." in path.parts:
                    raise RunError(f"{packed} holds {member.filename}, outside its folder {archive.folder}/")
                add(str(path), source.read(member))
                update(advance=member.file_size)
    except zipfile.BadZipFile as error:
        raise RunError(f"{packed} cannot be read ({error}): delete it and run this again") from None


def check(archive: Download, tar: Path) -> None:
    """Count classes and images.

    Raises:
        RunError: they are not those of the official set.
    """
    dataset = open_images(tar)
    found = len(dataset.classes), *(sorted(set(np.bincount(s.labels).tolist())) for s in (dataset.train, dataset.val))
    if found != (archive.classes, [archive.train_each], [archive.val_each]):
        raise RunError(
            f"{tar} holds {found[0]} classes with {found[1]} training and {found[2]} validation images each, instead "
            f"of {archive.classes} with {archive.train_each} and {archive.val_each}: delete it and run this again"
        )


@contextlib.contextmanager
def progress(what: str) -> Iterator[Update]:
    """A progress bar in bytes; what it yields takes `advance`, `completed` and `total`."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()) as progress:
        yield functools.partial(progress.update, progress.add_task(what, total=None))
