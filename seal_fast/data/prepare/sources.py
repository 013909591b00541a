"""The files inside the archives that a user downloaded, read in the order in which they lie there."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import IO

from seal_fast.utils.errors import UsageError

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error)


class Sources:
    """Tars, compressed or not, zips, and single files; nothing is extracted, and memory holds one file at a time.

    Attributes:
        path: the archive that is being read.
    """

    def __init__(self, paths: Sequence[Path]):
        """Take the paths.

        Raises:
            UsageError: one of them is no file.
        """
        self.paths, self.path = paths, Path()
        for path in paths:
            if not path.is_file():
                raise UsageError(f"{path}: no such file")

    def __str__(self) -> str:
        return ", ".join(path.name for path in self.paths)

    def members(self) -> Generator[tuple[str, IO[bytes]]]:
        """Name and open content of every file, to be read before the next one; raises one of `DAMAGE`."""
        for path in self.paths:
            self.path = path
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for entry in archive.infolist():
                        if not entry.is_dir():
                            with archive.open(entry) as content:
                                yield entry.filename, content
            elif tarfile.is_tarfile(path):
                with tarfile.open(path) as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # type: ignore[attr-defined]  # holds every entry otherwise
                        if member.isreg() and (content := archive.extractfile(member)):
                            yield member.name, content
            elif path.suffix in (".tar", ".tgz", ".gz", ".zip"):
                raise tarfile.ReadError("no tar or zip")
            else:
                with path.open("rb") as content:
                    yield path.name, content

    def read(self, *names: str) -> list[bytes]:
        """The content of the files of these names, in whatever folder of whatever archive they lie.

        Raises:
            UsageError: a file is in none of the archives.
        """
        found: dict[str, bytes] = {}
        with contextlib.closing(self.members()) as members:
            for member, content in members:
                if name := matching(member, names):
                    found[name] = content.read()
                    if len(found) == len(names):
                        break
        for name in names:
            if name not in found:
                raise UsageError(f"{name} is in none of {self}: name the file, or the archive that holds it, too")
        return [found[name] for name in names]


def matching(member: str, names: Collection[str]) -> str:
    """The end of a member's path, from some folder on, that is one of `names`; "" if none is."""
    parts = member.split("/")
    return next((end for i in range(len(parts)) if (end := "/".join(parts[i:])) in names), "")
