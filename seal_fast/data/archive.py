"""A folder, or a .tar of one, as a list of files that are read in place; nothing is unpacked or written."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np

from seal_fast.data.tar_index import Folder, index_tar
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.terminal import shown

_NEVER_STRIPPED = ("train", "val", "test", "images")
_HIDDEN, _CIRCLE, _ODD = "hidden", "links to a folder that they lie in", "neither a file nor a folder"


class Store(Protocol):
    """Files by name: an `Archive`, or several of them.

    Attributes:
        files: by name, where a file lies and its size in bytes.
        notes: what was left out, one sentence each.
    """

    files: dict[str, tuple[int, int]]
    notes: tuple[str, ...]

    def read(self, name: str) -> np.ndarray:
        """The bytes of a file, uint8 [size]."""
        ...

    def where(self, name: str) -> str:
        """How messages name a file."""
        ...


class Archive:
    """The files under a data set's root.

    Attributes:
        path: the folder or the .tar, as named by the user.
        files: name to (offset, size) in bytes. Names are relative to the root, with "/" between their parts, and sorted
            part by part; where everything lies in a single top folder, that folder is the root.
        folders: names of all folders, empty ones included.
        notes: what was left out, one sentence each.
    """

    def __init__(self, path: str | Path):
        """List the files.

        Raises:
            UsageError: there is no such path, it cannot be read, or it is neither a folder nor an uncompressed .tar.
            RunError: the tar is truncated or damaged.
        """
        self.path = Path(path)
        self._tar: int | None = None
        self._prefix = ""
        try:
            if self.path.is_dir():
                files, folders, left_out = _walk(_scan(str(self.path), os.stat(self.path), {}))
            elif self.path.exists():
                self._tar = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._tar)
                files, folders, left_out = _walk(index_tar(self._tar, self.path))
            else:
                raise UsageError(f"{self.path}: no such file or folder")
        except OSError as error:
            raise UsageError(f"cannot read {error.filename or self.path}: {error.strerror}") from None
        names = sorted(files, key=lambda name: name.replace("/", "\0"))  # part by part
        while top := _single_top(names):
            self._prefix += top
            names = [name.removeprefix(top) for name in names]
        self.files = {name: files[self._prefix + name] for name in names}
        self.folders = {name.removeprefix(self._prefix) for name in folders if name.startswith(self._prefix)}
        self.notes = tuple(
            f"left out {len(group)} entries that are {what}, {shown(min(group).removeprefix(self._prefix))} first"
            for what, group in left_out.items()
            if group
        )

    def read(self, name: str) -> np.ndarray:
        """The bytes of a file, uint8 [size].

        Raises:
            RunError: it cannot be read, or is shorter than it was when listed.
        """
        offset, size = self.files[name]
        try:
            if self._tar is not None:
                # pread, not mmap: mapped pages would count as this process's memory, and a file cut short while it is
                # mapped would end in SIGBUS instead of a sentence.
                data = os.pread(self._tar, size, offset)
            else:
                with open(self.path_of(name), "rb", buffering=0) as file:
                    data = file.read(size)
        except OSError as error:
            raise RunError(f"cannot read {self.where(name)}: {error.strerror}") from None
        if len(data) != size:
            raise RunError(
                f"{self.where(name)} has become shorter than when the run began: keep the data set unchanged"
            )
        return np.frombuffer(data, np.uint8)

    def where(self, name: str) -> str:
        """How messages name a file."""
        return shown(f"{self._prefix}{name} in {self.path}" if self._tar is not None else self.path_of(name))

    def path_of(self, name: str) -> Path:
        """Where a file of a folder lies."""
        return self.path / self._prefix / name


def _scan(path: str, status: os.stat_result, known: dict[tuple[int, int], Folder]) -> Folder:
    """A folder on disk, the same object by whatever link it is reached; hidden entries are not looked at."""
    key = status.st_dev, status.st_ino  # inode numbers repeat on every mounted volume
    if key not in known:
        folder = known[key] = {}
        with os.scandir(path) as entries:
            for entry in entries:
                folder[entry.name] = None
                if entry.name.startswith("."):
                    continue
                try:
                    status = entry.stat()
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):  # a link to nothing or to itself
                        raise
                    continue
                if stat.S_ISDIR(status.st_mode):
                    folder[entry.name] = _scan(entry.path, status, known)
                elif stat.S_ISREG(status.st_mode):
                    folder[entry.name] = 0, status.st_size
    return known[key]


def _walk(root: Folder) -> tuple[dict[str, tuple[int, int]], set[str], dict[str, list[str]]]:
    """Files, folders, and what was left out; linked folders are followed, except into a folder they lie in."""
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    left_out: dict[str, list[str]] = {_ODD: [], _CIRCLE: [], _HIDDEN: []}
    todo: list[tuple[Folder, str, tuple[int, ...]]] = [(root, "", (id(root),))]
    while todo:
        folder, prefix, above = todo.pop()
        for entry, child in folder.items():
            name = prefix + entry
            if entry.startswith("."):
                left_out[_HIDDEN].append(name)
            elif child is None:
                left_out[_ODD].append(name)
            elif isinstance(child, tuple):
                files[name] = child
            elif id(child) in above:
                left_out[_CIRCLE].append(name)
            else:
                folders.add(name)
                todo.append((child, f"{name}/", (*above, id(child))))
    return files, folders, left_out


def _single_top(names: list[str]) -> str:
    """The top folder with its slash, if all names lie in one: they are sorted, so the first and the last tell."""
    top, slash, _ = names[0].partition("/") if names else ("", "", "")
    return f"{top}/" if slash and names[-1].startswith(f"{top}/") and top not in _NEVER_STRIPPED else ""
