"""Where the files of a .tar lie: one pass over its headers, nothing unpacked.

`tarfile` builds an object for every member, which would be most of the time and memory of opening an image set; an
index needs the name, the offset and the size. What is understood: POSIX ustar and pax, GNU (long names, base-256
numbers) and the old V7 headers. Format: IEEE Std 1003.1, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from seal_fast.utils.errors import RunError, UsageError

BLOCK = 512
_NOTHING = bytes(BLOCK)
_FILE, _HARD_LINK, _SYMLINK, _FOLDER = (b"0", b"\0", b"7"), b"1", b"2", b"5"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_DEVICES = (b"3", b"4", b"6")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def index_tar(descriptor: int, path: Path) -> tuple[dict[str, tuple[int, int]], set[str], list[str]]:
    """Lists an uncompressed tar.

    Args:
        descriptor: of the open file.
        path: its path, for messages.

    Returns:
        Name to (offset, size) in bytes, in the archive's order, hard and symbolic links to files resolved (a name that
        occurs twice means its last entry, as for tar); the names of folders; and the names of entries that are neither
        a file nor a folder nor a link to a file in the archive.

    Raises:
        UsageError: not an uncompressed tar.
        RunError: truncated or damaged, with the place.
    """
    end = os.fstat(descriptor).st_size
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    links: dict[str, str] = {}
    odd: list[str] = []
    extended: dict[str, str] = {}  # what an extended header said about the entry that follows it
    at = 0
    while True:
        header = os.pread(descriptor, BLOCK, at)
        if header == _NOTHING:
            break
        if len(header) < BLOCK or not _intact(header):
            raise _broken(path, header, at)
        kind = header[156:157]
        size = _number(header[124:136], path, at)
        name = extended.get("path") or _name(header)
        if kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            size = int(extended.get("size", size))
        data = at + BLOCK
        has_data = kind not in (_HARD_LINK, _SYMLINK, _FOLDER, *_DEVICES)
        at = data + (-(-size // BLOCK) * BLOCK if has_data else 0)
        if has_data and data + size > end:
            raise RunError(f"{path} is truncated: {name} should end at byte {data + size}, the file ends at {end}")
        if kind in (_LONG_NAME, _LONG_LINK):
            text = os.pread(descriptor, size, data).rstrip(b"\0")
            extended["path" if kind == _LONG_NAME else "linkpath"] = text.decode(errors="surrogateescape")
            continue
        if kind == _PAX:
            extended |= _pax_records(os.pread(descriptor, size, data), path, data)
            continue
        if kind == _PAX_GLOBAL:
            continue  # comments and defaults of owner and time; none concerns where the bytes lie
        if any(key.startswith("GNU.sparse") for key in extended) or kind == b"S":
            raise RunError(
                f"{path}: {name} is stored sparse and cannot be read in place: make the tar without --sparse"
            )
        clean = posixpath.normpath(name).lstrip("/")
        if kind == _FOLDER or (kind in _FILE and name.endswith("/")):
            folders.add(clean)
        elif kind in _FILE:
            files[clean] = data, size
        elif kind in (_HARD_LINK, _SYMLINK):
            target = extended.get("linkpath") or _text(header[157:257])
            where = "" if kind == _HARD_LINK else posixpath.dirname(clean)
            links[clean] = posixpath.normpath(posixpath.join(where, target)).lstrip("/")
        else:
            odd.append(clean)
        extended = {}
    for link in links:
        target, hops = links[link], 0
        while target in links and target not in files and hops < 8:
            target, hops = links[target], hops + 1
        if target in files:
            files[link] = files[target]
        else:
            odd.append(link)
    return files, folders, odd


def _intact(header: bytes) -> bool:
    """Whether the checksum holds: the sum of all bytes, its own field read as eight spaces."""
    field = header[148:156].strip(b" \0")
    try:
        return int(field, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _broken(path: Path, header: bytes, at: int) -> Exception:
    if at:
        why = "ends without the mark that ends a tar" if len(header) < BLOCK else "holds no tar header where one is due"
        return RunError(f"{path} is truncated or damaged: it {why}, at byte {at}; copy or download it again")
    for magic, program in _COMPRESSED.items():
        if header.startswith(magic):
            return UsageError(f"{path} is compressed with {program}: images are read in place, so decompress it once")
    return UsageError(f"{path} is no .tar: name a folder or an uncompressed .tar of one")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU tar, whose magic is "ustar " with a space, keeps other things in the place of the prefix.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _number(field: bytes, path: Path, at: int) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise RunError(f"{path} is damaged: unreadable size in the tar header at byte {at}") from None


def _pax_records(data: bytes, path: Path, at: int) -> dict[str, str]:
    """Records of the form "LENGTH KEY=VALUE" and a newline, LENGTH counting the whole record."""
    records: dict[str, str] = {}
    try:
        while data:
            length = int(data[: data.index(b" ")])
            key, _, value = data[data.index(b" ") + 1 : length - 1].partition(b"=")
            records[key.decode()] = value.decode(errors="surrogateescape")
            if length < 5:
                raise ValueError
            data = data[length:]
    except ValueError:
        raise RunError(f"{path} is damaged: unreadable extended tar header at byte {at}") from None
    return records
