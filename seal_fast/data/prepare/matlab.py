"""Data sets whose labels are MATLAB files: Flowers-102, Stanford Dogs. scipy reads them without running anything."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from seal_fast.data.prepare.images import Label
from seal_fast.data.prepare.sources import Sources
from seal_fast.utils.errors import RunError


def flowers102(sources: Sources) -> Iterator[Label]:
    """Oxford Flowers-102 (Nilsback and Zisserman, 2008): classes by image number, and numbers by part of the split.

    The layout is the one that torchvision's Flowers102 reads.
    """
    labels, parts = sources.read("imagelabels.mat", "setid.mat")
    classes = _array(labels, "imagelabels.mat", "labels").ravel()
    for key, part in (("trnid", "train"), ("valid", "valid"), ("tstid", "test")):
        for number in map(int, _array(parts, "setid.mat", key).ravel()):
            if not 1 <= number <= len(classes):
                raise RunError(f"setid.mat lists image {number}, and imagelabels.mat has {len(classes)} labels")
            yield Label(f"jpg/image_{number:05d}.jpg", part, f"{int(classes[number - 1]):03d}")


def stanford_dogs(sources: Sources) -> Iterator[Label]:
    """Stanford Dogs (Khosla et al., 2011): file_list and labels in train_list.mat and test_list.mat (its README)."""
    folders: dict[int, str] = {}
    for part, text in zip(("train", "test"), sources.read("train_list.mat", "test_list.mat"), strict=True):
        files, labels = (_array(text, f"{part}_list.mat", key).ravel() for key in ("file_list", "labels"))
        if len(files) != len(labels):
            raise RunError(f"{part}_list.mat holds {len(files)} files and {len(labels)} labels")
        for file, label in zip((str(file.item()) for file in files), map(int, labels), strict=True):
            folder = file.partition("/")[0]
            if folders.setdefault(label, folder) != folder:
                raise RunError(f"{part}_list.mat gives label {label} to {file} and to images of {folders[label]}")
            yield Label(f"Images/{file}", part, folder)


def _array(content: bytes, name: str, key: str) -> Any:
    from scipy.io import loadmat

    try:
        return loadmat(io.BytesIO(content))[key]
    except KeyError:
        raise RunError(f"{name} holds no variable {key}") from None
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        raise RunError(f"{name} is no readable .mat file ({error}): download it again") from None
