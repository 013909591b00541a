"""Where the files of a .tar lie: one pass over its headers by the standard library, nothing unpacked."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seal_fast.data import headers
from seal_fast.utils.errors import RunError, UsageError

_number, _text = tarfile.nti, tarfile.nts  # type: ignore[attr-defined]  # not in the stubs
_CHUNK = 1 << 20
_MAX_LINKS = 40  # as Linux follows


# Names in a folder with what they are: a folder, (offset, size) in bytes of a file, or None for anything else.
Folder = dict[str, Any]


def index_tar(descriptor: int, path: Path) -> Folder:
    """The root folder of an uncompressed tar, or of several joined end to end.

    Links to files and folders in the archive are resolved. Of entries with the same name the last one counts, as when
    the tar is unpacked. `path` is for messages.

    Raises:
        UsageError: not an uncompressed tar.
        RunError: truncated, damaged or sparse, with the place.
    """
    root: Folder = {}  # until the end a link is the str that it leads to

    def resolve(target: str, hops: int = _MAX_LINKS) -> Any:
        node: Any = root
        for part in () if target == "." else target.split("/"):
            node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, str):
                node = resolve(node, hops - 1) if hops else None
        return node

    with open(descriptor, "rb", closefd=False) as file:
        for member in _members(file, path):
            name = _clean(member.name)
            *parents, last = name.split("/")
            node = root
            for part in parents:
                if not isinstance(node.get(part), dict):
                    node[part] = {}
                node = node[part]
            if member.isdir():
                if last != "." and not isinstance(node.get(last), dict):
                    node[last] = {}
            elif member.isreg():
                node[last] = member.offset_data, member.size
            elif member.islnk():  # means what the other name means now, whatever becomes of that name later
                target = _clean(member.linkname)
                node[last] = resolve(target) or target
            elif member.issym():
                node[last] = _clean(posixpath.join(posixpath.dirname(name), member.linkname))
            else:
                node[last] = None
    folders = [root]
    for folder in folders:
        folders += [child for child in folder.values() if isinstance(child, dict)]
    for folder in folders:
        for name, child in folder.items():
            folder[name] = resolve(child) if isinstance(child, str) else child
    return root


class _Member(tarfile.TarInfo):
    """An entry; of plain files the times and owners, which nobody asks for, are not parsed: that halves the time."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        plain = len(buf) == tarfile.BLOCKSIZE and buf[156:157] == tarfile.REGTYPE
        if not plain or sum(buf) - sum(buf[148:156]) + 256 != _number(buf[148:156]):
            return super().frombuf(buf, encoding, errors)
        name, prefix = (_text(part, encoding, errors) for part in (buf[:100], buf[345:500]))
        member = cls(f"{prefix}/{name}" if prefix else name)
        member.size = _number(buf[124:136])
        return member


def _members(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """All entries; raises as `index_tar`."""
    end = os.fstat(file.fileno()).st_size
    at: int | None = 0
    while at is not None:
        file.seek(at)
        try:
            tar = tarfile.TarFile(fileobj=file, tarinfo=_Member, encoding="utf-8", errors="surrogateescape")
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # holds every entry otherwise
                if member.issparse():
                    raise RunError(
                        f"{path}: {member.name} is stored sparse and cannot be read in place: make the tar without "
                        "--sparse"
                    )
                if member.size < 0:
                    raise ValueError("negative size")
                at = tar.offset
                if member.isreg() and member.offset_data + member.size > end:
                    should = f"should end at byte {member.offset_data + member.size}, the file ends at {end}"
                    raise RunError(f"{path} is truncated: {member.name} {should}")
                yield member
        except (tarfile.TarError, ValueError, IndexError) as error:
            file.seek(at)
            header = file.read(tarfile.BLOCKSIZE)
            if at == 0 and not header[257:].startswith(b"ustar"):
                raise _foreign(path, header) from None
            raise RunError(
                f"{path} is truncated or damaged: {error} in the entry at byte {at}; copy or download it again"
            ) from None
        at = _next_archive(file, tar.offset, path)


def _next_archive(file: BinaryIO, at: int, path: Path) -> int | None:
    """Where another archive begins behind the one whose end mark is at byte `at`, if one does."""
    file.seek(at)
    mark = file.read(tarfile.BLOCKSIZE)
    if mark != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes anything that is no header for the end
        why = "holds no tar header where one is due" if len(mark) == tarfile.BLOCKSIZE else "ends without an end mark"
        raise RunError(f"{path} is truncated or damaged: it {why}, at byte {at}; copy or download it again")
    while chunk := file.read(_CHUNK):
        if rest := chunk.lstrip(tarfile.NUL):
            first = file.tell() - len(rest)
            return first - first % tarfile.BLOCKSIZE
    return None


def _foreign(path: Path, header: bytes) -> UsageError:
    if (program := headers.kind(header)) in ("gzip", "bzip2", "xz", "zstd"):
        return UsageError(f"{path} is compressed with {program}: images are read in place, so decompress it once")
    return UsageError(f"{path} is no .tar: name a folder or an uncompressed .tar of one")


def _clean(name: str) -> str:
    return posixpath.normpath(name).lstrip("/") or "."
