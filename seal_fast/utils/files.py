"""Writing files so that a crash, a kill or a full disk never costs what was there before."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seal_fast.utils.errors import NO_MMAP, UNSUPPORTED, RunError, UsageError, errno_of, reason

log = logging.getLogger(__name__)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
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
    except BaseException as error:  # whatever the writer raises, its half-written file must go
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) or errno_of(error):
            raise RunError(
                f"{path} could not be written ({reason(error)}); what it held before is intact. "
                "Free space or choose another --out, then run the same command again to continue"
            ) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; the bytes of names that are not UTF-8 are written as they are."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def read_text(path: Path) -> str:
    """The content of a text file that `write_text` wrote."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk, where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors by name and metadata of a safetensors file, through mmap where the file system has it.

    Raises:
        OSError, SafetensorError: with a number of the operating system if the file could not be read (`errno_of`),
            without one if it was read and is damaged.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        if errno_of(error) not in NO_MMAP:
            raise
    data = path.read_bytes()
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})


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
    """Have an output folder, made if need be, to oneself; the kernel lets go of the lock when its holder dies.

    Raises UsageError, which `taken` ends, if another process has it, or if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "wb")  # closing it would release the lock
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({reason(error)}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--out {folder}: {taken}") from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise UsageError(f"--out {folder}: cannot be locked ({reason(error)}); choose another folder") from None
            log.warning("%s cannot be locked (%s): start no second process with this folder", folder, reason(error))
        yield
