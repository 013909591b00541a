"""WebDataset shards: a .tar with KEY.jpg (or another image) and KEY.cls, or KEY.json with "label", for each image.

Format: webdataset.github.io. KEY is a member's path up to the first dot of its last part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seal_fast.data.archive import Archive
from seal_fast.data.layouts.common import Samples, is_image, other_files
from seal_fast.utils.errors import RunError

NAME = "webdataset"


class Shards:
    """The files of several .tars, named SHARD/MEMBER; see `seal_fast.data.archive.Store`."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self._archives = {str(path.absolute().relative_to(root)): Archive(path) for path in paths}
        self._place = {f"{s}/{name}": (a, name) for s, a in self._archives.items() for name in a.files}
        self.files = {name: archive.files[member] for name, (archive, member) in self._place.items()}
        self.notes = tuple(note for archive in self._archives.values() for note in archive.notes)

    def read(self, name: str) -> np.ndarray:
        """The bytes of a file, uint8 [size]."""
        archive, member = self._place[name]
        return archive.read(member)

    def where(self, name: str) -> str:
        """How messages name a file."""
        archive, member = self._place[name]
        return archive.where(member)


def matches(archive: Archive) -> bool:
    """Whether some KEY.cls or KEY.json lies beside an image of that key."""
    images = {_key(name) for name in archive.files if is_image(name)}
    return any(name.endswith((".cls", ".json")) and _key(name) in images for name in archive.files)


def read(paths: Sequence[Path], root: Path) -> Samples:
    """The images of the shards, named relative to `root`, with their labels.

    Raises:
        RunError: a shard is damaged, a key has two images, or a label is none.
    """
    store = Shards(paths, root)
    images: dict[str, str] = {}
    labels: dict[str, int | str] = {}
    for name in store.files:
        key = _key(name)
        if is_image(name) and images.setdefault(key, name) != name:
            raise RunError(f"{store.where(name)}: {images[key].rpartition('/')[2]} is an image of the same key")
        if name.endswith(".cls") or (name.endswith(".json") and key not in labels):
            labels[key] = _label(store, name)
    store.notes += other_files(store, ("",), known=(".cls", ".json"))
    return Samples(store, {name: labels.get(key) for key, name in images.items()})


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _label(store: Shards, name: str) -> int | str:
    text = store.read(name).tobytes().decode("utf-8", errors="replace").strip()
    value: Any = int(text) if text.isdecimal() else text
    if name.endswith(".json"):
        try:
            value = json.loads(text)
        except ValueError as error:
            raise RunError(f"{store.where(name)} is not JSON ({error})") from None
        value = value.get("label", value.get("cls")) if isinstance(value, dict) else value
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise RunError(f"{store.where(name)} holds no label: a number or a name, in JSON under label or cls")
    return value
