"""`prepare`: downloads an official archive, verifies it, and packs it as the one .tar that --data takes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from seal_fast.data.dataset import open_images
from seal_fast.utils.errors import RunError, UsageError

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


def prepare(name: str, folder: str | Path = "data", archive: Download | None = None) -> Path:
    """Make `folder/<archive>.tar`, ready for --data; if it exists, only verify it.

    A download that breaks off is resumed by the next call. A .zip that is in the folder already is used instead of a
    download, and kept.

    Args:
        name: of the data set: "tiny-imagenet".
        folder: where to put it; made if it is not there.
        archive: another source for the same name, such as a mirror.

    Returns:
        The path of the .tar.

    Raises:
        UsageError: an unknown name, or a folder that cannot be written.
        RunError: no connection, a wrong checksum, wrong counts, or a full disk; with what to do.
    """
    if archive is None:
        if name not in DOWNLOADS:
            raise UsageError(f"cannot prepare {name!r}: known data sets are {', '.join(DOWNLOADS)}")
        archive = DOWNLOADS[name]
    folder = Path(folder)
    tar, packed = folder / f"{archive.folder}.tar", folder / f"{archive.folder}.zip"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not tar.exists():
            if not packed.exists():
                _download(archive, packed)
            _pack(archive, packed, tar)
        _check_counts(archive, tar)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"{folder}: disk full; free some space and run this again, it goes on from here") from None
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return tar


def main(argv: Sequence[str]) -> int:
    """The command: `python -m seal_fast prepare NAME [--folder FOLDER]`."""
    parser = argparse.ArgumentParser(prog="python -m seal_fast prepare", description="Download and check a data set.")
    parser.add_argument("name", choices=sorted(DOWNLOADS), help="the data set")
    parser.add_argument("--folder", default="data", help="where to put it (default: data, where --data auto looks)")
    arguments = parser.parse_args(list(argv))
    tar = prepare(arguments.name, arguments.folder)
    print(f"{tar} is complete: train on it with --data {tar}; the .zip beside it is no longer needed")
    return 0


def _download(archive: Download, target: Path) -> None:
    part = target.with_suffix(".zip.part")
    with _progress(f"downloading {target.name}") as update:
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
    """Check the .zip and copy its files into a .tar, which gets its name when it is complete."""
    with open(packed, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        broken = packed.with_suffix(".zip.broken")
        packed.rename(broken)
        raise RunError(
            f"{packed} has md5 {found}, not {archive.md5}, and was moved to {broken.name}: run this again for a new "
            "download"
        )
    part = tar.with_suffix(".tar.part")
    try:
        with (
            zipfile.ZipFile(packed) as source,
            open(part, "wb") as file,
            tarfile.open(fileobj=file, mode="w") as target,
            _progress(f"packing {tar.name}") as update,
        ):
            members = [member for member in source.infolist() if not member.is_dir()]
            update(total=sum(member.file_size for member in members))
            for member in members:
                path = PurePosixPath(member.filename)
                if path.parts[0] != archive.folder or ".." in path.parts:
                    raise RunError(f"{packed} holds {member.filename}, outside its folder {archive.folder}/")
                entry = tarfile.TarInfo(str(path))
                entry.size = member.file_size
                with source.open(member) as data:
                    target.addfile(entry, data)
                update(advance=member.file_size)
            target.close()
            file.flush()
            os.fsync(file.fileno())
        _check_counts(archive, part)
        part.rename(tar)
    except zipfile.BadZipFile as error:
        raise RunError(f"{packed} cannot be read ({error}): delete it and run this again") from None
    finally:
        part.unlink(missing_ok=True)


def _check_counts(archive: Download, tar: Path) -> None:
    dataset = open_images(tar)
    found = len(dataset.classes), *(sorted(set(np.bincount(s.labels).tolist())) for s in (dataset.train, dataset.val))
    if found != (archive.classes, [archive.train_each], [archive.val_each]):
        raise RunError(
            f"{tar} holds {found[0]} classes with {found[1]} training and {found[2]} validation images each, instead "
            f"of {archive.classes} with {archive.train_each} and {archive.val_each}: delete it and run this again"
        )


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Update]:
    """A progress bar in bytes; what it yields takes `advance`, `completed` and `total`."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    with Progress(*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()) as progress:
        yield functools.partial(progress.update, progress.add_task(what, total=None))
