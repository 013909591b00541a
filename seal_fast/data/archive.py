"""A folder, or a .tar of one, as a list of files that are read in place; nothing is ever unpacked or written."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seal_fast.data.tar_index import index_tar
from seal_fast.utils.errors import RunError, UsageError

_NEVER_STRIPPED = ("train", "val", "test", "images")


class Container:
    """The files under a data set's root.

    Attributes:
        path: the folder or the .tar, as named by the user.
        files: name to (offset, size) in bytes. Names are relative to the root, with "/" between their parts, and sorted
            part by part; where everything lies in a single top folder, that folder is the root.
        folders: names of all folders, empty ones included.
        notes: what was left out, one sentence each.
    """

    def __init__(self, path: str | Path):
        """Lists the files.

        Raises:
            UsageError: there is no such path, it cannot be read, or it is neither a folder nor an uncompressed .tar.
            RunError: the tar is truncated or damaged.
        """
        self.path = Path(path)
        self._tar: int | None = None
        self._prefix = ""
        try:
            if self.path.is_dir():
                files, folders, odd = _scan(self.path)
            elif self.path.exists():
                self._tar = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._tar)
                files, folders, odd = index_tar(self._tar, self.path)
            else:
                raise UsageError(f"{self.path}: no such file or folder")
        except OSError as error:
            raise UsageError(f"cannot read {error.filename or self.path}: {error.strerror}") from None
        hidden = {_hidden_top(name) for name in files} - {""}
        visible = (name for name in files if not _hidden_top(name))
        names = sorted(visible, key=lambda name: name.replace("/", "\0"))  # part by part
        for folder in {name.rpartition("/")[0] for name in names}:
            folders.update(_with_parents(folder))
        while (top := _single_top(names)) is not None:
            self._prefix += top
            names = [name.removeprefix(top) for name in names]
        odd, hidden = ({name.removeprefix(self._prefix) for name in group} for group in (odd, hidden))
        self.notes = _notes(odd, "neither a file nor a folder") + _notes(hidden, "hidden")
        self.files = {name: files[self._prefix + name] for name in names}
        inside = (folder.removeprefix(self._prefix) for folder in folders if folder.startswith(self._prefix))
        self.folders = {folder for folder in inside if folder and not _hidden_top(folder)}

    def read(self, name: str) -> np.ndarray:
        """The bytes of a file, uint8 [size].

        Raises:
            RunError: it cannot be read, or is shorter than it was when listed.
        """
        offset, size = self.files[name]
        try:
            if self._tar is not None:
                # pread, not mmap: mapped pages would count as this process's memory, and a file cut short behind our
                # back would end in SIGBUS instead of a sentence.
                data = os.pread(self._tar, size, offset)
            else:
                with open(self.path / self._prefix / name, "rb", buffering=0) as file:
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
        return f"{self._prefix}{name} in {self.path}" if self._tar is not None else str(self.path / self._prefix / name)


def _scan(root: Path) -> tuple[dict[str, tuple[int, int]], set[str], list[str]]:
    """All files below a folder with their sizes; linked folders are followed, except into one of their own parents."""
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    odd: list[str] = []
    todo: list[tuple[Path, str, tuple[int, ...]]] = [(root, "", (root.stat().st_ino,))]
    while todo:
        folder, prefix, above = todo.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    status = entry.stat()
                except FileNotFoundError:  # a link to nothing
                    odd.append(name)
                    continue
                if entry.is_file():
                    files[name] = 0, status.st_size
                elif not entry.is_dir():
                    odd.append(name)
                elif entry.name.startswith("."):
                    files[name] = 0, 0  # stands for all that is in it
                elif status.st_ino not in above:
                    folders.add(name)
                    todo.append((Path(entry.path), f"{name}/", (*above, status.st_ino)))
    return files, folders, odd


def _hidden_top(name: str) -> str:
    """The first part of a path that is hidden, with what leads to it; empty if none is."""
    start = 0 if name.startswith(".") else name.find("/.") + 1
    return name[: name.find("/", start) % (len(name) + 1)] if start or name.startswith(".") else ""


def _with_parents(folder: str) -> Iterable[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _single_top(names: list[str]) -> str | None:
    """The top folder with its slash, if all names lie in one: sorted, so the first and the last tell."""
    top = names[0].partition("/")[0] if names else ""
    alone = bool(names) and "/" in names[0] and names[-1].startswith(f"{top}/") and top not in _NEVER_STRIPPED
    return f"{top}/" if alone else None


def _notes(names: Iterable[str], what: str) -> tuple[str, ...]:
    names = sorted(names)
    return (f"left out {len(names)} entries that are {what}, {names[0]} first",) if names else ()
