"""Writing files so that a crash, a kill or a full disk never costs what was there before."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seal_fast.utils.errors import RunError, UsageError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary neighbour of `path`, flush it to the disk, then rename it over `path`.

    Raises:
        RunError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except Exception as error:  # whatever the writer raises, its half-written file must go
        with contextlib.suppress(OSError):
            temporary.unlink()
        # safetensors wraps the operating system's error in its own type; only the text is left of it.
        if isinstance(error, OSError) or "os error" in str(error):
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(
                f"{path} could not be written ({reason}); what it held before is intact. "
                "Free space or choose another --out, then run the same command again to continue"
            ) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomically(path, write)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any) -> Any:
    """`value` with NaN and infinities as None, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write an object as JSON, atomically."""
    write_text(path, json.dumps(to_json(value), indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Have an output folder to oneself; the kernel lets go of the lock when its holder dies.

    Args:
        folder: it is made if need be.
        taken: what to say if another process has it.

    Raises:
        UsageError: another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (closing it would release the lock)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"--out {folder}: {taken}") from None
        yield
