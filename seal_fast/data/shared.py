"""Decoded images kept in a file that all processes of a machine map, so that they lie in its memory once.

The file is raw pixels, then a byte an image that says whether it is good. The first process to need it decodes while
the others wait; it is written beside its place and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import fcntl
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seal_fast.utils.errors import RunError


def folder() -> Path | None:
    """$SEAL_FAST_SHARED_IMAGES: where decoded images are kept for other processes; None keeps nothing."""
    return Path(place) if (place := os.environ.get("SEAL_FAST_SHARED_IMAGES")) else None


def mapped(
    place: Path, key: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], np.ndarray]
) -> tuple[Tensor, np.ndarray]:
    """The pixels under `key`, uint8 of `shape`, mapped read-only, and which rows are good, bool [n].

    Args:
        place: the folder, shared by the processes.
        key: says everything that the pixels depend on.
        shape: n images, height, width, channels.
        fill: decodes into the array it is given, good images first, and says which rows of the split they are.

    Raises:
        RunError: the folder cannot be written, or holds something else under this key.
    """
    file, pixels = place / f"{key}.images", math.prod(shape)
    size = pixels + shape[0]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when its holder dies
            if not file.exists():
                _write(file, size, shape, fill)
        if (found := file.stat().st_size) != size:
            raise RunError(f"{file} is damaged: it holds {found} bytes, not {size}; remove it")
        content = np.memmap(file, np.uint8, "r")
    except OSError as error:
        raise RunError(f"SEAL_FAST_SHARED_IMAGES={place}: {error.strerror or error}; free space or unset it") from None
    good = content[pixels:].astype(bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch cannot write to it is meant
        return torch.from_numpy(content[:pixels].reshape(shape))[: int(good.sum())], good


def _write(file: Path, size: int, shape: tuple[int, ...], fill: Callable[[np.ndarray], np.ndarray]) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as new:
            os.posix_fallocate(new.fileno(), 0, size)  # a file of holes would end in SIGBUS on a full disk
        content = np.memmap(temporary, np.uint8, "r+")
        content[-shape[0] :] = fill(content[: -shape[0]].reshape(shape))
        content.flush()
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
