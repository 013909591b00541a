"""Decoded images kept in a file that all processes of a machine map, so that they lie in its memory once.

The file is raw pixels behind numpy's header: nothing in it can execute. The first process to need it decodes while the
others wait; it is written beside its place and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
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
    pixels, good = place / f"{key}.pixels.npy", place / f"{key}.good.npy"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go of it when its holder dies
            if not pixels.exists():
                _write(pixels, good, shape, fill)
        kept = np.load(good, allow_pickle=False)
        rows = np.load(pixels, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise RunError(f"SEAL_FAST_SHARED_IMAGES={place}: {error.strerror or error}; free space or unset it") from None
    except ValueError as error:
        raise RunError(f"{place} holds damaged images ({error}); remove it") from None
    if rows.shape != shape or kept.shape != shape[:1]:
        raise RunError(f"{pixels} is of shape {rows.shape}, not {shape}; remove {place}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch cannot write to it is meant
        return torch.from_numpy(rows)[: int(kept.sum())], kept


def _write(pixels: Path, good: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], np.ndarray]) -> None:
    temporary = pixels.with_suffix(f".{os.getpid()}.tmp")
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        # A file of holes would end in SIGBUS on a full disk; this ends in a sentence.
        with temporary.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        kept = fill(array)
        array.flush()
        np.save(good, kept)
        os.replace(temporary, pixels)
    finally:
        with suppress(OSError):
            temporary.unlink()
