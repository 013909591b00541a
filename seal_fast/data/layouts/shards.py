"""Several files as one data set: WebDataset shards or parquet files, and which of them are which split."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from seal_fast.data.archive import Archive
from seal_fast.data.layouts import parquet, webdataset
from seal_fast.data.layouts.common import Contents, Faults, Samples, hold_out, labelled_files
from seal_fast.data.split import Split
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.terminal import shown

DESCRIPTION = "WebDataset shards or parquet files ({train,val}-{000..012}.tar)"
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_READERS = {".tar": webdataset, ".parquet": parquet}


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: {a,b} is a or b, {000..012} the numbers, as in a shell."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        width = len(numbers[1])
        choices = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        choices = found[1].split(",")
    names = (expand(pattern[: found.start()] + choice + pattern[found.end() :]) for choice in choices)
    return list(itertools.chain(*names))


def named(data: str) -> list[Path]:
    """The files that a pattern, or the name of one parquet file, stands for; none for any other path.

    Raises:
        UsageError: a file of the pattern does not exist.
    """
    if Path(data).is_dir() or not (data.endswith(".parquet") or ("{" in data and not Path(data).exists())):
        return []
    paths = [Path(name) for name in expand(data)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"--data {shown(data)}: there is no file {shown(path)}")
    return paths


def inside(archive: Archive) -> list[Path]:
    """The parquet files, else the .tar files, of a folder; of a .tar that is one shard, itself."""
    if not archive.path.is_dir():
        return [archive.path] if webdataset.matches(archive) else []
    suffixes = (suffix for suffix in reversed(_READERS) if any(name.endswith(suffix) for name in archive.files))
    suffix = next(suffixes, None)
    return [archive.path_of(name) for name in archive.files if suffix and name.endswith(suffix)]


def read(paths: Sequence[Path], faults: Faults, split_seed: int | None) -> tuple[str, Contents]:
    """The layout's name and what the files hold; `split_seed` as for `open_images`.

    The word train, val (valid, validation, dev) or test in a file's name, or else as the name of its folder, says
    which split it belongs to.

    Raises:
        UsageError: the files are of several kinds, or are no training files and files to evaluate on.
        RunError: a file is damaged.
    """
    suffixes = sorted({path.suffix for path in paths})
    if len(suffixes) > 1 or suffixes[0] not in _READERS:
        raise UsageError(f"--data names files ending in {', '.join(suffixes)}: give .tar or .parquet files only")
    reader = _READERS[suffixes[0]]
    parts: dict[str | None, list[Path]] = {}
    for path in paths:
        parts.setdefault(_part(path), []).append(path)
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    if parts.keys() == {None} and split_seed is not None:
        samples = reader.read(paths, root)
        classes = samples.classes or _classes(samples)
        return reader.NAME, hold_out(
            _split(samples, classes, faults), classes, split_seed, str(root), samples.store.notes
        )
    if None in parts or "train" not in parts or len(parts) == 1:
        odd = parts.get(None, paths)[0]
        raise UsageError(
            f"{shown(odd)}: training needs files with the word train in their names, or in a folder train/, and others "
            "with val or test, such as --data 'cats-{train,val}-{000..012}.tar'"
        )
    held_out = "val" if "val" in parts else "test"
    train, val = (reader.read(parts[part], root) for part in ("train", held_out))
    classes = train.classes or _classes(train)
    notes = train.store.notes + val.store.notes
    if len(parts) == 3:
        notes += (f"left out {len(parts['test'])} files of test images: best is chosen on those named val",)
    return reader.NAME, Contents(classes, _split(train, classes, faults), _split(val, classes, faults), notes=notes)


def _part(path: Path) -> str | None:
    words = [*re.findall(r"[a-z]+", path.name.lower()), path.absolute().parent.name.lower()]
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def _classes(samples: Samples) -> tuple[str, ...]:
    found = {label for label in samples.labels.values() if label is not None}
    return tuple(map(str, sorted(found, key=lambda label: (isinstance(label, str), label))))


def _split(samples: Samples, classes: tuple[str, ...], faults: Faults) -> Split:
    pairs = []
    for name, label in samples.labels.items():
        known = label
        if samples.classes and isinstance(label, int):  # -1 stands for none
            known = samples.classes[label] if 0 <= label < len(samples.classes) else None
        if known is None:
            faults.report(name, f"{samples.store.where(name)} has no label")
        elif str(known) not in classes:
            raise RunError(f"{samples.store.where(name)}: {shown(str(known))} is no class of the training images")
        else:
            pairs.append((name, str(known)))
    return labelled_files(samples.store, pairs, classes, faults)
